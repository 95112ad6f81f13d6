"""Computing what neighbours compute, so that they need not send it: how far beyond a device's own part each value is
needed, found backwards, and the nodes that compute it there.

An op reads what neighbours have, `halo(x)[i + 1]`. Where x is computed from y, x is computed for one element more, and
y is needed for one more than that; so it goes back to values that no op of the list computes, which alone are sent.
An op computes the same beyond a device's part as the neighbour does on its own, if it knows of places only those in the
whole, `32 * %device[] + i`: nothing in it may change where i becomes i - 32 and the number of the device one more.
What lies beyond the ends of the whole is arbitrary, as the padding of what devices do not divide is: no op lets that
into what is inside, or the program of one device would read outside of its tensors.

After Ding and He, "A ghost cell expansion method for reducing communications in solving PDE problems", SC 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.collective import AllSlice, Collective, DeviceIndex
from intarsia.ir.ops.index import Compute
from intarsia.ir.ops.shape import Slice
from intarsia.ir.scalar import Expr, Index, Load, as_size, transform
from intarsia.ir.sharding import Axes
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis, Space, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.shard.halos import halo_of
from intarsia.passes.shard.windows import Halo, reach


@dataclass(frozen=True)
class Margin:
    """How far beyond its extent a value is needed, along a dimension that is split over `axes` of so many devices, the
    parts of which begin `step` places one after the other."""

    axes: Axes
    devices: int
    step: int
    before: int
    after: int

    def joined(self, other: Margin) -> Margin:
        """What has both. They are of one dimension, so of the same axes."""
        assert replace(self, before=0, after=0) == replace(other, before=0, after=0)
        return replace(self, before=max(self.before, other.before), after=max(self.after, other.after))

    @property
    def halo(self) -> Halo:
        return Halo(self.before, self.after)


Margins = Mapping[int, Margin]
"""By dimension."""


class CannotWiden(Exception):
    """Why values cannot be computed beyond a device's part."""


@dataclass
class Widening:
    """What the nodes of a list have to compute for `results`, and where. Raises CannotWiden where one of them cannot.

    halos: the values that are others with what neighbours have of them, with these and their margins; wanted: for each
    value how far beyond the device's part it is needed; live: the values that are needed at all.
    """

    nodes: Sequence[Node]
    results: Sequence[Value]
    halos: dict[Value, tuple[Value, Margins]] = field(default_factory=dict)
    wanted: dict[Value, dict[int, Margin]] = field(default_factory=dict)
    live: dict[Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            if (found := halo_of(node)) is not None:
                x, d, axes, devices, halo = found
                base, known = self.halos.get(x, (x, {}))
                margin = Margin(
                    axes, devices, int(base.tensor.shape[d]), halo.before + halo.front, halo.after + halo.back
                )
                if d not in known:
                    self.halos[node.values[0]] = base, {**known, d: margin}
        self.live.update(dict.fromkeys(self.results))
        for value in self.results:
            if value in self.halos:
                raise CannotWiden("it gives what it got from neighbours")
        for node in reversed(self.nodes):
            if any(v in self.live for v in node.values) and node.values[0] not in self.halos:
                self._look_at(node)

    def base(self, value: Value) -> tuple[Value, Margins]:
        """The value without what comes from neighbours, and how far beyond the device's part it goes with it."""
        return self.halos.get(value, (value, {}))

    def _look_at(self, node: Node) -> None:
        """Note what a node needs."""
        if isinstance(node, Collective) and not isinstance(node, AllSlice):
            raise CannotWiden(f"a step also does a {node.name}")
        self.live.update((self.base(v)[0], None) for v in node.inputs)
        if isinstance(node, Structured):
            self._look_at_space(node, node.space)
        elif any(self.wanted.get(v) for v in node.values) or any(v in self.halos for v in node.inputs):
            raise CannotWiden(f"a {node.name} cannot be computed for a neighbour")

    def _look_at_space(self, node: Structured, space: Space) -> None:
        margins = self.wanted.get(node.value, {})
        place = {axis.name: d for d, axis in enumerate(space.axes)}
        for load in dict.fromkeys(space.loads()):
            base, known = self.base(node.operands[operand_position(load.buffer)])
            is_list = isinstance(base.type, ListType)
            for d, index in enumerate(load.indices[is_list:]):
                axes = [a for a in place if a in index.symbols]
                own = [margins[place[a]] for a in axes if place[a] in margins]
                if d not in known and not own:
                    continue
                found = reach(space, index, axes[0]) if len(axes) == 1 else None
                if found is None:
                    if d in known or not _is_global(node, index, axes, margins):
                        raise CannotWiden(f"a {node.name} reads what neighbours have at {index}")
                    continue
                if is_list:
                    raise CannotWiden("it reads tensors of a list")
                there = replace(known[d] if d in known else own[0], before=0, after=0)
                here = own[0] if own else there
                if replace(here, before=0, after=0) != there:
                    raise CannotWiden(f"a {node.name} and what it reads are cut in different ways")
                low, high = (n - (known[d].before if d in known else 0) for n in found)
                more = int(space.axes[place[axes[0]]].extent) - int(base.tensor.shape[d])
                margin = replace(there, before=max(0, here.before - low), after=max(0, here.after + high + more))
                if margin.before or margin.after:
                    needed = self.wanted.setdefault(base, {})
                    needed[d] = needed[d].joined(margin) if d in needed else margin
        for d, margin in margins.items():
            if space.axes[d].extent == ONE:  # ops read such a dimension at 0, whether it is split or not
                raise CannotWiden(f"a device has one element along dimension {d} of a {node.name}")
            if not _is_same_elsewhere(node, space, d, margin):
                raise CannotWiden(f"a {node.name} is another one on a neighbour")

    # ------------------------------------------------------------------ making

    def made(self, given: Mapping[Value, Value], add: Callable[[Node], Value]) -> list[Value]:
        """Add nodes that compute the results. `given`: values from outside with all that is wanted of them."""
        values = dict(given)
        for node in self.nodes:
            if node.values[0] in self.halos:
                base, _ = self.halos[node.values[0]]
                values[node.values[0]] = values.get(base, base)
            elif any(v in self.live for v in node.values):
                new = self._widened(node, values)
                add(new)
                values.update(zip(node.values, new.values))
        return [self._own_part(v, values.get(v, v), add) for v in self.results]

    def _own_part(self, old: Value, value: Value, add: Callable[[Node], Value]) -> Value:
        """The device's own part of what has been made of a value."""
        margins = self.wanted.get(old)
        if not margins:
            return value
        shape = old.tensor.shape
        starts = tuple(Size.of(margins[d].before if d in margins else 0) for d in range(len(shape)))
        return add(Slice(value, starts, shape))

    def _widened(self, node: Node, values: Mapping[Value, Value]) -> Node:
        """A node on widened operands, for all that is wanted of it."""
        margins = self.wanted.get(node.values[0], {})
        bases = [self.base(v) for v in node.operands]
        moves = [_moves(known, self.wanted.get(base, {})) for base, known in bases]
        if not margins and not any(moves):
            return node.with_operands(values)
        assert isinstance(node, Structured)
        space = node.space

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load) or not (move := moves[operand_position(e.buffer)]):
                return None
            return replace(e, indices=tuple(i + move.get(d, 0) for d, i in enumerate(e.indices)))

        names = {space.axes[d].name: Size.of(space.axes[d].name) - m.before for d, m in margins.items()}

        def size(old: Size) -> Size:
            return old.substitute(names, lambda value: as_size(transform(value, names, read)))

        axes = tuple(
            Axis(a.name, a.lower, a.upper + margins[d].before + margins[d].after) if d in margins else a
            for d, a in enumerate(space.axes)
        )
        reduced = tuple(Axis(a.name, size(a.lower), size(a.upper)) for a in space.reduced)
        widened = replace(space, axes=axes, reduced=reduced, body=transform(space.body, names, read))
        return Compute(tuple(values.get(v, v) for v in node.operands), widened, **node.spans)


def _moves(known: Margins, wanted: Margins) -> dict[int, int]:
    """What is added to subscripts of a value that had the one margins and has the others."""
    before = {d: m.before for d, m in wanted.items()}
    for d, margin in known.items():
        before[d] = before.get(d, 0) - margin.before
    return {d: n for d, n in before.items() if n}


def _is_device(node: Structured, load: Load, margin: Margin) -> bool:
    """Does a load read the number of the device along the axes of a margin?"""
    number = node.operands[operand_position(load.buffer)].node
    return isinstance(number, DeviceIndex) and (number.axes, number.devices) == (
        tuple(map(str, margin.axes)),
        margin.devices,
    )


def _is_global(node: Structured, index: Size, axes: Sequence[str], margins: Margins) -> bool:
    """Does a subscript use each axis with a margin as a place in the whole only?"""
    places = {axis.name: d for d, axis in enumerate(node.space.axes)}
    named = Index(index)
    wide = [places[a] for a in axes if places[a] in margins]
    return all(_elsewhere(node, named, d, margins[d], {}) == named for d in wide)


def _elsewhere(node: Structured, e: Expr, d: int, margin: Margin, aligned: Mapping[tuple[str, int], int]) -> Expr:
    """What an expression at an element of the next device's part is for that device. `aligned`: subscripts that move
    with the part, by buffer and dimension, with what the part has."""
    axis = node.space.axes[d]

    def read(load: Expr) -> Expr | None:
        if not isinstance(load, Load):
            return None
        if _is_device(node, load, margin):
            return Index(Size.opaque(load) + 1)
        indices = tuple(i + aligned.get((load.buffer, k), 0) for k, i in enumerate(load.indices))
        return replace(load, indices=indices)

    return transform(e, {axis.name: Size.of(axis.name) - margin.step}, read)


def _is_same_elsewhere(node: Structured, space: Space, d: int, margin: Margin) -> bool:
    """Is an op the same function of places in the whole on every device along the axes of a margin of dimension d?"""
    axis = space.axes[d]
    if axis.lower != ZERO:
        return False
    aligned: dict[tuple[str, int], int] = {}
    for load in space.loads():
        for k, index in enumerate(load.indices):
            if axis.name in index.symbols and reach(space, index, axis.name) is not None:
                aligned[load.buffer, k] = margin.step
    bounds = (Index(b) for a in space.reduced for b in (a.lower, a.upper))
    return all(_elsewhere(node, e, d, margin, aligned) == e for e in (space.body, *bounds))
