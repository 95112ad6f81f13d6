"""Scalar expressions as instructions, on the lanes of the loop that is being written."""

from __future__ import annotations

from intarsia.backends.cpu.conversion import bitcast, convert
from intarsia.backends.cpu.memory import Memory
from intarsia.backends.cpu.values import Value, constant
from intarsia.ir.approximations import expand
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load


class Expressions(Memory):
    """Writes expressions; equal ones within a statement once."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._values: dict[Expr, Value] = {}

    def forget_values(self) -> None:
        """Begin another statement."""
        self._values = {}

    def value(self, expression: Expr) -> Value:
        if expression not in self._values:
            self._values[expression] = self._new_value(expression)
        return self._values[expression]

    def _new_value(self, expression: Expr) -> Value:
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
            case Apply():
                basic = expand(expression)
                return self._apply(basic) if isinstance(basic, Apply) else self.value(basic)
        raise AssertionError(expression)

    def _apply(self, expression: Apply) -> Value:
        # Products and sums are not fused here: sqrt(x*x - y*y) must not become NaN where x == y.
        return self.arithmetic.apply(expression.function, tuple(self.value(a) for a in expression.arguments))
