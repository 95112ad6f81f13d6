"""What fusion wants to know about one node: how dear its value is, whether it only moves elements, how it reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from intarsia.ir.graph import Node, Parameter, Structured, Value
from intarsia.ir.ops import ArgReduce, Cast, Cumulative, Elementwise, Reduce, Update
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.scalar import Apply, Bitcast, Const, Expr, Load, loads
from intarsia.ir.scalar import Cast as CastExpr
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.lower.uses import work


@dataclass(frozen=True, eq=False)
class Member:
    """A node that can be part of a group, with its space.

    An `ArgReduce` counts as the reduction that it is, a `Cumulative` as that of what is up to each element. An `Update`
    has the space of what it writes.
    """

    node: Node
    space: Space

    @staticmethod
    def of(node: Node) -> Member | None:
        """The member that a node can be; None for what is a kernel, or no kernel, of its own."""
        match node:
            case Structured():
                return Member(node, node.space)
            case ArgReduce(x, _, axis):
                axes = axes_for(x.tensor.shape)
                element = Load(operand(0), tuple(Size.of(a.name) for a in axes), x.dtype)
                kept = (*axes[:axis], *axes[axis + 1 :])
                return Member(node, Space(kept, element, x.dtype, (axes[axis],), "max"))
            case Cumulative(x, combiner, axis):
                axes = axes_for(x.tensor.shape)
                here = axes[axis].name
                before = Axis(f"{here}'", ZERO, Size.of(here) + 1)
                places = (before if a.name == here else a for a in axes)
                element = Load(operand(0), tuple(Size.of(a.name) for a in places), x.dtype)
                return Member(node, Space(axes, element, node.value.dtype, (before,), combiner))
            case Update(_, _, axes, _, _, body):
                return Member(node, Space(axes, body, body.dtype))
        return None

    @property
    def value(self) -> Value:
        return self.node.value

    @cached_property
    def reads(self) -> tuple[tuple[Value, tuple[Size, ...]], ...]:
        """Every operand with the subscripts at which it is read, in the axes of the space."""
        found = [
            (self.node.operands[operand_position(load.buffer)], load.indices)
            for load in dict.fromkeys((*self.space.loads(), *self._target_loads))
        ]
        if isinstance(self.node, Update):  # what is not written is copied, whatever the axes
            found.append((self.node.base, tuple(Size.of(f"base{d}") for d in range(self.node.base.tensor.rank))))
        return tuple(found)

    @cached_property
    def reads_of(self) -> frozenset[Node]:
        """The nodes whose values it reads."""
        return frozenset(v.node for v in self.node.operands)

    @property
    def _target_loads(self) -> tuple[Load, ...]:
        targets = self.node.targets if isinstance(self.node, Update) else ()
        return tuple(load for t in targets for value in t.opaques for load in loads(value))

    @cached_property
    def work(self) -> int:
        """Scalar work on data at one point of the space. Casts that will be skipped are free."""
        match self.node:
            case Cast(optional=True) | Cast(Value(Cast(optional=True))):
                return 0
        return work(self.space.body)

    @property
    def is_reduced(self) -> bool:
        return bool(self.space.reduced)

    @cached_property
    def is_contraction(self) -> bool:
        return is_contraction(self.space)

    @cached_property
    def is_plain(self) -> bool:
        """One element, perhaps cast: what the loads of a contraction can take in."""
        body = self.space.body
        while isinstance(body, (CastExpr, Bitcast)):
            body = body.value
        return isinstance(body, Load) and not self.is_reduced and isinstance(self.node, Structured)

    @cached_property
    def narrows(self) -> bool:
        """Does it round what it reads to fewer bits? What constants hold is rounded once, before any call; a rounding
        that may be skipped costs nothing."""
        if isinstance(self.node, Cast) and self.node.optional:
            return False
        wide = (v for v, _ in self.reads if isinstance(v.type, TensorType) and v.dtype.bits > self.value.dtype.bits)
        return self.is_plain and not all(map(_never_changes, wide))

    @cached_property
    def only_moves(self) -> bool:
        """Does it choose elements without looking at data, as views, pad and concat do, or make them of literals?"""
        return not self.is_reduced and isinstance(self.node, Structured) and only_moves(self.space.body)

    @cached_property
    def extents(self) -> Mapping[str, Size]:
        """The extents of all axes, reduced ones too."""
        return {a.name: a.extent for a in self.space.all_axes}

    @cached_property
    def wide_extents(self) -> Mapping[str, Size]:
        """Those of all axes that are more than one element long."""
        return {name: extent for name, extent in self.extents.items() if extent != ONE}

    @cached_property
    def read_extents(self) -> Mapping[str, Size]:
        """Those of the axes along which it goes through what it reads: prefixes are found in one walk."""
        if not isinstance(self.node, Cumulative):
            return self.wide_extents
        here = self.space.axes[self.node.axis].name
        return {name: extent for name, extent in self.wide_extents.items() if name != here}

    @cached_property
    def own_point(self) -> Point:
        """Where it is computed if it is a stage."""
        return Point(self, tuple(Size.of(a.name) for a in self.space.axes))

    @cached_property
    def dimensions(self) -> tuple[tuple[Node, str, Size], ...]:
        """The axes of the result: node, name, extent."""
        return tuple((self.node, a.name, a.extent) for a in self.space.axes)

    @cached_property
    def wide_axes(self) -> tuple[Axis, ...]:
        """The axes of the result that are more than one element long."""
        return wide(self.space.axes)

    @property
    def title(self) -> str:
        """What a user calls the op."""
        match self.node:
            case Elementwise(function=name) | Reduce(combiner=name) | ArgReduce(which=name):
                return name
        return self.node.name


def only_moves(expression: Expr) -> bool:
    """Is the value an element or a literal, chosen without looking at data?"""
    match expression:
        case Load() | Const():
            return True
        case Bitcast(value=value):
            return only_moves(value)
        case Apply("where", (condition, a, b)):
            return not any(loads(condition)) and only_moves(a) and only_moves(b)
    return False


def is_contraction(space: Space) -> bool:
    """A sum of products each factor of which is used again along an axis of the result: matmul and convolution.

    Without such reuse (a row-wise dot product, a matrix times a vector) it is a reduction like any other.
    """
    body = space.body
    while isinstance(body, CastExpr):
        body = body.value
    match body:
        case Apply("mul", (left, right)) if space.combiner == "sum":
            axes = {a.name for a in wide(space.axes)}
            unused = [axes - _reached(space, factor) for factor in (left, right)]
            return all(any(loads(f)) for f in (left, right)) and all(unused) and unused[0] != unused[1]
    return False


def _reached(space: Space, expression: Expr) -> frozenset[str]:
    """The axes that a value depends on, also through bounds that are data: rows of a sparse matrix do not overlap."""
    names = set(expression.symbols)
    for axis in reversed(space.reduced):
        if axis.name in names:
            names.update(*(o.symbols for bound in (axis.lower, axis.upper) for o in bound.opaques))
    return frozenset(names)


def wide(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes that are more than one element long."""
    return tuple(a for a in axes if a.extent != ONE)


class Point(NamedTuple):
    """Where a value is read: by which stage, and at which subscripts in the axes of that stage."""

    stage: Member
    indices: tuple[Size, ...]

    @property
    def is_affine(self) -> bool:
        """Are the subscripts sums of axes, names and numbers, without quotients and data?"""
        return all(
            i.is_affine_in(self.stage.extents) and all(isinstance(a, str) for a in i.atoms()) for i in self.indices
        )

    @property
    def repeats(self) -> bool:
        """May several points of the stage read one element? Then computing it there computes it several times."""
        axes = self.stage.read_extents
        if axes.keys() == {i.as_name for i in self.indices}:  # as it mostly is
            return False
        seen: set[str] = set()
        for index in self.indices:
            own = {name: extent for name, extent in axes.items() if name in index.symbols}
            if not _is_injective(index, own):
                return True
            seen.update(own)
        return not seen >= axes.keys()


def _is_injective(index: Size, extents: Mapping[str, Size]) -> bool:
    """Do other values of the axes give other subscripts? True of `i`, of `2 * i + 1`, of `8 * i + j` where j < 8."""
    steps: list[tuple[int, int]] = []
    for name, extent in extents.items():
        step = index.coefficient(name)
        if not step or (extent.constant is None and len(extents) > 1):
            return False
        steps.append((abs(step), extent.constant or 0))
    steps.sort()
    return all(small * extent <= large for (small, extent), (large, _) in itertools.pairwise(steps))


def _never_changes(value: Value) -> bool:
    """Is a value made of constants alone, by ops that move or cast elements?"""
    if isinstance(value.node, Parameter):
        return value.node.constant
    return all(map(_never_changes, value.node.operands))
