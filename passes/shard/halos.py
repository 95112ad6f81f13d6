"""What a device takes from its neighbours for an op that reads in windows, or for several computed together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.collective import CollectivePermute
from intarsia.ir.ops.shape import Concat, Pad, Slice
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.passes.shard.blocks import Add
from intarsia.passes.shard.edges import Edge, edge_of
from intarsia.passes.shard.ways import sharding_of, static_shape
from intarsia.passes.shard.windows import Halo, Run, Window, find_halo

Halos: TypeAlias = dict[tuple[Value, int], Halo]
"""By value and dimension."""


@dataclass(frozen=True)
class Part:
    """What a device computes of an op: the places along each axis that is split. made: the same of those operands that
    it computes for this op alone, by position."""

    node: Structured
    edge: Edge
    runs: Mapping[str, Run]
    made: Mapping[int, Part]

    def places(self, d: int) -> Run | None:
        """Those along a dimension of the result; None where that is all of them."""
        return self.runs.get(self.node.space.axes[d].name)


@dataclass
class Reads:
    """In which windows, and for which places, dimensions of values from outside are read; `lies` says how these lie."""

    lies: Callable[[Value], Sharding] = sharding_of
    of: dict[tuple[Value, int], list[tuple[Window, Run]]] = field(default_factory=dict)

    def halos(self, mesh: Mesh) -> Halos | None:
        """None where neighbours do not have what is read."""
        found: Halos = {}
        for (value, d), reads in self.of.items():
            halo = find_halo(reads, static_shape(value)[d], mesh.size(self.lies(value).axes[d]))
            if halo is None:
                return None
            found[value, d] = halo
        return found


def part_of(
    node: Structured, edge: Edge, runs: Mapping[str, Run], reads: Reads, inside: Collection[Node] = ()
) -> Part | None:
    """What a device computes of an op, for these places of its axes, and of the ops `inside` that it reads. What is
    read of other values is added to `reads`. None where something is read that the device does not have."""
    made: dict[int, Part] = {}
    for position, value in enumerate(node.operands):
        is_inner = value.node in inside
        needed: dict[int, Run] = {}
        for d, names in enumerate(edge.dimensions[position]):
            window, lies = edge.window(position, d), () if is_inner else reads.lies(value).axes[d]
            run = runs.get(window.axis) if window is not None else None
            if window is None or run is None:
                if inside and (lies or {n.split(".")[0] for n in names or ()} & runs.keys()):
                    return None
            elif is_inner:
                read = window.read_of(run, static_shape(value)[d])
                if read is None:
                    return None
                needed[d] = read
            elif lies:
                if inside and run.axes != lies:
                    return None
                if inside or (position, d) in edge.windows:  # the part of one op need not be that of another
                    reads.of.setdefault((value, d), []).append((window, run))
        if is_inner:
            assert isinstance(value.node, Structured)
            axes = value.node.space.axes
            own = {axes[d].name: run for d, run in needed.items()}
            part = part_of(value.node, edge_of(value.node), own, reads, inside)
            if part is None:
                return None
            made[position] = part
    return Part(node, edge, runs, made)


def widened(value: Value, d: int, axes: Axes, devices: int, halo: Halo, add: Add) -> Value:
    """What a device has, between what its neighbours have before and after it along a dimension."""
    own = int(value.tensor.shape[d])
    names = tuple(map(str, axes))
    parts = [value]
    if halo.before > 0:
        last = add(Slice.along(value, d, own - halo.before, halo.before))
        parts.insert(0, add(CollectivePermute(last, names, devices, _from_before(devices))))
    if halo.after > 0:
        first = add(Slice.along(value, d, 0, halo.after))
        parts.append(add(CollectivePermute(first, names, devices, _from_after(devices))))
    if len(parts) > 1:
        value = add(Concat(tuple(parts), d))
    if halo.front or halo.back:
        value = add(Pad.along(value, d, halo.front, halo.back))
    return value


def halo_of(node: Node) -> tuple[Value, int, Axes, int, Halo] | None:
    """The inverse of `widened`: the value that it was given, the dimension, the axes of the mesh and their number of
    devices, and the halo, of which any value there is may be in front and back."""
    if isinstance(node, Pad) and (inner := halo_of(node.x.node)) is not None:
        value, d, axes, devices, halo = inner
        front, back = ([int(n) for n in some] for some in (node.before, node.after))
        more = replace(halo, front=front[d], back=back[d])
        return (value, d, axes, devices, more) if sum(front) + sum(back) == front[d] + back[d] else None
    if not isinstance(node, Concat) or not 2 <= len(node.parts) <= 3:
        return None
    d, parts = node.axis, node.parts
    value = parts[1] if len(parts) == 3 or _is_from(parts[0], parts[1], d, True) else parts[0]
    at = parts.index(value)
    before, after = parts[:at], parts[at + 1 :]
    if not all(_is_from(p, value, d, True) for p in before) or not all(_is_from(p, value, d, False) for p in after):
        return None
    sent = {(n.mesh_axes, n.devices) for p in (*before, *after) if isinstance(n := p.node, CollectivePermute)}
    if len(sent) != 1:
        return None
    ((axes, devices),) = sent
    return value, d, axes, devices, Halo(*(sum(int(p.tensor.shape[d]) for p in some) for some in (before, after)))


def _is_from(part: Value, value: Value, d: int, before: bool) -> bool:
    """Is a part what the neighbour before, or after, has at the end of a value that is next to this device?"""
    sent = part.node
    if not isinstance(sent, CollectivePermute) or sent.started or not isinstance(cut := sent.x.node, Slice):
        return False
    extent = int(part.tensor.shape[d])
    start = int(value.tensor.shape[d]) - extent if before else 0
    wanted = _from_before(sent.devices) if before else _from_after(sent.devices)
    like = Slice.along(value, d, start, extent)
    same = (cut.starts, cut.extents, cut.steps, cut.dropped) == (like.starts, like.extents, like.steps, like.dropped)
    return sent.sources == wanted and cut.x == value and same


def _from_before(devices: int) -> tuple[int, ...]:
    return (-1, *range(devices - 1))


def _from_after(devices: int) -> tuple[int, ...]:
    return (*range(1, devices), -1)


def origin(value: Value, d: int, axes: Axes, devices: int, halo: Halo) -> Run:
    """The places along a dimension that a device has after `widened`."""
    whole = static_shape(value)[d]
    part, front = Run.part(axes, whole, devices), halo.before + halo.front
    return Run(axes, part.step, -front, front + part.extent + halo.after + halo.back, whole)
