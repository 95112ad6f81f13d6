"""When the slots of a plan are needed: the analysis behind its memory report, and a check of any plan.

A slot is live at a statement if what it holds there may still be read. Backward over the statements, with a fixed point
for loops (the textbook dataflow analysis). It looks at the plan alone, so that it also checks who made the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_scratch import Scratch, scratch
from intarsia.ir.ops.collective import Done
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat, Slot
from intarsia.ir.plan_text import print_plan_statement
from intarsia.ir.scalar import loads
from intarsia.ir.sizes import ZERO, Size, product

Names = frozenset[str]


@dataclass(frozen=True)
class Moment:
    """A statement (a loop stands for its entry, where its bounds are read), the number of loops around it, and the
    slots that hold something needed while it runs, in the order of the plan."""

    statement: PlanStatement
    depth: int
    live: tuple[Slot, ...]


def moments(plan: Plan) -> tuple[Moment, ...]:
    """Every statement of a plan with what is live there, in the order of the text. Inputs are always live."""
    return _Analysis(plan).run()


def verify_plan(plan: Plan) -> None:
    """Raises AssertionError if two tensors that are needed at the same time overlap in the workspace (as far as sizes
    are numbers), or if an input is written, in the plan or in its preparation."""
    for part in plan.whole:
        _verify(part)


def _verify(plan: Plan) -> None:
    for moment in moments(plan):
        placed = [s for s in moment.live if s.place == "workspace" and slot_bytes(s).constant]
        for n, a in enumerate(placed):
            for b in placed[:n]:
                if a.offset.constant is None or b.offset.constant is None:
                    continue
                apart = int(a.offset + slot_bytes(a)) <= int(b.offset) or int(b.offset + slot_bytes(b)) <= int(a.offset)
                assert apart, f"{a.name} and {b.name} overlap at {moment.statement}"


def slot_bytes(slot: Slot) -> Size:
    """The bytes of a slot, of one element for a list."""
    return product(slot.shape) * slot.dtype.bytes


class _Analysis:
    """The walk. `states` gives the slots in which the value of a loop state may be."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.slots = {s.name: s for s in plan.slots}
        self.kernels = {k.name: k for k in plan.kernels}
        self.states: dict[str, Names] = {}

    def run(self) -> tuple[Moment, ...]:
        outputs = frozenset(s.name for s in self.plan.slots if s.place == "output")
        found: list[Moment] = []
        self.block(self.plan.body, outputs, found, 0)
        return tuple(reversed(found))

    def block(self, body: Sequence[PlanStatement], live: Names, found: list[Moment] | None, depth: int) -> Names:
        """What is live before statements after which `live` is; moments are appended last first."""
        self._declare(body)
        for statement in reversed(body):
            if isinstance(statement, Repeat):
                live = self.repeat(statement, live, found, depth)
                continue
            reads, writes, whole = self.effects(statement)
            before = (live - whole) | reads
            if found is not None:
                found.append(self.moment(statement, live | before | writes, depth))
            live = before
        return live

    def _declare(self, body: Iterable[PlanStatement]) -> None:
        """The slots of the states of loops, those of inner loops first used here included."""
        for statement in body:
            if isinstance(statement, Repeat):
                for state in statement.states:
                    buffers = frozenset[str]().union(*(self.slots_of(b) for b in state.buffers))
                    self.states[f"{state.name}.next"] = buffers
                    self.states[state.name] = buffers | self.slots_of(state.initial)

    def repeat(self, loop: Repeat, after: Names, found: list[Moment] | None, depth: int) -> Names:
        live, previous = after, None
        while live != previous:
            previous = live
            live = live | after | self._step(loop, live, after, None, depth)
        inner: list[Moment] | None = None if found is None else []
        head = self._step(loop, live, after, inner, depth)
        entry = ((after | head) - self._made_by(loop)) | self._entering(loop)
        if found is not None and inner is not None:
            found += inner
            found.append(self.moment(loop, entry, depth))
        return entry

    def _step(self, loop: Repeat, live: Names, after: Names, found: list[Moment] | None, depth: int) -> Names:
        """What is live before a step after which `live` is; the condition may leave the loop."""
        live = self.block(loop.body, live, found, depth + 1)
        if loop.condition is not None:
            live = self.block(loop.test, live | after | self.slots_of(loop.condition), found, depth + 1)
        return live

    def _made_by(self, loop: Repeat) -> Names:
        """The slots whose contents a loop makes as a whole: buffers of its states, results that it stacks."""
        made = frozenset[str]().union(*(self.slots_of(b) for s in loop.states for b in s.buffers))
        for statement in loop.body:
            for reference in _written(statement, self.kernels):
                if loop.counter in reference.start.symbols:
                    made |= self.slots_of(reference)
        return made

    def _entering(self, loop: Repeat) -> Names:
        found = frozenset[str]().union(*(self.slots_of(s.initial) for s in loop.states))
        return found | self.read_by_sizes((loop.lower, loop.upper))

    # ------------------------------------------------------------------ one statement

    def effects(self, statement: Invoke | Copy | Exchange) -> tuple[Names, Names, Names]:
        """The slots that a statement reads, those that it writes, and those that it writes as a whole."""
        read: list[Reference] = []
        if not isinstance(statement, Invoke):
            read += [statement.source] if statement.source is not None else []
            if isinstance(statement, Exchange) and isinstance(statement.node, Done):
                read.append(statement.target)
        else:
            for buffer, reference in zip(self.kernels[statement.kernel].parameters, statement.arguments):
                if buffer.role in ("in", "inout"):
                    read.append(reference)
        written = _written(statement, self.kernels)
        reads = frozenset[str]().union(*(self.slots_of(r) for r in read))
        sizes = (s for r in (*read, *written) for s in (r.element, r.start) if s is not None)
        whole = (self.slots_of(r) for r in written if r.start == ZERO and not self._is_part(statement, r))
        return (
            reads | self.read_by_sizes(sizes),
            frozenset[str]().union(*(self.slots_of(r) for r in written)),
            frozenset[str]().union(*(names for names in whole if len(names) == 1)),
        )

    def _is_part(self, statement: Invoke | Copy | Exchange, reference: Reference) -> bool:
        """Is less than the slot written?"""
        slot = self.slots.get(reference.name)
        if slot is None:
            return False
        if isinstance(statement, Copy):
            return product(slot.shape) != statement.elements
        if isinstance(statement, Exchange):
            return product(slot.shape) != statement.node.value.tensor.elements
        kernel = self.kernels[statement.kernel]
        buffer = next(b for b, r in zip(kernel.parameters, statement.arguments) if r is reference)
        names: Mapping[str, Size] = dict(zip(kernel.sizes, statement.sizes))
        return product(s.substitute(names) for s in buffer.shape) != product(slot.shape)

    def slots_of(self, reference: Reference) -> Names:
        return self.states.get(reference.name, frozenset((reference.name,)))

    def read_by_sizes(self, sizes: Iterable[Size]) -> Names:
        found = (load.buffer for s in sizes for o in s.opaques for load in loads(o))
        return frozenset[str]().union(*(self.slots_of(Reference(name)) for name in found))

    def moment(self, statement: PlanStatement, live: Names, depth: int) -> Moment:
        return Moment(statement, depth, tuple(s for s in self.plan.slots if s.name in live or s.place == "input"))


def _written(statement: PlanStatement, kernels: Mapping[str, Kernel]) -> tuple[Reference, ...]:
    """Where a statement writes; nothing for a loop."""
    match statement:
        case Exchange(Done()):
            return ()
        case Copy() | Exchange():
            return (statement.target,)
        case Invoke(kernel, arguments):
            pairs = zip(kernels[kernel].parameters, arguments)
            return tuple(reference for buffer, reference in pairs if buffer.role != "in")
    return ()


@dataclass(frozen=True)
class PlanReport:
    """What a plan needs in memory, in bytes; open sizes stay in it.

    Outputs that take inputs count as these. prepared: what is computed from constants once and kept. live: for each
    statement, in the order of the text, the sum of the outputs and workspace slots that hold something needed while it
    runs. No plan with this order of execution can do with less than the largest of them. scratch: what kernels make for
    themselves, by their names.
    """

    inputs: Size
    outputs: Size
    workspace: Size
    prepared: Size
    live: tuple[tuple[Moment, Size], ...]
    scratch: tuple[tuple[str, Scratch], ...] = ()

    @property
    def peak_live(self) -> int:
        """The largest sum of live bytes, over the statements where it is a number."""
        return max((total.constant for _, total in self.live if total.constant is not None), default=0)

    def __str__(self) -> str:
        lines = [f"inputs {self.inputs} bytes, outputs {self.outputs} bytes, workspace {self.workspace} bytes"]
        if self.prepared != ZERO:
            lines.append(f"prepared from constants once: {self.prepared} bytes")
        lines.append(f"most live at once: {self.peak_live} bytes")
        for moment, total in self.live:
            text = print_plan_statement(moment.statement).partition("\n")[0]
            lines.append(f"{total!s:>12}  {'  ' * moment.depth}{text}")
        lines += [f"scratch of {kernel}: {own}" for kernel, own in self.scratch]
        return "\n".join(lines)


def plan_report(plan: Plan) -> PlanReport:
    """What a plan needs in memory, statement by statement."""

    def total(slots: Iterable[Slot]) -> Size:
        return sum((slot_bytes(s) * (s.length if s.length is not None else 1) for s in slots), ZERO)

    def of(place: str) -> Size:
        return total(s for s in plan.slots if s.place == place and not s.takes)

    live = tuple((m, total(s for s in m.live if s.place != "input" and not s.takes)) for m in moments(plan))
    made = ZERO if plan.preparation is None else plan_report(plan.preparation.plan).outputs
    own = tuple((kernel.name, one) for kernel in plan.kernels for one in scratch(kernel))
    return PlanReport(of("input") - made, of("output"), plan.workspace_bytes, made, live, own)
