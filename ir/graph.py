"""The Graph: SSA values of tensor type, made by immutable nodes that are typed when they are built.

A node is a frozen dataclass. Its operands are the fields that hold `Value`s, its regions the fields that hold
`Region`s, every other field is an attribute; text form, reader, digest and rewriting follow from that. `==` on nodes
and values is identity; `same` compares structure.
"""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypedDict, TypeVar

from intarsia.ir.dtypes import Array, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.kernel import Kernel
from intarsia.ir.sharding import Sharding
from intarsia.ir.space import Space
from intarsia.ir.types import TensorType, Type, placed


class Spans(TypedDict):
    """The places in the user's text that a node has."""

    span: Span | None
    more_spans: tuple[Span, ...]


OPS: dict[str, type[Node]] = {}
"""Every concrete op by the name it has in text."""

NOT_OWN = ("span", "more_spans", "shardings", "results")
"""Fields that every node has: they are no part of the operation."""

N = TypeVar("N", bound="Node")


@dataclass(frozen=True, eq=False)
class Value:
    """One result of one node, which makes it once: `==` is identity."""

    node: Node
    index: int = 0

    def __repr__(self) -> str:
        """Short: what a value is made of may be the whole program, as often as there are ways through it."""
        return f"<{self.node.name}: {self.type}>"

    @property
    def type(self) -> Type:
        return self.node.results[self.index]

    @property
    def tensor(self) -> TensorType:
        """The type of a value that is known to be a tensor."""
        found = self.type
        assert isinstance(found, TensorType), f"{found} is not a tensor"
        return found

    @property
    def dtype(self) -> DType:
        return self.type.dtype


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation. Subclasses add fields; `infer` gives the result types or raises CompileError.

    `span` is the user's text that this node comes from; `more_spans` are those of other nodes merged into it.
    `shardings` say how each result lies on a mesh of devices; () where nothing says so. They change no value.
    """

    span: Span | None = field(default=None, repr=False, compare=False)
    more_spans: tuple[Span, ...] = field(default=(), repr=False, compare=False)
    shardings: tuple[Sharding | None, ...] = field(default=(), repr=False)
    results: tuple[Type, ...] = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if not getattr(cls.infer, "__isabstractmethod__", False) and not cls.__name__.startswith("_"):
            OPS[cls.name] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", self.placed_types(self.infer()))

    def placed_types(self, types: tuple[Type, ...]) -> tuple[Type, ...]:
        """The types of the results as this node lays them out: operands may lie in other ways."""
        if not self.shardings:
            return tuple(t.plain for t in types)
        return tuple(placed(t, s) for t, s in zip(types, self.shardings, strict=True))

    @abstractmethod
    def infer(self) -> tuple[Type, ...]:
        """The types of the results. Raises CompileError, blaming `self.span`, if the operands do not fit."""

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        """The meaning in NumPy, written by hand for every op that has a name: the check of what is derived."""
        raise NotImplementedError(self.name)

    def require(self, condition: bool, message: str) -> None:
        """Raise E1508 unless `condition` holds: what only a text of the Graph can get wrong."""
        if not condition:
            raise CompileError("E1508", f"{self.name}: {message}", self.span)

    @property
    def value(self) -> Value:
        """The only result."""
        assert len(self.results) == 1, f"{self.name} has {len(self.results)} results"
        return self.values[0]

    @cached_property
    def values(self) -> tuple[Value, ...]:
        return tuple(Value(self, i) for i in range(len(self.results)))

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        """The values that the fields hold, in order."""
        return tuple(v for _, value in self._fields() for v in _flatten(value) if isinstance(v, Value))

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        return tuple(v for _, v in self._fields() if isinstance(v, Region))

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The operands, then the values that the regions use from outside, each once."""
        return tuple(dict.fromkeys((*self.operands, *(c for r in self.regions for c in r.captures))))

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The fields that are neither operands nor regions."""
        return {
            name: value
            for name, value in self._fields()
            if not isinstance(value, Region) and not any(isinstance(v, Value) for v in _flatten(value))
        }

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for f in dataclasses.fields(self):
            if f.name not in NOT_OWN:
                yield f.name, getattr(self, f.name)

    def with_operands(self: N, new: Mapping[Value, Value]) -> N:
        """The same node with operands replaced, also inside its regions; itself if none of them is in `new`."""
        changed: dict[str, Any] = {}
        for name, value in self._fields():
            replaced: Any = value
            if isinstance(value, Value):
                replaced = new.get(value, value)
            elif isinstance(value, tuple) and any(isinstance(v, Value) for v in value):
                replaced = tuple(new.get(v, v) if isinstance(v, Value) else v for v in value)
            elif isinstance(value, Region):
                replaced = value.with_captures(new)
            if replaced is not value and replaced != value:
                changed[name] = replaced
        return dataclasses.replace(self, **changed) if changed else self

    def with_operands_in_order(self: N, new: Sequence[Value]) -> N:
        """The same node on other operands, one for each: those that were one value may become several."""
        rest = iter(new)
        changed: dict[str, Any] = {}
        for name, value in self._fields():
            if isinstance(value, Value):
                changed[name] = next(rest)
            elif isinstance(value, tuple) and any(isinstance(v, Value) for v in value):
                changed[name] = tuple(next(rest) if isinstance(v, Value) else v for v in value)
        return dataclasses.replace(self, **changed)

    @property
    def spans(self) -> Spans:
        """For a node that comes in the place of this one: `Compute(…, **node.spans)`."""
        return {"span": self.span, "more_spans": self.more_spans}

    def at(self: N, span: Span | None) -> N:
        """The same node with a span if it has none."""
        return self if self.span or span is None else dataclasses.replace(self, span=span)


def _flatten(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True, eq=False)
class Parameter(Node):
    """A parameter of a graph or region. A `constant` one does not change between calls."""

    label: str
    type: Type
    constant: bool = False

    def infer(self) -> tuple[Type, ...]:
        return (self.type,)

    def placed_types(self, types: tuple[Type, ...]) -> tuple[Type, ...]:
        return types


@dataclass(frozen=True, eq=False)
class Structured(Node):
    """An op whose meaning is a `Space`: everything else about it is derived from that."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """The meaning, with operands as `a0`, `a1`, … in the order of `operands`."""


def reachable(nodes: Iterable[Node]) -> set[Node]:
    """Nodes, and all that they need."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [v.node for v in node.inputs]
    return found


def depth_first(
    results: Sequence[Value], seen: set[Node], inputs: Callable[[Node], Sequence[Value]]
) -> tuple[Node, ...]:
    """The nodes that make the results, each after those of its inputs, up to parameters and to those already seen."""
    found: list[Node] = []
    stack = [(v.node, False) for v in reversed(results)]
    while stack:
        node, ready = stack.pop()
        if node in seen or isinstance(node, Parameter):
            continue
        if ready:
            seen.add(node)
            found.append(node)
        else:
            stack.append((node, True))
            stack += [(v.node, False) for v in reversed(inputs(node))]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes in an order in which each comes after what it uses, with parameters and results.

    It may use values of the regions around it: those are its `captures`.
    """

    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    results: tuple[Value, ...]

    @cached_property
    def captures(self) -> tuple[Value, ...]:
        """The values that come from outside, each once, in order of first use."""
        inside: set[Node] = set(self.parameters)
        found: dict[Value, None] = {}
        for node in self.nodes:
            found.update((v, None) for v in node.inputs if v.node not in inside)
            inside.add(node)
        found.update((v, None) for v in self.results if v.node not in inside)
        return tuple(found)

    def with_captures(self, new: Mapping[Value, Value]) -> Region:
        """The same region with values from outside replaced; itself if it uses none of them."""
        if not any(v in new for v in self.captures):
            return self
        return self.rebuild(new)

    def rebuild(self, new: Mapping[Value, Value]) -> Region:
        """A copy in which values are replaced, nodes rebuilt where needed."""
        map_: dict[Value, Value] = dict(new)
        nodes: list[Node] = []
        for node in self.nodes:
            rebuilt = node.with_operands(map_)
            if rebuilt is not node:
                map_.update(zip(node.values, rebuilt.values))
            nodes.append(rebuilt)
        return Region(self.parameters, tuple(nodes), tuple(map_.get(v, v) for v in self.results))

    @staticmethod
    def of(parameters: Sequence[Parameter], results: Sequence[Value], stop: frozenset[Node] = frozenset()) -> Region:
        """The region that computes `results`: what they need, in depth-first order, up to the nodes in `stop`.

        `stop` holds the nodes of the regions around it; parameters of any region are never taken in.
        """
        nodes = depth_first(results, {*parameters, *stop}, lambda node: node.inputs)
        return Region(tuple(parameters), nodes, tuple(results))

    def walk(self) -> Iterator[Node]:
        """Every node, those of inner regions before the node that holds them."""
        for node in self.nodes:
            for region in node.regions:
                yield from region.walk()
            yield node


def region_of(parameters: Sequence[Parameter], nodes: Sequence[Node], results: Sequence[Value]) -> Region:
    """A region of those of the nodes, which are in order, that its results need."""
    needed = {v.node for v in results}
    kept: list[Node] = []
    for node in reversed(nodes):
        if node in needed:
            kept.append(node)
            needed.update(v.node for v in node.inputs)
    return Region(tuple(parameters), tuple(reversed(kept)), tuple(results))


@dataclass(frozen=True, eq=False)
class Graph:
    """A function: a region with a name. `dimensions` are the names that its sizes use, in order of binding.

    `labels` name the results where some are tensors of structs: `layer.*.up` for one of a list, stacked; a number in
    front is that of the struct or tensor among several results. The text does not show them.
    """

    name: str
    body: Region
    dimensions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.body.parameters

    @property
    def results(self) -> tuple[Value, ...]:
        return self.body.results

    @property
    def result_names(self) -> tuple[str, ...]:
        """Names by which the results are shown: `result`, `result0`, `result.layer.up`."""
        if self.labels:
            names = [label.replace(".*", "") for label in self.labels]
            return tuple(f"result{'' if name[0].isdecimal() else '.'}{name}" for name in names)
        count = len(self.results)
        return ("result",) if count == 1 else tuple(f"result{position}" for position in range(count))


@dataclass(frozen=True, eq=False)
class Module:
    """A graph, and after `lower` the kernels that it calls. `header` keeps the lines for target, mesh and formats."""

    graph: Graph
    kernels: tuple[Kernel, ...] = ()
    header: tuple[str, ...] = ()

    def with_graph(self, graph: Graph) -> Module:
        return dataclasses.replace(self, graph=graph)

    def with_body(self, body: Region) -> Module:
        """The module with another body; itself where it is the same one."""
        return self if body is self.graph.body else self.with_graph(dataclasses.replace(self.graph, body=body))

    def kernel(self, name: str) -> Kernel:
        return next(k for k in self.kernels if k.name == name)
