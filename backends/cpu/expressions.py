"""Scalar expressions as instructions, on the lanes of the loop that is being written."""

from __future__ import annotations

from intarsia.backends.cpu.conversion import bitcast, convert
from intarsia.backends.cpu.memory import Memory
from intarsia.backends.cpu.tables import FewBits, is_usable, look_up
from intarsia.backends.cpu.values import Value, constant, instruction, select, widen
from intarsia.ir.approximations import expand
from intarsia.ir.dtypes import BOOL, U8, U32
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load
from intarsia.ir.sizes import Size

_COSTLY = 60
"""Parts of an expression beyond which evaluating it for nothing costs more than a branch that is guessed wrong."""


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
        if isinstance(argument := self._few_bits.argument(expression), Bitcast):
            code = self._code(argument.value)
            if is_usable(self.target, code):
                return look_up(self.function, expression, argument, code)
        match expression:
            case Const(number, dtype):
                return constant(number, dtype)
            case Index(size):
                return self.index(size)
            case Load():
                return self.load(expression)
            case Cast(dtype, inner):
                return convert(self.function, self.value(inner), dtype)
            case Bitcast(dtype, inner):
                return bitcast(self.function, self.value(inner), dtype)
            case Apply("where", (condition, then, otherwise)) if _is_costly(then):
                return self._where_needed(condition, then, otherwise)
            case Apply(("lt" | "le" | "gt" | "ge") as function, (Index(a), Index(b))) if not (a.opaques or b.opaques):
                return self._ordered(function, a, b)
            case Apply():
                basic = expand(expression, unbounded=self.target.has_unbounded_ldexp)
                return self._apply(expression) if basic is expression else self.value(basic)
        raise AssertionError(expression)

    def _code(self, element: Expr) -> Value:
        """The code of an element in 32 bits, below anything: shifted there, where vectors of bytes cannot be."""
        match element:
            case Bitcast(_, Apply("shift_right", (byte, Cast(_, Index(size))))) if (
                n := self.index(size).text
            ).isdecimal():
                wide = convert(self.function, self.value(byte), U32)
                return (
                    instruction(self.function, "lshr", wide, constant(int(n) % 8, U32, wide.lanes)) if int(n) else wide
                )
            case Bitcast(_, byte):
                return convert(self.function, self.value(byte), U32)
        raw = self.value(element)
        return convert(self.function, Value(raw.text, U8, raw.lanes), U32)

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
