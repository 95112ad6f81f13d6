"""Bodies in types that the target computes with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intarsia.ir.codes import decode, encode
from intarsia.ir.conversion import code_of, convert
from intarsia.ir.dtypes import BOOL, F32, F64, I8, U8, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, as_size, cast
from intarsia.ir.sizes import Size

_BOOL_FUNCTIONS = {"maximum": "or", "minimum": "and"}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


@dataclass(frozen=True)
class Arithmetic:
    """What a target computes with. slow: floats of 16 bits that it computes with in f32. converted: narrow floats that
    it has instructions for, whose casts to f32 stay. short: has it instructions for products of i8 and of f16, so that
    narrow elements are better no wider than these?"""

    slow: frozenset[DType]
    converted: frozenset[DType] = frozenset()
    short: bool = False


def rounded(literal: int | float | bool, dtype: DType) -> float:
    """The value of a literal of a float type."""
    return float(convert(convert(np.asarray(float(literal)), F64, dtype), dtype, F64))


def legal_body(e: Expr, native: Arithmetic) -> Expr:
    """The expression with arithmetic on slow types done in f32, and rounded where the value leaves them; and with
    narrow elements as functions of their codes."""
    return _Body(native).legal(e)


def widened(e: Expr, native: Arithmetic, wide_buffer: str = "") -> Expr:
    """The expression, which is of a slow type, in f32. The buffer `wide_buffer` holds f32 already."""
    return _Body(native, wide_buffer).wide(e)


class _Body:
    """Rebuilds expressions; equal parts are visited once."""

    def __init__(self, native: Arithmetic, wide_buffer: str = "") -> None:
        self.native = native
        self.slow = native.slow
        self.wide_buffer = wide_buffer
        self._legal: dict[Expr, Expr] = {}
        self._wide: dict[Expr, Expr] = {}

    def legal(self, e: Expr) -> Expr:
        """The same value, of the same type."""
        if e not in self._legal:
            self._legal[e] = self._rebuild(e)
        return self._legal[e]

    def wide(self, e: Expr) -> Expr:
        """The value of an expression of a slow type in f32: not rounded if it is arithmetic."""
        if e not in self._wide:
            match e:
                case Const(value, dtype):
                    self._wide[e] = Const(rounded(value, dtype), F32)
                case Apply(function, arguments):
                    self._wide[e] = Apply(function, tuple(map(self._argument, arguments)))
                case Load(buffer=self.wide_buffer):
                    self._wide[e] = replace(self._load(e), dtype=F32)
                case _:
                    self._wide[e] = Cast(F32, self.legal(e))
        return self._wide[e]

    def _argument(self, e: Expr) -> Expr:
        return self.wide(e) if e.dtype in self.slow else self.legal(e)

    def _rebuild(self, e: Expr) -> Expr:
        match e:
            case Apply(function, arguments) if arguments[-1].dtype in self.slow and self._computes(e):
                return cast(e.dtype, Apply(function, tuple(map(self._argument, arguments))))
            case Apply(function, arguments) if arguments[-1].dtype == BOOL and function in _BOOL_FUNCTIONS:
                return Apply(_BOOL_FUNCTIONS[function], tuple(map(self.legal, arguments)))
            case Apply(function, arguments) if arguments[-1].dtype == BOOL and function in _COMPARISONS:
                return Apply(function, tuple(Cast(U8, self.legal(a)) for a in arguments))
            case Apply(function, arguments):
                return Apply(function, tuple(map(self.legal, arguments)))
            case Cast(dtype, value) if value.dtype.is_narrow:
                return self._of_narrow(dtype, self.legal(value))
            case Cast(dtype, value) if dtype.is_narrow:
                return encode(self._argument(value), dtype)
            case Const(value, dtype) if dtype.is_narrow:
                return Bitcast(dtype, Const(code_of(value, dtype), U8))
            case Cast(dtype, value):
                # What is cast anyway need not be rounded to its own type first, unless that is all the cast does.
                return cast(dtype, self.wide(value)) if value.dtype in self.slow else Cast(dtype, self.legal(value))
            case Bitcast(dtype, value):
                return Bitcast(dtype, self.legal(value))
            case Load(buffer=self.wide_buffer):
                return Cast(e.dtype, replace(self._load(e), dtype=F32))
            case Load():
                return self._load(e)
            case Index(size):
                return Index(self._size(size))
        return e

    def _of_narrow(self, dtype: DType, value: Expr) -> Expr:
        """An element of a narrow type as another type, by way of one that is computed with."""
        if dtype.is_narrow:
            wide = F32 if value.dtype.is_float else I8 if value.dtype.is_signed else U8
            return encode(self._of_narrow(wide, value), dtype)
        if value.dtype in self.native.converted:
            return cast(dtype, Cast(F32, value))
        return decode(value, dtype, self.native.short)

    def _computes(self, e: Apply) -> bool:
        """Does it do arithmetic? A `where` of values that are there already only moves."""
        return e.function != "where" or any(isinstance(a, Apply) for a in e.arguments[1:])

    def _load(self, e: Load) -> Load:
        return replace(e, indices=tuple(map(self._size, e.indices)), mask=tuple(map(self._size, e.mask)))

    def _size(self, size: Size) -> Size:
        return size.substitute({}, lambda value: as_size(self.legal(value))) if size.opaques else size
