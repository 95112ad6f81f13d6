"""How much work loops do, as an expression of sizes: to decide by, not to predict a time."""

from __future__ import annotations

from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Call, For, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Apply, Bitcast, Cast, Expr, Load
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.sizes import ZERO, Size

VECTOR_GAIN = 4
"""Operations on vectors that take as long as one on scalars."""


SORTED = 8
"""Nanoseconds for each element of a row that is sorted, about."""


def operations(expression: Expr) -> int:
    """Scalar operations of an expression; a load counts as one."""
    total = 0
    for e in walk_expression(expression):
        match e:
            case Apply(function):
                total += FUNCTIONS[function].operations
            case Load() | Cast() | Bitcast():
                total += 1
    return total


def loop_effort(loop: For) -> Size | None:
    """About the nanoseconds of a scheduled loop, over the sizes that hold where it begins.

    None where they do not say: a loop inside depends on data, or on the position in one around it.
    """
    total = ZERO
    for statement, inner in walk((loop,)):
        if isinstance(statement, (Put, Call)):
            if isinstance(statement, Call):
                count = statement.length * SORTED
            else:
                once = 1 + operations(statement.value)
                vectors = any(i.kind in ("lane", "dot") for i in inner)
                count = Size.of(max(1, once // VECTOR_GAIN) if vectors else once)
            for around in inner:
                if around.kind not in ("lane", "dot"):
                    count = count * trips(around)
            total = total + count
    axes = {s.axis for s, _ in walk((loop,)) if isinstance(s, For)}
    return total if total.symbols.isdisjoint(axes) and not total.opaques else None
