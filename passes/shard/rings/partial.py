"""Reductions over a dimension of which the blocks are there one after the other, and how those of blocks are merged.

Nodes are lowered to a naive kernel, whose stages are then taken one by one: so the rule by which a sum follows a
maximum is the one by which a kernel goes through a row block by block (`passes/schedule/sweeps.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from intarsia.ir.errors import ScheduleError, Span
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Value
from intarsia.ir.kernel import COMBINER_OPERATORS, Buffer
from intarsia.ir.ops.index import Compute
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Const, Expr, Load, apply, holds, loads, transform, where
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand, size_loads
from intarsia.ir.target import Target
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.lower.stages import Names
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.chain import take_out
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.stages import Stage, spread, stages_in
from intarsia.passes.schedule.sweeps import Ratio, find_sweep, finite
from intarsia.passes.shard.blocks import Add, Block, on_block

Role = Literal["before", "mapped", "reduced", "after"]


@dataclass(frozen=True)
class Piece:
    """A stage as a space over buffers: it makes `target` of `reads`, the operands of the space in order.

    role: `mapped` makes a part of a tensor of each block, `reduced` something to be merged; `before` needs no block,
    and `after` all. axis: the one that runs along the blocks. ratio: how a sum follows a maximum.
    """

    target: str
    space: Space
    reads: tuple[str, ...]
    role: Role
    axis: str = ""
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Chain:
    """What is made of tensors whose blocks arrive one after the other.

    given: the buffers of these tensors, with the dimension of the blocks. inputs: the values of all buffers that are
    read. outputs: the buffer of each result. mapped: the other buffers that have a dimension of the blocks. maxima:
    those that sums follow.
    """

    pieces: tuple[Piece, ...]
    buffers: Mapping[str, Buffer]
    given: Mapping[str, int]
    inputs: Mapping[str, Value]
    outputs: tuple[str, ...]
    mapped: Mapping[str, int]
    maxima: frozenset[str]

    def of_role(self, role: Role) -> tuple[Piece, ...]:
        return tuple(p for p in self.pieces if p.role == role)

    @property
    def stored(self) -> tuple[str, ...]:
        """The results of which each block gives a part."""
        return tuple(b for b in self.outputs if b in self.mapped)


def find_chain(
    members: Sequence[Node],
    outputs: Sequence[Value],
    given: Mapping[Value, int],
    names: Sequence[str],
    target: Target,
    span: Span | None,
) -> Chain:
    """The chain that some nodes are. given: the values that come in blocks, with the dimension of these; `names` are
    the symbols that may occur. Raises ScheduleError where something needs all blocks before the first is done."""
    lowered = GroupLowering(members, outputs, names, Facts(names=frozenset(names))).run("", span)
    arguments = {b.name: v for b, v in zip(lowered.kernel.inputs, lowered.arguments)}
    along = {b: given[v] for b, v in arguments.items() if v in given}
    builder = Builder(lowered.kernel, target)
    take_out(builder, {s.put.buffer for s, axis in _axes(builder, along)[1].items() if _is_sum(s, axis)})
    kernel = builder.kernel
    stages, axes = _axes(builder, along)
    ratios: dict[str, Ratio] = {}
    following: dict[str, frozenset[str]] = {}
    for name in _maxima(builder, along):
        sweep = find_sweep(kernel, name, kernel.body, ())
        if sweep.axes[sweep.state] != next(axes[s] for s in stages if s.put.buffer == name and s.reduced):
            raise ScheduleError(f"{name} is reduced along another dimension first")
        ratios.update((stage.put.buffer, ratio) for stage, ratio in sweep.ratios.items())
        following[name] = frozenset(s.put.buffer for s in sweep.axes)
    mapped = dict(along)
    for stage, axis in axes.items():
        places = [d for d, i in enumerate(stage.put.indices) if i.as_name == axis]
        mapped.update((stage.put.buffer, d) for d in places)
    reader = _Reader(stages, axes, mapped, ratios, following, names)
    pieces = tuple(p for s in stages if (p := reader.piece(s, kernel.buffers()[s.put.buffer])) is not None)
    return Chain(
        pieces,
        kernel.buffers(),
        along,
        arguments,
        tuple(b.name for b in kernel.outputs),
        {b: d for b, d in mapped.items() if b not in along},
        frozenset(following),
    )


def _axes(builder: Builder, along: Mapping[str, int]) -> tuple[tuple[Stage, ...], dict[Stage, str]]:
    """The stages, and what those that run along the blocks call that axis."""
    stages = stages_in(builder.kernel.body)
    if not isinstance(stages, tuple):
        raise ScheduleError("it is not made of stages")
    axes: dict[Stage, str] = {}
    for stage in stages:
        for load in stage.reads:
            if load.buffer in along:
                axis = load.indices[along[load.buffer]].as_name
                if axis is None or axes.setdefault(stage, axis) != axis:
                    raise ScheduleError(f"{load} is not read in step with the blocks")
    spread(stages, axes, {s.put.buffer for s in stages})
    return stages, axes


def _is_sum(stage: Stage, axis: str) -> bool:
    return stage.put.operator == "+=" and axis in {loop.axis for loop in stage.reduced}


def _maxima(builder: Builder, along: Mapping[str, int]) -> list[str]:
    """The maxima over all blocks that something along the blocks needs."""
    _, axes = _axes(builder, along)
    needed = {load.buffer for s in axes for load in s.reads}
    found = (s for s, axis in axes.items() if s.put.operator == "max=" and axis in {x.axis for x in s.reduced})
    return [s.put.buffer for s in found if s.put.buffer in needed]


@dataclass
class _Reader:
    """Reads stages in order. unfinished: what blocks are merged into; late: what is made of that. symbols: names that
    are taken."""

    stages: Sequence[Stage]
    axes: Mapping[Stage, str]
    mapped: Mapping[str, int]
    ratios: Mapping[str, Ratio]
    following: Mapping[str, frozenset[str]]
    symbols: Sequence[str]

    def __post_init__(self) -> None:
        self.unfinished: set[str] = set()
        self.late: set[str] = set()
        self.cleared: set[str] = set()

    def piece(self, stage: Stage, buffer: Buffer) -> Piece | None:
        """The stage as a piece; None for one that sets the neutral element of a reduction that follows."""
        put, axis = stage.put, self.axes.get(stage)
        if put.mask or any(loop.step != 1 for loop in stage.loops):
            raise ScheduleError(f"not all of {put.buffer} is written")
        bounds = [load for x in stage.loops for load in size_loads((x.lower, x.upper))]
        found = (*stage.reads, *bounds)
        for load in found:
            if load.buffer in self.mapped and (axis is None or load.indices[self.mapped[load.buffer]].as_name != axis):
                raise ScheduleError(f"{load} is not read in step with the blocks")
        rest = self.stages[self.stages.index(stage) + 1 :]
        following = next((s.put for s in rest if put.buffer in s.touched), put)
        if put.operator == "=" and following.buffer == put.buffer and following.operator != "=":
            if put.value != neutral(following.operator, following.value):
                raise ScheduleError(f"{put.buffer} does not start from the neutral element")
            self.cleared.add(put.buffer)
            return None
        if put.operator != "=" and put.buffer not in self.cleared:
            raise ScheduleError(f"{put.buffer} does not start from the neutral element")
        role = self._role(stage, {load.buffer for load in found})
        space, reads = _space(stage, buffer)
        names = self._short(space)
        ratio = self.ratios.get(put.buffer) if axis else None
        if ratio is not None:
            maximum = ratio.maximum.substitute({old: Size.of(new) for old, new in names.items()})
            assert isinstance(maximum, Load)
            ratio = replace(ratio, maximum=maximum)
        return Piece(put.buffer, space.rename_axes(names), reads, role, names.get(axis or "", ""), ratio)

    def _short(self, space: Space) -> dict[str, str]:
        """Names of its own for the axes of a space: in a kernel, those of all stages are distinct."""
        names = Names(self.symbols)
        return {a.name: names.fresh(a.name.split(".")[0]) for a in space.all_axes}

    def _role(self, stage: Stage, reads: set[str]) -> Role:
        target, axis = stage.put.buffer, self.axes.get(stage)
        if axis is None:
            if not reads & (self.unfinished | self.late) and target not in self.unfinished:
                return "before"
            self.late.add(target)
            return "after"
        followed = {name for name, own in self.following.items() if target in own}
        if lost := sorted(reads & (self.late | self.unfinished - followed)):
            raise ScheduleError(f"{target} needs {lost[0]} of all blocks")
        if axis not in {loop.axis for loop in stage.reduced}:
            return "mapped"
        self.unfinished.add(target)
        return "reduced"


def _space(stage: Stage, buffer: Buffer) -> tuple[Space, tuple[str, ...]]:
    """What a stage computes, and the buffers that it reads."""
    put = stage.put
    loops = {loop.axis: loop for loop in stage.loops}
    axes: list[Axis] = []
    for d, (index, extent) in enumerate(zip(put.indices, buffer.extents)):
        if extent == ONE and index == ZERO:
            axes.append(Axis.of(f"{put.buffer}.d{d}", ONE))
            continue
        loop = loops.pop(index.as_name or "", None)
        if loop is None or loop.lower != ZERO or loop.upper != extent:
            raise ScheduleError(f"{put.buffer} is not written as a whole")
        axes.append(Axis(loop.axis, loop.lower, loop.upper))
    reduced = tuple(Axis(x.axis, x.lower, x.upper) for x in stage.loops if x.axis in loops)
    if bool(reduced) != (put.operator != "="):
        raise ScheduleError(f"{put.buffer} is written again and again")
    bounds = [b for a in reduced for b in (a.lower, a.upper)]
    reads = tuple(dict.fromkeys(load.buffer for load in (*size_loads(bounds), *loads(put.value))))
    names = {b: operand(n) for n, b in enumerate(reads)}

    def read(e: Expr) -> Expr | None:
        """A load as one of a graph, where a mask is a condition."""
        if not isinstance(e, Load):
            return None
        plain = replace(e, buffer=names[e.buffer], mask=(), other=None)
        return where(holds(e.mask), plain, e.other or Const(0, e.dtype)) if e.mask else plain

    combiner = next((c for c, o in COMBINER_OPERATORS.items() if o == put.operator), None)
    space = Space(tuple(axes), transform(put.value, rule=read), buffer.dtype, reduced, combiner)
    return replace(space, reduced=tuple(a.rename_operands(names) for a in reduced)), reads


# ---------------------------------------------------------------------- pieces as nodes


def empty(chain: Chain, target: str, add: Add) -> Value:
    """The neutral element of everything that is merged into a buffer."""
    space = next(p.space for p in chain.of_role("reduced") if p.target == target)
    return add(Compute((), Space(space.axes, Const(space.neutral, space.dtype), space.dtype)))


def evaluate(chain: Chain, role: Role, values: dict[str, Value], add: Add) -> None:
    """Add what the pieces of a role make, which need no block, to the values."""
    for piece in chain.of_role(role):
        values[piece.target] = add(Compute(tuple(values[b] for b in piece.reads), piece.space))


def of_block(chain: Chain, values: Mapping[str, Value], block: Block, add: Add) -> dict[str, Value]:
    """What the pieces make of one block; sums are relative to the maximum of the block, or to 0 if it is -inf."""
    found = dict(values)
    for piece in chain.pieces:
        if piece.role not in ("mapped", "reduced"):
            continue
        given = {
            n: d for n, b in enumerate(piece.reads) for d in [{**chain.given, **chain.mapped}.get(b)] if d is not None
        }
        maxima = {operand(n) for n, b in enumerate(piece.reads) if b in chain.maxima}

        def relative(e: Expr, maxima: set[str] = maxima) -> Expr | None:
            return finite(e) if isinstance(e, Load) and e.buffer in maxima else None

        space = replace(piece.space, body=transform(piece.space.body, rule=relative))
        operands = [found[b] for b in piece.reads]
        found[piece.target] = on_block(space, operands, piece.axis, block, given, add)
    return found


def merged(chain: Chain, old: Mapping[str, Value], part: Mapping[str, Value], add: Add) -> dict[str, Value]:
    """What was merged so far with what a block gives; the maxima first."""
    found: dict[str, Value] = {}
    for piece in sorted(chain.of_role("reduced"), key=lambda p: p.ratio is not None):
        space, target = piece.space, piece.target
        place = tuple(Size.of(a.name) for a in space.axes)
        before, more = (Load(operand(n), place, space.dtype) for n in range(2))
        values = [old[target], part[target]]
        assert space.combiner is not None
        if (ratio := piece.ratio) is None:
            body = apply(COMBINERS[space.combiner].function, before, more)
        else:
            name = ratio.maximum.buffer
            values += [old[name], part[name], found[name]]
            first, second, both = (replace(ratio.maximum, buffer=operand(n)) for n in range(2, 5))
            one = apply("mul", before, ratio.change(first, both))
            body = apply("add", one, apply("mul", more, ratio.change(second, both)))
        found[target] = add(Compute(tuple(values), Space(space.axes, body, space.dtype)))
    return found


def finished(chain: Chain, values: dict[str, Value], add: Add) -> None:
    """After the last block: sums of rows of nothing but -inf, then what is made of all sums."""
    for piece in chain.of_role("reduced"):
        if (ratio := piece.ratio) is not None:
            own = Load(operand(0), tuple(Size.of(a.name) for a in piece.space.axes), piece.space.dtype)
            body = ratio.of_nothing(replace(ratio.maximum, buffer=operand(1)), own)
            if body is not own:
                operands = (values[piece.target], values[ratio.maximum.buffer])
                values[piece.target] = add(Compute(operands, Space(piece.space.axes, body, own.dtype)))
    evaluate(chain, "after", values, add)
