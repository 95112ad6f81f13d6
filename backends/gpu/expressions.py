"""Scalar and integer expressions of a kernel as Triton expressions, with the lanes of loops as dimensions."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from intarsia.backends.gpu.functions import Functions
from intarsia.backends.gpu.packed_bits import moved_bits
from intarsia.backends.gpu.packed_tables import ENTRIES, look_up_function
from intarsia.backends.gpu.values import (
    AND,
    ATOM,
    COMPARISON,
    FLOATS_OF_8_BITS,
    PRODUCT,
    SUM,
    Value,
    joined,
    literal,
    type_name,
    union,
)
from intarsia.ir.approximations import expand
from intarsia.ir.codes import decode
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, I64, U8, DType
from intarsia.ir.few_bits import FewBits, entries
from intarsia.ir.halves import half_product, small_integer
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, apply
from intarsia.ir.sizes import Atom, Extremum, Opaque, Quotient, Remainder, Size

_LONG = 100
"""Characters from which on an expression gets a name."""


@dataclass(frozen=True)
class Part:
    """Two axes of which `count * outer + inner` is a whole one; `whole` is its name."""

    outer: str
    inner: str
    count: int
    whole: str


class Expressions(Functions):
    """Writes expressions.

    wide: are integers 64 bits wide? order: the lane axes of the loops that are open, outermost first; extents, blocks:
    how many lanes they have, and the names of these numbers. parts: axes that are pieces of one. known: axes of one
    iteration. variables: what axes and sizes are called, programs_of those that programs count. facts: what holds of
    axes. shared, repeated: values of the statement, and parts that occur several times; root: the part that gets its
    name from what it is assigned to. half: the float of 16 bits that the statement is about. packs: are factors of
    products of blocks written, whose bits are moved two numbers at a time?
    """

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.programs_of: set[str] = set()
        self.order: tuple[str, ...] = ()
        self.extents: dict[str, int] = {}
        self.blocks: dict[str, str] = {}
        self.known: dict[str, Size] = {}
        self.parts: list[Part] = []
        self.variables: dict[str, str] = {}
        self.facts = Facts()
        self.shared: dict[Expr, Value] = {}
        self.repeated: set[Expr] = set()
        self.half = BF16
        self.packs = False
        self.root: Expr | None = None

    @abstractmethod
    def load(self, load: Load, order: tuple[str, ...]) -> Value:
        """A read of a tile or of memory."""

    # ------------------------------------------------------------------ integers

    def size(self, size: Size, order: tuple[str, ...] | None = None) -> Value:
        """An integer expression."""
        order = self.order if order is None else order
        size = size.substitute(self.known)
        return self._sum(self._with_whole_axes(size), order)

    def _with_whole_axes(self, size: Size) -> Size:
        """The same with `16 * i.0 + i.1` as the axis of which these are parts."""
        for part in self.parts:
            step = size.coefficient(part.inner)
            if step and size.coefficient(part.outer) == step * part.count:
                size = size + (Size.of(part.whole) - Size.of(part.inner) - Size.of(part.outer) * part.count) * step
        return size

    def _sum(self, size: Size, order: tuple[str, ...]) -> Value:
        """The terms one after the other: scalars first, then those with one dimension, the constant last."""
        parts = []
        for monomial, coefficient in size.terms:
            factors = [self._atom(atom, order) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.append(literal(abs(coefficient), I64))
            parts.append((union(order, *factors), coefficient, factors))
        parts.sort(key=lambda p: (p[1] < 0, p[2][0].literal, len(p[0]), [order.index(a) for a in p[0]]))
        if not parts:
            return literal(0, I64)
        axes = union(order, *(f for _, _, factors in parts for f in factors))
        text, level = "", ATOM
        for own, coefficient, factors in parts:
            wide = axes if own else own
            tight = PRODUCT if len(factors) > 1 or coefficient < 0 or len(parts) > 1 else 0
            words = [factors[0].spread(wide, tight), *(f.spread(wide, PRODUCT + 1) for f in factors[1:])]
            term = " * ".join(words)
            sign = "-" if coefficient < 0 else ""
            text = f"{text} {sign or '+'} {term}" if text else f"{sign}{term}"
            level = SUM if len(parts) > 1 or sign else PRODUCT if len(factors) > 1 else factors[0].level
        single = len(parts) == 1 and len(parts[0][2]) == 1
        depends = joined(*(f for _, _, factors in parts for f in factors))
        return Value(text, I64, axes, level, single and parts[0][2][0].literal, depends)

    def _atom(self, atom: Atom, order: tuple[str, ...]) -> Value:
        match atom:
            case str():
                return self._name(atom)
            case Quotient(a, b) | Remainder(a, b):
                left, right = self.size(a, order), self.size(b, order)
                plain = self._proves(a) and b.constant is not None and b.constant > 0
                name = "floordiv" if isinstance(atom, Quotient) else "mod"
                if not plain:
                    return self.call(self.helper(name), order, I64, left, right)
                axes = union(order, left, right)
                symbol = "//" if name == "floordiv" else "%"
                text = f"{left.at(PRODUCT)} {symbol} {right.at(PRODUCT + 1)}"
                return Value(text, I64, axes, PRODUCT, depends=joined(left, right))
            case Extremum(name, arguments):
                values = sorted((self.size(a, order) for a in arguments), key=lambda v: v.literal)
                if not any(v.axes for v in values):
                    return Value(f"{name}({', '.join(v.text for v in values)})", I64, depends=joined(*values))
                result = values[0]
                for value in values[1:]:
                    axes = union(order, result, value)
                    text = f"tl.{name}imum({result.spread(axes)}, {value.spread(axes)})"
                    result = Value(text, I64, axes, depends=joined(result, value))
                return result
            case Opaque(value):
                return self.value(value, order)

    def _proves(self, size: Size) -> bool:
        return self.facts.proves(size.substitute(self.known))

    def _name(self, name: str) -> Value:
        if name in self.variables:
            return Value(self.variables[name], I64)
        if name in self.extents:
            return self.named(
                Value(f"tl.arange(0, {self.blocks[name]})", I64, (name,)), base_name(name), outermost=True
            )
        part = next(p for p in self.parts if p.whole == name)
        start = Value(self.variables[part.outer], I64)
        text = f"{start.text} * {self.blocks[part.inner]} + tl.arange(0, {self.blocks[part.inner]})"
        whole = Value(text, I64, (part.inner,), SUM)
        return self.named(whole, base_name(part.inner), outermost=part.outer in self.programs_of)

    def mask(self, mask: Iterable[Size], order: tuple[str, ...]) -> Value | None:
        """The conjunction of the conditions of a mask."""
        values = [self._condition(m, order) for m in dict.fromkeys(m.substitute(self.known) for m in mask)]
        values = [v for v in values if v.text != "True"]
        if not values:
            return None
        result = values[0]
        for value in values[1:]:
            axes = union(order, result, value)
            text = f"{result.spread(axes, AND)} & {value.spread(axes, AND + 1)}"
            result = Value(text, BOOL, axes, AND, depends=joined(result, value))
        return self.named(result, "mask") if len(values) > 1 else result

    def _condition(self, size: Size, order: tuple[str, ...]) -> Value:
        """`0 < e`, with negative terms on the other side."""
        if size.constant is not None:
            return Value(str(size.constant > 0), BOOL)
        size = self._with_whole_axes(size)
        left = Size(tuple((m, -c) for m, c in size.terms if c < 0))
        right = Size(tuple((m, c) for m, c in size.terms if c > 0))
        symbol = "<"
        if right.offset == 1 and right != Size.of(1):
            right, symbol = right - 1, "<="
        a, b = self._sum(left, order), self._sum(right, order)
        axes = union(order, a, b)
        text = f"{a.spread(axes, COMPARISON + 1)} {symbol} {b.spread(axes, COMPARISON + 1)}"
        return Value(text, BOOL, axes, COMPARISON, depends=joined(a, b))

    # ------------------------------------------------------------------ scalars

    def begin(self, *expressions: Expr) -> None:
        """Begin a statement: parts of its expressions that occur several times will get names."""
        counts: Counter[Expr] = Counter()
        seen: set[Expr] = set()
        pending = list(expressions)
        while pending:
            e = pending.pop()
            counts[e] += 1
            if e in seen:
                continue
            seen.add(e)
            pending += e.children
        self.shared = {}
        self.half = F16 if any(e.dtype == F16 for e in seen) else BF16
        self.repeated = {e for e, n in counts.items() if n > 1 and isinstance(e, (Apply, Cast)) and e.children}

    def value(self, expression: Expr, order: tuple[str, ...] | None = None) -> Value:
        """A scalar expression."""
        order = self.order if order is None else order
        key = expression
        if order == self.order and key in self.shared:
            return self.shared[key]
        result = self._value(expression, order)
        if expression is not self.root and (expression in self.repeated or len(result.text) > _LONG):
            hint = expression.function if isinstance(expression, Apply) else "v"
            result = self.named(result, hint)
        if order == self.order:
            self.shared[key] = result
        return result

    def _value(self, e: Expr, order: tuple[str, ...]) -> Value:
        match e:
            case Const(number, dtype):
                return literal(number, dtype)
            case Index(size):
                return self._index(size, order)
            case Load():
                return self.load(e, order)
            case Cast(dtype, Index(size)):
                known = size.substitute(self.known).constant
                if known is not None and dtype.is_integer and dtype.least <= known <= dtype.greatest:
                    return literal(known, dtype)
                return self.convert(self._tensor(size, order), dtype)
            case Cast(dtype, inner) if dtype in (F16, BF16) and (short := half_product(dtype, inner)):
                return self.value(short, order)
            case Cast(dtype, inner) if dtype in (F16, BF16, F32) and (short := small_integer(inner, self.half)):
                return self.convert(self.value(short, order), dtype)
            case Cast(dtype, inner) if inner.dtype.is_narrow and inner.dtype not in FLOATS_OF_8_BITS:
                return self.value(decode(inner, dtype, short=True), order)
            case Cast(dtype, inner):
                return self.convert(self.value(inner, order), dtype)
            case Bitcast(dtype, Bitcast(between, inner)) if dtype == inner.dtype == U8 and between.bits < 8:
                return self.value(apply("bit_and", inner, Const((1 << between.bits) - 1, U8)), order)
            case Bitcast(dtype, inner) if self.packs and (packed := self._packed(inner, dtype, order)) is not None:
                return packed
            case Bitcast(dtype, inner):
                return self.bitcast(self.value(inner, order), dtype)
            case Apply(("lt" | "le" | "gt" | "ge" | "eq" | "ne") as function, (Index(a), Index(b))):
                return self.infix(function, order, BOOL, self.size(a, order), self.size(b, order))
            case Apply("where") if self.packs and (found := self._looked_up(e, order)) is not None:
                return found
            case Apply("stop_gradient", (inner,)):
                return self.value(inner, order)
            case Apply("pow", arguments) if (short := expand(e)) is not e and (
                arguments[0].dtype.is_integer or (isinstance(arguments[1], Const) and short.length < 12)
            ):
                return self.value(short, order)
            case Apply(function, arguments):
                return self.apply(function, order, e.dtype, [self.value(a, order) for a in arguments])
        raise AssertionError(e)

    def _packed(self, e: Expr, dtype: DType, order: tuple[str, ...]) -> Value | None:
        """Bits of codes as numbers of 16 bits, two at a time; None if there is nothing to do, or more than that."""
        bits = moved_bits(e, self._number) if dtype in (F16, BF16) else None
        if bits is None or not bits.sources or (not bits.flipped and bits.moves == {(0, 0): 0xFFFF}):
            return None
        codes = [self.value(source, order) for source in bits.sources]
        name = bits.name(dtype)
        self.helpers.setdefault(name, bits.function(dtype, type_name(dtype)))
        return self.call(name, order, dtype, *codes)

    def _looked_up(self, e: Expr, order: tuple[str, ...]) -> Value | None:
        """A function of a code of 4 bits in f32, from a table; None if it is anything else."""
        argument = FewBits().argument(e)
        bits = None if argument is None else moved_bits(argument, self._number)
        if argument is None or bits is None or len(bits.moves) != 1:
            return None
        numbers = entries(e, argument)
        (((_, move), mask),) = bits.moves.items()
        if len(numbers) != ENTRIES or mask != ENTRIES - 1:
            return None
        codes = self.value(bits.sources[0], order)
        digest = hashlib.sha256(numbers.tobytes()).hexdigest()[:6]
        name = f"looked_up_{digest}_of_{'bytes' if bits.are_bytes else 'words'}_{-move}"
        self.helpers.setdefault(name, look_up_function(name, numbers, -move, bits.are_bytes))
        return self.call(name, order, F32, codes)

    def _number(self, e: Expr) -> int | None:
        """The number that an integer is, if it is one."""
        match e:
            case Const(int() as value):
                return value
            case Cast(_, Index(size)):
                return size.substitute(self.known).constant
        return None

    def _index(self, size: Size, order: tuple[str, ...]) -> Value:
        """An index as a value to compute with: 64 bits wide, whatever subscripts are."""
        value = self._tensor(size, order)
        if value.literal or self.wide:
            return value
        return Value(f"{value.at(ATOM)}.to(tl.int64)", I64, value.axes, depends=value.depends)

    def _tensor(self, size: Size, order: tuple[str, ...]) -> Value:
        """A size as a tensor, or a literal: the least of several numbers may be one that Python knows."""
        value = self.size(size, order)
        if value.axes or not any(isinstance(atom, Extremum) for atom in size.atoms()):
            return value
        return Value(f"tl.full((), {value.text}, tl.int64)", I64, depends=value.depends)


def base_name(axis: str) -> str:
    """The axis of the program that an axis was made of."""
    return axis.partition(".")[0]
