"""Values that cancel: a softmax is the same whatever number its scores are shifted by.

    m = max(x); e = exp(x - m); y = e / sum(e)

The largest element m keeps `exp` from overflowing, and y does not depend on it: with m + t in place of m, e is e times
exp(-t), so is its sum, and the quotient is y. Its derivative with respect to m is 0, and what flows back through the
maximum adds up to rounding errors. `cancels` finds that out: it asks of each value that is made of m how it changes
with t, which is by adding c * t (`Change` with `by` "add") or by a factor exp(c * t) ("mul"), or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from intarsia.ir.gradients.spaces import CustomRules, with_literals
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.scalar import Apply, Cast, Const, Expr, Load, loads
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import operand_position, size_loads


@dataclass(frozen=True)
class Change:
    """How an element follows t[at]: it grows by `rate * t`, or becomes `exp(rate * t)` times what it was. `at` are
    subscripts of what is shifted, in the axes of a space; in the dimensions d0, d1, … of a value."""

    by: Literal["add", "mul"]
    rate: float
    at: tuple[Size, ...]


class _Unknown(Exception):
    """A value changes otherwise."""


def is_extreme(node: Node) -> bool:
    """Is it a maximum or a minimum, as those by which scores are shifted are?"""
    return isinstance(node, Structured) and node.space.combiner in ("max", "min")


def cancels(value: Value, nodes: Iterable[Node], results: Iterable[Value], custom: CustomRules) -> bool:
    """Is what `nodes` make, in order, of a value such that none of the results depends on it? Of nodes with derivatives
    of their own, which are `custom`, that is not known."""
    own = tuple(ZERO if e == ONE else Size.of(f"d{n}") for n, e in enumerate(value.tensor.shape))
    changes = {value: Change("add", 1.0, own)}
    try:
        for node in nodes:
            if any(v in changes for v in custom.inputs(node)):
                if node in custom:
                    return False
                change = _change_of(node, changes)
                if change is not None:
                    changes[node.value] = change
    except _Unknown:
        return False
    return not any(v in changes for v in results)


def _change_of(node: Node, changes: Mapping[Value, Change]) -> Change | None:
    """How the result of a node changes; None if it does not. Raises _Unknown."""
    if not isinstance(node, Structured):
        raise _Unknown
    space = with_literals(node)
    sizes = [b for a in space.all_axes for b in (a.lower, a.upper)]
    sizes += [i for x in space.loads() for i in x.indices]
    if any(node.operands[operand_position(x.buffer)] in changes for x in size_loads(sizes)):
        raise _Unknown
    single = {a.name: ZERO for a in space.all_axes if (a.lower, a.extent) == (ZERO, ONE)}

    def of_load(load: Load) -> Change | None:
        change = changes.get(node.operands[operand_position(load.buffer)])
        if change is None:
            return None
        places = {f"d{n}": i.substitute(single) for n, i in enumerate(load.indices)}
        return replace(change, at=tuple(i.substitute(places) for i in change.at))

    change = _change(space.body, {x: found for x in loads(space.body) if (found := of_load(x)) is not None})
    if change is None:
        return None
    if space.combiner is not None:
        linear = space.combiner == "sum" and change.by == "mul"
        moved = {a.name for a in space.reduced} & frozenset().union(*(i.symbols for i in change.at))
        if moved or not (linear or space.combiner in ("max", "min")):
            raise _Unknown
    names = {a.name: Size.of(f"d{n}") for n, a in enumerate(space.axes)}
    return replace(change, at=tuple(i.substitute(names) for i in change.at))


def _change(e: Expr, known: Mapping[Load, Change]) -> Change | None:
    """How an expression changes, given how what it loads does; None if it does not. Raises _Unknown."""
    if isinstance(e, Load):
        return known.get(e)
    found = [_change(child, known) for child in e.children]
    if not any(found):
        return None
    match e, found:
        case Cast(dtype=dtype), [change] if dtype.is_float:
            return change
        case Apply("add", _), [a, b] if _all_by("add", a, b):
            return _joined(a, b)
        case Apply("sub", _), [a, b] if _all_by("add", a, b):
            return _joined(a, _times(b, -1.0))
        case Apply("mul", _), [a, b] if _all_by("mul", a, b):
            return _joined(a, b)
        case Apply("div", _), [a, b] if _all_by("mul", a, b):
            return _joined(a, _times(b, -1.0))
        case Apply("mul", (_, Const(number))) | Apply("mul", (Const(number), _)), _:
            return _times(found[0] or found[1], float(number))
        case Apply("div", (_, Const(number))), [a, None] if number:
            return _times(a, 1.0 / float(number))
        case Apply("neg", _), [a]:
            return _times(a, -1.0) if _all_by("add", a) else a
        case Apply("sqrt", _), [a] if _all_by("mul", a):
            return _times(a, 0.5)
        case Apply("exp" | "exp2" as name, _), [Change("add") as a]:
            return replace(a, by="mul", rate=a.rate * (math.log(2.0) if name == "exp2" else 1.0))
        case Apply("log" | "log2" as name, _), [Change("mul") as a]:
            return replace(a, by="add", rate=a.rate / (math.log(2.0) if name == "log2" else 1.0))
        case Apply("add" | "sub" | "maximum" | "minimum", _), _:
            return _common(e.children, found)
        case Apply("where", _), [None, *_]:
            return _common(e.children[1:], found[1:])
    raise _Unknown


def _all_by(by: str, *changes: Change | None) -> bool:
    return all(c is None or c.by == by for c in changes)


def _times(change: Change | None, factor: float) -> Change | None:
    return None if change is None else replace(change, rate=change.rate * factor)


def _joined(a: Change | None, b: Change | None) -> Change | None:
    """The change of what changes in both ways; None where they cancel."""
    if a is None or b is None:
        return a or b
    if a.at != b.at:
        raise _Unknown
    rate = a.rate + b.rate
    return None if math.isclose(a.rate, -b.rate, rel_tol=1e-12) else replace(a, rate=rate)


def _common(parts: Sequence[Expr], changes: Sequence[Change | None]) -> Change | None:
    """The change that all parts have. Any factor leaves 0 what it is, and infinities stay what they are."""
    first = next(c for c in changes if c)
    fixed = (0.0,) if first.by == "mul" else (math.inf, -math.inf)
    for part, change in zip(parts, changes):
        if change != first and not (change is None and isinstance(part, Const) and part.value in fixed):
            raise _Unknown
    return first
