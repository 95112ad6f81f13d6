"""Which ops may be applied to the parts of a sum instead of the sum."""

from __future__ import annotations

from collections.abc import Collection

from intarsia.ir.conversion import is_exact
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Structured
from intarsia.ir.kernel import COMBINER_OPERATORS
from intarsia.ir.ops.index import Update
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Index, Load, walk
from intarsia.ir.space import operand


def passes_parts(node: Node, positions: Collection[int], combiner: str) -> bool:
    """Is the op of the parts of these operands the parts of its result? `combiner` is what the parts are merged by.

    A sum needs a body that is linear in them, without a summand that has none of them; everything else that they are
    only moved, or merged by the same combiner. An update needs parts of the tensor that it writes to.
    """
    names = {operand(p) for p in positions}
    match node:
        case Structured(space=space):
            body, bounds, merged = space.body, space.all_axes, space.combiner in (None, combiner)
        case Update(body=body, axes=bounds):
            merged = 0 in positions and node.operator in ("=", COMBINER_OPERATORS[combiner])
        case _:
            return False
    targets = node.targets if isinstance(node, Update) else ()
    decides = (*(b for a in bounds for b in (a.lower, a.upper)), *targets)
    if not merged or any(load.buffer in names for size in decides for load in _loads(Index(size))):
        return False
    if combiner == "sum":
        return node.value.dtype.is_float and degree(body, names) == 1
    return body.dtype == node.value.dtype and _is_merged(body, names, COMBINERS[combiner].function)


def _is_merged(e: Expr, names: Collection[str], function: str) -> bool:
    """Is it made of parts alone, by the function that merges them?"""
    match e:
        case Load():
            return degree(e, names) == 1
        case Apply(name, arguments) if name == function:
            return all(_is_merged(a, names, function) for a in arguments)
    return False


def _loads(e: Expr) -> list[Load]:
    return [x for x in walk(e) if isinstance(x, Load)]


def degree(e: Expr, names: Collection[str]) -> int | None:
    """How often a factor that is loaded from one of `names` stands in each summand: 0, 1, or None for anything else.

    A zero is as good as either; it gives 1 where something else is asked for, so it is left to `_same`.
    """
    match e:
        case Load(buffer, indices):
            inside = any(load.buffer in names for i in indices for v in i.opaques for load in _loads(v))
            return None if inside else int(buffer in names)
        case Const() | Index():
            return None if any(load.buffer in names for load in _loads(e)) else 0
        case Cast(dtype, value):
            exact = value.dtype.is_float and is_exact(value.dtype, dtype)
            found = degree(value, names)
            return found if exact or found == 0 else None
        case Apply("add" | "sub", (a, b)):
            return _same(a, b, names)
        case Apply("mul", (a, b)):
            first, second = degree(a, names), degree(b, names)
            return None if first is None or second is None or first + second > 1 else first + second
        case Apply("div", (a, b)):
            return degree(a, names) if degree(b, names) == 0 else None
        case Apply("neg", (a,)):
            return degree(a, names)
        case Apply("where", (condition, a, b)):
            return _same(a, b, names) if degree(condition, names) == 0 else None
        case Apply(arguments=arguments):
            return 0 if all(degree(a, names) == 0 for a in arguments) else None
    return None


def _same(a: Expr, b: Expr, names: Collection[str]) -> int | None:
    first, second = degree(a, names), degree(b, names)
    if isinstance(a, Const) and a.value == 0:
        return second
    if isinstance(b, Const) and b.value == 0:
        return first
    return first if first == second else None
