"""Scalar expressions as instructions, on the lanes of the loop that is being written."""

from __future__ import annotations

from intarsia.backends.cpu.conversion import bitcast, convert
from intarsia.backends.cpu.memory import Memory
from intarsia.backends.cpu.tables import is_usable, look_up
from intarsia.backends.cpu.values import Value, constant, instruction, recast, select, widen
from intarsia.ir.approximations import expand
from intarsia.ir.dtypes import BOOL, F32, U8, U32, DType
from intarsia.ir.few_bits import WORDS, FewBits, needed_bits
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load
from intarsia.ir.sizes import Size

_COSTLY = 60
"""Parts of an expression beyond which evaluating it for nothing costs more than a branch that is guessed wrong."""


_MANTISSA = 23
"""Bits of an f32 after the first one."""


_OF_LOW_BITS = {"add": "add", "sub": "sub", "bit_xor": "xor", "bit_and": "and", "bit_or": "or"}
"""Functions whose low bits depend on the low bits of their arguments alone, as instructions."""


class Expressions(Memory):
    """Writes expressions; equal ones within a statement once."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._values: dict[Expr, Value] = {}
        self._few_bits = FewBits()

    def forget_values(self) -> None:
        """Begin another statement."""
        self._values = {}

    def value(self, expression: Expr) -> Value:
        if expression not in self._values:
            self._values[expression] = self._new_value(expression)
        return self._values[expression]

    def _new_value(self, expression: Expr) -> Value:
        if (argument := self._few_bits.argument(expression)) is not None:
            code = self._low_bits(argument, needed_bits(argument), WORDS[expression.dtype])
            if is_usable(self.target, expression, argument, code.lanes):
                return look_up(self.function, expression, argument, code)
        match expression:
            case Const(number, dtype):
                return constant(number, dtype)
            case Index(size):
                return self.index(size)
            case Load():
                return self.load(expression)
            case Cast(dtype, Bitcast(_, e)) if dtype == U32 and e.dtype.is_narrow and e.dtype.bits < 8:
                return self._code(e, U8.bits, U32)
            case Cast(dtype, Bitcast(_, Apply("sub", (whole, Const(int() as less))))) if (
                dtype == F32 and _bits(whole) < _MANTISSA and 0 <= less < 1 << _MANTISSA
            ):
                return self._difference(self.value(whole), less)
            case Cast(dtype, inner):
                return convert(self.function, self.value(inner), dtype)
            case Bitcast(dtype, inner):
                return bitcast(self.function, self.value(inner), dtype)
            case Apply("shift_left" | "shift_right" as name, (inner, by)) if (known := self._number(by)) is not None:
                right = "ashr" if expression.dtype.is_signed else "lshr"
                opcode = "shl" if name == "shift_left" else right
                return self._shifted(opcode, self.value(inner), known % expression.dtype.bits)
            case Apply("where", (condition, then, otherwise)) if _is_costly(then):
                return self._where_needed(condition, then, otherwise)
            case Apply(("lt" | "le" | "gt" | "ge") as function, (Index(a), Index(b))) if not (a.opaques or b.opaques):
                return self._ordered(function, a, b)
            case Apply():
                basic = expand(expression, unbounded=self.target.has_unbounded_ldexp)
                return self._apply(expression) if basic is expression else self.value(basic)
        raise AssertionError(expression)

    def _low_bits(self, e: Expr, bits: int, word: DType) -> Value:
        """A value in a word whose lowest bits are those of an integer of so many bits or more: below anything, and
        shifted there, where vectors of bytes cannot be."""
        match e:
            case _ if bits <= 0:
                return constant(0, word)
            case Bitcast(_, element) if element.dtype.is_narrow:
                return self._code(element, bits, word)
            case Bitcast(_, inner) if e.dtype.is_integer and inner.dtype.is_integer:
                return self._low_bits(inner, bits, word)
            case Cast(_, inner) if inner.dtype.kind == "uint" and bits <= inner.dtype.bits <= word.bits:
                return self._low_bits(inner, bits, word)
            case Apply(function, (a, b)) if function in _OF_LOW_BITS:
                parts = [self._low_bits(part, bits, word) for part in (a, b)]
                return instruction(self.function, _OF_LOW_BITS[function], *parts)
            case Apply("shift_left", (inner, by)) if (known := self._number(by)) is not None:
                distance = known % e.dtype.bits
                return self._shifted("shl", self._low_bits(inner, bits - distance, word), distance)
            case Apply("shift_right", (inner, by)) if (
                e.dtype.kind == "uint" and e.dtype.bits <= word.bits and (known := self._number(by)) is not None
            ):
                return self._shifted("lshr", convert(self.function, self.value(inner), word), known % e.dtype.bits)
        return convert(self.function, self.value(e), word)

    def _code(self, element: Expr, bits: int, word: DType) -> Value:
        """The code of an element of few bits in a word, below zeros up to so many bits."""
        own = element.dtype.bits
        if isinstance(element, Bitcast):
            code = self._low_bits(element.value, own, word)
        else:
            raw = self.value(element)
            code = convert(self.function, Value(raw.text, U8, raw.lanes), word)
        if bits <= own:
            return code
        return instruction(self.function, "and", code, constant((1 << own) - 1, word, code.lanes))

    def _shifted(self, opcode: str, value: Value, distance: int) -> Value:
        count = constant(distance, value.dtype, value.lanes)
        return instruction(self.function, opcode, value, count) if distance else value

    def _number(self, e: Expr) -> int | None:
        """An integer that is known where instructions are written."""
        match e:
            case Const(int() as number):
                return number
            case Cast(_, Index(size)) if (text := self.index(size).text).isdecimal():
                return int(text)
        return None

    def _difference(self, code: Value, less: int) -> Value:
        """A small number less another one as f32: placed below a power of two, from which both are taken away. Two
        cheap instructions in place of those that extend a sign, and of a conversion."""
        power = constant(float(1 << _MANTISSA), F32)
        bits = recast(self.function, "bitcast", power, U32)
        placed = recast(self.function, "bitcast", instruction(self.function, "or", code, bits), F32)
        return instruction(self.function, "fsub", placed, constant(float((1 << _MANTISSA) + less), F32))

    def _ordered(self, function: str, a: Size, b: Size) -> Value:
        """A comparison of integers that no data decides, as the condition of a mask: one instruction for all lanes."""
        difference = b - a if function in ("lt", "le") else a - b
        condition = self.condition((difference + (function in ("le", "ge")),))
        return Value(condition.uniform, BOOL) if condition.lanes is None else self.lane_mask(condition)

    def _where_needed(self, condition: Expr, then: Expr, otherwise: Expr) -> Value:
        """A selection whose first side is left out where no lane needs it."""
        chosen, other = self.value(condition), self.value(otherwise)
        some = self.arithmetic.reduce_lanes("or", chosen)
        values, known = self._values, self.known_loads()
        results: list[Value] = []

        def with_first_side() -> None:
            self._values = dict(values)
            results.append(select(self.function, chosen, self.value(then), other))

        def without() -> None:
            results.append(widen(self.function, other, results[0].lanes))

        ends = self.function.fork(some.text, with_first_side, without)
        self._values = values
        self.restore_loads(known, ())
        text = self.function.phi(results[0].type, [(r.text, end) for r, end in zip(results, ends)])
        return Value(text, results[0].dtype, results[0].lanes)

    def _apply(self, expression: Apply) -> Value:
        # Products and sums are not fused here: sqrt(x*x - y*y) must not become NaN where x == y.
        return self.arithmetic.apply(expression.function, tuple(self.value(a) for a in expression.arguments))


def _bits(e: Expr) -> int:
    """The bits that an unsigned integer of 32 bits has at most."""
    match e:
        case Cast(_, Bitcast(_, element)) if e.dtype == U32:
            return element.dtype.bits
        case Apply("bit_xor", (a, Const(int() as number))) if e.dtype == U32:
            return max(_bits(a), number.bit_length())
    return 32


def _is_costly(expression: Expr) -> bool:
    """Has the expression so many different parts that a branch is cheaper?"""
    seen: set[Expr] = set()
    stack = [expression]
    while stack and len(seen) <= _COSTLY:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            stack.extend(e.children)
    return len(seen) > _COSTLY
