"""What moves the elements of a tensor in a format: codes go where their elements go, scales where their groups go.

A move is a map from the places of its result to those of a tensor. If it takes whole groups to whole groups, it is a
map of groups too, and the result is of the same format, perhaps along another axis. Otherwise some group would need two
scales, which is E0212.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from intarsia.dsl.semantics.values import FormatTensor, Item
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.formats import BlockFormat
from intarsia.ir.graph import Value
from intarsia.ir.ops import Reshape
from intarsia.ir.sizes import ONE, ZERO, Size, product
from intarsia.ir.space import Axis, Space

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


class Move(Protocol):
    """A map from the places of a result to those of a tensor."""

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape of the result."""

    def apply(self, builder: Builder, x: Item, span: Span) -> Value:
        """The moved elements of a tensor."""

    def of_groups(self, builder: Builder, axis: int, group: int | None, span: Span) -> tuple[Move, int] | None:
        """The same for one element of each group along an axis, and the axis of the groups in the result; None if it
        does not take whole groups to whole groups. A group of None is all along the axis."""


@dataclass(frozen=True)
class IndexMap:
    """Element `[i0, i1, …]` of the result, in the names of `axes`, is the element at `indices`."""

    axes: tuple[Axis, ...]
    indices: tuple[Size, ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(axis.extent for axis in self.axes)

    def apply(self, builder: Builder, x: Item, span: Span) -> Value:
        value = builder.as_value(x, span)
        return builder.compute(Space(self.axes, builder.load(value, self.indices), value.dtype), span)

    def of_groups(self, builder: Builder, axis: int, group: int | None, span: Span) -> tuple[IndexMap, int] | None:
        """One axis of the result runs along the groups, from the beginning of one."""
        index, others = self.indices[axis], (*self.indices[:axis], *self.indices[axis + 1 :])
        for position, own in enumerate(self.axes):
            if own.name not in index.symbols or any(own.name in other.symbols for other in others):
                continue
            start = index - Size.of(own.name)
            if group is None:
                if any(a.name in index.symbols for a in self.axes if a is not own):
                    continue
                place, extent = ZERO, ONE
            else:
                if own.name in start.symbols or not is_multiple(builder, start, group, span):
                    continue
                place, extent = Size.of(own.name) + start // group, groups_of(own.extent, group)
            axes = (*self.axes[:position], Axis.of(own.name, extent), *self.axes[position + 1 :])
            return IndexMap(axes, (*self.indices[:axis], place, *self.indices[axis + 1 :])), position
        return None


@dataclass(frozen=True)
class Reshaping:
    """The same elements in row-major order: from one shape to another."""

    old: tuple[Size, ...]
    shape: tuple[Size, ...]

    def apply(self, builder: Builder, x: Item, span: Span) -> Value:
        return builder.add(Reshape(builder.as_value(x, span), self.shape, span=span)).value

    def of_groups(self, builder: Builder, axis: int, group: int | None, span: Span) -> tuple[Reshaping, int] | None:
        """Groups lie along the dimension that has as many elements behind it, if it is as long, or both are made of
        whole groups."""
        extent, behind = self.old[axis], product(self.old[axis + 1 :])
        bounds = builder.bounds
        gaps = [bounds.at_hand(product(self.shape[d + 1 :]) - behind) for d in range(len(self.shape))]
        exact = [d for d, gap in enumerate(gaps) if gap == ZERO]
        places = exact or [d for d, gap in enumerate(gaps) if gap.constant is None]
        for place in sorted(places, key=lambda d: (self.shape[d] != extent, self.shape[d] == ONE)):
            own = self.shape[place]
            as_long = bounds.at_hand(own - extent) == ZERO
            if not as_long and (group is None or not all(is_multiple(builder, s, group, span) for s in (own, extent))):
                continue
            if not exact and not bounds.may_be_zero(gaps[place], f"the groups do not lie along axis {place}", span):
                continue
            old = (*self.old[:axis], groups_of(extent, group), *self.old[axis + 1 :])
            shape = (*self.shape[:place], groups_of(own, group), *self.shape[place + 1 :])
            return Reshaping(old, shape), place
        return None


def groups_of(extent: Size, group: int | None) -> Size:
    """The groups of so many elements."""
    return ONE if group is None else (extent + (group - 1)) // group


def is_multiple(builder: Builder, size: Size, group: int, span: Span) -> bool:
    """Is a place the beginning of a group? What sizes not at hand decide is left open; data decides nothing."""
    rest = builder.bounds.at_hand(size % group)
    if rest.constant is None and (rest.opaques or not rest.symbols <= builder.bounds.dimensions.keys()):
        return False
    message = f"{size} is not a multiple of {group}, the elements that share a scale"
    return builder.bounds.may_be_zero(rest, message, span)


# ---------------------------------------------------------------------- tensors in formats


def moved(builder: Builder, x: FormatTensor, move: Move, span: Span) -> FormatTensor:
    """A tensor of a format with its elements moved. Raises E0212."""
    found = _moved(builder, x.format.definition.from_front(len(x.shape)), x.parts, move, span)
    if found is None:
        raise cut(builder, x, span)
    definition, parts = found
    return FormatTensor(x.format.turn(definition, len(move.shape)), move.shape, parts)


def _moved(
    builder: Builder, format_: BlockFormat, parts: Mapping[str, Item], move: Move, span: Span
) -> tuple[BlockFormat, dict[str, Item]] | None:
    """The parts of a format, axes counted from the front, with their elements moved."""
    if format_.axis is None:
        return format_, {**parts, "codes": move.apply(builder, parts["codes"], span)}
    found = move.of_groups(builder, format_.axis, format_.group, span)
    if found is None:
        return None
    groups, axis = found
    result: dict[str, Item] = {"codes": move.apply(builder, parts["codes"], span)}
    if isinstance(format_.scale, BlockFormat):
        inner = _moved(builder, format_.scale, _within("scale", parts), groups, span)
        if inner is None:
            return None
        format_ = replace(format_, scale=inner[0])
        result |= {f"scale.{name}": part for name, part in inner[1].items()}
    for name in ("scale", "zero"):
        if name in parts:
            result[name] = groups.apply(builder, parts[name], span)
    return format_.along(axis), {**parts, **result}


def _within(name: str, parts: Mapping[str, Item]) -> dict[str, Item]:
    """The parts of one that has a format of its own."""
    return {own.removeprefix(f"{name}."): part for own, part in parts.items() if own.startswith(f"{name}.")}


def cut(builder: Builder, x: FormatTensor, span: Span) -> CompileError:
    """E0212: what becomes of the elements cuts through groups, or joins what has different scales."""
    definition = x.format.definition
    if definition.axis is None or definition.tensor_scale is not None:
        shared = "all elements share a scale"
    else:
        count = "all elements" if definition.group is None else f"{definition.group} elements"
        shared = f"{count} along axis {definition.from_front(len(x.shape)).axis} share a scale"
    shown = builder.user_span or span
    text = shown.source.text[shown.start : shown.end]
    hint = "move the values, dequantize(…): what is not used is not computed"
    return CompileError("E0212", f"`{text}` does not keep the groups of {x}, where {shared}", span, hint=hint)


def joined_formats(
    builder: Builder, tensors: Sequence[FormatTensor], axis: int, join: Callable[[Sequence[Item]], Value], span: Span
) -> FormatTensor:
    """Tensors of one format one after the other; `join` does so with those that store them. Raises E0202 and E0212."""
    first, rank = tensors[0], len(tensors[0].shape)
    for other in tensors[1:]:
        if len(other.shape) == rank and not other.format.stores_like(first.format, rank):
            hint = "join the values, dequantize(…)"
            raise CompileError("E0202", f"{first} and {other}: the formats differ", span, hint=hint)
    codes = join([tensor.parts["codes"] for tensor in tensors])  # they fit
    definition = first.format.definition.from_front(rank)
    if not _ends_groups(builder, definition, [tensor.shape[axis] for tensor in tensors], axis, span):
        raise cut(builder, first, span)
    parts = {name: join([tensor.parts[name] for tensor in tensors]) for name in first.parts if name != "codes"}
    return FormatTensor(first.format, codes.tensor.shape, {"codes": codes, **parts})


def _ends_groups(builder: Builder, format_: BlockFormat, extents: list[Size], axis: int, span: Span) -> bool:
    """Does every tensor but the last end at the end of a group, and share no scale with others?"""
    if format_.axis is None or format_.tensor_scale is not None:
        return False
    if format_.axis == axis:
        group = format_.group
        if group is None or not all(is_multiple(builder, extent, group, span) for extent in extents[:-1]):
            return False
        extents = [groups_of(extent, group) for extent in extents]
    return not isinstance(format_.scale, BlockFormat) or _ends_groups(builder, format_.scale, extents, axis, span)
