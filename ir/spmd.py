"""The programs of all devices of a mesh, run together: what sharding is checked against.

Each device is a thread that runs the same program on its part; a collective is a meeting of the devices of one group.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module, Node
from intarsia.ir.interpreter import evaluate_with
from intarsia.ir.ops.collective import (
    AllGather,
    AllReduce,
    AllSlice,
    AllToAll,
    Collective,
    CollectivePermute,
    DeviceIndex,
    ReduceScatter,
)
from intarsia.ir.points import Operand
from intarsia.ir.sharding import Mesh, MeshAxis, Sharding, local_extent
from intarsia.ir.text_parts import read_type
from intarsia.ir.types import ListType, TensorType, Type


class Sliced(Protocol):
    """An array as far as it is cut."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, places: tuple[slice, ...], /) -> Array: ...


NEUTRAL = {"sum": -0.0, "prod": 1.0}
"""What changes nothing, the sign of a zero neither. Of a maximum or minimum all devices may have the same."""


def mesh_of(module: Module) -> Mesh | None:
    """The mesh that the header declares. Raises CompileError E1901 where its text is none."""
    for line in module.header:
        if line.startswith("mesh "):
            try:
                return Mesh.parse(line)
            except ValueError as error:
                raise CompileError("E1901", str(error)) from None
    return None


@dataclass(frozen=True)
class Placement:
    """How the parameters and results of a partitioned program lie on its mesh: what its header says."""

    mesh: Mesh
    parameters: tuple[Type, ...]
    results: tuple[Type, ...]

    @staticmethod
    def of(module: Module) -> Placement:
        """Read the header. Raises CompileError E1901 where it has none of it."""
        mesh = mesh_of(module)
        if mesh is None:
            raise CompileError("E1901", "the program is for one device", hint="declare a mesh: mesh pod(data=2)")

        def types(word: str) -> tuple[Type, ...]:
            lines = [h.removeprefix(word) for h in module.header if h.startswith(word)]
            return tuple(read_type(Source("header", line)) for line in lines)

        return Placement(mesh, types("parameter "), types("result "))


def is_partitioned(module: Module) -> bool:
    """Is it the program of one device of several?"""
    return any(line.startswith("result ") for line in module.header)


def part(mesh: Mesh, array: Sliced, sharding: Sharding | None, device: int) -> Array:
    """What one device has of an array, padded with zeros. Of parts of a sum the first is all of it."""
    places, shape = piece(mesh, array.shape, sharding, device)
    if (neutral := other_part(mesh, sharding, device)) is not None:
        return np.full(shape, neutral, array.dtype)
    own = array[places]
    if own.shape != shape:
        own = np.pad(own, [(0, wanted - have) for wanted, have in zip(shape, own.shape)])
    return np.ascontiguousarray(own).reshape(shape)


def piece(
    mesh: Mesh, shape: tuple[int, ...], sharding: Sharding | None, device: int
) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Which elements of an array one device has, and the shape that these are padded to."""
    places, extents = [slice(None)] * len(shape), list(shape)
    for d, axes in enumerate(sharding.axes if sharding else ()):
        if axes:
            extents[d] = local_extent(shape[d], mesh.size(axes))
            start = extents[d] * mesh.position(device, axes)
            places[d] = slice(start, start + extents[d])
    return tuple(places), tuple(extents)


def other_part(mesh: Mesh, sharding: Sharding | None, device: int) -> float | None:
    """What a device has that changes nothing in a sum or product, where the first one along its axes has everything;
    None for that one."""
    if sharding is None or sharding.combiner not in NEUTRAL or not mesh.position(device, sharding.partial):
        return None
    return NEUTRAL[sharding.combiner]


def whole(mesh: Mesh, parts: Sequence[Array], type_: TensorType) -> Array:
    """The array of which each device has a part."""
    shape = type_.static_shape
    result = np.zeros(shape, parts[0].dtype)
    axes = type_.sharding.axes if type_.sharding else ((),) * len(shape)
    sharding = type_.sharding or Sharding(())
    for group in mesh.groups(sharding.partial):
        device, array = group[0], merged(sharding.combiner, [parts[n] for n in group])
        place: list[slice] = []
        cut: list[slice] = []
        for d, own in enumerate(axes):
            start = array.shape[d] * mesh.position(device, own) if own else 0
            place.append(slice(start, start + array.shape[d]))
            cut.append(slice(0, max(0, shape[d] - start)))
        result[tuple(place)] = array[tuple(cut)]
    return result


def simulate(module: Module, inputs: Sequence[Operand], arithmetic: Arithmetic | None = None) -> tuple[Array, ...]:
    """The results of a partitioned program for whole inputs, with all devices in this process."""
    placement = Placement.of(module)
    mesh = placement.mesh

    def own(device: int) -> list[Operand]:
        given: list[Operand] = []
        for value, type_ in zip(inputs, placement.parameters):
            if isinstance(type_, ListType):
                given.append([part(mesh, np.asarray(a), type_.sharding, device) for a in value])
            else:
                given.append(part(mesh, np.asarray(value), type_.sharding, device))
        return given

    def run(device: int, exchange: Here) -> tuple[Array, ...]:
        return evaluate_with(arithmetic or Arithmetic(), module, own(device), exchange=exchange)

    found = Devices(mesh).run(run)
    return tuple(
        whole(mesh, [f[n] for f in found], t) for n, t in enumerate(placement.results) if isinstance(t, TensorType)
    )


@dataclass
class Devices:
    """Threads that are the devices of a mesh. `log` is every collective of device 0, with the bytes it had."""

    mesh: Mesh
    log: list[tuple[Collective, int]] = field(default_factory=list)

    def run(self, program: Callable[[int, Here], Any]) -> list[Any]:
        """What the program gives on each device. If it fails on one, it ends on all, and that failure is raised,
        which names the device. Devices that wait for each other, or for one that has ended, are an AssertionError."""
        meeting = _Meeting(self.mesh, self.log)
        results: list[Any] = [None] * self.mesh.devices
        failures: dict[int, BaseException] = {}

        def device(number: int) -> None:
            try:
                results[number] = program(number, Here(number, meeting))
                meeting.leave()
            except _Abandoned:
                pass
            except BaseException as error:
                failures[number] = error
                meeting.abandon()

        threads = [threading.Thread(target=device, args=(n,), daemon=True) for n in range(self.mesh.devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise _on_device(min(failures), failures[min(failures)])
        return results


@dataclass(frozen=True)
class Here:
    """One of the devices of `Devices`, for its program: called, it takes part in a collective."""

    number: int
    meeting: _Meeting

    def __call__(self, node: Node, array: Array) -> Array:
        return self.meeting.exchange(self.number, node, array)

    def send(self, array: Array, to: int, tag: int) -> None:
        """Leave an array, which must not change any more, for another device."""
        self.meeting.send((self.number, to, tag), array)

    def receive(self, type_: TensorType, origin: int, tag: int) -> Array:
        """What another device has sent, when it is there."""
        found = self.meeting.receive((origin, self.number, tag))
        assert found.shape == type_.static_shape, f"device {origin} has sent something else than {type_}"
        return found

    def finish(self) -> None:
        """Wait until what was sent need not be kept: the other device keeps it."""


def _on_device(device: int, error: BaseException) -> BaseException:
    """The error, and where it happened."""
    if isinstance(error, CompileError):
        return CompileError.of([replace(d, message=f"device {device}: {d.message}") for d in error.diagnostics])
    named = AssertionError if isinstance(error, AssertionError) else RuntimeError
    found = named(f"device {device}: {error or type(error).__name__}")
    found.__cause__ = error
    return found


class _Abandoned(Exception):
    """Another device has failed."""


class _Meeting:
    """Where the devices of a group meet for a collective: each leaves what it has, waits, and takes its result. And
    where one leaves what another one takes alone.

    left: what those of a group have left for the collective that is next. read: how many of them have their results.
    turns: how many collectives it has done. waits: for each device that waits, whether it need not any more.
    """

    def __init__(self, mesh: Mesh, log: list[tuple[Collective, int]]) -> None:
        self.mesh = mesh
        self.log = log
        self.groups: dict[tuple[MeshAxis, ...], dict[int, tuple[int, ...]]] = {}
        self.changed = threading.Condition()
        self.left: dict[tuple[int, ...], dict[int, tuple[Node, Array]]] = defaultdict(dict)
        self.read = Counter[tuple[int, ...]]()
        self.turns = Counter[tuple[int, ...]]()
        self.sent: dict[tuple[int, int, int], Array] = {}
        self.waits: dict[int, Callable[[], bool]] = {}
        self.ended = 0
        self.abandoned = False

    def abandon(self) -> None:
        with self.changed:
            self.abandoned = True
            self.changed.notify_all()

    def leave(self) -> None:
        """A device has ended; the others can no longer meet it."""
        with self.changed:
            self.ended += 1
            self._check()

    def _wait(self, device: int, ready: Callable[[], bool]) -> None:
        self.waits[device] = ready
        self._check()
        self.changed.wait_for(lambda: self.abandoned or ready())
        del self.waits[device]
        if self.abandoned:
            raise _Abandoned

    def _check(self) -> None:
        """Does somebody go on?"""
        if self.waits and len(self.waits) + self.ended == self.mesh.devices:
            problem = "devices wait for one that has ended" if self.ended else "devices wait for each other"
            assert self.abandoned or any(ready() for ready in self.waits.values()), problem

    def exchange(self, device: int, node: Node, array: Array) -> Array:
        if not isinstance(node, Collective) or isinstance(node, AllSlice):
            return alone(self.mesh, node, device, array).copy()
        if device == 0:
            self.log.append((node, array.nbytes))
        axes = node.mesh_axes
        group = self._group(device, axes)
        with self.changed:
            left, turn = self.left[group], self.turns[group]
            left[device] = node, array
            self.changed.notify_all()
            self._wait(device, lambda: len(left) == len(group))
            entries = [left[n] for n in group]
        for n, (other, _) in zip(group, entries):
            assert other is node, f"device {n} is at another place than device {device}"
        result = np.asarray(combine(node, [a for _, a in entries], self.mesh.position(device, axes)))
        with self.changed:
            self.read[group] += 1
            if self.read[group] < len(group):  # from here on what one has left may change
                self._wait(device, lambda: self.turns[group] > turn)
                return result
            del self.left[group], self.read[group]
            self.turns[group] += 1
            self.changed.notify_all()
        return result

    def send(self, place: tuple[int, int, int], array: Array) -> None:
        with self.changed:
            self.sent[place] = array
            self.changed.notify_all()

    def receive(self, place: tuple[int, int, int]) -> Array:
        with self.changed:
            self._wait(place[1], lambda: place in self.sent)
            return self.sent.pop(place)

    def _group(self, device: int, axes: tuple[MeshAxis, ...]) -> tuple[int, ...]:
        if axes not in self.groups:
            self.groups[axes] = {n: group for group in self.mesh.groups(axes) for n in group}
        return self.groups[axes][device]


def alone(mesh: Mesh, node: Node, device: int, array: Array) -> Array:
    """The result of a node for which nothing is sent; it may be a view of the array."""
    match node:
        case DeviceIndex(axes=axes):
            return np.asarray(mesh.position(device, map(MeshAxis.parse, axes)), np.int64)
        case AllSlice(devices=devices, dim=dim):
            return _slice(array, dim, devices, mesh.position(device, node.mesh_axes))
    raise AssertionError(node.name)


def combine(node: Collective, parts: Sequence[Array], position: int) -> Array:
    """The result of a collective for one device of a group, from what all of them have."""
    match node:
        case AllReduce(combiner=combiner):
            return merged(combiner, parts)
        case ReduceScatter(dim=dim, combiner=combiner):
            return _slice(merged(combiner, parts), dim, node.devices, position).copy()
        case AllGather(dim=dim):
            return np.concatenate(parts, axis=dim)
        case AllToAll(split=split, join=join):
            return np.concatenate([_slice(p, split, node.devices, position) for p in parts], axis=join)
        case CollectivePermute(sources=sources):
            source = sources[position]
            return np.zeros_like(parts[position]) if source < 0 else parts[source].copy()
    raise AssertionError(node.name)


def merged(combiner: str, parts: Iterable[Array]) -> Array:
    """Floats of 16 bits are summed in f32 and rounded once, as reductions of them are."""
    total = Total(combiner)
    for part_ in parts:
        total.add(part_)
    return total.value


@dataclass
class Total:
    """What has been merged so far, of at least one part."""

    combiner: str
    _sum: Array | None = None
    _dtype: np.dtype[Any] | None = None

    def add(self, array: Array) -> None:
        merge = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[self.combiner]
        self._dtype = dtype = array.dtype
        wide = np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
        if self._sum is None:
            self._sum = array.astype(wide)
        else:
            merge(self._sum, array.astype(wide, copy=False), out=self._sum, casting="unsafe")

    @property
    def is_begun(self) -> bool:
        return self._sum is not None

    @property
    def value(self) -> Array:
        """Once: nothing is added after it."""
        assert self._sum is not None
        return self._sum.astype(self._dtype, copy=False)


def _slice(array: Array, dim: int, count: int, position: int) -> Array:
    extent = array.shape[dim] // count
    return array[(slice(None),) * dim + (slice(position * extent, (position + 1) * extent),)]
