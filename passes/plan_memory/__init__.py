"""From a lowered module to a plan: where every tensor is, when, and which copies are left.

    %1 = call @f_exp(%x)         plan f workspace 128 bytes {
    %2 = call @f_neg(%1)           run f_exp(x, exp)           exp and neg are needed at the same time, the value
    %3 = call @f_exp(%2)     =>    run f_neg(exp, neg)         after them lies where exp was, and the last one is
    %4 = call @f_neg(%3)           run f_exp(neg, exp.1)       written straight into the result
    return %4                      run f_neg(exp.1, result) }

The order of execution is that of the nodes. `program` says when each tensor is needed, `sharing` what is in place,
`offsets` where the rest lies, `preparation` what is computed once. See docs/lowering.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from intarsia.ir.errors import Remark, Remarks
from intarsia.ir.graph import Module, Parameter, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import DeviceIndex, Done, Loop
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Preparation, Reference, Repeat, Slot, State
from intarsia.ir.plan_liveness import slot_bytes
from intarsia.ir.scalar import Expr, Load, as_size, transform
from intarsia.ir.sizes import Size, maximum, minimum
from intarsia.ir.space import operand_position
from intarsia.ir.types import ListType
from intarsia.passes.fuse.groups import estimated
from intarsia.passes.fuse.report import bytes_text
from intarsia.passes.lower.stages import Names
from intarsia.passes.plan_memory.offsets import Piece, place
from intarsia.passes.plan_memory.order import in_order_of_memory
from intarsia.passes.plan_memory.overwriting import with_overwritten
from intarsia.passes.plan_memory.preparation import separate_preparation
from intarsia.passes.plan_memory.program import (
    CallStep,
    Cell,
    ExchangeStep,
    LoopState,
    LoopStep,
    Move,
    Program,
    Step,
    linearise,
    walk,
    with_scratch_parameters,
)
from intarsia.passes.plan_memory.sharing import Group, InOutput, InRow, InState, Sharing, share

WORTH = 16
"""Kernels run in another order than the one written where that saves this part of the memory."""

ON_STACK = 4096
"""Bytes up to which a temporary of a kernel for a CPU stays with the kernel."""


def plan(module: Module, remarks: Remarks | None = None, kind: str = "cpu", donated: Collection[str] = ()) -> Plan:
    """The plan of a module after `lower` (scheduled or not), for a `kind` of target. Remarks say what is reused, in
    place or kept, and why. Results may lie in the memory of the parameters of the names `donated`.

    On a GPU all temporaries are in the workspace, and no result is written over an operand: threads of a program wait
    for each other only where values pass between them.
    """
    remarks = remarks or Remarks()
    separate = separate_preparation(module, remarks)
    made = _plan(separate.rest, remarks, kind, donated)
    if separate.once is None:
        return made
    return replace(made, preparation=Preparation(_plan(separate.once, remarks, kind), separate.inputs))


def _plan(module: Module, remarks: Remarks, kind: str, donated: Collection[str] = ()) -> Plan:
    """The plan of a module in which nothing is prepared."""
    on_stack, overwriting = (ON_STACK, True) if kind == "cpu" else (-1, False)
    kernels = {k.name: with_scratch_parameters(k, module.graph.dimensions, on_stack) for k in module.kernels}

    def planned(module: Module) -> tuple[Plan, Remarks]:
        own = Remarks()
        program = linearise(module, kernels, donated)
        return _Writer(program, share(program, own, overwriting)).plan(), own

    made, own = planned(module)
    other = in_order_of_memory(module, kernels, donated, overwriting)
    if other is not module:
        changed, why = planned(other)
        before, after = _bytes(made), _bytes(changed)
        if WORTH * (before - after) >= before:
            sizes = (bytes_text(Size.of(n)) for n in (after, before))
            text = "kernels run in another order: {} for results and workspace in place of {}".format(*sizes)
            why.add(Remark("plan-memory", "memory", text, None))
            made, own = changed, why
    remarks.items += own.items
    return made


def _bytes(plan: Plan) -> int:
    """What a plan needs beside its inputs."""
    outputs = (slot_bytes(s) for s in plan.slots if s.place == "output" and not s.takes)
    return estimated(sum(outputs, plan.workspace_bytes))


class _Writer:
    """Writes the statements of a program whose cells have their places."""

    def __init__(self, program: Program, sharing: Sharing) -> None:
        self.program = program
        self.sharing = sharing
        self.names = Names(program.graph.dimensions)
        self.slots: list[Slot] = []
        self.slot_of: dict[Group, str] = {}
        self.inputs: dict[Cell, str] = {}
        self.outputs: list[str] = []
        self.states: dict[LoopState, str] = {}
        self.forms = _forms(program, sharing)
        self.exchanges = count()
        self.started: dict[Value, Value] = {}  # what collectives give, and the same of the nodes that the plan has

    def plan(self) -> Plan:
        graph = self.program.graph
        self._arguments()
        workspace_bytes = self._workspace()
        body = [*self._steps(self.program.steps), *self._copies(self.program.results)]
        return Plan(
            graph.name,
            tuple(self.slots),
            tuple(body),
            tuple(kernel for forms in self.forms.values() for kernel in forms.values()),
            graph.dimensions,
            workspace_bytes,
        )

    # ------------------------------------------------------------------ slots

    def _name(self, label: str) -> str:
        return self.names.fresh(re.sub(r"[^\w.]", "_", label) or "x")

    def _arguments(self) -> None:
        """The slots of inputs and outputs."""
        cells = {c.input: c for c in self.program.cells if c.input is not None}
        for index, parameter in enumerate(self.program.graph.parameters):
            name, kind = self._name(parameter.label), parameter.type
            tensor, length = (kind.element, kind.length) if isinstance(kind, ListType) else (kind, None)
            self.slots.append(Slot(name, tensor.dtype, tensor.shape, "input", index, length=length))
            self.inputs[cells[parameter]] = name
        for index, move in enumerate(self.program.results):
            name, tensor = self._name(move.target.label), move.target.type
            donor = self.sharing.groups[move.target].donated
            takes = "" if donor is None else self.inputs[donor]
            self.slots.append(Slot(name, tensor.dtype, tensor.shape, "output", index, takes=takes))
            self.outputs.append(name)

    def _workspace(self) -> Size:
        """The slots in the workspace, and its bytes."""
        groups = [g for g in dict.fromkeys(self.sharing.groups.values()) if g.place is None and not g.is_input]
        placement = place([Piece(g.bytes, tuple(g.intervals)) for g in groups], self.program.graph.dimensions)
        for group, offset in zip(groups, placement.offsets):
            name, tensor = self._name(group.label), group.cells[0].type
            self.slots.append(Slot(name, tensor.dtype, tensor.shape, "workspace", offset=offset))
            self.slot_of[group] = name
        return placement.bytes

    # ------------------------------------------------------------------ references

    def _reference(self, cell: Cell) -> Reference:
        """Where a cell is, seen from the statements that may use it."""
        if cell.input is not None and self.sharing.groups[cell].place is None:
            return Reference(self.inputs[cell])
        if cell.element is not None:
            source, index, scalars = cell.element
            assert source.input is not None
            if not isinstance(source.input.type, ListType):
                assert not scalars, "a row that data decides is read by the kernel"
                return Reference(self.inputs[source], start=index * cell.type.elements)
            return Reference(self.inputs[source], element=self._element(source, self._size(index, scalars)))
        match self.sharing.groups[cell].place:
            case InOutput(number):
                return Reference(self.outputs[number])
            case InState(state, is_next):
                return Reference(self.states[state] + (".next" if is_next else ""))
            case InRow(stack, loop):
                whole = self._reference(stack.whole)
                step = Size.of(loop.counter) - loop.lower
                return Reference(whole.name, whole.element, whole.start + step * stack.row.type.elements)
        return Reference(self.slot_of[self.sharing.groups[cell]])

    def _element(self, source: Cell, index: Size) -> Size:
        """A position in a list, clamped if it depends on data."""
        assert source.input is not None and isinstance(source.input.type, ListType)
        return maximum(0, minimum(index, source.input.type.length - 1)) if index.opaques else index

    def _size(self, size: Size, scalars: Sequence[Cell]) -> Size:
        """An integer expression that loads scalars `a0`, … as one that loads slots and states."""

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load):
                return None
            where = self._reference(scalars[operand_position(e.buffer)])
            assert where == Reference(where.name), f"a scalar at {where} is not at the start of a slot"
            return Load(where.name, (), e.dtype)

        return size.substitute({}, lambda value: as_size(transform(value, rule=read))) if size.opaques else size

    # ------------------------------------------------------------------ statements

    def _steps(self, steps: Sequence[Step]) -> Iterator[PlanStatement]:
        for step in steps:
            match step:
                case CallStep():
                    yield from self._copies(step.bases.values())
                    yield self._invoke(step)
                case ExchangeStep():
                    yield self._exchange(step)
                case Move():
                    yield from self._copies([step])
                case LoopStep():
                    yield from self._copies([s.entry for s in step.states if s not in self.sharing.buffers])
                    yield self._repeat(step)

    def _copies(self, moves: Iterable[Move]) -> Iterator[PlanStatement]:
        """The moves whose source and target are apart."""
        for move in moves:
            if not self.sharing.same(move):
                kind = move.target.type
                yield Copy(self._reference(move.source), self._reference(move.target), kind.dtype, kind.elements)

    def _invoke(self, step: CallStep) -> Invoke:
        over = self.sharing.overwritten.get(step, {})
        kernel = self.forms[step.kernel.name][tuple(over.items())]
        inputs = [b.name for b in step.kernel.parameters if b.role == "in"]
        given = (cell for name, cell in zip(inputs, step.arguments) if name not in over.values())
        made, scratch = iter(step.results), iter(step.scratch)
        source = {"in": given, "out": made, "inout": made, "temp": scratch}
        references = tuple(self._reference(next(source[b.role])) for b in kernel.parameters)
        return Invoke(kernel.name, references, step.node.sizes, step.node.span)

    def _exchange(self, step: ExchangeStep) -> Exchange:
        number, node = next(self.exchanges), step.node
        target = self._reference(step.result)
        if step.argument is None or isinstance(node, DeviceIndex):
            return Exchange(node, None, target, number)
        source = self._reference(step.argument)
        if isinstance(node, Done):
            return Exchange(Done(self.started[node.x], span=node.span), source, target, number)
        stand_in = replace(node, x=Parameter("x", node.x.type).value)
        self.started[node.value] = stand_in.value
        return Exchange(stand_in, source, target, number)

    def _repeat(self, step: LoopStep) -> Repeat:
        loop: Loop = step.node
        states: list[State] = []
        for state in step.states:
            buffers = self.sharing.buffers.get(state)
            name = self._name(state.label)
            if buffers is None:
                place_ = self._reference(state.current)
                states.append(State(name, place_, (place_,)))
                continue
            self.names.fresh(f"{name}.next")
            both = (self._reference(buffers.first), self._reference(buffers.second))
            states.append(State(name, self._reference(state.entry.source), both))
            self.states[state] = name
        moves = sorted([*(s.move for s in step.stacks), *(s.step for s in step.states)], key=lambda m: m.position)
        return Repeat(
            loop.counter,
            self._size(loop.lower, step.scalars),
            self._size(loop.upper, step.scalars),
            tuple(states),
            (*self._steps(step.body), *self._copies(moves)),
            tuple(self._steps(step.test)),
            None if step.condition is None else self._reference(step.condition),
        )


Overwritten = tuple[tuple[str, str], ...]
"""Results of a kernel, each with the operand that it is written over."""


def _forms(program: Program, sharing: Sharing) -> dict[str, dict[Overwritten, Kernel]]:
    """The kernels that are called, by name and by what they overwrite; the first form of each keeps its name."""
    found: dict[str, dict[Overwritten, Kernel]] = {name: {} for name in program.kernels}
    names = set(program.kernels)
    for step in walk(program.steps):
        if not isinstance(step, CallStep):
            continue
        over = sharing.overwritten.get(step, {})
        forms = found[step.kernel.name]
        if tuple(over.items()) not in forms:
            kernel = with_overwritten(step.kernel, over)
            if forms:
                wanted = f"{kernel.name}_in_place" if over else f"{kernel.name}_apart"
                numbered = (wanted, *(f"{wanted}_{n}" for n in range(1, len(names) + 1)))
                kernel = replace(kernel, name=next(name for name in numbered if name not in names))
                names.add(kernel.name)
            forms[tuple(over.items())] = kernel
    return found
