"""Products of codes with scales, `tl.dot_scaled`: what matrix units multiply that take scales of groups of codes.

Codes of 4 bits lie two to a byte along the sum, the first one in the low bits; scales are bytes, [rows, groups] and
[columns, groups]. Constants are laid out so by the schedule; other codes, a byte each, are put together in registers.
"""

from __future__ import annotations

from intarsia.backends.gpu.descriptors import Descriptors
from intarsia.backends.gpu.values import ATOM, FLOATS_OF_8_BITS, Value
from intarsia.ir.dots import SCALED_ROWS, ScaledCodes, scaled_dot
from intarsia.ir.dtypes import F4E2M1, F8E4M3, F8E5M2, U8
from intarsia.ir.kernel import Put
from intarsia.ir.proofs import simplify
from intarsia.ir.scalar import Apply, Bitcast, Cast, Expr, Index, Load, transform
from intarsia.ir.sizes import Size

_FORMATS = {F4E2M1: "e2m1", F8E4M3: "e4m3", F8E5M2: "e5m2"}

PAIR = 2
"""Codes of 4 bits in a byte."""


class ScaledProducts(Descriptors):
    """Writes the factors of products of codes with scales."""

    def scaled_factors(
        self, put: Put, left: list[Expr], right: list[Expr], rows: str, along: str, columns: str
    ) -> str | None:
        """The factors of a sum of products as arguments of `tl.dot_scaled`; None if matrix units do not take them."""
        a, b = (ScaledCodes.of(side, along, self.facts) for side in (left, right))
        unit = scaled_dot(a, b)
        if a is None or b is None or unit is None:
            return None
        is_ragged = any(along in m.substitute(self.known).symbols for m in put.mask)
        if is_ragged or self.extents[rows] < SCALED_ROWS or self.extents[along] < unit.width:
            return None
        first, second = self._operand_with_scale(a, rows, along), self._operand_with_scale(b, columns, along)
        if first is None or second is None:
            return None
        formats = [f'"{_FORMATS[side.code.dtype]}"' for side in (a, b)]
        return ", ".join([*first, formats[0], f"tl.trans({second[0]})", second[1], formats[1]])

    def _operand_with_scale(self, side: ScaledCodes, own: str, along: str) -> tuple[str, str] | None:
        """Codes and scales of one side, [own, along] and [own, groups]; None if they are no whole blocks."""
        if side.code.dtype == F4E2M1:
            codes, order = self._pairs(side.code, own, along)
        else:
            codes, order = self.as_float_of_8_bits(self.value(side.code, (own, along))), (own, along)
        groups = (own, self._part(along, side.group_axis, side.size))
        scale = self.value(side.scale, groups)
        if side.scale.dtype in FLOATS_OF_8_BITS:
            scale = self.as_float_of_8_bits(scale)
        return (codes.text, scale.text) if (codes.axes, scale.axes) == (order, groups) else None

    def _pairs(self, code: Expr, own: str, along: str) -> tuple[Value, tuple[str, str]]:
        """Codes of 4 bits, two to a byte: as they lie in memory if they do, else put together."""
        pairs = f"{along} // {PAIR}"
        order = (own, self._part(along, pairs, PAIR))
        low, high = (self._at(code, {along: Size.of(pairs) * PAIR + n}) for n in range(PAIR))
        match low, high:
            case Bitcast(_, Apply("shift_right", (byte, first))), Bitcast(_, Apply("shift_right", (same, second))):
                if byte == same and byte.dtype == U8 and (_number(first), _number(second)) == (0, 4):
                    return self.value(byte, order), order
        codes = self.named(self.value(code, (own, along)), "codes")
        packed = self.call(self.helper("pack_pairs"), (own, along), F4E2M1, codes)
        return Value(packed.text, F4E2M1, order, ATOM, depends=packed.depends), order

    def _at(self, e: Expr, names: dict[str, Size]) -> Expr:
        """An expression at certain values of axes."""

        def rule(part: Expr) -> Expr | None:
            match part:
                case Load(buffer, indices, dtype):
                    return Load(buffer, tuple(simplify(i, self.facts) for i in indices), dtype, part.mask, part.other)
                case Index(size):
                    return Index(simplify(size, self.facts))
            return None

        return transform(e, names, rule)

    def _part(self, axis: str, part: str, size: int) -> str:
        """Lanes that count pieces of `size` lanes of an axis."""
        if part not in self.extents:
            self.extents[part] = self.extents[axis] // size
            self.blocks[part] = f"{self.blocks[axis]} // {size}"
        self.facts = self.facts.within(part, 0, self.extents[part])
        return part


def _number(distance: Expr) -> int | None:
    """The number of bits by which something is shifted, if it is one."""
    return distance.value.size.constant if isinstance(distance, Cast) and isinstance(distance.value, Index) else None
