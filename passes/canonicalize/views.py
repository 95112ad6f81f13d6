"""Algebra of views: reshapes, transposes, broadcasts, slices, pads and concatenations compose, cancel or vanish."""

from __future__ import annotations

from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import BroadcastTo, Concat, Constant, Pad, Reshape, Slice, Transpose
from intarsia.ir.sizes import ONE, ZERO, Size


def reshape_of_reshape(node: Node) -> Node | None:
    """reshape(reshape(x)) -> reshape(x)"""
    match node:
        case Reshape(Value(Reshape(x)), shape):
            return Reshape(x, shape, span=node.span)
    return None


def same_shape(node: Node) -> Value | None:
    """reshape(x), broadcast(x) -> x where the shape stays"""
    match node:
        case Reshape(x, shape) | BroadcastTo(x, shape) if x.tensor.shape == shape:
            return x
    return None


def transpose_of_transpose(node: Node) -> Node | None:
    """transpose(transpose(x)) -> one transpose"""
    match node:
        case Transpose(Value(Transpose(x, first)), second):
            return Transpose(x, tuple(first[d] for d in second), span=node.span)
    return None


def transpose_in_place(node: Node) -> Node | Value | None:
    """transpose(x) -> x in the old order, -> reshape(x) where only dimensions of extent 1 move"""
    if not isinstance(node, Transpose):
        return None
    if node.axes == tuple(range(len(node.axes))):
        return node.x
    wide = [d for d in node.axes if node.x.tensor.shape[d] != ONE]
    if wide == sorted(wide):
        return Reshape(node.x, node.value.tensor.shape, span=node.span)
    return None


def broadcast_of_broadcast(node: Node) -> Node | None:
    """broadcast(broadcast(x)) -> broadcast(x)"""
    match node:
        case BroadcastTo(Value(BroadcastTo(x)), shape):
            return BroadcastTo(x, shape, span=node.span)
    return None


def broadcast_of_expanded(node: Node) -> Node | None:
    """broadcast(reshape(x)) -> broadcast(x) where the reshape adds leading dimensions of extent 1"""
    match node:
        case BroadcastTo(Value(Reshape(x, expanded)), shape):
            added = len(expanded) - x.tensor.rank
            if expanded == (*[ONE] * added, *x.tensor.shape):
                return BroadcastTo(x, shape, span=node.span)
    return None


def broadcast_without_copies(node: Node) -> Node | None:
    """broadcast(x) -> reshape(x) where it only adds dimensions of extent 1, and x is no literal"""
    match node:
        case BroadcastTo(x, shape) if not isinstance(x.node, Constant):
            if shape == (*[ONE] * (len(shape) - x.tensor.rank), *x.tensor.shape):
                return Reshape(x, shape, span=node.span)
    return None


def view_of_equal_elements(node: Node) -> Node | None:
    """reshape, transpose, slice or broadcast of broadcast(scalar) -> broadcast(scalar)"""
    match node:
        case Reshape(Value(BroadcastTo(x))) | Transpose(Value(BroadcastTo(x))) | Slice(Value(BroadcastTo(x))):
            if not x.tensor.rank:
                return BroadcastTo(x, node.value.tensor.shape, span=node.span)
        case Reshape(Value(Constant()) as x, shape):
            return BroadcastTo(x, shape, span=node.span)
    return None


def slice_of_all(node: Node) -> Node | Value | None:
    """x[:, :] -> x, x[0] -> reshape(x) where the dimension has extent 1"""
    match node:
        case Slice(x, starts, extents, steps, dropped):
            untouched = all(
                start == ZERO and extent == size and (step == 1 or extent == ONE)
                for start, extent, step, size in zip(starts, extents, steps, x.tensor.shape)
            )
            if untouched:
                return Reshape(x, node.value.tensor.shape, span=node.span) if dropped else x
    return None


def slice_of_slice(node: Node) -> Node | None:
    """x[a::s][b::t] -> x[a + s * b :: s * t]"""
    match node:
        case Slice(Value(Slice() as inner), starts, extents, steps, dropped):
            outer = iter(zip(starts, extents, steps, range(len(starts))))
            parts: list[tuple[Size, Size, int]] = []
            gone: list[int] = []
            for d, (start, step) in enumerate(zip(inner.starts, inner.steps)):
                if d in inner.dropped:
                    parts.append((start, ONE, 1))
                    gone.append(d)
                    continue
                start_in, extent, step_in, position = next(outer)
                parts.append((start + start_in * step, extent, step * step_in))
                if position in dropped:
                    gone.append(d)
            new_starts, new_extents, new_steps = zip(*parts)
            return Slice(inner.x, new_starts, new_extents, new_steps, tuple(gone), span=node.span)
    return None


def slice_of_concat(node: Node) -> Node | None:
    """concat(x, y)[a:b] -> y[a - n : b - n] where the slice lies within y, which begins at n"""
    match node:
        case Slice(Value(Concat(parts, axis)), starts, extents, steps, dropped):
            begin = ZERO
            last = starts[axis] + (extents[axis] - 1) * steps[axis]
            for part in parts:
                end = begin + part.tensor.shape[axis]
                gaps = (starts[axis] - begin, last - begin, end - 1 - starts[axis], end - 1 - last)
                if extents[axis].constant != 0 and all(g.constant is not None and g.constant >= 0 for g in gaps):
                    moved = (*starts[:axis], starts[axis] - begin, *starts[axis + 1 :])
                    return Slice(part, moved, extents, steps, dropped, span=node.span)
                begin = end
    return None


def pad_with_nothing(node: Node) -> Value | None:
    """pad(x) -> x where no dimension grows"""
    match node:
        case Pad(x, before, after) if all(s == ZERO for s in (*before, *after)):
            return x
    return None


def pad_of_pad(node: Node) -> Node | None:
    """pad(pad(x)) -> pad(x) with the same literal"""
    match node:
        case Pad(Value(Pad() as inner), before, after, literal) if repr(inner.literal) == repr(literal):
            return Pad(
                inner.x,
                tuple(a + b for a, b in zip(before, inner.before)),
                tuple(a + b for a, b in zip(after, inner.after)),
                literal,
                span=node.span,
            )
    return None


def pad_of_transpose(node: Node) -> Node | None:
    """pad(transpose(x)) -> transpose(pad(x)), which pads in the order of memory"""
    match node:
        case Pad(Value(Transpose(x, axes)), before, after, literal):
            place = sorted(range(len(axes)), key=axes.__getitem__)
            padded = Pad(x, tuple(before[d] for d in place), tuple(after[d] for d in place), literal, span=node.span)
            return Transpose(padded.value, axes, span=node.span)
    return None


def concat_flat(node: Node) -> Node | Value | None:
    """concat(x) -> x, concat(concat(x, y), z) -> concat(x, y, z), and parts without elements go"""
    if not isinstance(node, Concat):
        return None
    parts: list[Value] = []
    for part in node.parts:
        inner = part.node
        parts += inner.parts if isinstance(inner, Concat) and inner.axis == node.axis else (part,)
    parts = [p for p in parts if p.tensor.shape[node.axis] != ZERO] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    return Concat(tuple(parts), node.axis, span=node.span) if tuple(parts) != node.parts else None


RULES = (
    reshape_of_reshape,
    same_shape,
    transpose_of_transpose,
    transpose_in_place,
    broadcast_of_broadcast,
    broadcast_of_expanded,
    broadcast_without_copies,
    view_of_equal_elements,
    slice_of_all,
    slice_of_slice,
    slice_of_concat,
    pad_with_nothing,
    pad_of_pad,
    pad_of_transpose,
    concat_flat,
)
