"""Sums of products along a dimension of blocks as `tl.dot`."""

from __future__ import annotations

from collections.abc import Mapping

from intarsia.backends.gpu.loads import Tile
from intarsia.backends.gpu.scaled_products import ScaledProducts
from intarsia.backends.gpu.values import FLOATS_OF_8_BITS, Value, literal
from intarsia.ir.dots import Dot, matrix_dot
from intarsia.ir.dtypes import BF16, F16, F32, F64, I32, U32, DType
from intarsia.ir.halves import factor_in_bf16
from intarsia.ir.kernel import Buffer, Put
from intarsia.ir.kernel_access import Access, trips
from intarsia.ir.scalar import Cast, Const, Expr, Load, cast, factors, loads, product_of
from intarsia.ir.sizes import Size, product

SHORTEST = 16
"""Elements that every dimension of a product of blocks must have."""

IMPRECISE_TERMS = 128
"""Products of f8 after which sm_90 adds up in f32: its matrix units keep fewer bits of sums of them."""

_OPTIONS = {F32: ', input_precision="ieee"', F64: ", out_dtype=tl.float64"}


class Products(ScaledProducts):
    """Writes products of blocks. users: the accesses of each buffer."""

    def __init__(self, buffers: Mapping[str, Buffer], wide: bool) -> None:
        super().__init__(buffers, wide)
        self.users: dict[str, list[Access]] = {}
        self.results = frozenset(b.rounded or b.dtype for b in buffers.values() if b.role in ("out", "inout"))

    def dot(self, put: Put, tile: Tile, axes: tuple[str, ...], reduced: tuple[str, ...], value: Expr) -> bool:
        """Write an accumulation as a product of two blocks, if it is one. Returns whether it is."""
        if len(reduced) != 1 or len(axes) != 2 or tile.buffer.dtype not in (F32, F64, I32, U32):
            return False
        if any(self.extents[a] < SHORTEST for a in (*axes, *reduced)):
            return False
        (along,) = reduced
        for rows, columns in (axes, axes[::-1]):
            sides = self._sides(value, rows, columns)
            if sides is None:
                continue
            if (rows, columns) == axes and (scaled := self.scaled_factors(put, *sides, rows, along, columns)):
                held = "" if self._is_zero(tile) else f", {tile.variable}"
                self.line(f"{tile.variable} = tl.dot_scaled({scaled}{held})")
                return True
            left, right = map(product_of, sides)
            narrow = _narrow(left, right, tile.buffer.dtype, self.results)
            if narrow is None:
                return False
            unit = matrix_dot(narrow[0].dtype, narrow[1].dtype, tile.buffer.dtype)
            if unit is not None and self.extents[along] < unit.width:
                return False
            conditions = tuple(m for m in put.mask if along in m.substitute(self.known).symbols)
            a = self._operand(narrow[0], (rows, along), conditions)
            b = self._operand(narrow[1], (along, columns), conditions)
            if (rows, columns) != axes:
                continue
            if tile.buffer.dtype.is_integer:
                self._write_integers(tile, a, b, unit is None or self._stays_within(put, unit))
            elif a.dtype in FLOATS_OF_8_BITS:
                terms = f", max_num_imprecise_acc={min(IMPRECISE_TERMS, self.extents[along])}"
                self._write(tile, self.as_float_of_8_bits(a), self.as_float_of_8_bits(b), terms)
            else:
                self._write(tile, a, b, _OPTIONS.get(a.dtype, ""))
            return True
        return False

    def _write(self, tile: Tile, a: Value, b: Value, options: str) -> None:
        held = "" if self._is_zero(tile) else f", {tile.variable}"
        self.line(f"{tile.variable} = tl.dot({a.text}, {b.text}{held}{options})")

    def _write_integers(self, tile: Tile, a: Value, b: Value, stays_within: bool) -> None:
        """A product of integers. What wraps is added outside of the matrix units, some of which saturate. It is taken
        away twice, as Triton would make one operation of a product and a sum again."""
        signed, options = tile.buffer.dtype == I32, ", out_dtype=tl.int32"
        if signed and stays_within:
            self._write(tile, a, b, options)
            return
        text = f"tl.dot({a.text}, {b.text}{options})"
        text = text if signed else f"{text}.to(tl.uint32, bitcast=True)"
        self.line(f"{tile.variable} = {text if self._is_zero(tile) else f'{tile.variable} - (-{text})'}")

    def _is_zero(self, tile: Tile) -> bool:
        """Is 0 all that a tile holds, so far not even written? Else what it holds is written, if need be."""
        held = self.pending.get(tile.buffer.name)
        if held is not None and held.value == 0:
            del self.pending[tile.buffer.name]
            return True
        self.settle(tile.buffer.name)
        return False

    def _stays_within(self, put: Put, unit: Dot) -> bool:
        """Are so few products added to 0 that no sum leaves the range of its type, whatever the factors are?"""
        if unit.most_terms is None:
            return True
        writes = [a for a in self.users[put.buffer] if a.writes]
        here = next(a for a in writes if a.statement is put)
        others = [a for a in writes if a.statement is not put]
        if not others or not all(isinstance(a.statement, Put) and _is_zero(a.statement) for a in others):
            return False
        kept = frozenset().union(*(i.symbols for i in put.indices))
        around = [{x.axis for x in a.loops} for a in others]
        summed = [x for x in here.loops if x.axis not in kept and not all(x.axis in own for own in around)]
        terms = product(trips(x).substitute(self.known) for x in summed).constant
        return terms is not None and terms <= unit.most_terms

    def _sides(self, value: Expr, rows: str, columns: str) -> tuple[list[Expr], list[Expr]] | None:
        """The factors that depend on the rows, and those that depend on the columns; None if one depends on both."""
        left: list[Expr] = []
        right: list[Expr] = []
        for factor in factors(value):
            used = self._axes_of(factor)
            if rows in used and columns in used:
                return None
            (right if columns in used else left).append(factor)
        if not left or not right or not any(rows in self._axes_of(f) for f in left):
            return None
        return left, right

    def _axes_of(self, e: Expr) -> set[str]:
        """The lanes on which an expression depends."""
        names = {s for x in (e.symbols,) for s in x}
        names = {n for s in names for n in Size.of(s).substitute(self.known).symbols}
        for load in loads(e):
            if load.buffer in self.tiles:
                names.update(self.tiles[load.buffer].lanes)
        return names & set(self.order)

    def _operand(self, e: Expr, order: tuple[str, str], conditions: tuple[Size, ...]) -> Value:
        """A factor as a block with its dimensions in an order, 0 where conditions do not hold."""
        self.packs = e.dtype in (F16, BF16)
        value = (self.turned(e, order) if isinstance(e, Load) else None) or self.value(e, order)
        self.packs = False
        inner = e.value if isinstance(e, Cast) else e
        zero = isinstance(inner, Load) and self.keeps(inner, conditions) and inner.other is None
        if not zero and conditions and (mask := self.mask(conditions, order)) is not None:
            value = self.call("tl.where", order, e.dtype, mask, value, literal(0, e.dtype))
        if value.axes != order:
            names = ", ".join(self.blocks[a] for a in order)
            text = f"tl.broadcast_to({value.spread(order)}, ({names}))"
            value = Value(text, e.dtype, order, depends=value.depends)
        return value


def _is_zero(put: Put) -> bool:
    return put.operator == "=" and isinstance(put.value, Const) and put.value.value == 0


def _narrow(left: Expr, right: Expr, result: DType, results: frozenset[DType]) -> tuple[Expr, Expr] | None:
    """The factors in the type in which they are multiplied: as they lie in memory where both are widened from one type,
    as products of these are exact. Where one is, and all that the kernel makes is rounded to that type, there or by
    later kernels, the other one, such as the weights of attention, is rounded to it as well: f32 has no matrix
    units."""
    match left, right:
        case Cast(_, Load(dtype=dtype)), _ if result == F32 == right.dtype and _rounds(right, dtype, results):
            return _inner(left), cast(dtype, right)
        case _, Cast(_, Load(dtype=dtype)) if result == F32 == left.dtype and _rounds(left, dtype, results):
            return cast(dtype, left), _inner(right)
        case Cast(_, a), Cast(_, b) if matrix_dot(a.dtype, b.dtype, result) is not None:
            return a, b
    if result == F32:
        first, second = factor_in_bf16(left), factor_in_bf16(right)
        if first is not None and second is not None:
            return first, second
    return (left, right) if left.dtype == right.dtype == result and result in (F32, F64) else None


def _rounds(other: Expr, dtype: DType, results: frozenset[DType]) -> bool:
    """May another factor be rounded to a type?"""
    widened = isinstance(other, Cast) and other.value.dtype == dtype
    return dtype in (F16, BF16) and results == {dtype} and not widened


def _inner(e: Expr) -> Expr:
    assert isinstance(e, Cast)
    return e.value
