"""Finding and rebuilding parts of a kernel: what every schedule step is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, Call, Check, For, If, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Load, Mask, as_size, transform
from intarsia.ir.sizes import Size

Body: TypeAlias = "tuple[Statement, ...]"
Rule: TypeAlias = Callable[[Expr], "Expr | None"]
Change: TypeAlias = Callable[[Statement], "Statement | Body | None"]


# ---------------------------------------------------------------------- finding


def find_loop(kernel: Kernel, axis: str) -> tuple[For, tuple[For, ...]]:
    """The loop over `axis` and the loops around it. Raises ScheduleError if there is none."""
    for statement, around in walk(kernel.body):
        if isinstance(statement, For) and statement.axis == axis:
            return statement, around
    axes = ", ".join(s.axis for s, _ in walk(kernel.body) if isinstance(s, For))
    raise ScheduleError(f"no axis {axis}; there are {axes}")


def find_buffer(kernel: Kernel, name: str) -> Buffer:
    """A buffer by name. Raises ScheduleError if there is none."""
    buffers = kernel.buffers()
    if name not in buffers:
        raise ScheduleError(f"no buffer {name}; there are {', '.join(buffers)}")
    return buffers[name]


def loops_in(body: Iterable[Statement]) -> tuple[For, ...]:
    """Every loop below `body`, outer ones before inner ones."""
    return tuple(s for s, _ in walk(tuple(body)) if isinstance(s, For))


def puts_in(body: Iterable[Statement]) -> tuple[Put, ...]:
    return tuple(s for s, _ in walk(tuple(body)) if isinstance(s, Put))


def allocated_in(body: Iterable[Statement]) -> dict[str, Buffer]:
    return {s.buffer.name: s.buffer for s, _ in walk(tuple(body)) if isinstance(s, Alloc)}


def blocks(kernel: Kernel) -> Iterator[tuple[Body, tuple[For, ...]]]:
    """Every sequence of statements (the body of the kernel, of a loop, an arm) with the loops around it."""
    yield kernel.body, ()
    for statement, around in walk(kernel.body):
        match statement:
            case For():
                yield statement.body, (*around, statement)
            case If(_, then, otherwise):
                yield then, around
                yield otherwise, around


def perfect_nest(loop: For) -> tuple[tuple[For, ...], Body]:
    """A loop and those inside it as long as each holds nothing but the next, and the body of the last."""
    loops = [loop]
    while len(loops[-1].body) == 1 and isinstance(inner := loops[-1].body[0], For):
        loops.append(inner)
    return tuple(loops), loops[-1].body


def perfect_around(around: Sequence[For]) -> tuple[For, ...]:
    """Of the loops around a statement, the innermost ones that hold nothing else."""
    outer = next((n for n in reversed(range(len(around))) if len(around[n].body) > 1), -1)
    return tuple(around[outer + 1 :])


def facts_for(kernel: Kernel, loops: Iterable[For], masks: Mask = ()) -> Facts:
    """What holds inside loops: sizes are not negative, axes are in their ranges, `masks` hold."""
    return facts_of(loops, masks, frozenset(kernel.sizes))


def facts_of(loops: Iterable[For], masks: Mask, sizes: frozenset[str]) -> Facts:
    facts = Facts(names=sizes)
    for loop in loops:
        known = facts.given(Size.of(loop.axis) - loop.lower, last_value(loop) - loop.axis)
        facts = replace(known, names=facts.names | {loop.axis}) if facts.is_sum_of_nonnegative(loop.lower) else known
    return facts.given(*(m - 1 for m in masks))


def last_value(loop: For) -> Size:
    """The greatest value that an axis may take, as exactly as it can be said without a quotient."""
    extent = loop.upper - loop.lower
    if loop.step > 1:
        if all(c % loop.step == 0 for _, c in extent.terms):
            return loop.upper - loop.step
        if extent.constant is not None:
            return loop.lower + max(extent.constant - 1, 0) // loop.step * loop.step
    return loop.upper - 1


def extreme(size: Size, loops: Sequence[For], greatest: bool) -> Size | None:
    """The least or greatest value of an expression over the ranges of loops, inner ones first; None where unknown."""
    for loop in reversed(loops):
        coefficient = size.coefficient(loop.axis)
        if coefficient is None:
            return None
        if coefficient:
            end = last_value(loop) if (coefficient > 0) == greatest else loop.lower
            size = size.substitute({loop.axis: end})
    return size


# ---------------------------------------------------------------------- rebuilding


def rewrite(body: Body, change: Change) -> Body:
    """Apply `change` to every statement, inner ones first: None keeps it, a tuple stands in its place."""
    out: list[Statement] = []
    for statement in body:
        match statement:
            case For():
                inner = rewrite(statement.body, change)
                if inner != statement.body:
                    statement = replace(statement, body=inner)
            case If(condition, then, otherwise):
                statement = If(condition, rewrite(then, change), rewrite(otherwise, change))
        new = change(statement)
        out.extend((statement,) if new is None else new if isinstance(new, tuple) else (new,))
    return tuple(out)


def replace_loop(kernel: Kernel, axis: str, make: Callable[[For], Statement | Body]) -> Kernel:
    """Put what `make` gives in the place of the loop over `axis`. Raises ScheduleError if there is none."""
    find_loop(kernel, axis)

    def go(body: Body) -> Body:
        out: list[Statement] = []
        for statement in body:
            match statement:
                case For() if statement.axis == axis:
                    new = make(statement)
                    out.extend(new if isinstance(new, tuple) else (new,))
                    continue
                case For():
                    inner = go(statement.body)
                    statement = statement if inner is statement.body else replace(statement, body=inner)
                case If(condition, then, otherwise):
                    statement = If(condition, go(then), go(otherwise))
            out.append(statement)
        return tuple(out) if any(a is not b for a, b in zip(out, body)) or len(out) != len(body) else body

    return kernel.with_body(go(kernel.body))


def replace_block(kernel: Kernel, old: Body, new: Body) -> Kernel:
    """Put other statements in the place of one block: the body of the kernel or of a loop, or an arm."""

    def go(body: Body) -> Body:
        if body is old:
            return new
        out: list[Statement] = []
        for statement in body:
            match statement:
                case For():
                    inner = go(statement.body)
                    statement = statement if inner is statement.body else replace(statement, body=inner)
                case If(condition, then, otherwise):
                    statement = If(condition, go(then), go(otherwise))
            out.append(statement)
        return tuple(out) if any(a is not b for a, b in zip(out, body)) else body

    return kernel.with_body(go(kernel.body))


def map_statement(statement: Statement, size: Callable[[Size], Size], expression: Callable[[Expr], Expr]) -> Statement:
    """Rebuild every integer and every scalar expression of a statement and of those inside it."""

    def sizes(many: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(map(size, many))

    def rows(many: tuple[tuple[str, tuple[Size, ...]], ...]) -> tuple[tuple[str, tuple[Size, ...]], ...]:
        return tuple((name, sizes(indices)) for name, indices in many)

    def body(many: Body) -> Body:
        return tuple(map_statement(s, size, expression) for s in many)

    match statement:
        case For():
            return replace(
                statement, lower=size(statement.lower), upper=size(statement.upper), body=body(statement.body)
            )
        case Put():
            return replace(
                statement,
                indices=sizes(statement.indices),
                value=expression(statement.value),
                mask=sizes(statement.mask),
            )
        case If(condition, then, otherwise):
            return If(sizes(condition), body(then), body(otherwise))
        case Alloc(buffer):
            return Alloc(replace(buffer, shape=sizes(buffer.shape)))
        case Prefetch():
            return replace(statement, indices=sizes(statement.indices))
        case Check():
            return replace(
                statement, condition=expression(statement.condition), values=tuple(map(expression, statement.values))
            )
        case Call():
            return replace(
                statement, reads=rows(statement.reads), writes=rows(statement.writes), length=size(statement.length)
            )
    raise AssertionError(f"{statement} is no statement")


def substitute(body: Body, names: Mapping[str, Size]) -> Body:
    """Replace names in every integer expression below; the axes of loops keep their names."""
    if not names:
        return body
    return tuple(map_statement(s, lambda z: z.substitute(names), lambda e: e.substitute(names)) for s in body)


def change_loads(body: Body, rule: Rule) -> Body:
    """Apply `rule` to every expression below, those inside subscripts and bounds too."""

    def expression(e: Expr) -> Expr:
        return transform(e, rule=rule)

    return tuple(map_statement(s, lambda z: map_opaques(z, expression), expression) for s in body)


def map_opaques(size: Size, change: Callable[[Expr], Expr]) -> Size:
    """Rebuild the values on which an integer expression depends."""
    return size.substitute({}, lambda value: as_size(change(value))) if size.opaques else size


def rename_axes(body: Body, names: Mapping[str, str]) -> Body:
    """Give axes of loops below, and all that uses them, other names."""

    def go(statement: Statement) -> Statement:
        match statement:
            case For():
                return replace(statement, axis=names.get(statement.axis, statement.axis), body=many(statement.body))
            case If(condition, then, otherwise):
                return If(condition, many(then), many(otherwise))
        return statement

    def many(statements: Body) -> Body:
        return tuple(map(go, statements))

    return substitute(many(body), {old: Size.of(new) for old, new in names.items()})


def rename_buffers(body: Body, names: Mapping[str, str]) -> Body:
    """Give buffers another name in every statement below."""

    def change(statement: Statement) -> Statement | None:
        match statement:
            case Put(buffer) | Prefetch(buffer) if buffer in names:
                return replace(statement, buffer=names[buffer])
            case Alloc(buffer) if buffer.name in names:
                return Alloc(replace(buffer, name=names[buffer.name]))
            case Call(_, reads, writes):
                moved = [tuple((names.get(n, n), i) for n, i in rows) for rows in (reads, writes)]
                return replace(statement, reads=moved[0], writes=moved[1])
        return None

    def rule(e: Expr) -> Expr | None:
        return replace(e, buffer=names[e.buffer]) if isinstance(e, Load) and e.buffer in names else None

    return change_loads(rewrite(body, change), rule)


def copy_body(kernel: Kernel, body: Body, names: NameSource | None = None) -> Body:
    """The same statements with fresh names for the axes and temporaries they bring."""
    names = names or NameSource(kernel)
    axes = {loop.axis: names.derived(loop.axis) for loop in loops_in(body)}
    buffers = {name: names.derived(name) for name in allocated_in(body)}
    return rename_buffers(rename_axes(body, axes), buffers)


class NameSource:
    """Names derived from others: `i.0`, `i.1`, …, the lowest number that the kernel does not use yet."""

    def __init__(self, kernel: Kernel) -> None:
        self._taken = {loop.axis for loop in loops_in(kernel.body)} | kernel.buffers().keys() | set(kernel.sizes)

    def derived(self, name: str) -> str:
        number = 0
        while f"{name}.{number}" in self._taken:
            number += 1
        found = f"{name}.{number}"
        self._taken.add(found)
        return found

    def claim(self, name: str) -> str:
        """Use a name that the user chose. Raises ScheduleError if it is taken."""
        if name in self._taken:
            raise ScheduleError(f"the name {name} is taken")
        self._taken.add(name)
        return name
