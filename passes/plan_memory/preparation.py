"""What depends on constants only is computed once, before the first call, by a program of its own.

    func f(x, const w) {                  func f_prepare(const w) {
      %1 = call @transpose(%w)              %1 = call @transpose(%w); %2 = call @product_prepare(%1)
      %2 = call @product(%x, %1)     =>     return %2
      return %2                           func f(x, const w, const product.wp) {
    }                                       %2 = call @product(%x, %wp); return %2

Both kernels that get nothing but constants, and the part of a kernel that its schedule prepares (`ir/preparation.py`).
What a loop computes from items of constants, the weights of its layer, is computed for all items, one after the other:

    loop i in 0..L {                      func f_prepare(const w) {
      %1 = list_get %w[i]                   %1 = scan item in 0..L { … yield call @product_prepare(list_get %w[item]) }
      %2 = call @product(%h, %1)     =>     return %1
      yield %2                            func f(x, const w, const product.wp) {
    }                                       loop i in 0..L { %1 = list_get %wp[i]; %2 = call @product(%h, %1); …
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.digest import node_key
from intarsia.ir.errors import Remark, Remarks
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.ops import Call, ListGet, Loop, Reshape
from intarsia.ir.preparation import split_preparation
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.types import TensorType, Type
from intarsia.passes.lower.constants import Constants
from intarsia.passes.lower.stages import Names
from intarsia.passes.regions import change_node_regions, change_nodes


@dataclass(frozen=True)
class Separated:
    """A program in two: `once`, from the inputs of the numbers `inputs` to what is prepared; and the rest, which takes
    that after its other inputs."""

    once: Module | None
    rest: Module
    inputs: tuple[int, ...] = ()


def separate_preparation(module: Module, remarks: Remarks) -> Separated:
    """Separate what a lowered program computes from constants only."""
    if not any(p.constant for p in module.graph.parameters):
        return Separated(None, module)
    module = _with_split_kernels(module)
    kernels = {k.name: k for k in module.kernels}
    graph, constants = module.graph, Constants(kernels.__getitem__, frozenset(module.graph.dimensions))
    moved: set[Node] = {n for n in graph.body.walk() if isinstance(n, Call) and constants.of(n.values[0]) is not None}
    wanted = _wanted(graph.body, moved)
    if not wanted:
        return Separated(None, module)
    once, inputs = _Once(graph, constants).graph(wanted)
    given = {v: Parameter(_label(v, n), r.type, constant=True) for n, (v, r) in enumerate(zip(wanted, once.results))}
    body = _rest(graph.body, moved, given, constants)
    body = replace(body, parameters=(*graph.parameters, *given.values()))
    remarks.add(Remark("plan", "memory", _report(once.results), graph.results[0].node.span, True))
    called = {n.kernel for n in once.body.walk() if isinstance(n, Call)}
    return Separated(
        Module(once, tuple(k for k in module.kernels if k.name in called)),
        replace(module, graph=replace(graph, body=body)),
        inputs,
    )


def _with_split_kernels(module: Module) -> Module:
    """Calls of kernels that prepare something become two: one that does, and one that takes it."""
    kernels = {k.name: split_preparation(k) for k in module.kernels}
    if all(once is None for once, _ in kernels.values()):
        return module

    def split(node: Node) -> tuple[Node, ...]:
        if not isinstance(node, Call) or (once := kernels[node.kernel][0]) is None:
            return (change_node_regions(node, lambda region: change_nodes(region, split)),)
        old = module.kernel(node.kernel)
        names = [b.name for b in old.parameters if b.role != "out"]
        arguments = tuple(node.arguments[names.index(b.name)] for b in once.inputs)
        sizes = dict(zip(old.sizes, node.sizes))
        types = tuple(TensorType(b.dtype, b.shape).substitute(sizes) for b in once.outputs)
        made = Call(once.name, arguments, types, tuple(sizes[name] for name in once.sizes), span=node.span)
        count = len(old.inputs)
        return made, replace(node, arguments=(*node.arguments[:count], *made.values, *node.arguments[count:]))

    kept = tuple(k for once, rest in kernels.values() for k in (once, rest) if k is not None)
    return replace(module.with_body(change_nodes(module.graph.body, split)), kernels=kept)


def _wanted(body: Region, moved: set[Node]) -> tuple[Value, ...]:
    """The values of the nodes that move which those that stay need, in the order of these nodes."""
    stack = list(_used(body, moved))
    needed: set[Value] = set()
    while stack:
        value = stack.pop()
        if value not in needed:
            needed.add(value)
            stack += value.node.operands if isinstance(value.node, (Reshape, ListGet)) else ()
    return tuple(v for node in body.walk() if node in moved for v in node.values if v in needed)


def _used(region: Region, moved: set[Node]) -> Iterator[Value]:
    """What the nodes that stay read, but for views."""
    yield from region.results
    for node in region.nodes:
        if node not in moved and not isinstance(node, (Reshape, ListGet)):
            yield from node.operands
            for inner in node.regions:
                yield from _used(inner, moved)


def _rest(region: Region, moved: set[Node], given: dict[Value, Parameter], constants: Constants) -> Region:
    """A region without the nodes that move; what is wanted of them is a parameter, or a row of one."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        if node not in moved:
            new = change_node_regions(node, lambda r: _rest(r, moved, given, constants)).with_operands(values)
            values.update(zip(node.values, new.values))
            nodes.append(new)
            continue
        for value in node.values:
            if value in given:
                values[value] = given[value].value
                for items in constants.of(value) or ():
                    nodes.append(ListGet(given[value].value, items.index, span=node.span))
                    values[value] = nodes[-1].value
    results = tuple(values.get(v, v) for v in region.results)
    return Region(region.parameters, _without_unread_views(nodes, results), results)


def _without_unread_views(nodes: Iterable[Node], results: Iterable[Value]) -> tuple[Node, ...]:
    """The nodes without views that only what moved has read."""
    live, kept = set(results), []
    for node in reversed(tuple(nodes)):
        if not isinstance(node, (Reshape, ListGet)) or node.value in live:
            live.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


class _Once:
    """Makes the program that runs once, each of its nodes once."""

    def __init__(self, graph: Graph, constants: Constants) -> None:
        self.old = graph
        self.constants = constants
        self._names = Names((*graph.dimensions, *(n.counter for n in graph.body.walk() if isinstance(n, Loop))))
        self._counters: dict[Size, str] = {}
        self._made: dict[object, Node] = {}
        self._of_items: set[Node] = set()
        self._values: dict[Value, Value] = {p.value: p.value for p in graph.parameters}

    def graph(self, wanted: Iterable[Value]) -> tuple[Graph, tuple[int, ...]]:
        """The program that computes what is wanted, that of items for all of them, and the numbers of the parameters
        that it takes."""
        for node in self.old.body.walk():
            if isinstance(node, (Call, Reshape, ListGet)) and self.constants.of(node.values[0]) is not None:
                self._add(node)
        lengths = {v: items.length for v in wanted for items in self.constants.of(v) or ()}
        for length in dict.fromkeys(lengths.values()):
            self._stack(length, [v for v, own in lengths.items() if own == length])
        region = Region.of((), tuple(self._values[v] for v in wanted))
        inputs = tuple(n for n, p in enumerate(self.old.parameters) if any(p.value in x.inputs for x in region.nodes))
        region = replace(region, parameters=tuple(self.old.parameters[n] for n in inputs))
        used = {s for n in region.walk() if isinstance(n, Call) for size in n.sizes for s in size.symbols}
        used |= {s for n in region.walk() for v in (*n.inputs, *n.values) for s in _symbols(v.type)}
        dimensions = tuple(d for d in self.old.dimensions if d in used)
        return Graph(f"{self.old.name}_prepare", region, dimensions), inputs

    def _add(self, node: Node) -> None:
        """A node, of one item where it is made of items."""
        made = self.constants.of(node.values[0]) or frozenset()
        new = node.with_operands(self._values)
        for items in made:
            if items.length not in self._counters:
                self._counters[items.length] = self._names.fresh("item")
            if isinstance(new, ListGet):
                new = replace(new, index=Size.of(self._counters[items.length]))
        new = self._made.setdefault(node_key(new), new)
        self._values.update(zip(node.values, new.values))
        if made:
            self._of_items.add(new)

    def _stack(self, length: Size, values: Sequence[Value]) -> None:
        """What is wanted of the items of lists of one length, for all of them."""
        outside = frozenset(self._made.values()) - self._of_items
        body = Region.of((), tuple(self._values[v] for v in values), outside)
        loop = Loop(self._counters[length], ZERO, length, (), (), body, None, len(values), span=values[0].node.span)
        self._values.update(zip(values, loop.values))


def _symbols(kind: Type) -> frozenset[str]:
    return frozenset[str]().union(*(s.symbols for s in kind.extents))


def _label(value: Value, number: int) -> str:
    """What a prepared tensor is called: after the kernel that makes it."""
    assert isinstance(value.node, Call)
    return f"{value.node.kernel.removesuffix('.prepare')}.{number}"


def _report(prepared: Iterable[Value]) -> str:
    total = sum((v.tensor.elements * v.dtype.bytes for v in prepared), ZERO)
    return f"{total} bytes are computed from constants once, not in each call"
