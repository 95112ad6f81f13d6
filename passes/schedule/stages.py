"""Stages of a block: perfect nests around one write, and how their axes correspond."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, For, Put, Statement
from intarsia.ir.kernel_access import Access, accesses
from intarsia.ir.scalar import Expr, Load, loads, transform
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.tree import Body, perfect_nest


@dataclass(frozen=True, eq=False)
class Stage:
    """A perfect nest around one write."""

    statement: Statement
    loops: tuple[For, ...]
    put: Put

    @staticmethod
    def of(statement: Statement) -> Stage | None:
        """The stage that a statement is, if it is one."""
        loops, body = perfect_nest(statement) if isinstance(statement, For) else ((), (statement,))
        if len(body) == 1 and isinstance(put := body[0], Put):
            return Stage(statement, loops, put)
        return None

    @cached_property
    def axes(self) -> frozenset[str]:
        return frozenset(loop.axis for loop in self.loops)

    @cached_property
    def kept(self) -> tuple[For, ...]:
        """The loops whose axes are subscripts of what is written."""
        used = frozenset().union(*(i.symbols for i in self.put.indices))
        return tuple(loop for loop in self.loops if loop.axis in used)

    @cached_property
    def reduced(self) -> tuple[For, ...]:
        return tuple(loop for loop in self.loops if loop not in self.kept)

    @cached_property
    def reads(self) -> tuple[Load, ...]:
        return tuple(dict.fromkeys(loads(self.put.value)))

    @cached_property
    def accesses(self) -> tuple[Access, ...]:
        """All that it reads and writes."""
        return tuple(accesses((self.statement,)))

    @cached_property
    def touched(self) -> frozenset[str]:
        """The buffers that it reads or writes."""
        return frozenset(a.buffer for a in self.accesses)

    def around(self, put: Put, loops: Iterable[For] | None = None) -> Body:
        """The loops of the stage, or some of them, around another write."""
        body: Body = (put,)
        for loop in reversed(tuple(self.loops if loops is None else loops)):
            body = (For(loop.axis, loop.lower, loop.upper, body, loop.kind, loop.step),)
        return body


def stages_in(block: Body) -> tuple[Stage, ...] | Statement:
    """The stages that a block consists of; the first statement that is none, if there is one."""
    found: list[Stage] = []
    for statement in block:
        if isinstance(statement, Alloc):
            continue
        stage = Stage.of(statement)
        if stage is None:
            return statement
        found.append(stage)
    return tuple(found)


def correspondence(
    ours: Sequence[Size], own: Iterable[For], theirs: Sequence[Size], other: Iterable[For]
) -> dict[str, Size] | None:
    """The axes of `own` as those of `other` under which subscripts agree: axes that stand in the same places with the
    same coefficients correspond. None where that leaves a difference."""
    places = {loop.axis: tuple(i.coefficient(loop.axis) for i in theirs) for loop in other}
    names: dict[str, Size] = {}
    for loop in own:
        place = tuple(i.coefficient(loop.axis) for i in ours)
        if not any(place):
            continue
        fitting = [axis for axis, found in places.items() if found == place]
        if len(fitting) != 1:
            return None
        names[loop.axis] = Size.of(fitting[0])
    same = len(ours) == len(theirs) and all(a.substitute(names) == b for a, b in zip(ours, theirs))
    return names if same else None


def expand(stage: Stage, definitions: Mapping[str, Stage]) -> Expr:
    """The value that a stage writes, with temporaries replaced by what defines them. Masks of loads that hold wherever
    the stage writes are dropped."""
    holds = frozenset(stage.put.mask)

    def read(e: Expr) -> Expr | None:
        if not isinstance(e, Load):
            return None
        e = replace(e, mask=tuple(m for m in e.mask if m not in holds))
        definition = definitions.get(e.buffer)
        if definition is None or e.mask:
            return e
        names = correspondence(definition.put.indices, definition.loops, e.indices, stage.loops)
        if names is None or len(names) < len(definition.loops):
            return e
        if not holds.issuperset(m.substitute(names) for m in definition.put.mask):
            return e
        return expand(definition, definitions).substitute(names)

    return transform(stage.put.value, rule=read)


def definitions_in(stages: Sequence[Stage], temporaries: Iterable[str]) -> dict[str, Stage]:
    """The stages that define a temporary point by point: the only ones that write it."""
    found: dict[str, Stage] = {}
    for name in temporaries:
        writers = [s for s in stages if s.put.buffer == name]
        if len(writers) == 1 and writers[0].put.operator == "=" and not writers[0].reduced:
            found[name] = writers[0]
    return found


def spread(stages: Sequence[Stage], axes: dict[Stage, str], buffers: Collection[str]) -> None:
    """Add every stage that uses one of these buffers along the axis of one that is there, with its own name for it."""
    growing = True
    while growing:
        growing = False
        for stage, axis in list(axes.items()):
            for access in stage.accesses:
                place = tuple(i.coefficient(axis) for i in access.indices)
                if access.buffer not in buffers or not any(place):
                    continue
                for other in stages:
                    found = _axes_at(other, access.buffer, place)
                    if found is not None and other not in axes:
                        axes[other] = found
                        growing = True
                    elif found is not None and axes[other] != found:
                        raise ScheduleError(f"{access.buffer} is used along {found} and along {axes[other]}")


def _axes_at(stage: Stage, buffer: str, place: tuple[int | None, ...]) -> str | None:
    """The axis with which a stage subscripts a buffer in these places; None if it does not use the buffer."""
    uses = [a for a in stage.accesses if a.buffer == buffer]
    found = {
        loop.axis for a in uses for loop in stage.loops if tuple(i.coefficient(loop.axis) for i in a.indices) == place
    }
    if uses and len(found) != 1:
        raise ScheduleError(f"{buffer} is used in another way in the stage of {stage.put.buffer}")
    return next(iter(found), None)
