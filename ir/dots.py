"""Dot instructions: products of neighbouring narrow numbers are added up, several at once, to what was there before.

On a CPU each lane of a vector does so; on a GPU the matrix units do, for blocks of rows and columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import BF16, F4E2M1, F8E4M3, F8E5M2, F8E8M0, F16, F32, I8, I16, I32, U8, DType
from intarsia.ir.kernel import Put
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Apply, Cast, Expr, Load, factors
from intarsia.ir.sizes import Size
from intarsia.ir.target import Target


@dataclass(frozen=True)
class Dot:
    """An instruction for the dot product of `width` numbers of types `left` and `right`: in each lane of 32 bits of a
    vector; or, of matrix units, of the rows of one block and the columns of another, which are so long at least.

    features: any one of these is enough for a target to have it. total: the type of what it adds to; of integers also
    the unsigned one. flushes: subnormal factors, products and sums become 0. saturates: sums of integers beyond the
    range of their type stay at its ends, and do not wrap.
    """

    features: tuple[str, ...]
    left: DType
    right: DType
    total: DType
    width: int
    flushes: bool = False
    saturates: bool = False

    def __str__(self) -> str:
        scaled = " with scales of groups" if self in SCALED_DOTS else ""
        return f"{self.left} by {self.right}{scaled}"

    def adds(self, total: DType) -> bool:
        """Does it add to sums of this type? Integers of 32 bits wrap alike."""
        return total == self.total or (self.total == I32 and total.is_integer and total.bits == 32)

    @property
    def most_terms(self) -> int | None:
        """So many products may be added up whatever the factors are: no sum leaves the range. None: any number."""
        if not self.saturates:
            return None
        largest = max(abs(a * b) for a in _ends(self.left) for b in _ends(self.right))
        return int(self.total.greatest) // largest


def _ends(dtype: DType) -> tuple[int, int]:
    return int(dtype.least), int(dtype.greatest)


VECTOR_DOTS = (
    Dot(("avx512bf16", "bf16"), BF16, BF16, F32, 2, flushes=True),
    Dot(("avx512vnni", "avxvnni", "i8mm"), U8, I8, I32, 4),
    Dot(("avx512vnni", "avxvnni", "i8mm"), I8, U8, I32, 4),
    Dot(("avxvnniint8", "dotprod"), I8, I8, I32, 4),
    Dot(("avxvnniint8", "dotprod"), U8, U8, I32, 4),
    Dot(("avx2", "avx512bw"), I16, I16, I32, 2),
)
"""The dot instructions of all CPUs, those with more products first."""

MATRIX_DOTS = (
    Dot(("mma",), I8, I8, I32, 32, saturates=True),
    *(Dot(("fp8",), left, right, F32, 32) for left in (F8E4M3, F8E5M2) for right in (F8E4M3, F8E5M2)),
    Dot(("mma",), BF16, BF16, F32, 16),
    Dot(("mma",), F16, F16, F32, 16),
)
"""The dot instructions of the matrix units of all GPUs. Those for integers saturate in some forms: on sm_80, and
of blocks of few rows."""


SCALED_DOTS = tuple(
    Dot(("block_scale",), left, right, F32, 64)
    for left in (F4E2M1, F8E4M3, F8E5M2)
    for right in (F4E2M1, F8E4M3, F8E5M2)
)
"""The dot instructions of matrix units that multiply the codes of each group with a scale."""

SCALED_ROWS = 128
"""Rows of a block at least that these take."""

GROUPS = {F8E8M0: 32, F8E4M3: 16}
"""How many codes have a scale there, by the type of scales; the latter are for codes of 4 bits."""


@dataclass(frozen=True)
class ScaledCodes:
    """A side of a product of matrices: codes in f32 times scales, of which groups of codes along an axis have one. The
    subscripts of the scale are by `group_axis`, which counts the groups."""

    code: Expr
    scale: Load
    group_axis: str
    size: int

    @staticmethod
    def of(side: Sequence[Expr], axis: str, facts: Facts) -> ScaledCodes | None:
        """The factors of one side as codes and scales of groups along an axis; None if they are anything else."""
        match side:
            case (Cast(value=first), Cast(value=second)):
                pairs = ((first, second), (second, first))
                return next(filter(None, (_in_groups(code, scale, axis, facts) for code, scale in pairs)), None)
        return None


def _in_groups(code: Expr, scale: Expr, axis: str, facts: Facts) -> ScaledCodes | None:
    """Codes and scales, if there is one for each group along an axis."""
    if not isinstance(scale, Load) or (size := GROUPS.get(scale.dtype)) is None:
        return None
    group, place = f"{axis} // {size}", f"{axis} % {size}"
    facts = facts.within(place, 0, size).given(Size.of(group))
    whole = {axis: Size.of(group) * size + Size.of(place)}
    indices = tuple(simplify(i.substitute(whole), facts) for i in scale.indices)
    if any(place in i.symbols for i in indices) or any(axis in m.symbols for m in scale.mask):
        return None
    return ScaledCodes(code, replace(scale, indices=indices), group, size)


def scaled_dot(left: ScaledCodes | None, right: ScaledCodes | None) -> Dot | None:
    """What matrix units do with two sides, of those GPUs that have it."""
    if left is None or right is None or left.scale.dtype != right.scale.dtype:
        return None
    found = next((d for d in SCALED_DOTS if (d.left, d.right) == (left.code.dtype, right.code.dtype)), None)
    is_short = found is not None and found.left.bits == found.right.bits == 4
    return found if left.scale.dtype == F8E8M0 or is_short else None


def find_scaled_dot(value: Expr, columns: Collection[str], axis: str) -> Dot | None:
    """The instruction for products of codes with scales of groups along an axis, if that is what a sum adds."""
    left = [f for f in factors(value) if f.symbols.isdisjoint(columns)]
    right = [f for f in factors(value) if not f.symbols.isdisjoint(columns)]
    return scaled_dot(*(ScaledCodes.of(side, axis, Facts()) for side in (left, right)))


def dots_of(target: Target) -> Iterable[Dot]:
    """The dot instructions of a target."""
    return (d for d in (*VECTOR_DOTS, *MATRIX_DOTS) if not {*d.features}.isdisjoint(target.features))


def matrix_dot(left: DType, right: DType, total: DType) -> Dot | None:
    """What matrix units do with blocks of two types, of those GPUs that have it."""
    return next((d for d in MATRIX_DOTS if (d.left, d.right) == (left, right) and d.adds(total)), None)


def find_dot(target: Target, put: Put) -> Dot | None:
    """The instruction for a statement that adds products of two narrow numbers, as it stands."""
    pair = widened_factors(put)
    if pair is None:
        return None
    left, right = (e.dtype for e in pair)
    found = (d for d in dots_of(target) if (d.left, d.right) == (left, right) and d.adds(put.value.dtype))
    return next(found, None)


def widened_factors(put: Put) -> tuple[Expr, Expr] | None:
    """The two factors of a statement that adds products, before they are widened to the type of the sum."""
    match put.operator, put.value:
        case "+=", Apply("mul", (Cast(_, left), Cast(_, right))):
            return left, right
    return None
