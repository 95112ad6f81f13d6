"""Nodes that differ in one operand, along one axis, as one node over all of that axis.

    %0 = matmul %x, %a : f32[S, 8]          %0 = concat %a, %b axis=1 : f32[D, 12]
    %1 = matmul %x, %b : f32[S, 4]    =>    %1 = matmul %x, %0 : f32[S, 12]
                                            slices of %1: [:, :8] and [:, 8:]

The axis (here that of the columns) is one of the result. Each operand either is the same for all nodes and does not go
along the axis, or goes along it with one of its dimensions: then it is a *part*. So every element of the node that is
made is computed as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from intarsia.ir.errors import Span
from intarsia.ir.graph import Node, Parameter, Region, Structured, Value
from intarsia.ir.ops import Cast as Convert
from intarsia.ir.ops import Compute, Concat, Elementwise, Fused, ListGet, Matmul, Slice
from intarsia.ir.scalar import Apply, Cast, Expr, Index, Load, walk
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.members import only_moves
from intarsia.passes.merge.fixed import Fixed

HOLE = Size.of("?")
"""What stands for the extent of the axis along which nodes may differ."""


@dataclass(frozen=True)
class Along:
    """A node as one part along an axis: `axis` is its dimension of the result, `space` its meaning in names of our own,
    and `dims` says for each operand which of its dimensions goes along the axis, None if it is the same for all."""

    node: Structured
    axis: int
    space: Space
    dims: tuple[int | None, ...]

    @property
    def key(self) -> Hashable:
        """Equal for nodes that can be one."""
        axes = list(self.space.axes)
        axes[self.axis] = replace(axes[self.axis], upper=HOLE)
        operands = tuple(v if d is None else _without(v, d) for v, d in zip(self.node.operands, self.dims))
        return self.axis, replace(self.space, axes=tuple(axes)), self.dims, operands

    def of(self, node: Node) -> Along:
        """The same of a node that only has other operands."""
        assert isinstance(node, Structured)
        return replace(self, node=node)

    @property
    def extent(self) -> Size:
        return self.space.axes[self.axis].upper

    @property
    def parts(self) -> tuple[Value, ...]:
        """The operands that differ."""
        return tuple(v for v, d in zip(self.node.operands, self.dims) if d is not None)

    @property
    def shared(self) -> tuple[Value, ...]:
        return tuple(v for v, d in zip(self.node.operands, self.dims) if d is None)


def _without(value: Value, dim: int) -> tuple[object, ...]:
    """What operands have in common that differ along one dimension."""
    tensor = value.tensor
    return tensor.dtype, tensor.shape[:dim], tensor.shape[dim + 1 :]


def product_parts(node: Node) -> Iterator[Along]:
    """The ways in which a node, a sum of products of two factors, may be a part of a wider one."""
    if not isinstance(node, Structured) or node.space.combiner != "sum" or len(node.operands) != 2:
        return
    body = node.space.body
    while isinstance(body, Cast):
        body = body.value
    match body:
        case Apply("mul", (left, right)) if _is_element(left) and _is_element(right):
            for axis in range(len(node.space.axes)):
                found = along(node, axis)
                if found is not None and len(found.parts) == 1 and is_moved(found.parts[0]):
                    yield found


def is_moved(value: Value) -> bool:
    """Is a value what is in memory, or a view of it? What is decoded or widened on its way into a product is better not
    kept as a whole."""
    node = value.node
    while isinstance(node, Structured):
        if len(node.operands) != 1 or not only_moves(node.space.body):
            return False
        node = node.operands[0].node
    return isinstance(node, (Parameter, ListGet))


def _is_element(e: Expr) -> bool:
    while isinstance(e, Cast):
        e = e.value
    return isinstance(e, Load)


def along(node: Structured, axis: int) -> Along | None:
    """A node as a part along an axis of its result, or None if something else than operands depends on that axis."""
    space = _renamed(node.space)
    own = space.axes[axis]
    plain = all(isinstance(v.type, TensorType) and v.type == v.type.plain for v in node.operands)
    if not plain or own.lower != ZERO or own.upper == ONE or own.upper.opaques:
        return None
    others = [b for a in space.all_axes for b in (a.lower, a.upper)]
    if any(own.name in b.symbols for b in others) or any(_asks(e, own.name) for e in walk(space.body)):
        return None
    dims: list[int | None] = []
    for position, value in enumerate(node.operands):
        ways = {_dimension(x, own) for x in space.loads() if operand_position(x.buffer) == position}
        if len(ways) != 1 or -1 in ways:
            return None
        (dim,) = ways
        if dim is not None and (value.tensor.shape[dim] != own.upper or value.dtype.is_narrow):
            return None  # narrow elements share bytes
        dims.append(dim)
    return Along(node, axis, space, tuple(dims))


def _renamed(space: Space) -> Space:
    """The space with axes called after their places."""
    own = {a.name for a in space.all_axes}
    bounds = {s for a in space.all_axes for b in (a.lower, a.upper) for s in b.symbols}
    mark = "i"
    while any(name.startswith(mark) for name in (space.body.symbols | bounds) - own):
        mark += "'"
    return space.rename_axes({a.name: f"{mark}{n}" for n, a in enumerate(space.all_axes)})


def _asks(e: Expr, name: str) -> bool:
    """Does a part of an expression look at the place along an axis?"""
    return isinstance(e, Index) and name in e.symbols


def _dimension(load: Load, axis: Axis) -> int | None:
    """The dimension along which a load goes through the whole of an axis, None if it does not depend on it, -1 if it
    does so in another way."""
    if axis.name not in load.symbols:
        return None
    dims = [d for d, i in enumerate(load.indices) if axis.name in i.symbols]
    plain = len(dims) == 1 and load.indices[dims[0]].as_name == axis.name
    return dims[0] if plain and not any(axis.name in m.symbols for m in load.mask) else -1


class Part(NamedTuple):
    """Where a value is in one that was made of several: at which place among them, along which dimension."""

    whole: Value
    place: int
    dim: int


@dataclass(frozen=True)
class Merged:
    """What takes the place of nodes: `made` computes all of them, after `joined`, which puts operands together; `views`
    are the values of the nodes."""

    joined: tuple[Node, ...]
    made: Structured
    views: tuple[Slice, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.joined, self.made, *self.views)


def merged(group: Sequence[Along], parts: Mapping[Value, Part], fixed: Fixed) -> Merged:
    """Nodes of one key as one; `parts` says what operands are parts of what was merged before. Constants that are put
    together are a group of their own, so that it is done once."""
    first = group[0]
    joined: list[Node] = []
    operands: list[Value] = []
    for position, dim in enumerate(first.dims):
        own = [member.node.operands[position] for member in group]
        if dim is None:
            operands.append(own[0])
        elif (whole := _whole(own, dim, parts)) is not None:
            operands.append(whole)
        else:
            concat = Concat(tuple(own), dim, span=first.node.span)
            alone = Fused(Region((), (concat,), concat.values), span=first.node.span)
            joined.append(alone if fixed.together(own) else concat)
            operands.append(joined[-1].value)
    axes = list(first.space.axes)
    axes[first.axis] = replace(axes[first.axis], upper=sum((member.extent for member in group), ZERO))
    spans = dict.fromkeys(s for m in group for s in (m.node.span, *m.node.more_spans) if s)
    made = _node(first, tuple(operands), replace(first.space, axes=tuple(axes)), tuple(spans))
    views: list[Slice] = []
    start = ZERO
    for member in group:
        extent = member.node.value.tensor.shape[first.axis]
        views.append(Slice.along(made.value, first.axis, start, extent).at(member.node.span))
        start = start + member.extent
    return Merged(tuple(joined), made, tuple(views))


def _whole(values: Sequence[Value], dim: int, parts: Mapping[Value, Part]) -> Value | None:
    """What values are all parts of, in order."""
    found = [parts.get(v) for v in values]
    if found[0] is not None and found == [Part(found[0].whole, n, dim) for n in range(len(values))]:
        return found[0].whole
    return None


def _node(first: Along, operands: tuple[Value, ...], space: Space, spans: tuple[Span, ...]) -> Structured:
    """An op that takes any shape as it was, with other operands; else the space itself."""
    own = dict(zip(first.node.operands, operands))
    span, more = (spans[0] if spans else None), spans[1:]
    if isinstance(first.node, (Matmul, Elementwise, Convert)) and len(own) == len(operands):
        return replace(first.node.with_operands(own), span=span, more_spans=more)
    return Compute(operands, space, span=span, more_spans=more)
