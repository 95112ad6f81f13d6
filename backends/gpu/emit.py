"""From a scheduled kernel to Triton functions.

A `grid` loop becomes the programs of a launch, a `lane` loop a dimension of the blocks that a program works on, a
temporary subscripted by lanes a tensor. Every other loop runs inside a program. Each loop over a grid is a launch of
its own; what stands between such loops is a launch of one program. Launches run in order, so temporaries that several
use lie in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations

from intarsia.backends.gpu.descriptors import described_in
from intarsia.backends.gpu.expressions import Part, base_name
from intarsia.backends.gpu.lanes import all_sizes
from intarsia.backends.gpu.lines import Scope
from intarsia.backends.gpu.loads import Tile
from intarsia.backends.gpu.triton_kernel import RECORD, Parameter, Pointer, Scalar, TritonKernel
from intarsia.backends.gpu.values import AND, UNARY
from intarsia.backends.gpu.writes import Writes
from intarsia.ir.dtypes import I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import (
    LANES,
    Alloc,
    Buffer,
    Call,
    Check,
    For,
    If,
    Kernel,
    Prefetch,
    Put,
    Statement,
    walk,
)
from intarsia.ir.kernel_access import accesses, trips, written_in
from intarsia.ir.kernel_launch import LARGE, STAGES, statements_of_launches
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Const, apply
from intarsia.ir.sizes import Size, minimum, product

LARGEST_BLOCK = 1 << 17
"""Elements of a block beyond which no program could hold it."""


def emit_kernel(kernel: Kernel, unaligned: Collection[str] = ()) -> tuple[TritonKernel, ...]:
    """The launches of a kernel, in order. `unaligned` parameters may not be at a multiple of 16 bytes. Raises
    ScheduleError where the kernel is not scheduled so that it can be written in Triton."""
    groups = statements_of_launches(kernel)
    allocated = {s.buffer.name for s in kernel.body if isinstance(s, Alloc)}
    users = {name: sum(any(a.buffer == name for a in accesses(g)) for g in groups) for name in allocated}
    shared = {name for name, count in users.items() if count > 1}
    names = [kernel.name if len(groups) == 1 else f"{kernel.name}_{n}" for n in range(len(groups))]
    launches = (_Launch(kernel, name, group, shared, unaligned) for name, group in zip(names, groups))
    return tuple(launch.whole() for launch in launches)


class _Launch(Writes):
    """Writes one function. is_walk: does each program take several blocks, one after the other?"""

    def __init__(
        self, kernel: Kernel, name: str, body: Sequence[Statement], shared: Iterable[str], unaligned: Collection[str]
    ) -> None:
        elements = [product(b.shape).constant for b in kernel.buffers().values()]
        wide = bool(kernel.sizes) or any(n is None or n >= 1 << 31 for n in elements)
        super().__init__({**kernel.buffers(), RECORD.name: RECORD}, wide, body, shared)
        self.described = described_in(body, kernel.buffers(), unaligned)
        self.unaligned = unaligned
        self.kernel = kernel
        self.name = name.replace(".", "_")
        self.grid: list[Size] = []
        self.program_axes: list[tuple[str, Size]] = []
        self.blocks = {axis: lane.block for axis, lane in self.lanes.items()}
        self.constants = {lane.block: lane.extent for lane in self.lanes.values() if lane.extent > 1}
        self.facts = Facts(names=frozenset(kernel.sizes))
        self.is_walk = False

    def whole(self) -> TritonKernel:
        """The function with its signature."""
        used = frozenset(n for s, _ in walk(self.body) for z in self._sizes(s) for n in z.symbols)
        names = [n for n in self.kernel.sizes if n in used]
        self.variables.update({n: self.fresh(n) for n in names})
        self.arguments = frozenset(names)
        self.programs()
        parameters: list[Parameter] = [
            Pointer(text, buffer, self.buffers[buffer].dtype, element, buffer not in self.unaligned)
            for (buffer, element), text in self.pointers.items()
        ]
        place = {b.name: n for n, b in enumerate(self.kernel.parameters)}
        parameters.sort(key=lambda p: place.get(p.buffer, len(place)) if isinstance(p, Pointer) else 0)
        parameters += [Scalar(self.variables[n], Size.of(n), "i64") for n in names]
        words = [p.name if isinstance(p, Pointer) else f"{p.name}: tl.{p.type.replace('i', 'int')}" for p in parameters]
        words += [f"{n}: tl.constexpr" for n in self.constants]
        head = f"def {self.name}({', '.join(words)}):"
        if len(head) > 88:
            head = f"def {self.name}(\n" + "".join(f"    {w},\n" for w in words) + "):"
        if all(line.lstrip().startswith("#") for line in self.lines):
            self.line("pass")
        text = "\n".join(["@triton.jit", head, *self.lines])
        warps = self.kernel.warps or (4 if self.largest <= LARGE else 8)
        return TritonKernel(
            self.name, text, tuple(parameters), tuple(self.grid) or (Size.of(1),), warps,
            self.kernel.stages or STAGES, tuple(self.constants.items()), tuple(self.helpers.values()),
            tuple(self.program_axes), tuple(self.transfers),
        )  # fmt: skip

    def _sizes(self, statement: Statement) -> Iterator[Size]:
        """The integer expressions of a statement, and the shapes of what it touches."""
        yield from all_sizes(statement)
        for access in accesses((statement,)) if not isinstance(statement, (For, If)) else ():
            yield from self.buffers[access.buffer].shape

    # ------------------------------------------------------------------ loops

    def programs(self) -> None:
        """Take the loops over the grid, the innermost one first, then write the rest."""
        loops: list[For] = []
        body = self.body
        while len(body) == 1 and isinstance(loop := body[0], For) and loop.kind == "grid":
            loops.append(loop)
            body = loop.body
        if any(isinstance(s, For) and s.kind == "grid" for s, _ in walk(body)):
            raise ScheduleError("a loop over the grid stands inside another loop")
        self.known.update({x.axis: x.lower for x in loops if trips(x).constant == 1})
        loops = [x for x in loops if x.axis not in self.known]
        for loop in loops:
            if loop.step != 1 or loop.lower != Size.of(0) or loop.upper.opaques:
                raise ScheduleError(f"the grid axis {loop.axis} runs over {loop.lower}..{loop.upper}")
        places = self._places(loops, body)
        groups = self._groups_of_programs(loops, body)
        for loop in reversed(loops):
            if loop.axis in groups.values():
                continue
            text = places[loop.axis]
            if (outer := groups.get(loop.axis)) is not None:
                text = f"{places[outer]} * {loop.upper} + {text}"
                loop = replace(loop, upper=loop.upper * next(x.upper for x in loops if x.axis == outer))
            name = self.variables[loop.axis] = self.fresh(f"pid_{base_name(loop.axis)}")
            self.line(f"{name} = {text}")
            self.facts = self.facts.within(loop.axis, loop.lower, loop.upper)
            self.open_loops[loop.axis] = loop
        self.known.update(dict.fromkeys(groups.values(), Size.of(0)))
        self.program_axes = [(x.axis, self.open_loops[x.axis].upper) for x in loops if x.axis in self.open_loops]
        here = len(self.lines)
        if self.is_walk:
            here = self.scopes[-1].start
            self.scopes[-1].variables.update(self.variables[axis] for axis in self.open_loops)
        else:
            self.programs_of.update(self.open_loops)
        self.block(body)
        if self.is_walk:
            self._end_walk()
        self.lines[here:here] = self.first_lines

    def _places(self, loops: Sequence[For], body: Sequence[Statement]) -> dict[str, str]:
        """Begin the programs: what says which iteration of each loop it is that runs."""
        counts = [loop.upper for loop in reversed(loops)]
        axes = [loop.axis for loop in reversed(loops)]
        total, most = product(counts), self.kernel.programs
        wide = ".to(tl.int64)" if self.wide else ""
        if most and loops and (total.constant is None or total.constant > most):
            self.grid = [minimum(total, most)]
            return dict(zip(axes, self._digits(self._begin_walk(total, body), counts)))
        if len(loops) <= 3 and all(c.constant is not None and c.constant < 1 << 16 for c in counts[1:]):
            self.grid = counts
            return {axis: f"tl.program_id({n}){wide}" for n, axis in enumerate(axes)}
        self.grid = [total]
        self.line(f"pid = tl.program_id(0){wide}")
        return dict(zip(axes, self._digits("pid", counts)))

    def _digits(self, number: str, counts: Sequence[Size]) -> list[str]:
        """The digits of a number, the last one first, where there are so many of each."""
        found = []
        for n, count in enumerate(counts):
            text = f"{number} // {self.size(product(counts[:n])).at(UNARY)}" if n else number
            found.append(text if n + 1 == len(counts) else f"{text} % {self.size(count).at(UNARY)}")
        return found

    def _begin_walk(self, total: Size, body: Sequence[Statement]) -> str:
        """Begin the loop in which a program takes every so many blocks; the number of the block."""
        self.is_walk = True
        name = self.fresh("tile")
        self.scopes.append(Scope(len(self.lines), written_in(body), variables={name}))
        self.line(f"for {name} in tl.range(tl.program_id(0), {self.size(total).text}, tl.num_programs(0)):")
        self.depth += 1
        if not self.wide:
            return name
        wide = self.fresh(name)
        self.line(f"{wide} = tl.cast({name}, tl.int64)")
        self.scopes[-1].variables.add(wide)
        return wide

    def _end_walk(self) -> None:
        """Where descriptors alone read ahead, one loop is made of this one and those inside it: what the next block
        begins with is read while the last one ends."""
        start = self.scopes.pop().start
        self.depth -= 1
        if self.descriptors and not self.has_plain_loads:
            self.lines[start] = self.lines[start].replace("):", ", flatten=True):")

    def _groups_of_programs(self, loops: Sequence[For], body: Sequence[Statement]) -> dict[str, str]:
        """Axes over programs that count within groups, and those that count the groups, where both only ever occur as
        `8 * outer + inner`: there is one number for both then."""
        sizes = [z.substitute(self.known) for s, _ in walk(tuple(body)) for z in self._sizes(s)]
        found: dict[str, str] = {}
        for outer, inner in permutations(loops, 2):
            group = inner.upper.constant
            steps = [(z.coefficient(outer.axis), z.coefficient(inner.axis)) for z in sizes]
            if group and all(a is not None and b is not None and a == group * b for a, b in steps):
                found[inner.axis] = outer.axis
        return found if len(set(found.values())) == len(found) and not found.keys() & set(found.values()) else {}

    def block(self, body: Sequence[Statement]) -> None:
        for statement in body:
            match statement:
                case For():
                    self.loop(statement)
                case Put():
                    self.put(statement)
                case If(condition, then, otherwise):
                    self.branch(condition, then, otherwise)
                case Alloc(buffer):
                    self.allocate(buffer)
                case Prefetch():
                    pass
                case Check():
                    self.check(statement)
                case Call(routine):
                    raise ScheduleError(f"there is no {routine} in Triton")

    def loop(self, loop: For) -> None:
        count = trips(loop).substitute(self.known).constant
        if count == 0:
            return
        facts = self.facts
        self.facts = facts.within(loop.axis, loop.lower, loop.upper)
        if loop.kind in LANES:
            self.lane(loop)
        elif count is not None and (loop.kind == "unroll" or self._is_of_list(loop)):
            for n in range(count):
                self.known[loop.axis] = (loop.lower + n * loop.step).substitute(self.known)
                self.block(loop.body)
        elif count == 1:
            self.known[loop.axis] = loop.lower.substitute(self.known)
            self.block(loop.body)
        else:
            self.sequential(loop)
        self.facts = facts

    def _is_of_list(self, loop: For) -> bool:
        """Does a loop run over the tensors of a list? Each of them is a parameter."""
        lists = {b.name for b in self.kernel.parameters if b.length is not None}
        return any(a.buffer in lists and loop.axis in a.indices[0].symbols for a in accesses(loop.body))

    def lane(self, loop: For) -> None:
        """A dimension of blocks."""
        extent = (loop.upper - loop.lower).constant
        if extent is None or extent & (extent - 1) or loop.step != 1 or loop.lower != Size.of(0):
            raise ScheduleError(f"the lanes {loop.axis} in {loop.lower}..{loop.upper} are no power of two from 0")
        lane = self.lanes[loop.axis]
        self.order = (*self.order, loop.axis)
        self.extents[loop.axis] = extent
        if lane.outer is not None:
            self.parts.append(Part(lane.outer, loop.axis, extent, f"{lane.outer} and {loop.axis}"))
        if loop.kind == "scan":
            self.begin_scan(loop)
        self.block(loop.body)
        self.order = self.order[:-1]
        if loop.kind == "scan":
            self.end_scan(loop.axis)

    def sequential(self, loop: For) -> None:
        """A loop inside a program."""
        bounds = [self.size(b) for b in (loop.lower, loop.upper)]
        if any(b.axes for b in bounds):
            raise ScheduleError(f"the bounds {loop.lower}..{loop.upper} of {loop.axis} are not the same for all lanes")
        self.before_changes(loop.body)
        if any(b.opaques or not b.symbols.isdisjoint(self.wide_axes) for b in (loop.lower, loop.upper)):
            self.wide_axes.add(loop.axis)
        start, end = bounds
        words = [end.text] if start.text == "0" and loop.step == 1 else [start.text, end.text]
        words += [str(loop.step)] if loop.step != 1 else []
        name = self.fresh(loop.axis)
        self.scopes.append(Scope(len(self.lines), written_in(loop.body), loop=loop, variables={name}))
        self.line(f"for {name} in range({', '.join(words)}):")
        self.depth += 1
        if self.wide:
            wide = self.fresh(name)
            self.line(f"{wide} = tl.cast({name}, tl.int64)")
            name = wide
            self.scopes[-1].variables.add(name)
        self.variables[loop.axis] = name
        self.open_loops[loop.axis] = loop
        before = len(self.lines)
        self.block(loop.body)
        if len(self.lines) == before:
            self.line("pass")
        self.settle_all(loop.body)
        del self.open_loops[loop.axis]
        self.scopes.pop()
        self.depth -= 1
        self.after_changes(loop.body)

    def branch(self, condition: Sequence[Size], then: Sequence[Statement], otherwise: Sequence[Statement]) -> None:
        test = self.mask(condition, self.order)
        if test is not None and test.axes:
            raise ScheduleError("a condition is not the same for all lanes")
        if test is None:
            self.block(then)
            return
        self.before_changes((*then, *otherwise))
        for word, body in ((f"if {test.text}:", then), ("else:", otherwise)):
            if not body:
                continue
            self.line(word)
            self.depth += 1
            self.scopes.append(Scope(is_loop=False))
            before = len(self.lines)
            self.block(body)
            self.settle_all(body)
            if len(self.lines) == before:
                self.line("pass")
            self.scopes.pop()
            self.depth -= 1
        self.after_changes((*then, *otherwise))

    def check(self, check: Check) -> None:
        """Note a check that fails, if it is the first one. No other program and no other lane does so."""
        if self.grid or self.order:
            raise ScheduleError("a check stands inside a loop over programs or lanes")
        self.comment(check.span)
        self.before_changes((check,))
        fails = apply("not", check.condition)
        self.begin(fails)
        record = self.pointer(RECORD.name, None)
        self.line(f"if {self.value(fails).at(AND)} & (tl.load({record}) == 0):")
        self.depth += 1
        self.scopes.append(Scope(is_loop=False))
        self.begin(*check.values)
        values = [self.convert(self.value(v), I64).text for v in check.values]
        self.line("tl.debug_barrier()")
        for place, text in enumerate((str(check.number), str(len(values)), *values)):
            self.line(f"tl.store({record} + {place}, {text})" if place else f"tl.store({record}, {text})")
        self.line("tl.debug_barrier()")
        self.scopes.pop()
        self.depth -= 1

    def before_changes(self, body: Sequence[Statement]) -> None:
        """Before statements that may run several times or not at all: what they change must exist, and is forgotten."""
        changed = written_in(body)
        for name in sorted(changed | {a.buffer for a in accesses(tuple(body))}):
            self.settle(name)
        for name in sorted(changed):
            if name in self.tiles and name not in self.written:
                self.pending[name] = Const(0, self.tiles[name].buffer.dtype)
                self.settle(name)
        self.forget(changed)

    def settle_all(self, body: Sequence[Statement]) -> None:
        for name in sorted(written_in(body)):
            if name in self.tiles:
                self.settle(name)
                self.written.add(name)

    def after_changes(self, body: Sequence[Statement]) -> None:
        self.forget(written_in(body))

    # ------------------------------------------------------------------ temporaries

    def allocate(self, buffer: Buffer) -> None:
        """A temporary: memory if several launches use it, else a tile."""
        if buffer.memory == "global" or buffer.name in self.shared_buffers:
            if self.order or self.open_loops:
                raise ScheduleError(f"{buffer.name} lies in memory, but not at the beginning of the kernel")
            return
        if buffer.name in self.tiles:
            return
        uses = [a for a in accesses(self.body) if a.buffer == buffer.name and a.writes]
        if not uses:
            return
        own: list[str] = []
        extents: list[int] = []
        for index in uses[0].indices:
            axis = index.substitute(self.single).as_name
            loop = next((x for x in uses[0].loops if x.axis == axis and x.kind in LANES), None)
            if loop is None:
                raise ScheduleError(f"{buffer.name} is subscripted by {index}, not by a whole dimension of a block")
            extents.append(int(loop.upper - loop.lower))
            own.append(self.blocks[loop.axis])
        shape = (*(self.extents[a] for a in self.order), *extents)
        blocks = (*(self.blocks[a] for a in self.order), *own)
        if (total := int(product(shape))) > LARGEST_BLOCK:
            raise ScheduleError(f"a block of {buffer.name} has {total} elements, which no program can hold")
        self.tiles[buffer.name] = Tile(self.fresh(buffer.name), buffer, self.order, shape, blocks)
