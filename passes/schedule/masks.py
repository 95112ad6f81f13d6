"""Masks: adding the condition of a rounded-up loop, and the steps that drop, hoist or exploit masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from intarsia.ir.errors import ScheduleError
from intarsia.ir.functions import COMBINERS
from intarsia.ir.kernel import (
    COMBINER_OPERATORS,
    FIXED,
    Alloc,
    Call,
    Check,
    For,
    If,
    Kernel,
    Put,
    PutOperator,
    Statement,
    walk,
)
from intarsia.ir.kernel_access import Access, accesses
from intarsia.ir.scalar import (
    Apply,
    Const,
    Expr,
    Index,
    Load,
    Mask,
    apply,
    as_size,
    constant,
    holds,
    mask_text,
    transform,
)
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.schedule import Peel, Restrict, Tighten, Unmask, Version, Widen
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.passes.schedule.tree import (
    Body,
    allocated_in,
    change_loads,
    copy_body,
    extreme,
    facts_for,
    find_buffer,
    find_loop,
    loops_in,
    map_opaques,
    replace_loop,
    rewrite,
)


def neutral(operator: PutOperator, value: Expr) -> Const:
    """What an accumulating write may merge without effect."""
    name = next(n for n, o in COMBINER_OPERATORS.items() if o == operator)
    return constant(COMBINERS[name].neutral(value.dtype), value.dtype)


def join(mask: Mask, more: Mask) -> Mask:
    """Both conjunctions, each condition once."""
    return tuple(dict.fromkeys((*mask, *more)))


def guard(body: Body, axis: str, condition: Mask) -> Body:
    """The statements, changed so that nothing happens, and no memory is touched, where `condition` fails.

    Loads that use `axis` are masked; others are in bounds anyway. Raises ScheduleError at a call.
    """

    def load(e: Expr) -> Expr | None:
        return replace(e, mask=join(e.mask, condition)) if isinstance(e, Load) and axis in e.symbols else None

    def expression(e: Expr) -> Expr:
        return transform(e, rule=load)

    def size(s: Size) -> Size:
        return map_opaques(s, expression)

    def go(statement: Statement) -> Statement:
        match statement:
            case For():
                return replace(
                    statement,
                    lower=size(statement.lower),
                    upper=size(statement.upper),
                    body=tuple(map(go, statement.body)),
                )
            case Put():
                return replace(
                    statement,
                    indices=tuple(map(size, statement.indices)),
                    value=expression(statement.value),
                    mask=join(tuple(map(size, statement.mask)), condition),
                )
            case If(test, then, otherwise):
                return If(tuple(map(size, test)), tuple(map(go, then)), tuple(map(go, otherwise)))
            case Check():
                outside = [apply("le", Index(c), Index(ZERO)) for c in condition]
                holds = expression(statement.condition)
                for failed in outside:
                    holds = Apply("or", (holds, failed))
                return replace(statement, condition=holds, values=tuple(map(expression, statement.values)))
            case Alloc(buffer):
                return Alloc(replace(buffer, shape=tuple(map(size, buffer.shape))))
            case Call():
                raise ScheduleError(f"a call of {statement.routine} cannot be masked")
        return statement

    return tuple(map(go, body))


def drop_masks(body: Body, dropped: frozenset[Size]) -> Body:
    """The statements without these conditions, which hold: of `where` they choose the first value."""

    def keep(mask: Mask) -> Mask:
        return tuple(m for m in mask if m not in dropped)

    def load(e: Expr) -> Expr | None:
        match e:
            case Load(mask=mask) if mask:
                return replace(e, mask=keep(mask))
            case Apply("where", (condition, then, otherwise)):
                mask = affine_mask(condition, with_data=True) or ()
                if dropped.issuperset(mask) and mask:
                    return then
                if not dropped.isdisjoint(mask):
                    return apply("where", holds(keep(mask)), then, otherwise)
        return None

    def put(statement: Statement) -> Statement | None:
        return replace(statement, mask=keep(statement.mask)) if isinstance(statement, Put) and statement.mask else None

    return change_loads(rewrite(body, put), load)


def masks_in(body: Body) -> Iterator[Size]:
    """Every condition of a write, a load or an affine choice below."""
    for statement, _ in walk(body):
        if isinstance(statement, Put):
            yield from statement.mask
            for e in walk_expression(statement.value):
                match e:
                    case Load(mask=mask):
                        yield from mask
                    case Apply("where", (condition, _, _)):
                        yield from (c for c in affine_mask(condition, with_data=True) or () if not c.opaques)


def require_numbers(loop: For, bound: Size) -> None:
    """A new bound of a loop whose kind wants numbers has to be one."""
    if loop.kind in FIXED and bound.constant is None:
        raise ScheduleError(f"the bound {bound} of the {loop.kind} loop over {loop.axis} is no number")


# ---------------------------------------------------------------------- steps


def peel(kernel: Kernel, step: Peel) -> Kernel:
    """See `Peel`."""
    loop, around = find_loop(kernel, step.axis)
    starts: dict[Size, Size] = {}
    limits: dict[Size, Size] = {}
    inner = loops_in(loop.body)
    for condition in masks_in(loop.body):
        worst = extreme(condition, inner, greatest=False)
        slope = worst.coefficient(loop.axis) if worst is not None and not worst.opaques else None
        if worst is not None and slope and loop.step == 1:
            # rest - |slope| * axis >= 1 holds below this axis, rest + slope * axis >= 1 from this axis on
            (limits if slope < 0 else starts)[condition] = _last(worst, loop.axis, slope)
    if limits:
        return _peel_end(kernel, loop, around, limits)
    if starts:
        return _peel_start(kernel, loop, around, starts)
    raise ScheduleError("no mask begins or ends with the axis")


def _last(condition: Size, axis: str, slope: int) -> Size:
    """From where on an axis a condition with this slope no longer holds; or holds, if it rises."""
    rest = condition - Size.of(axis) * slope - 1
    return rest // -slope + 1 if slope < 0 else -(rest // slope)


def _peel_end(kernel: Kernel, loop: For, around: tuple[For, ...], limits: dict[Size, Size]) -> Kernel:
    """The iterations before these limits without masks, then the others."""
    facts = facts_for(kernel, around)
    middle = loop.upper
    for limit in dict.fromkeys(limits.values()):
        middle = limit if facts.proves(middle - limit) else minimum(middle, limit)
    require_numbers(loop, middle)
    main = replace(loop, upper=middle, body=drop_masks(loop.body, frozenset(limits)))
    if not facts.proves(middle - loop.lower):
        middle = maximum(loop.lower, middle)
    once = (loop.upper - middle).constant == 1
    (rest,) = copy_body(kernel, (replace(loop, lower=middle, kind="seq" if once else loop.kind),))
    two = (*(() if (middle - loop.lower).constant == 0 else (main,)), rest)
    return replace_loop(kernel, loop.axis, lambda _: two)


def _peel_start(kernel: Kernel, loop: For, around: tuple[For, ...], starts: dict[Size, Size]) -> Kernel:
    """The iterations before these starts, then the others without masks."""
    facts = facts_for(kernel, around)
    middle = loop.lower
    for start in dict.fromkeys(starts.values()):
        middle = start if facts.proves(start - middle) else maximum(middle, start)
    require_numbers(loop, middle)
    main = replace(loop, lower=middle, body=drop_masks(loop.body, frozenset(starts)))
    if not facts.proves(loop.upper - middle):
        middle = minimum(loop.upper, middle)  # no iteration is left for the second loop then
    once = (middle - loop.lower).constant == 1
    (first,) = copy_body(kernel, (replace(loop, upper=middle, kind="seq" if once else loop.kind),))
    return replace_loop(kernel, loop.axis, lambda _: (first, main))


def version(kernel: Kernel, step: Version) -> Kernel:
    """See `Version`."""
    loop, around = find_loop(kernel, step.axis)
    facts = facts_for(kernel, (*around, loop))
    conditions: dict[Size, Size] = {}
    for condition in masks_in(loop.body):
        worst = extreme(condition, loops_in(loop.body), greatest=False)
        never = worst is not None and worst.constant is not None and worst.constant <= 0
        kept = condition.symbols & {*step.keep}
        if worst is not None and not worst.opaques and not never and not kept:
            conditions[condition] = worst
    test = tuple(dict.fromkeys(w for w in conditions.values() if not facts.proves(w - 1)))
    if not conditions:
        raise ScheduleError("nothing in it is masked")
    full = drop_masks(loop.body, frozenset(conditions))
    if not test:
        return replace_loop(kernel, step.axis, lambda found: replace(found, body=full))
    otherwise = copy_body(kernel, loop.body)
    return replace_loop(kernel, step.axis, lambda found: replace(found, body=(If(test, full, otherwise),)))


def unmask(kernel: Kernel, step: Unmask) -> Kernel:
    """See `Unmask`."""
    name = step.buffer
    buffer = find_buffer(kernel, name)
    if buffer.role != "temp":
        raise ScheduleError("it is a parameter")
    outside = next(loops for s, loops in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.name == name)
    shared = {loop.axis for loop in outside}
    found = [a for a in accesses(kernel.body) if a.buffer == name]
    for write in (a for a in found if a.writes and a.mask):
        facts = facts_for(kernel, write.loops)
        for index, extent in zip(write.indices, buffer.shape):
            if not (facts.proves(index) and facts.proves_below(index, extent)):
                raise ScheduleError(f"without its mask {_text(write)} may be outside {buffer}")
        for reader in (a for a in found if not a.writes):
            for condition in write.mask:
                if not _holds_where_read(kernel, condition, write, reader, shared):
                    shown = mask_text((condition,))
                    raise ScheduleError(f"{_text(reader)} may read where not {shown}")

    def change(statement: Statement) -> Statement | None:
        return replace(statement, mask=()) if isinstance(statement, Put) and statement.buffer == name else None

    return kernel.with_body(rewrite(kernel.body, change))


def _holds_where_read(kernel: Kernel, condition: Size, write: Access, reader: Access, shared: set[str]) -> bool:
    """Is every element that `reader` reads one at whose write `condition` held?

    The condition has to be one on a subscript: rest + ratio * index, with a rest that is the same at both places.
    """
    facts = facts_for(kernel, reader.loops, reader.mask)
    own = {loop.axis for loop in write.loops} - shared
    for index, read in zip(write.indices, reader.indices):
        for axis in sorted(own & condition.symbols):
            ours, theirs = condition.coefficient(axis), index.coefficient(axis)
            if not ours or not theirs or ours % theirs:
                continue
            ratio = ours // theirs
            rest = condition - index * ratio
            if not rest.symbols & own and facts.proves(rest + read * ratio - 1):
                return True
    return False


def _text(access: Access) -> str:
    return f"{access.buffer}[{', '.join(map(str, access.indices))}]"


def tighten(kernel: Kernel, step: Tighten) -> Kernel:
    """See `Tighten`."""
    loop, _ = find_loop(kernel, step.axis)
    inner = loops_in(loop.body)
    starts: list[Size | None] = []
    ends: list[Size | None] = []
    local = allocated_in(loop.body)
    for statement, _ in walk(loop.body):
        if isinstance(statement, (Check, Call)):
            raise ScheduleError("it holds a check or call")
        if isinstance(statement, Put):
            start, end = _start(statement.mask, loop, inner), _end(statement.mask, loop, inner)
            if start is None and end is None and statement.buffer not in local:
                raise ScheduleError(f"the write of {statement.buffer} does not begin or end with it")
            if statement.buffer not in local:
                starts.append(start)
                ends.append(end)
    first, last = [s for s in starts if s is not None], [e for e in ends if e is not None]
    lower = maximum(loop.lower, minimum(*first)) if starts and len(first) == len(starts) else loop.lower
    upper = minimum(loop.upper, maximum(*last)) if ends and len(last) == len(ends) else loop.upper
    if (lower, upper) == (loop.lower, loop.upper):
        raise ScheduleError("nothing in it is masked")
    require_numbers(loop, lower)
    require_numbers(loop, upper)
    return replace_loop(kernel, step.axis, lambda found: replace(found, lower=lower, upper=upper))


def _end(mask: Mask, loop: For, inner: Sequence[For]) -> Size | None:
    """Where on the axis of `loop` the mask can last hold, plus one."""
    for condition in mask:
        best = extreme(condition, inner, greatest=True)
        slope = best.coefficient(loop.axis) if best is not None and not best.opaques else None
        if best is not None and slope is not None and slope < 0:
            return _last(best, loop.axis, slope)
    return None


def _start(mask: Mask, loop: For, inner: Sequence[For]) -> Size | None:
    """Where on the axis of `loop` the mask can first hold."""
    for condition in mask if loop.step == 1 else ():
        best = extreme(condition, inner, greatest=True)
        slope = best.coefficient(loop.axis) if best is not None and not best.opaques else None
        if best is not None and slope is not None and slope > 0:
            return _last(best, loop.axis, slope)
    return None


def widen(kernel: Kernel, step: Widen) -> Kernel:
    """See `Widen`."""
    loop, around = find_loop(kernel, step.axis)
    needed = [outer for outer in around if outer.axis in loop.lower.symbols | loop.upper.symbols]
    if not needed:
        raise ScheduleError("its bounds need no axis around it")
    lower, upper = extreme(loop.lower, around, greatest=False), extreme(loop.upper, around, greatest=True)
    if lower is None or upper is None or any(isinstance(s, (Check, Call)) for s, _ in walk(loop.body)):
        raise ScheduleError("its least and greatest bounds are not known, or it holds a check or call")
    if loop.step != 1 and lower != loop.lower:
        raise ScheduleError(f"its steps of {loop.step} begin elsewhere in every iteration around it")
    mask = tuple(
        condition
        for condition, changed in (
            (Size.of(step.axis) - loop.lower + 1, lower != loop.lower),
            (loop.upper - step.axis, upper != loop.upper),
        )
        if changed
    )
    wide = replace(loop, lower=lower, upper=upper)
    body = _without_needless(kernel, guard(loop.body, step.axis, mask), (*around, wide), mask)
    return replace_loop(kernel, step.axis, lambda _: replace(wide, body=body))


def _without_needless(kernel: Kernel, body: Body, around: tuple[For, ...], mask: Mask) -> Body:
    """Statements under a mask, of which loads that are within their buffers anyway need none of it."""
    buffers = kernel.buffers()

    def change(statement: Statement, loops: tuple[For, ...]) -> Statement:
        if not isinstance(statement, Put):
            return statement
        facts = facts_for(kernel, (*around, *loops))

        def load(e: Expr) -> Expr | None:
            if not isinstance(e, Load) or not set(e.mask) & set(mask):
                return None
            own = tuple(m for m in e.mask if m not in mask)
            inside = all(
                facts.proves(i) and facts.proves_below(i, extent)
                for i, extent in zip(e.indices, buffers[e.buffer].shape)
            )
            return replace(e, mask=own) if inside and len(e.indices) == len(buffers[e.buffer].shape) else None

        return replace(statement, value=transform(statement.value, rule=load))

    found = {id(s): change(s, loops) for s, loops in walk(body)}
    return rewrite(body, lambda s: found.get(id(s)) if isinstance(s, Put) else None)


def restrict(kernel: Kernel, step: Restrict) -> Kernel:
    """See `Restrict`."""
    found = False

    def change(statement: Statement) -> Statement | None:
        nonlocal found
        if not isinstance(statement, Put) or statement.buffer != step.buffer or statement.operator == "=":
            return None
        match statement.value:
            case Apply("where", (condition, then, Const() as otherwise)) if otherwise == neutral(
                statement.operator, then
            ):
                mask = affine_mask(condition)
                if mask is not None:
                    found = True
                    return replace(statement, value=then, mask=join(statement.mask, mask))
        return None

    body = rewrite(kernel.body, change)
    if not found:
        raise ScheduleError("no choice of the neutral element of an accumulating write")
    return kernel.with_body(body)


def affine_mask(condition: Expr, holds: bool = True, with_data: bool = False) -> Mask | None:
    """A boolean expression, or that it does not hold, as a conjunction of integer comparisons, if it is one.
    `with_data`: also of places that data say, but not of data themselves, whose difference may overflow."""
    match condition:
        case Apply("not", (inner,)):
            return affine_mask(inner, not holds, with_data)
        case Apply("and" | "or" as name, (left, right)) if (name == "and") == holds:
            first, second = affine_mask(left, holds, with_data), affine_mask(right, holds, with_data)
            return None if first is None or second is None else join(first, second)
        case Apply("lt" | "ge" as name, (left, right)):
            found = _less(left, right) if (name == "lt") == holds else _less(right, left, 1)
        case Apply("gt" | "le" as name, (left, right)):
            found = _less(right, left) if (name == "gt") == holds else _less(left, right, 1)
        case _:
            return None
    of_places = with_data and all(isinstance(side, (Index, Const)) for side in (left, right))
    return found if of_places or not any(c.opaques for c in found) else None


def _less(small: Expr, large: Expr, more: int = 0) -> Mask:
    """small < large + more, of integers; a magnitude is less if the number and its negative are."""
    sides: tuple[Size, ...] = (as_size(small),)
    match small:
        case Apply("abs", (inner,)):
            sides = (as_size(inner), -as_size(inner))
    bound = as_size(large) + more
    return tuple(bound - s for s in sides)
