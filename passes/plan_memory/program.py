"""A lowered program as a line of steps: what memory planning sees.

Every tensor that has to be somewhere is a `Cell`; copies that the program implies (into a state, a row of a stacked
result, an output) are `Move`s, most of which planning makes vanish by giving source and target the same memory. Every
step has a position; a cell is needed from one time to another: a step at position p begins at time 2p, when moves are
made, and ends at time 2p + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.kernel import Alloc, Kernel
from intarsia.ir.ops import Call, Collective, DeviceIndex, Done, ListGet, Loop, Reshape
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType
from intarsia.passes.plan_memory.overwriting import operands_of_results


@dataclass(eq=False)
class Cell:
    """A tensor in memory, needed from time `start` to time `end`.

    `loops` are the loops inside which it is made, outermost first. `input` is the parameter that it is (for a list,
    `type` is that of an element); `element` the list, or the tensor of which it is a row, the position in it and the
    scalars that this loads. Both are never written, but for inputs that are `donated`. `is_scalar` says that an integer
    expression reads it, `is_state` that it is the current value of a state of the innermost loop.
    """

    label: str
    type: TensorType
    loops: tuple[Loop, ...]
    start: int = 0
    end: int = -1
    input: Parameter | None = None
    element: tuple[Cell, Size, tuple[Cell, ...]] | None = None
    is_scalar: bool = False
    is_state: bool = False
    donated: bool = False

    @property
    def is_fixed(self) -> bool:
        return (self.input is not None and not self.donated) or self.element is not None

    @property
    def bytes(self) -> Size:
        return self.type.elements * self.type.dtype.bytes

    def needed_at(self, time: int) -> None:
        self.end = max(self.end, time)


@dataclass(eq=False)
class Move:
    """`target` becomes what `source` is."""

    source: Cell
    target: Cell
    position: int


@dataclass(eq=False)
class Overwrite(Move):
    """The kernel's `result` may lie where its `operand` does, names of buffers, if the kernel reads each element before
    it writes it, and nothing needs the operand afterwards. Else they lie apart, and nothing is copied."""

    operand: str
    result: str


@dataclass(eq=False)
class CallStep:
    """A kernel run. `bases` are the moves of the old values of results that it changes in place, `overwrites` those of
    operands that other results may take the place of; `scratch` are its temporaries in the workspace, in the order of
    its parameters."""

    node: Call
    kernel: Kernel
    position: int
    arguments: tuple[Cell, ...]
    results: tuple[Cell, ...]
    bases: dict[Cell, Move]
    overwrites: tuple[Overwrite, ...]
    scratch: tuple[Cell, ...]


@dataclass(eq=False)
class ExchangeStep:
    """A collective, of which `argument` is None where it takes nothing, or the end of one, of the same two cells."""

    node: Collective | DeviceIndex | Done
    position: int
    argument: Cell | None
    result: Cell


@dataclass(eq=False)
class LoopState:
    """A state of a loop: its value in a step, the one that the step makes, and the one after the loop."""

    label: str
    entry: Move  # of the initial value
    current: Cell
    step: Move  # of what the body yields
    next: Cell
    result: Cell


@dataclass(eq=False)
class Stack:
    """A stacked result and the row of it that a step writes."""

    whole: Cell
    row: Cell
    move: Move


@dataclass(eq=False)
class LoopStep:
    """A loop: the steps of its condition, then of its body, between the positions `head` and `tail`."""

    node: Loop
    scalars: tuple[Cell, ...]
    head: int
    tail: int
    states: tuple[LoopState, ...]
    stacks: tuple[Stack, ...]
    test: tuple[Step, ...]
    condition: Cell | None
    body: tuple[Step, ...]


Step: TypeAlias = CallStep | ExchangeStep | Move | LoopStep


@dataclass
class Program:
    """The steps in order, every cell in order of making, and the moves into the results."""

    graph: Graph
    kernels: dict[str, Kernel]
    steps: tuple[Step, ...]
    cells: tuple[Cell, ...]
    results: tuple[Move, ...]


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps in order, those of a loop after it."""
    for step in steps:
        yield step
        if isinstance(step, LoopStep):
            yield from walk((*step.test, *step.body))


def linearise(module: Module, kernels: dict[str, Kernel], donated: Collection[str] = ()) -> Program:
    """The program of a lowered module; `kernels` by name, temporaries that live in the workspace made parameters.
    `donated` are names of parameters whose memory the program may use."""
    graph = module.graph
    builder = _Builder(kernels, f"{graph.name}_")
    for parameter in graph.parameters:
        kind = parameter.type
        cell = builder.cell(parameter.label, kind.tensor)
        cell.input = parameter
        cell.donated = parameter.label.partition(".")[0] in donated and isinstance(kind, TensorType)
        builder.values[parameter.value] = cell
    steps = builder.region(graph.body)
    results: list[Move] = []
    for label, value in zip(graph.result_names, graph.results):
        results.append(builder.move(builder.values[value], builder.cell(label, value.tensor)))
    return Program(graph, kernels, tuple(steps), tuple(builder.cells), tuple(results))


@dataclass
class _Builder:
    """Walks regions in the order of execution, numbering steps and noting until when cells are needed."""

    kernels: dict[str, Kernel]
    prefix: str
    cells: list[Cell] = field(default_factory=list)
    values: dict[Value, Cell] = field(default_factory=dict)
    loops: tuple[Loop, ...] = ()
    position: int = 0
    captured: list[dict[Cell, None]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def cell(self, label: str, type_: TensorType) -> Cell:
        cell = Cell(label, type_, self.loops, start=2 * self.position)
        self.cells.append(cell)
        return cell

    def next_position(self) -> int:
        self.position += 1
        return self.position

    def use(self, cell: Cell, time: int) -> None:
        """A cell is read: until `time`, and, where it comes from outside of loops, until the outermost of them ends."""
        cell.needed_at(time)
        common = sum(1 for a, b in zip(cell.loops, self.loops) if a is b)
        if common < len(self.loops):
            self.captured[common][cell] = None
        if cell.element is not None:
            for scalar in cell.element[2]:
                self.use(scalar, time)

    def move(self, source: Cell, target: Cell) -> Move:
        """A copy at a position of its own."""
        position = self.next_position()
        self.use(source, 2 * position)
        target.start = 2 * position
        target.needed_at(2 * position + 1)
        return Move(source, target, position)

    # ------------------------------------------------------------------ regions

    def region(self, region: Region) -> list[Step]:
        outer, self.steps = self.steps, []
        for node in region.nodes:
            self.node(node)
        inner, self.steps = self.steps, outer
        return inner

    def node(self, node: Node) -> None:
        match node:
            case Call():
                self._call(node)
            case Collective() | DeviceIndex():
                self._exchange(node)
            case Done(x):
                self._done(node, x.node)
            case Loop():
                self._loop(node)
            case Reshape(x):
                self.values[node.value] = self.values[x]
            case ListGet(source, index, scalars):
                whole = self.values[source]
                assert whole.input is not None, "items are those of parameters"
                cell = self.cell(whole.label, node.value.tensor)
                cell.element = (whole, index, self.scalars(scalars))
                self.values[node.value] = cell
            case _:
                raise AssertionError(f"{node.name} in a lowered graph")

    def scalars(self, values: Iterable[Value]) -> tuple[Cell, ...]:
        """The cells of scalars that integer expressions read: each at the start of a slot."""
        return tuple(self._scalar(self.values[v]) for v in values)

    def _scalar(self, cell: Cell) -> Cell:
        if cell.element is not None:
            copy = self.move(cell, self.cell(cell.label, cell.type))
            self.steps.append(copy)
            cell = copy.target
        cell.is_scalar = True
        return cell

    def _call(self, node: Call) -> None:
        kernel = self.kernels[node.kernel]
        arguments = [self.values[v] for v in node.arguments]
        position = self.next_position()
        label = kernel.name.removeprefix(self.prefix)
        results = [self.cell(label, v.tensor) for v in node.values]
        scratch = [self.cell(b.name, TensorType(b.dtype, b.shape)) for b in kernel.parameters if b.role == "temp"]
        given, made = iter(arguments), iter(results)
        read: list[Cell] = []
        bases: dict[Cell, Move] = {}
        for buffer in kernel.parameters:
            match buffer.role:
                case "in":
                    read.append(next(given))
                    self.use(read[-1], 2 * position + 1)
                case "out":
                    next(made).needed_at(2 * position + 1)
                case "inout":
                    base, result = next(given), next(made)
                    self.use(base, 2 * position)
                    result.needed_at(2 * position + 1)
                    bases[result] = Move(base, result, position)
        for cell in scratch:
            cell.needed_at(2 * position + 1)
        self.values.update(zip(node.values, results))
        overwrites = tuple(_overwrites(kernel, position, read, results))
        made_in = (tuple(read), tuple(results), bases, overwrites, tuple(scratch))
        self.steps.append(CallStep(node, kernel, position, *made_in))

    def _exchange(self, node: Collective | DeviceIndex) -> None:
        argument = self.values[node.x] if isinstance(node, Collective) else None
        position = self.next_position()
        result = self.cell(node.name, node.value.tensor)
        result.needed_at(2 * position + 1)
        if argument is not None:
            self.use(argument, 2 * position + 1)
        self.values[node.value] = result
        self.steps.append(ExchangeStep(node, position, argument, result))

    def _done(self, node: Done, started: Node) -> None:
        """What is sent stays as it is until now."""
        assert isinstance(started, Collective)
        argument, result = self.values[started.x], self.values[started.value]
        position = self.next_position()
        for cell in (argument, result):
            self.use(cell, 2 * position + 1)
        self.values[node.value] = result
        self.steps.append(ExchangeStep(node, position, argument, result))

    # ------------------------------------------------------------------ loops

    def _loop(self, node: Loop) -> None:
        scalars = self.scalars(node.scalars)
        initial = [self.values[v] for v in node.initial]
        varying = [n for n, p in enumerate(node.states) if node.body.results[n] != p.value]
        stacks = [self.cell("stack", t) for t in node.results[len(initial) :] if isinstance(t, TensorType)]
        entries = [self.move(initial[n], self.cell(node.states[n].label, initial[n].type)) for n in varying]
        head = self.next_position()
        for scalar in scalars:
            self.use(scalar, 2 * head)
        for stack in stacks:
            stack.start = 2 * head
        self.loops = (*self.loops, node)
        self.captured.append({})
        current = dict(enumerate(initial))
        for n, entry in zip(varying, entries):
            current[n] = entry.target
            entry.target.loops, entry.target.is_state = self.loops, True
            entry.target.needed_at(2 * head + 1)
        test, condition = self._condition(node, current, [e.target for e in entries])
        self.values.update((p.value, current[n]) for n, p in enumerate(node.states))
        body = self.region(node.body)
        yielded = [self.values[v] for v in node.body.results]
        rows = [self._row(whole, source) for whole, source in zip(stacks, yielded[len(initial) :])]
        nexts = [self.move(yielded[n], self.cell(node.states[n].label, initial[n].type)) for n in varying]
        tail = self.next_position()
        for cell in self.captured.pop():
            cell.needed_at(2 * tail + 1)
        self.loops = self.loops[:-1]
        for step in nexts:
            step.target.needed_at(2 * tail)
        for stack in stacks:
            stack.needed_at(2 * tail + 1)
        results = [self._after(tail, node.states[n].label, initial[n].type) for n in varying]
        states = tuple(
            LoopState(node.states[n].label, entry, entry.target, step, step.target, result)
            for n, entry, step, result in zip(varying, entries, nexts, results)
        )
        self.values.update(zip(node.values, (*initial, *stacks)))
        self.values.update((node.values[n], result) for n, result in zip(varying, results))
        self.steps.append(LoopStep(node, scalars, head, tail, states, tuple(rows), tuple(test), condition, tuple(body)))

    def _condition(
        self, node: Loop, current: dict[int, Cell], states: Sequence[Cell]
    ) -> tuple[list[Step], Cell | None]:
        """The steps before each step of the loop, through which every state is needed, and the cell that decides."""
        if node.condition is None:
            return [], None
        self.values.update((p.value, current[n]) for n, p in enumerate(node.condition.parameters))
        steps = self.region(node.condition)
        cell = self.values[node.condition.results[0]]
        position = self.next_position()
        for used in (cell, *states):
            self.use(used, 2 * position + 1)
        return steps, cell

    def _row(self, whole: Cell, source: Cell) -> Stack:
        row = self.cell("row", source.type)
        return Stack(whole, row, self.move(source, row))

    def _after(self, tail: int, label: str, type_: TensorType) -> Cell:
        """What a state is after the loop."""
        cell = self.cell(label, type_)
        cell.start = 2 * tail + 1
        cell.needed_at(2 * tail + 1)
        return cell


def _overwrites(kernel: Kernel, position: int, read: Sequence[Cell], made: Sequence[Cell]) -> Iterator[Overwrite]:
    """The operands of a call, each given to it once, whose places its results would fit in. Those that are likeliest to
    be right come first: a parameter, which Adam reads for its next value alone, before the means that it also reads for
    that of themselves."""
    used = operands_of_results(kernel)
    readers = Counter(name for names in used.values() for name in names)
    for source, operand in sorted(zip(read, kernel.inputs, strict=True), key=lambda pair: readers[pair[1].name]):
        for target, result in sorted(
            zip(made, kernel.outputs), key=lambda pair: operand.name not in used[pair[1].name]
        ):
            fits = source.type.dtype == target.type.dtype and source.type.elements == target.type.elements
            if fits and result.role == "out" and not source.is_fixed and read.count(source) == 1:
                yield Overwrite(source, target, position, operand.name, result.name)


# ---------------------------------------------------------------------- temporaries of kernels


def with_scratch_parameters(kernel: Kernel, dimensions: Iterable[str], on_stack: int) -> Kernel:
    """The kernel with its temporaries of more than `on_stack` bytes, those at the top level of its body, as parameters
    of role `temp`.

    A temporary whose size depends on more than the open `dimensions`, on a loop counter, stays with the kernel: the
    workspace is made before any loop runs.
    """
    known = frozenset(dimensions)
    moved = [s for s in kernel.body if isinstance(s, Alloc) and _is_large(s, on_stack)]
    moved = [s for s in moved if all(extent.symbols <= known for extent in s.buffer.shape)]
    if not moved:
        return kernel
    scratch = (replace(s.buffer, memory="global", role="temp") for s in moved)
    body = tuple(s for s in kernel.body if s not in moved)
    return replace(kernel, parameters=(*kernel.parameters, *scratch), body=body)


def _is_large(alloc: Alloc, on_stack: int) -> bool:
    buffer = alloc.buffer
    elements = TensorType(buffer.dtype, buffer.shape).elements.constant
    in_memory = buffer.memory in ("global", "cache")
    return in_memory and (elements is None or elements * buffer.dtype.bytes > on_stack)
