"""Convolutions and pooling: reductions over windows that slide over the last dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intarsia.dsl.evaluation.operators import sharing_hint
from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import Item
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.ops import Pad, Reshape
from intarsia.ir.ops.reduction import accumulated
from intarsia.ir.scalar import Apply, Cast, Expr, Index, Load, cast
from intarsia.ir.sizes import ONE, ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


@dataclass(frozen=True)
class Window:
    """A window along one dimension: `size` elements, `dilation` apart, moved by `stride`."""

    size: Size
    stride: int
    padding: Size
    dilation: int

    def count(self, extent: Size) -> Size:
        """How many places the window has along a dimension."""
        return (extent + 2 * self.padding - (self.size - 1) * self.dilation - 1) // self.stride + 1

    def index(self, place: str, offset: str) -> Size:
        """The element at `offset` of the window at `place`, of the padded tensor."""
        return Size.of(place) * self.stride + Size.of(offset) * self.dilation


def _numbers(arguments: Arguments, name: str, rank: int, least: int) -> list[int]:
    """One literal integer for each of `rank` dimensions; one alone is for all."""
    sizes = arguments.sizes(name)
    sizes = sizes * rank if len(sizes) == 1 else sizes
    numbers = [s.constant for s in sizes]
    if len(numbers) != rank or any(n is None or n < least for n in numbers):
        wanted = "an integer" if rank == 1 else "an integer or a pair"
        raise arguments.wrong(name, f"{wanted} of at least {least}")
    return [int(s) for s in sizes]


def _dimensions(builder: Builder, arguments: Arguments, name: str, rank: int, least: int) -> list[Size]:
    """One integer or expression of dimension names for each of `rank` dimensions; one alone is for all."""
    sizes = arguments.sizes(name)
    sizes = sizes * rank if len(sizes) == 1 else sizes
    span, what = arguments[name].span, f"`{name}` of {arguments.function} is at least {least}"
    is_known = len(sizes) == rank and not any(s.opaques for s in sizes)
    if not is_known or not all(builder.bounds.may_be_nonnegative(s - least, what, span) for s in sizes):
        wanted = "an integer" if rank == 1 else "an integer or a pair"
        raise arguments.wrong(name, f"{wanted} of at least {least}")
    return list(sizes)


def _padded(builder: Builder, x: Value, windows: Sequence[Window], literal: float | int, span: Span) -> Value:
    widths = [ZERO] * (x.tensor.rank - len(windows)) + [w.padding for w in windows]
    if all(w == ZERO for w in widths):
        return x
    return builder.add(Pad(x, tuple(widths), tuple(widths), literal, span=span)).value


def _require_fits(builder: Builder, windows: Sequence[Window], extents: Sequence[Size], what: str, span: Span) -> None:
    for window, extent in zip(windows, extents):
        reach = extent + 2 * window.padding - (window.size - 1) * window.dilation - 1
        if not builder.bounds.may_be_nonnegative(reach, f"{what}: the window does not fit {extent}", span):
            show = builder.bounds.show
            message = f"{what}: a window of {show(window.size)} does not fit a dimension of {show(extent)}"
            raise CompileError("E0211", message, span, hint="add padding, or use a smaller window")


def _convolution(rank: int) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    letters = ("h", "w") if rank == 2 else ("w",)
    offsets = ("r", "s") if rank == 2 else ("s",)
    name = f"conv{rank}d"

    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        x, kernel = arguments.tensor(builder, "x"), arguments.tensor(builder, "w")
        _require_operands(x, kernel, rank, name, span)
        strides = _numbers(arguments, "stride", rank, 1)
        paddings = _dimensions(builder, arguments, "padding", rank, 0)
        dilations = _numbers(arguments, "dilation", rank, 1)
        groups = _dimensions(builder, arguments, "groups", 1, 1)[0]
        sizes = kernel.tensor.shape[2:]
        windows = [Window(*numbers) for numbers in zip(sizes, strides, paddings, dilations)]
        extents = x.tensor.shape[2:]
        _require_fits(builder, windows, extents, name, span)
        outer, inner = kernel.tensor.shape[:2]
        _require_channels(builder, x.tensor.shape[1], outer, inner, groups, name, span)
        padded = _padded(builder, x, windows, 0, span)
        names = {n: builder.axis_symbol(n, None) for n in ("n", "g", "o", "c", *letters, *offsets)}
        batch, group, out, channel = (Size.of(names[n]) for n in "ngoc")
        spatial = [Axis.of(names[n], w.count(e)) for n, w, e in zip(letters, windows, extents)]
        reduced = [Axis.of(names["c"], inner), *(Axis.of(names[n], s) for n, s in zip(offsets, sizes))]
        axes = [Axis.of(names["n"], x.tensor.shape[0])]
        each = outer // groups
        if groups != ONE:  # an axis of its own, so that no subscript needs a quotient
            axes.append(Axis.of(names["g"], groups))
            channel = channel + group * inner
            out = group if each == ONE else out + group * each
        if groups == ONE or each != ONE:
            axes.append(Axis.of(names["o"], each))
        axes += spatial
        places = [w.index(names[a], names[b]) for w, a, b in zip(windows, letters, offsets)]
        weight = (out, *(Size.of(names[n]) for n in ("c", *offsets)))
        body = Apply(
            "mul",
            (
                Load(builder.buffer(padded), (batch, channel, *places), x.dtype),
                Load(builder.buffer(kernel), weight, x.dtype),
            ),
        )
        summed, dtype = accumulated("sum", body)
        result = builder.compute(Space(tuple(axes), summed, dtype, tuple(reduced), "sum"), span)
        shape = (axes[0].extent, outer, *(a.extent for a in spatial))
        if len(axes) == len(shape):
            return result
        return builder.add(Reshape(result, shape, span=span)).value

    return build


def _require_operands(x: Value, kernel: Value, rank: int, name: str, span: Span) -> None:
    what = f"{name} of {x.type} and {kernel.type}"
    if x.tensor.rank != rank + 2 or kernel.tensor.rank != rank + 2:
        wanted = "x[N, I, H, W] and w[O, I, R, S]" if rank == 2 else "x[N, I, W] and w[O, I, S]"
        raise CompileError("E0211", what, span, hint=f"it takes {wanted}")
    if x.dtype != kernel.dtype:
        hint = "nothing is converted unasked: cast one of them"
        raise CompileError("E0202", f"{what}: the dtypes differ", span, hint=hint)
    if x.dtype.is_narrow or x.dtype.kind == "bool":
        raise CompileError("E0202", f"{what}: {x.dtype} has no arithmetic", span, hint="cast both up first: f32(x)")


def _require_channels(
    builder: Builder, channels: Size, outer: Size, inner: Size, groups: Size, name: str, span: Span
) -> None:
    show = builder.bounds.show
    if builder.bounds.compare(channels, inner * groups) is False:
        wanted = str(inner) if groups == ONE else f"{groups} groups of {inner}"
        message = f"{name}: x has {show(channels)} channels, and w is for {wanted}"
        raise CompileError("E0211", message, span, hint=sharing_hint(inner * groups, channels))
    if not builder.bounds.may_be_zero(outer % groups, f"{name}: {outer} does not divide into {groups} groups", span):
        raise CompileError("E0211", f"{name}: {show(outer)} channels out do not divide into {groups} groups", span)


def _pooling(which: str) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    name = f"{which}_pool2d"

    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        x = arguments.tensor(builder, "x")
        if x.tensor.rank < 2:
            raise CompileError("E0211", f"{name} of {x.type}: it has no two dimensions to pool", span)
        if x.dtype.is_narrow or x.dtype.kind == "bool" or (which == "avg" and not x.dtype.is_float):
            raise CompileError("E0202", f"{name} of {x.type}", span, hint="cast it first, as in f32(x)")
        sizes = _numbers(arguments, "size", 2, 1)
        strides = sizes if arguments.item("stride") is None else _numbers(arguments, "stride", 2, 1)
        paddings = _numbers(arguments, "padding", 2, 0)
        if any(2 * p > s for p, s in zip(paddings, sizes)):
            raise arguments.wrong("padding", "at most half of the window")
        windows = [Window(Size.of(s), t, Size.of(p), 1) for s, t, p in zip(sizes, strides, paddings)]
        extents = x.tensor.shape[-2:]
        _require_fits(builder, windows, extents, name, span)
        padded = _padded(builder, x, windows, x.dtype.least if which == "max" else 0, span)
        leading = [Axis.of(builder.axis_symbol(f"i{d}", None), s) for d, s in enumerate(x.tensor.shape[:-2])]
        names = {n: builder.axis_symbol(n, None) for n in ("h", "w", "r", "s")}
        places = [Axis.of(names[n], w.count(e)) for n, w, e in zip("hw", windows, extents)]
        reduced = tuple(Axis.of(names[n], s) for n, s in zip("rs", sizes))
        indices = [w.index(names[a], names[b]) for w, a, b in zip(windows, "hw", "rs")]
        load = Load(builder.buffer(padded), (*(Size.of(a.name) for a in leading), *indices), x.dtype)
        axes = (*leading, *places)
        if which == "max":
            return builder.compute(Space(axes, load, x.dtype, reduced, "max"), span)
        return _average(builder, axes, reduced, load, [n.name for n in places], windows, extents, span)

    return build


def _average(
    builder: Builder,
    axes: tuple[Axis, ...],
    reduced: tuple[Axis, ...],
    load: Load,
    places: list[str],
    windows: Sequence[Window],
    extents: Sequence[Size],
    span: Span,
) -> Value:
    """The sum over each window divided by the number of its elements that are not padding."""
    wide = load.dtype.accumulator
    total = builder.compute(Space(axes, cast(wide, load), wide, reduced, "sum"), span)
    count: Expr | None = None
    for place, window, extent in zip(places, windows, extents):
        covered = _covered(builder, place, window, extent)
        factor = Cast(wide, Index(covered))
        count = factor if count is None else Apply("mul", (count, factor))
    assert count is not None
    element = Load(builder.buffer(total), tuple(Size.of(a.name) for a in axes), wide)
    body = cast(load.dtype, Apply("div", (element, count)))
    return builder.compute(Space(axes, body, load.dtype), span)


def _covered(builder: Builder, place: str, window: Window, extent: Size) -> Size:
    """How many elements of a dimension the window at `place` covers."""
    if window.padding == ZERO:
        return window.size
    start = Size.of(place) * window.stride - window.padding
    return minimum(start + window.size, extent) - maximum(start, 0)


WINDOWS = (
    Primitive("conv2d", "x, w; stride=1, padding=0, dilation=1, groups=1", _convolution(2)),
    Primitive("conv1d", "x, w; stride=1, padding=0, dilation=1, groups=1", _convolution(1)),
    Primitive("max_pool2d", "x; size, stride=none, padding=0", _pooling("max")),
    Primitive("avg_pool2d", "x; size, stride=none, padding=0", _pooling("avg")),
)
