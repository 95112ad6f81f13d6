"""Is a module well formed? Order and scope of values, types, spaces, loops, calls.

Nodes are typed when they are built, so what `problems` finds is a bug of the pass that put them together, or a mistake
in a text that was written or changed by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import CompileError, Diagnostic, Span
from intarsia.ir.functions import COMBINERS, FUNCTIONS
from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.kernel import PUT_FUNCTIONS, Buffer
from intarsia.ir.kernel_verifier import problems as kernel_problems
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.ops.collective import Collective, Done
from intarsia.ir.ops.control import Call, Fused, ListGet, Loop
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar import Expr, Load, loads
from intarsia.ir.sizes import ZERO, Size, product
from intarsia.ir.space import Axis, Space, arrange, operand, size_loads
from intarsia.ir.text_printer import node_text
from intarsia.ir.types import ListType, TensorType, Type


def verify_module(module: Module) -> None:
    """Raises AssertionError, with every problem in its message, if the module is not well formed."""
    found = problems(module)
    assert not found, "\n".join(found)
    for kernel in module.kernels:
        verify_kernel(kernel)


def require_well_formed(module: Module) -> None:
    """Raises CompileError E1509, with every problem, if a module that was read from text is not well formed."""
    verifier = _Verifier(module)
    verifier.graph()
    found = []
    for problem in verifier.found:
        span = verifier.spans.get(problem)
        found.append(Diagnostic("E1509", problem.partition(", in\n")[0] if span else problem, span))
    for kernel in module.kernels:
        found += [Diagnostic("E1509", f"kernel {kernel.name}: {p}", kernel.span) for p in kernel_problems(kernel)]
    if found:
        raise CompileError.of(found)


def problems(module: Module) -> tuple[str, ...]:
    """What is wrong with the graph of a module, in the order of its text; each with the node that it is about."""
    verifier = _Verifier(module)
    verifier.graph()
    return tuple(verifier.found)


@dataclass
class _Verifier:
    module: Module
    found: list[str] = field(default_factory=list)
    spans: dict[str, Span | None] = field(default_factory=dict)  # those of the nodes, by problem
    seen: set[Node] = field(default_factory=set)
    counters: set[str] = field(default_factory=set)

    def graph(self) -> None:
        graph = self.module.graph
        names = frozenset(graph.dimensions)
        if len(names) != len(graph.dimensions):
            self.found.append(f"func @{graph.name}: a dimension name occurs twice in {', '.join(graph.dimensions)}")
        for parameter in graph.parameters:
            self.type(parameter.type, names, f"parameter {parameter.label}")
        self.region(graph.body, frozenset(), names, f"func @{graph.name}")

    def region(self, region: Region, outer: frozenset[Node], names: frozenset[str], place: str) -> None:
        """Every value that a region uses is made before, in it or around it; every node is in one region."""
        scope = set(outer)
        for parameter in region.parameters:
            self.once(parameter, place)
            scope.add(parameter)
        for node in region.nodes:
            self.once(node, place)
            for value in node.operands:
                if value.node not in scope:
                    self.problem(node, f"uses the result of a {value.node.name} that is not made before it")
                elif not value.index < len(value.node.results):
                    self.problem(node, f"uses result {value.index} of a {value.node.name} that has fewer")
            self.node(node, frozenset(scope) if node.regions else frozenset(), names)
            scope.add(node)
        self.started(region)
        for value in region.results:
            if value.node not in scope:
                self.found.append(f"{place} gives the result of a {value.node.name} that is not made in it")

    def started(self, region: Region) -> None:
        """A collective that is started has one `done`, in its region, and nothing else uses it."""
        readers: dict[Node, list[str]] = {n: [] for n in region.nodes if isinstance(n, Collective) and n.started}
        for node in region.nodes if readers else ():
            for value in node.inputs:
                if value.node in readers:
                    readers[value.node].append("" if isinstance(node, Done) else node.name)
        for value in region.results:
            if value.node in readers:
                readers[value.node].append("the results")
        for node, names in readers.items():
            if names != [""]:
                found = " and ".join(name or "a done" for name in names) or "nothing"
                self.problem(node, f"one done has to wait for what is started, and not {found}")

    def once(self, node: Node, place: str) -> None:
        if node in self.seen:
            self.found.append(f"{place}: a {node.name} occurs twice")
        self.seen.add(node)

    def problem(self, node: Node, message: str) -> None:
        self.found.append(f"{message}, in\n    {node_text(node)}")
        self.spans[self.found[-1]] = node.span

    # ------------------------------------------------------------------ nodes

    def node(self, node: Node, scope: frozenset[Node], names: frozenset[str]) -> None:
        """One node; `scope` are the nodes that its regions may use, `names` the dimensions and counters in scope."""
        try:
            again = node.placed_types(node.infer())
        except CompileError as error:
            return self.problem(node, f"cannot be typed: {error.diagnostics[0].message}")
        if again != node.results:
            self.problem(node, f"has results of type {_types(node.results)} but makes {_types(again)}")
        for type_ in node.results:
            self.type(type_, names, node.name)
        match node:
            case Structured():
                if isinstance(node, Compute):
                    self.arranged(node, node.arguments, tuple(node.definition.loads()))
                self.space(node, node.space, names)
            case Update():
                self.update(node, names)
            case Loop():
                self.loop(node, scope, names)
            case ListGet(source, index, scalars):
                if isinstance(source.type, TensorType) and not source.type.rank:
                    self.problem(node, f"takes an element of {source.type}, which has none")
                self.scalars(node, (index,), scalars, names)
            case Fused(body):
                if body.parameters:
                    self.problem(node, "a fused region has parameters")
                for inner in body.nodes:
                    if isinstance(inner, (ListGet, Loop, Fused, Call)):
                        self.problem(node, f"holds a {inner.name}, which can be no part of a kernel")
                self.region(body, scope, names, "fused")
            case Call():
                self.call(node)
        return None

    def type(self, type_: Type, names: frozenset[str], what: str) -> None:
        sizes = type_.extents
        unknown = sorted(frozenset().union(*(s.symbols for s in sizes)) - names)
        if unknown:
            self.found.append(f"{what} is {type_}: {', '.join(unknown)} is no dimension here")

    def arranged(self, node: Node, values: tuple[Value, ...], reads: tuple[Load, ...], kept: int = 0) -> None:
        """Operands are distinct and in the order of reading, so that equal spaces look alike."""
        positions = [load for load in reads if load.buffer in map(operand, range(len(values)))]
        if arrange(values, positions, kept) != (values, {}):
            self.problem(node, "operands are not distinct, or not in the order of reading")

    def space(self, node: Structured, space: Space, names: frozenset[str]) -> None:
        result = node.value.tensor
        if (space.dtype, space.shape) != (result.dtype, result.shape):
            self.problem(node, f"its space gives {TensorType(space.dtype, space.shape)}")
        for axis in space.axes:
            if axis.lower != ZERO:
                self.problem(node, f"the axis {axis.name} of a result begins at {axis.lower}")
        own = {a.name for a in space.axes}
        operands = dict(enumerate(node.operands))
        for axis in space.axes:
            self.bounds(node, axis, names, operands)
        visible = names | own
        for axis in space.reduced:
            self.bounds(node, axis, visible, operands)
            visible |= {axis.name}
        self.expression(node, space.body, visible, operands)
        if space.combiner is not None:
            if space.combiner not in COMBINERS:
                self.problem(node, f"there is no reduction {space.combiner}")
            elif not FUNCTIONS[COMBINERS[space.combiner].function].accepts(space.body.dtype):
                self.problem(node, f"{space.combiner} over {space.body.dtype}")
        elif space.body.dtype != space.dtype:
            self.problem(node, f"its body is {space.body.dtype}")

    def bounds(self, node: Node, axis: Axis, names: frozenset[str], operands: Mapping[int, Value]) -> None:
        for bound in (axis.lower, axis.upper):
            self.size(node, bound, names, operands)

    def size(self, node: Node, size: Size, names: frozenset[str], operands: Mapping[int, Value]) -> None:
        """Names are in scope, data is of integer type, loads fit their operands."""
        unknown = sorted(size.symbols - names)
        if unknown:
            self.problem(node, f"{', '.join(unknown)} has no value here")
        for value in size.opaques:
            if not value.dtype.is_integer:
                self.problem(node, f"the subscript {value} is {value.dtype}")
        self.loads(node, size_loads((size,)), operands)

    def expression(self, node: Node, e: Expr, names: frozenset[str], operands: Mapping[int, Value]) -> None:
        unknown = sorted(e.symbols - names)
        if unknown:
            self.problem(node, f"{', '.join(unknown)} has no value here")
        self.loads(node, loads(e), operands)

    def loads(self, node: Node, found: Iterator[Load], operands: Mapping[int, Value]) -> None:
        for load in found:
            position = int(load.buffer[1:]) if load.buffer[1:].isdigit() and load.buffer[0] == "a" else -1
            if position not in operands:
                self.problem(node, f"{load} loads no operand")
                continue
            dtype, rank = _element(operands[position].type)
            if load.dtype != dtype:
                self.problem(node, f"{load} is read as {load.dtype} from {operands[position].type}")
            if len(load.indices) != rank:
                self.problem(node, f"{load} has {len(load.indices)} subscripts into {operands[position].type}")

    def update(self, node: Update, names: frozenset[str]) -> None:
        operands = dict(enumerate((node.base, *node.arguments)))
        visible = names
        for axis in node.axes:
            self.bounds(node, axis, visible, operands)
            if axis.name in visible:
                self.problem(node, f"the axis {axis.name} has a value already")
            visible |= {axis.name}
        if len(node.targets) != node.base.tensor.rank:
            self.problem(node, f"has {len(node.targets)} targets in {node.base.type}")
        for target in node.targets:
            self.size(node, target, visible, operands)
        self.expression(node, node.body, visible, operands)
        if node.body.dtype != node.base.dtype:
            self.problem(node, f"writes {node.body.dtype} into {node.base.type}")
        if node.operator != "=" and not FUNCTIONS[PUT_FUNCTIONS[node.operator]].accepts(node.body.dtype):
            self.problem(node, f"{node.operator} of {node.body.dtype}")
        bounds = (b for a in node.axes for b in (a.lower, a.upper))
        reads = (*size_loads((*node.targets, *bounds)), *loads(node.body))
        self.arranged(node, (node.base, *node.arguments), reads, kept=1)

    def loop(self, node: Loop, scope: frozenset[Node], names: frozenset[str]) -> None:
        self.scalars(node, (node.lower, node.upper), node.scalars, names)
        if node.counter in self.counters or node.counter in self.module.graph.dimensions:
            self.problem(node, f"the counter {node.counter} is not the only one of its name")
        self.counters.add(node.counter)
        if node.stacked and (node.lower.opaques or node.upper.opaques):
            self.problem(node, "stacks a number of values that depends on data")
        initial = [v.type for v in node.initial]
        if [p.type for p in node.states] != initial:
            self.problem(node, "its states are not of the types of their initial values")
        inner = names | {node.counter}
        self.region(node.body, scope, inner, f"the body of the loop over {node.counter}")
        if node.condition is None:
            return
        self.region(node.condition, scope, inner, f"the condition of the loop over {node.counter}")
        if [p.type for p in node.condition.parameters] != initial:
            self.problem(node, "its condition does not take the states")
        if [v.type for v in node.condition.results] != [TensorType(BOOL)]:
            self.problem(node, "its condition is not one bool")

    def scalars(self, node: Node, sizes: tuple[Size, ...], values: tuple[Value, ...], names: frozenset[str]) -> None:
        for size in sizes:
            self.size(node, size, names, dict(enumerate(values)))
        self.arranged(node, values, tuple(size_loads(sizes)))

    def call(self, node: Call) -> None:
        """Arguments and results fit the parameters of a kernel of the module."""
        kernel = next((k for k in self.module.kernels if k.name == node.kernel), None)
        if kernel is None:
            return self.problem(node, f"there is no kernel {node.kernel}")
        if len(node.sizes) != len(kernel.sizes):
            self.problem(node, f"gives {len(node.sizes)} sizes to a kernel with {len(kernel.sizes)}")
        sizes = dict(zip(kernel.sizes, node.sizes))
        arguments = [b for b in kernel.parameters if b.role != "out"]
        self.fit(node, arguments, [v.type for v in node.arguments], sizes, "argument")
        self.fit(node, list(kernel.outputs), list(node.types), sizes, "result")
        return None

    def fit(self, node: Node, buffers: list[Buffer], types: list[Type], sizes: Mapping[str, Size], what: str) -> None:
        """The same dtype, and as many dimensions, or as many elements: a schedule may flatten those of a buffer."""
        if len(buffers) != len(types):
            return self.problem(node, f"has {len(types)} {what}s for {len(buffers)} parameters")
        for buffer, type_ in zip(buffers, types):
            dtype, rank = _element(type_)
            own = type_.tensor
            fits = len(buffer.shape) + (buffer.length is not None) == rank or (
                (buffer.length is None) == isinstance(type_, TensorType)
                and product(buffer.shape).substitute(sizes) == own.elements
            )
            if buffer.dtype != dtype or not fits:
                self.problem(node, f"the {what} {type_} does not fit {buffer.name}: {buffer}")
        return None


def _element(type_: Type) -> tuple[DType, int]:
    """The dtype of a load from a value of this type, and how many subscripts it has."""
    if isinstance(type_, ListType):
        return type_.element.dtype, type_.element.rank + 1
    return type_.dtype, type_.rank


def _types(types: tuple[Type, ...]) -> str:
    return ", ".join(map(str, types)) or "none"
