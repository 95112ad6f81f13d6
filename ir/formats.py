"""Block formats: how a tensor of numbers is stored as codes, scales and perhaps zero points (language.md, section 8).

A format is data. `parts` says which tensors store a tensor of a shape; the front end makes parameters of them, and
writes `dequantize` and `quantize` as ordinary nodes (`dsl/primitives/formats.py`).
Sources: OCP Microscaling Formats 1.0 (`mx…`); Dettmers et al., "QLoRA", 2023 (`nf4`); NVIDIA's documentation (`nvfp4`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from intarsia.ir.conversion import largest
from intarsia.ir.dtypes import F32, DType, dtype
from intarsia.ir.sizes import ONE, Size

ZeroMeans = Literal["code", "value", "quantized"]
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The quantiles of the normal distribution that the codes of `nf4` stand for."""


@dataclass(frozen=True)
class BlockFormat:
    """Values are (code - zero) * scale, with one scale, and perhaps one zero point, for each group of elements.

    codes: the type of a code. scale: its type, or the format in which scales are stored. group: elements along `axis`
    that share a scale, the last group may be shorter; None for all of them. axis: None for one scale in all; negative
    ones count from the end. zero: the type of a zero point, None for none. zero_means: "code" (code - zero) * scale,
    "value" code * scale - zero, "quantized" as "code" for a zero point of few bits. largest: the code that the largest
    magnitude of a group becomes. power: scales are powers of two, 2^(floor(log2 absmax) - exponent of `largest`).
    unit: what a code of 1 is, times the scale. table: the value of each code, if that is not its number. tensor_scale:
    the type of one more scale for the whole tensor.
    """

    codes: DType
    scale: DType | BlockFormat
    group: int | None
    axis: int | None
    largest: float
    zero: DType | None = None
    zero_means: ZeroMeans = "code"
    power: bool = False
    unit: float = 1.0
    table: tuple[float, ...] | None = None
    tensor_scale: DType | None = None

    def along(self, axis: int | None) -> BlockFormat:
        """The same along another axis."""
        return replace(self, axis=axis)

    def from_front(self, rank: int) -> BlockFormat:
        """The same for tensors of a rank, with axes counted from the front: what stores them alike is equal. An axis
        that they lack stays."""
        axis = self.axis
        if axis is not None and -rank <= axis < 0:
            axis += rank
        scale = self.scale
        if isinstance(scale, BlockFormat):
            scale = scale.from_front(0 if axis is None else rank)
        return replace(self, axis=axis, scale=scale)

    def grouped(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """The shape of the scales: one for each group. Raises IndexError if there is no such axis."""
        if self.axis is None:
            return ()
        axis = range(len(shape))[self.axis]
        groups = ONE if self.group is None else (shape[axis] + (self.group - 1)) // self.group
        return (*shape[:axis], groups, *shape[axis + 1 :])

    def parts(self, shape: tuple[Size, ...]) -> dict[str, tuple[DType | BlockFormat, tuple[Size, ...]]]:
        """The tensors that store a tensor of a shape, by name: what their elements are, and their shapes."""
        found: dict[str, tuple[DType | BlockFormat, tuple[Size, ...]]] = {"codes": (self.codes, shape)}
        found["scale"] = (self.scale, self.grouped(shape))
        if self.zero is not None:
            found["zero"] = (self.zero, self.grouped(shape))
        if self.tensor_scale is not None:
            found["tensor_scale"] = (self.tensor_scale, ())
        return found

    def leaves(self, shape: tuple[Size, ...], label: str) -> list[tuple[str, DType, tuple[Size, ...]]]:
        """The same with the formats of scales taken apart, by dotted name."""
        found: list[tuple[str, DType, tuple[Size, ...]]] = []
        for name, (element, sizes) in self.parts(shape).items():
            own = f"{label}.{name}"
            if isinstance(element, BlockFormat):
                found += element.leaves(sizes, own)
            else:
                found.append((own, element, sizes))
        return found


def largest_code(codes: DType, has_zero: bool) -> float:
    """The code that the largest magnitude becomes: the largest finite float, 2^(n-1) - 1 of a signed integer."""
    if codes.is_float:
        return largest(codes)
    return float((1 << codes.bits) - 1) if has_zero else float(max(int(codes.greatest), 1))


def _type(name: str) -> DType:
    found = dtype(name)
    assert found is not None
    return found


def _microscaling(codes: str, unit: float = 1.0) -> BlockFormat:
    element = _type(codes)
    largest = largest_code(element, has_zero=False)
    return BlockFormat(element, _type("f8e8m0"), 32, -1, largest, power=True, unit=unit)


BUILT_IN: dict[str, BlockFormat] = {
    "mxfp8": _microscaling("f8e4m3"),
    "mxfp6": _microscaling("f6e3m2"),
    "mxfp4": _microscaling("f4e2m1"),
    "mxint8": _microscaling("i8", unit=2.0**-6),
    "nvfp4": BlockFormat(_type("f4e2m1"), _type("f8e4m3"), 16, -1, 6.0, tensor_scale=F32),
    "nf4": BlockFormat(_type("u4"), F32, 64, -1, 1.0, table=NF4),
}
"""The formats that need no declaration, along the last axis."""


def block_format(
    codes: str,
    scale: DType | BlockFormat,
    group: int | None,
    axis: int | None,
    zero: DType | None = None,
    zero_means: ZeroMeans = "code",
) -> BlockFormat:
    """The format that `quant(codes, …)` declares. Codes are a name of a type, or `ternary`: -1, 0 and 1 in two bits."""
    if codes == "ternary":
        return BlockFormat(_type("i2"), scale, group, axis, 1.0, zero, zero_means)
    element = _type(codes)
    return BlockFormat(element, scale, group, axis, largest_code(element, zero is not None), zero, zero_means)
