"""Which cells share memory: what is changed in place, which states of loops need one buffer, what is written straight
into a result or a row of it.

Two cells that a move joins get the same memory if they are never needed at the same time (copy coalescing as when
compilers leave SSA form, here for tensors); the copy then vanishes. Loops are treated from the inside out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from intarsia.ir.errors import Remark, Remarks, Span
from intarsia.ir.ops import Loop
from intarsia.ir.sizes import Size
from intarsia.passes.plan_memory.overwriting import may_overwrite, with_overwritten
from intarsia.passes.plan_memory.program import (
    CallStep,
    Cell,
    ExchangeStep,
    LoopState,
    LoopStep,
    Move,
    Overwrite,
    Program,
    Stack,
    Step,
    walk,
)

Interval: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True)
class InOutput:
    """The memory of result number `index`."""

    index: int


@dataclass(frozen=True)
class InState:
    """The memory that a loop state with two buffers has at the moment: its current value, or the next one."""

    state: LoopState
    is_next: bool


@dataclass(frozen=True)
class InRow:
    """The row of a stacked result that belongs to the current step of a loop."""

    stack: Stack
    loop: Loop


Place: TypeAlias = InOutput | InState | InRow


Over: TypeAlias = "tuple[CallStep, Overwrite]"


@dataclass(eq=False)
class Group:
    """Cells in the same memory: in the workspace unless `place` says where."""

    cells: list[Cell]
    intervals: list[Interval]
    place: Place | None = None

    @property
    def label(self) -> str:
        return self.cells[0].label

    @property
    def bytes(self) -> Size:
        return self.cells[0].bytes

    @property
    def is_fixed(self) -> bool:
        return self.cells[0].is_fixed

    @property
    def is_input(self) -> bool:
        return any(c.is_fixed or c.donated for c in self.cells)

    @property
    def donated(self) -> Cell | None:
        """The input whose memory it is, if it is that of one."""
        return next((c for c in self.cells if c.donated), None)

    def meets(self, intervals: Iterable[Interval]) -> bool:
        """Is it needed at the same time?"""
        return any(a <= d and c <= b for a, b in self.intervals for c, d in intervals)

    def intervals_without(self, moves: Iterable[Move]) -> list[Interval]:
        """When it is needed if moves into it were no copies: a copy is made while its source is still there."""
        copied = {2 * m.position for m in moves if m.target in self.cells}
        return [(a + 1, b) if a in copied else (a, b) for a, b in self.intervals]

    def intervals_before(self, overwrite: Overwrite) -> list[Interval]:
        """When it is needed if a result takes its place element by element: until the call, not through it."""
        through = 2 * overwrite.position + 1
        return [(a, b - 1) if b == through else (a, b) for a, b in self.intervals]

    def is_inside(self, loop: Loop) -> bool:
        """Is every cell made anew in each step of a loop?"""
        return all(loop in cell.loops for cell in self.cells)


@dataclass(eq=False)
class Buffers:
    """The two buffers that a loop state uses in turn."""

    first: Cell
    second: Cell


@dataclass
class Sharing:
    """The groups of a program, the buffers of the states that need two, and the results of calls that are written over
    operands: names of buffers, in the order in which that was found to be possible."""

    groups: dict[Cell, Group]
    buffers: dict[LoopState, Buffers] = field(default_factory=dict)
    overwritten: dict[CallStep, dict[str, str]] = field(default_factory=dict)

    def same(self, move: Move) -> bool:
        """Is a move no copy?"""
        return self.groups[move.source] is self.groups[move.target]


def share(program: Program, remarks: Remarks, overwriting: bool) -> Sharing:
    """Decide what shares memory, and remark on it. `overwriting`: results may be written over operands."""
    sharing = Sharing({c: Group([c], [(c.start, c.end)]) for c in program.cells})
    sharer = _Sharer(sharing, remarks, overwriting)
    sharer.region(program.steps, None)
    for index, move in enumerate(program.results):
        sharing.groups[move.target].place = InOutput(index)
        if not sharer.join(move):
            why = _why_copied(sharing.groups[move.source])
            sharer.remark(f"result {index} is copied: {why}", None, done=False)
    sharer.overwrite(program.steps)
    return sharing


def _why_copied(group: Group) -> str:
    if group.is_fixed:
        return "its value is an input"
    if isinstance(group.place, InState):
        return "which buffer of the loop holds it depends on the number of steps"
    return "its value is another result too"


class _Sharer:
    """Joins groups, innermost loops first."""

    def __init__(self, sharing: Sharing, remarks: Remarks, overwriting: bool) -> None:
        self.sharing = sharing
        self.groups = sharing.groups
        self.remarks = remarks
        self.overwriting = overwriting

    def remark(self, message: str, span: Span | None, done: bool = True) -> None:
        self.remarks.add(Remark("plan-memory", "memory", message, span, done))

    def region(self, steps: Sequence[Step], loop: LoopStep | None) -> None:
        """The steps of one region, then the states and rows of the loop whose body it is."""
        for step in steps:
            if isinstance(step, LoopStep):
                self.region(step.test, None)
                self.region(step.body, step)
                self._entries_of_two_buffers(step)
        # The old value of a state can be overwritten only if that state turns out to need one buffer.
        own = {state.current for state in loop.states} if loop else set()
        moves = [(step, move) for step in steps for move in self._moves(step)]
        for step, move in moves:
            if move.source not in own:
                self._step_move(step, move)
        if loop is not None:
            for state in loop.states:
                changes = [move for _, move in moves if move.source is state.current]
                self._state(loop, state, changes, self._overwrites(steps, state.current))
        for step, move in moves:
            if move.source in own:
                self._step_move(step, move)
        if loop is not None:
            self._rows(loop)

    def _moves(self, step: Step) -> Iterable[Move]:
        """The moves of a step itself: old values that a kernel changes, initial values of states with one buffer."""
        match step:
            case CallStep():
                return step.bases.values()
            case ExchangeStep():
                return ()
            case Move():
                return (step,)
            case LoopStep():
                return (s.entry for s in step.states if s not in self.sharing.buffers)

    def _step_move(self, step: Step, move: Move) -> None:
        joined = self.join(move)
        if not isinstance(step, CallStep) or (move.source.donated and not joined):
            return
        if joined:
            self.remark(f"{move.source.label} is changed in place", step.node.span)
        else:
            why = "it is an input" if self.groups[move.source].is_fixed else "its old value is needed later"
            self.remark(f"{move.source.label} is copied before it is changed: {why}", step.node.span, done=False)

    # ------------------------------------------------------------------ joining

    def join(self, move: Move) -> bool:
        """Give source and target of a move the same memory, if they are not needed at the same time."""
        source, target = self.groups[move.source], self.groups[move.target]
        if source is target:
            return True
        free = not source.is_fixed and not source.meets(target.intervals_without([move]))
        if not free or not self._may_be_in(source, target):
            return False
        self._merge(target, source)
        return True

    def _may_be_in(self, source: Group, target: Group) -> bool:
        """May a group be in the memory of another one? What a caller gives away is for one result."""
        return self._fits(source, target.place) and not (source.donated and target.donated)

    def _fits(self, group: Group, place: Place | None) -> bool:
        """May a group be where another one has to be?"""
        if group.place is not None:
            return False
        if group.donated is not None and not isinstance(place, InOutput):
            return False
        match place:
            case InState(state):
                return group.is_inside(state.step.target.loops[-1])
            case InRow(_, loop):
                whole = not any(c.is_scalar or (c.is_state and c.loops[-1] is loop) for c in group.cells)
                return whole and group.is_inside(loop)
        return True

    def _merge(self, into: Group, other: Group) -> None:
        """One group of two; where it is, if anywhere, is kept."""
        into.place = into.place or other.place
        into.cells += other.cells
        into.intervals += other.intervals
        for cell in other.cells:
            self.groups[cell] = into

    def _extend(self, group: Group, start: int, end: int) -> None:
        """A group is needed for longer, and with it the memory that it is in."""
        group.intervals.append((start, end))
        if isinstance(group.place, InState):
            self._extend_state(group.place.state, start, end)

    def _extend_state(self, state: LoopState, start: int, end: int) -> None:
        """The value of a state after its loop is needed: it is in either buffer, or still in the initial value."""
        buffers = self.sharing.buffers[state]
        for cell in (buffers.first, buffers.second, state.entry.source):
            self._extend(self.groups[cell], start, end)

    # ------------------------------------------------------------------ overwriting

    def overwrite(self, steps: Sequence[Step]) -> None:
        """Write results over operands that nothing needs afterwards, from the last ones on, of which it is known first
        that they are results of the program: only these may be in memory that a caller gives away."""
        for step in reversed(list(walk(steps))):
            for move in self._moves(step):
                if move.source.donated:
                    self._step_move(step, move)
            if isinstance(step, CallStep):
                self._overwrite(step)

    def _overwrite(self, step: CallStep) -> None:
        for over in step.overwrites:
            source, target = self.groups[over.source], self.groups[over.target]
            if source is not target and self._may_be_in(source, target) and self._replaces(step, over):
                self._merge(target, source)
                self.remark(f"{over.source.label} is changed in place", step.node.span)

    def _overwrites(self, steps: Sequence[Step], source: Cell) -> list[Over]:
        """What may take the place of a cell in these steps themselves."""
        calls = (step for step in steps if isinstance(step, CallStep))
        return [(step, over) for step in calls for over in step.overwrites if over.source is source]

    def _replaces(self, step: CallStep, over: Overwrite, no_copies: Sequence[Move] = ()) -> bool:
        """Can a result be written where an operand is, whose group nothing needs afterwards? Then it will be."""
        source, target = self.groups[over.source], self.groups[over.target]
        if not self.overwriting or over.source.bytes != over.target.bytes:
            return False
        needed = Group([], source.intervals_before(over))
        if needed.meets(target.intervals_without([over, *no_copies])):
            return False
        known = self.sharing.overwritten.setdefault(step, {})
        if over.operand in known.values() or over.result in known:
            return False
        if not may_overwrite(with_overwritten(step.kernel, known), over.operand, over.result):
            return False
        known[over.result] = over.operand
        return True

    # ------------------------------------------------------------------ loops

    def _state(self, loop: LoopStep, state: LoopState, changes: Sequence[Move], overwrites: Sequence[Over]) -> None:
        """One buffer if the old value is not needed once the next one is written, else two; `changes` are the moves of
        the old value into what kernels change in place, `overwrites` what may take its place."""
        source = self.groups[state.step.source]
        is_state = any(c.is_state and c.loops == state.next.loops for c in source.cells)
        if not is_state and self._fits(source, InState(state, True)):
            self.join(state.step)
        current, following = self.groups[state.current], self.groups[state.next]
        no_copies = [*changes, *self._from_itself(state)]
        over = next(((step, o) for step, o in overwrites if o.target in following.cells), None)
        if current.meets(following.intervals_without(no_copies)) and not (over and self._replaces(*over, no_copies)):
            self._two_buffers(loop, state)
            return
        self._merge(current, following)
        self._merge(current, self.groups[state.result])
        self.remark(f"state {state.label} of the loop over {loop.node.counter} has one buffer", loop.node.span)

    def _from_itself(self, state: LoopState) -> list[Move]:
        return [state.step] if state.step.source is state.current else []

    def _two_buffers(self, loop: LoopStep, state: LoopState) -> None:
        first, second = (Cell(state.label, state.current.type, state.result.loops) for _ in range(2))
        self.sharing.buffers[state] = Buffers(first, second)
        inside = (2 * loop.head + 1, 2 * loop.tail + 1)
        after = (state.result.start, state.result.end)
        count = steps_of(loop)
        for cell in (first, second):
            self.groups[cell] = Group([cell], [inside])
        self.groups[state.current].place = InState(state, False)
        self.groups[state.next].place = InState(state, True)
        if count:
            last = first if count % 2 else second
            self._merge(self.groups[last], self.groups[state.result])
        else:
            self.groups[state.result].place = InState(state, False)
            for cell in (first, second):
                self._extend(self.groups[cell], *after)
        why = "the step still reads it when it writes the next value"
        self.remark(
            f"state {state.label} of the loop over {loop.node.counter} has two buffers: {why}",
            loop.node.span,
            done=False,
        )

    def _entries_of_two_buffers(self, loop: LoopStep) -> None:
        """The initial value is read in the first step: it is the second buffer, or is kept until the loop ends."""
        for state in loop.states:
            if (buffers := self.sharing.buffers.get(state)) is None:
                continue
            source, second = self.groups[state.entry.source], self.groups[buffers.second]
            if source.is_fixed or source is second:
                continue
            is_own = any(c.is_state for c in source.cells)
            if not is_own and source.place is None and not source.meets(second.intervals):
                self._merge(second, source)
            else:
                self._extend(source, 2 * loop.head, 2 * loop.tail + 1)
                if not steps_of(loop):
                    self._extend(source, state.result.start, state.result.end)

    def _rows(self, loop: LoopStep) -> None:
        for stack in loop.stacks:
            self.groups[stack.row].place = InRow(stack, loop.node)
            self.join(stack.move)


def steps_of(loop: LoopStep) -> int:
    """The number of steps if it is known before the program runs, else 0."""
    count = (loop.node.upper - loop.node.lower).constant
    return max(0, count) if count is not None and loop.node.condition is None else 0
