"""Dot instructions: each lane adds up several products of neighbouring narrow numbers, and what was there before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from intarsia.ir.dtypes import BF16, F32, I8, I16, I32, U8, DType
from intarsia.ir.kernel import Put
from intarsia.ir.scalar import Apply, Cast, Expr
from intarsia.ir.target import Target


@dataclass(frozen=True)
class Dot:
    """An instruction for the dot product of `width` numbers of types `left` and `right`, in each lane of 32 bits.

    features: any one of these is enough for a target to have it. total: the type of what it adds to; of integers also
    the unsigned one. flushes: subnormal factors, products and sums become 0.
    """

    features: tuple[str, ...]
    left: DType
    right: DType
    total: DType
    width: int
    flushes: bool = False

    def adds(self, total: DType) -> bool:
        """Does it add to sums of this type? Integers of 32 bits wrap alike."""
        return total == self.total or (self.total == I32 and total.is_integer and total.bits == 32)


DOTS = (
    Dot(("avx512bf16", "bf16"), BF16, BF16, F32, 2, flushes=True),
    Dot(("avx512vnni", "avxvnni", "i8mm"), U8, I8, I32, 4),
    Dot(("avx512vnni", "avxvnni", "i8mm"), I8, U8, I32, 4),
    Dot(("avxvnniint8", "dotprod"), I8, I8, I32, 4),
    Dot(("avxvnniint8", "dotprod"), U8, U8, I32, 4),
    Dot(("avx2", "avx512bw"), I16, I16, I32, 2),
)
"""The dot instructions of all targets, those with more products first."""


def dots_of(target: Target) -> Iterable[Dot]:
    """The dot instructions of a target."""
    if target.kind != "cpu":
        return ()
    return (d for d in DOTS if not {*d.features}.isdisjoint(target.features))


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
