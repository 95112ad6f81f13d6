"""What depends on constants only is computed once, before the first call, by a program of its own.

    func f(x, const w) {                  func f_prepare(const w) {
      %1 = call @transpose(%w)              %1 = call @transpose(%w); %2 = call @product_prepare(%1)
      %2 = call @product(%x, %1)     =>     return %2
      return %2                           func f(x, const w, const product.wp) {
    }                                       %2 = call @product(%x, %wp); return %2

Both kernels that get nothing but constants, and the part of a kernel that its schedule prepares (`ir/preparation.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.errors import Remark, Remarks
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.kernel import Check, Kernel, walk
from intarsia.ir.ops import Call, ListGet, Reshape
from intarsia.ir.preparation import split_preparation
from intarsia.ir.sizes import ZERO
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.passes.regions import change_node_regions, change_nodes


@dataclass(frozen=True)
class Separated:
    """A program in two: `once`, from the inputs of the numbers `inputs` to what is prepared; and the rest, which takes
    that after its other inputs."""

    once: Module | None
    rest: Module
    inputs: tuple[int, ...] = ()


def separate_preparation(module: Module, remarks: Remarks) -> Separated:
    """Separate what a lowered program computes from constants only, outside of loops."""
    if not any(p.constant for p in module.graph.parameters):
        return Separated(None, module)
    module = _with_split_kernels(module)
    moved = _constant_calls(module)
    graph = module.graph
    results = {v for node in moved for v in node.values}
    kept = tuple(n for n in graph.body.nodes if n not in moved)
    wanted = dict.fromkeys(v for v in (*(v for n in kept for v in n.inputs), *graph.results) if v in results)
    if not wanted:
        return Separated(None, module)
    given = tuple(Parameter(_label(v, n), v.type, constant=True) for n, v in enumerate(wanted))
    rest = Region((*graph.parameters, *given), kept, graph.results)
    rest = rest.rebuild(dict(zip(wanted, (p.value for p in given))))
    once, inputs = _once(graph, tuple(wanted))
    remarks.add(Remark("plan", "memory", _report(wanted), graph.results[0].node.span, True))
    called = {n.kernel for n in once.body.walk() if isinstance(n, Call)}
    return Separated(
        Module(once, tuple(k for k in module.kernels if k.name in called)),
        replace(module, graph=replace(graph, body=rest)),
        inputs,
    )


def _once(graph: Graph, results: Sequence[Value]) -> tuple[Graph, tuple[int, ...]]:
    """The program that computes the results, and the numbers of the parameters that it takes."""
    region = Region.of((), results)
    inputs = tuple(n for n, p in enumerate(graph.parameters) if any(p.value in x.inputs for x in region.nodes))
    region = replace(region, parameters=tuple(graph.parameters[n] for n in inputs))
    used = {s for n in region.nodes if isinstance(n, Call) for size in n.sizes for s in size.symbols}
    used |= {s for n in region.nodes for v in (*n.inputs, *n.values) for s in _symbols(v.type)}
    return Graph(f"{graph.name}_prepare", region, tuple(d for d in graph.dimensions if d in used)), inputs


def _symbols(kind: Type) -> frozenset[str]:
    tensor = kind.element if isinstance(kind, ListType) else kind
    assert isinstance(tensor, TensorType)
    length = kind.length.symbols if isinstance(kind, ListType) else frozenset()
    return frozenset(length).union(*(s.symbols for s in tensor.shape))


def _with_split_kernels(module: Module) -> Module:
    """Calls of kernels that prepare something become two: one that does, and one that takes it. The first one stands
    outside of all loops."""
    kernels = {k.name: split_preparation(k) for k in module.kernels}
    if all(once is None for once, _ in kernels.values()):
        return module
    prepared: dict[tuple[object, ...], Call] = {}
    waiting: list[Call] = []

    def split(node: Node) -> Node:
        """The call that takes what is prepared; what prepares it waits."""
        if not isinstance(node, Call) or (once := kernels[node.kernel][0]) is None:
            return change_node_regions(node, inside)
        names = [b.name for b in module.kernel(node.kernel).parameters if b.role != "out"]
        arguments = tuple(node.arguments[names.index(b.name)] for b in once.inputs)
        sizes = dict(zip(module.kernel(node.kernel).sizes, node.sizes))
        values = tuple(sizes[name] for name in once.sizes)
        key = (once.name, arguments, values)
        if key not in prepared:
            types = tuple(TensorType(b.dtype, b.shape).substitute(sizes) for b in once.outputs)
            prepared[key] = Call(once.name, arguments, types, values, span=node.span)
            waiting.append(prepared[key])
        count = len(module.kernel(node.kernel).inputs)
        made = prepared[key].values
        return replace(node, arguments=(*node.arguments[:count], *made, *node.arguments[count:]))

    def inside(region: Region) -> Region:
        return change_nodes(region, lambda node: (split(node),))

    def outside(node: Node) -> list[Node]:
        new = split(node)
        before = waiting.copy()
        waiting.clear()
        return [*before, new]

    kept = tuple(k for once, rest in kernels.values() for k in (once, rest) if k is not None)
    return replace(module.with_body(change_nodes(module.graph.body, outside)), kernels=kept)


def _constant_calls(module: Module) -> frozenset[Node]:
    """The calls that get nothing but constants, and cannot fail."""
    kernels = {k.name: k for k in module.kernels}
    known = {p.value for p in module.graph.parameters if p.constant}
    found: set[Node] = set()
    for node in module.graph.body.nodes:
        match node:
            case Reshape() | ListGet() if all(v in known for v in node.inputs):
                known.update(node.values)
            case Call(kernel) if node.inputs and all(v in known for v in node.inputs) and not _checks(kernels[kernel]):
                known.update(node.values)
                found.add(node)
    return frozenset(found)


def _checks(kernel: Kernel) -> bool:
    return any(isinstance(s, Check) for s, _ in walk(kernel.body))


def _label(value: Value, number: int) -> str:
    """What a prepared tensor is called: after the kernel that makes it."""
    assert isinstance(value.node, Call)
    return f"{value.node.kernel.removesuffix('.prepare')}.{number}"


def _report(prepared: Iterable[Value]) -> str:
    total = sum((v.tensor.elements * v.dtype.bytes for v in prepared), ZERO)
    return f"{total} bytes are computed from constants once, not in each call"
