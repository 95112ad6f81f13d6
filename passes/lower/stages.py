"""Writing the stages of a naive kernel: perfect loop nests, one after the other, over buffers and temporaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Span
from intarsia.ir.kernel import Alloc, Buffer, Call, Check, For, If, Kernel, Prefetch, Put, PutOperator, Statement, walk
from intarsia.ir.kernel_access import expressions, sizes_of
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Load, transform
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis
from intarsia.passes.lower.access import Guard


class Names:
    """Gives out names that are unique in a kernel: `i`, then `i.1`, `i.2`, …; with another `mark`, `i_1`, `i_2`, …"""

    def __init__(self, taken: Iterable[str] = (), mark: str = ".") -> None:
        self._taken = set(taken)
        self._mark = mark
        self._counts: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        name, count = base, self._counts.get(base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}{self._mark}{count}"
        self._taken.add(name)
        self._counts[base] = count
        return name


@dataclass(frozen=True)
class Scope:
    """A place inside loops: what is known there, and what the axes of a space are called there."""

    facts: Facts
    names: Mapping[str, Size]


Inside = Callable[[Scope], "tuple[Statement, ...]"]


class StageWriter:
    """Appends stages to the body of a kernel. Every access that it writes is in bounds or masked."""

    def __init__(self, facts: Facts, reserved: Iterable[str]) -> None:
        self.names = Names(reserved)
        self.scope = Scope(facts, {})
        self.extents: dict[str, tuple[Size, ...]] = {}
        self.body: list[Statement] = []

    def declare(self, buffer: Buffer) -> Buffer:
        """Make a buffer known."""
        self.extents[buffer.name] = buffer.extents
        return buffer

    def temporary(self, label: str, dtype: DType, shape: tuple[Size, ...]) -> Alloc:
        """A temporary; the caller places its `Alloc`."""
        return Alloc(self.declare(Buffer(self.names.fresh(label), dtype, shape)))

    def guard(self, scope: Scope) -> Guard:
        """What makes the accesses of statements at a place safe."""
        return Guard(scope.facts, self.extents)

    def loops(self, axes: Sequence[Axis], inside: Inside, scope: Scope | None = None) -> tuple[Statement, ...]:
        """Nested loops over axes, outermost first, around what `inside` gives; none over an axis of extent 1."""
        scope = scope or self.scope
        if not axes:
            return inside(scope)
        axis, *rest = axes
        guard = self.guard(scope)
        lower = guard.size(axis.lower.substitute(scope.names))
        upper = guard.size(axis.upper.substitute(scope.names))
        if (upper - lower).constant == 1:
            return self.loops(rest, inside, Scope(scope.facts, {**scope.names, axis.name: lower}))
        name = self.names.fresh(axis.name)
        facts = scope.facts.within(name, lower, upper)
        if scope.facts.proves(lower):
            facts = replace(facts, names=facts.names | {name})
        inner = Scope(facts, {**scope.names, axis.name: Size.of(name)})
        return (For(name, lower, upper, self.loops(rest, inside, inner)),)

    def put(
        self,
        scope: Scope,
        target: str,
        indices: Sequence[Size],
        operator: PutOperator,
        value: Expr,
        span: Span | None,
    ) -> Put:
        """A write; it is dropped where a subscript that cannot be proved in bounds falls outside."""
        guard = self.guard(scope)
        where = tuple(guard.size(i.substitute(scope.names)) for i in indices)
        mask: dict[Size, None] = {}
        for index, extent in zip(where, self.extents[target], strict=True):
            if not guard.is_within(index, extent):
                mask.update({index + 1: None, extent - index: None})
        return Put(target, where, operator, guard.expression(value.substitute(scope.names)), tuple(mask), span=span)

    def write(
        self,
        axes: Sequence[Axis],
        target: str,
        indices: Sequence[Size],
        operator: PutOperator,
        value: Expr,
        span: Span | None,
    ) -> None:
        """Append the stage `for axes { target[indices] operator value }`."""
        self.body += self.loops(axes, lambda scope: (self.put(scope, target, indices, operator, value, span),))


def subscripts(axes: Iterable[Axis]) -> tuple[Size, ...]:
    """The axes as subscripts."""
    return tuple(Size.of(a.name) for a in axes)


def symbols(body: tuple[Statement, ...], buffers: Iterable[Buffer]) -> frozenset[str]:
    """The names that statements and shapes use and that no loop defines."""
    found: set[str] = set()
    axes: set[str] = set()
    for buffer in buffers:
        found.update(*(s.symbols for s in buffer.extents))
    for statement, _ in walk(body):
        found.update(*(s.symbols for s in sizes_of(statement)), *(e.symbols for e in expressions(statement)))
        if isinstance(statement, For):
            axes.add(statement.axis)
        elif isinstance(statement, Alloc):
            found.update(*(s.symbols for s in statement.buffer.shape))
    return frozenset(found - axes)


def rename_buffers(kernel: Kernel, names: Mapping[str, str]) -> Kernel:
    """The kernel with other names for all of its parameters and temporaries."""

    def expression(e: Expr) -> Expr:
        return transform(e, rule=rename)

    def rename(e: Expr) -> Expr | None:
        return replace(e, buffer=names[e.buffer]) if isinstance(e, Load) else None

    def size(s: Size) -> Size:
        return s.substitute({}, lambda value: Size.opaque(expression(value))) if s.opaques else s

    def all_sizes(many: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(map(size, many))

    def buffer(b: Buffer) -> Buffer:
        return replace(b, name=names[b.name])

    def rows(many: tuple[tuple[str, tuple[Size, ...]], ...]) -> tuple[tuple[str, tuple[Size, ...]], ...]:
        return tuple((names[name], all_sizes(indices)) for name, indices in many)

    def statement(s: Statement) -> Statement:
        match s:
            case For():
                return replace(s, lower=size(s.lower), upper=size(s.upper), body=tuple(map(statement, s.body)))
            case Put():
                return replace(
                    s,
                    buffer=names[s.buffer],
                    indices=all_sizes(s.indices),
                    value=expression(s.value),
                    mask=all_sizes(s.mask),
                )
            case If(condition, then, otherwise):
                return If(all_sizes(condition), tuple(map(statement, then)), tuple(map(statement, otherwise)))
            case Alloc(b):
                return Alloc(buffer(b))
            case Prefetch():
                return replace(s, buffer=names[s.buffer], indices=all_sizes(s.indices))
            case Check():
                return replace(s, condition=expression(s.condition), values=tuple(map(expression, s.values)))
            case Call():
                return replace(s, reads=rows(s.reads), writes=rows(s.writes), length=size(s.length))

    return replace(kernel, parameters=tuple(map(buffer, kernel.parameters)), body=tuple(map(statement, kernel.body)))
