"""Few elements of a large product are computed where they are needed, so that the product need not be kept for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import Compute, Loop
from intarsia.ir.scalar import Expr, Load, transform
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_size_buffers
from intarsia.ir.types import TensorType
from intarsia.passes.canonicalize.spaces import facts_of
from intarsia.passes.fuse.members import is_contraction
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_nodes, change_regions

FEW = 16
"""Elements of a product for each one that may be computed again."""

TYPICAL = 64
"""What an extent without a number counts as."""


@dataclass(frozen=True)
class Sample(Pass):
    """Compute what is read of few elements of a product anew, from the rows that they are made of.

    Before:  %0 = compute [i < N, j < N] sum[d < D](%a[i, d] * %b[j, d]) : f32[N, N]
             %1 = compute [i < N] (%l[i] - %0[i, i]) : f32[N]
    After:   %0 = compute [i < N, j < N] sum[d < D](%a[i, d] * %b[j, d]) : f32[N, N]
             %1 = compute [i < N] sum[d < D](%a[i, d] * %b[i, d]) : f32[N]
             %2 = compute [i < N] (%l[i] - %1[i]) : f32[N]

    So the logits of a contrastive loss or a cross entropy, of which the target is subtracted, have one reader, and
    `fuse` makes one sweep of the product and what reduces its rows; of a product of which only some rows are read, no
    others are computed. It goes through pointwise work on the product.

    Keeps: values, but for the order of sums. Needs: nothing. Leaves: products that nobody reads to `dce`.
    """

    name: ClassVar[str] = "sample"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        if context.checks:  # a subscript that is out of range has to be noticed where the program has it
            return module
        body = _region(module.graph.body)
        return module.with_body(body)


def _region(region: Region) -> Region:
    inner = change_regions(region, lambda node, r: _region(r) if isinstance(node, Loop) else r)
    sampler = _Sampler(inner)

    def sampled(node: Node) -> tuple[Node, ...]:
        own = sampler.sampled(node) if isinstance(node, Structured) else node
        return (*sampler.take(), own)

    return change_nodes(inner, sampled)


class _Sampler:
    """Makes nodes that compute few elements of products."""

    def __init__(self, region: Region) -> None:
        self._results = frozenset(region.results)
        self._users: dict[Value, list[Node]] = {}
        for node in region.nodes:
            for value in node.inputs:
                self._users.setdefault(value, []).append(node)
        self._free: dict[Value, bool] = {}
        self._made: dict[tuple[object, ...], Node] = {}
        self._waiting: list[Node] = []

    def take(self) -> list[Node]:
        """The nodes that were made since the last call, in order."""
        made, self._waiting = self._waiting, []
        return made

    def sampled(self, node: Structured) -> Node:
        """The node, reading elements of products that are computed for it."""
        arguments = list(node.operands)
        space = node.space
        found: dict[Expr, Expr] = {}
        for load in dict.fromkeys(space.loads()):
            value = arguments[operand_position(load.buffer)]
            axes = _few(load, value, space)
            indices = _within(load, value, space)
            if axes is None or indices is None or not self._is_product(value):
                continue
            new = self._elements(value.node, axes, indices, node)
            found[load] = Load(operand(len(arguments)), tuple(Size.of(a.name) for a in axes), load.dtype)
            arguments.append(new.value)
        if not found:
            return node
        body = transform(space.body, rule=found.get)
        return Compute(tuple(arguments), replace(space, body=body), **node.spans)

    def _is_product(self, value: Value) -> bool:
        """Is a value a product, or pointwise work on one, that nobody needs as a whole?"""
        node = value.node
        if not isinstance(node, Structured) or not self._is_free(value):
            return False
        space = node.space
        if space.reduced:
            return is_contraction(space) and not any(a.lower.symbols or a.upper.opaques for a in space.reduced)
        return any(x.indices == _whole(space) and self._is_product(_read_by(node, x)) for x in space.loads())

    def _is_free(self, value: Value) -> bool:
        """Is a value, and pointwise work on it, only reduced, or few of it read?"""
        if value not in self._free:
            self._free[value] = value not in self._results and all(
                isinstance(user, Structured) and self._frees(user, value) for user in self._users.get(value, ())
            )
        return self._free[value]

    def _frees(self, user: Structured, value: Value) -> bool:
        space = user.space
        if is_contraction(space):
            return False
        loads = [x for x in space.loads() if _read_by(user, x) == value]
        return bool(space.reduced) or all(
            _few(x, value, space) is not None or ({*x.indices} == {*_whole(space)} and self._is_free(user.value))
            for x in loads
        )

    def _elements(self, node: Node, axes: tuple[Axis, ...], indices: tuple[Size, ...], reader: Structured) -> Node:
        """A node that computes those elements of another one which stand at `indices`, given in `axes` and in what the
        reader reads."""
        assert isinstance(node, Structured)
        key = (node, axes, indices, reader.operands if any(i.opaques for i in indices) else ())
        if key not in self._made:
            first = len(node.operands)
            own = {operand(n): operand(first + n) for n in range(len(reader.operands))}
            places = [rename_size_buffers(i, own) for i in indices]
            space = _with_free_names(node.space, {a.name for a in axes})
            names: Mapping[str, Size] = {a.name: place for a, place in zip(space.axes, places, strict=True)}
            inner = space.substitute(names)
            space = Space(axes, inner.body, space.dtype, inner.reduced, space.combiner)
            arguments = (*node.operands, *reader.operands)
            new = Compute(arguments, space, **reader.spans)
            self._made[key] = new if space.reduced else self.sampled(new)
            self._waiting.append(self._made[key])
        return self._made[key]


def _read_by(node: Structured, load: Load) -> Value:
    return node.operands[operand_position(load.buffer)]


def _whole(space: Space) -> tuple[Size, ...]:
    return tuple(Size.of(a.name) for a in space.axes)


def _few(load: Load, value: Value, space: Space) -> tuple[Axis, ...] | None:
    """The axes that the subscripts of a load need, if they run over much less than what is loaded of. They have to
    begin at 0 and to end at no data."""
    used = frozenset().union(*(i.symbols for i in load.indices))
    axes = tuple(a for a in space.all_axes if a.name in used)
    own = {a.name for a in space.all_axes}
    plain = all(a.lower == ZERO and not a.upper.opaques and not a.upper.symbols & own for a in axes)
    if not plain or load.mask or not isinstance(value.type, TensorType):
        return None
    return axes if FEW * _count(a.extent for a in axes) <= _count(value.tensor.shape) else None


def _count(extents: Iterable[Size]) -> int:
    return math.prod(e.evaluate(dict.fromkeys(e.symbols, TYPICAL)) for e in extents)


def _within(load: Load, value: Value, space: Space) -> tuple[Size, ...] | None:
    """The subscripts, clamped where they depend on data; None where one may leave the tensor, or it is a list."""
    if not isinstance(value.type, TensorType):
        return None
    facts = facts_of(space.all_axes)
    found: list[Size] = []
    for index, extent in zip(load.indices, value.tensor.shape, strict=True):
        if index.opaques:
            found.append(maximum(0, minimum(extent - 1, index)))
        elif facts.proves(index) and facts.proves(extent - 1 - index):
            found.append(index)
        else:
            return None
    return tuple(found)


def _with_free_names(space: Space, taken: set[str]) -> Space:
    """The space with other names for reduced axes that are called like axes it will have."""
    names: dict[str, Size] = {}
    reduced: list[Axis] = []
    known = taken | {a.name for a in space.all_axes}
    for axis in space.reduced:
        name = axis.name
        while name in taken:
            name = next(f"{axis.name}{n}" for n in range(1, len(known) + 2) if f"{axis.name}{n}" not in known)
        if name != axis.name:
            names[axis.name] = Size.of(name)
        known.add(name)
        reduced.append(replace(axis.substitute(names), name=name))
    return replace(space, body=transform(space.body, names), reduced=tuple(reduced))
