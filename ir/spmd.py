"""The programs of all devices of a mesh, run together: what sharding is checked against.

Each device is a thread that runs the same program on its part; a collective is a meeting of the devices of one group.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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


def part(mesh: Mesh, array: Array, sharding: Sharding | None, device: int) -> Array:
    """What one device has of an array, padded with zeros."""
    places, shape = piece(mesh, array.shape, sharding, device)
    array = array[places]
    if array.shape != shape:
        array = np.pad(array, [(0, wanted - own) for wanted, own in zip(shape, array.shape)])
    return np.ascontiguousarray(array).reshape(shape)


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


def whole(mesh: Mesh, parts: Sequence[Array], type_: TensorType) -> Array:
    """The array of which each device has a part."""
    shape = type_.static_shape
    result = np.zeros(shape, parts[0].dtype)
    axes = type_.sharding.axes if type_.sharding else ((),) * len(shape)
    for device, array in enumerate(parts):
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

    def run(device: int, exchange: Callable[[Node, Array], Array]) -> tuple[Array, ...]:
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

    def run(self, program: Callable[[int, Callable[[Node, Array], Array]], Any]) -> list[Any]:
        """What the program gives on each device. If it fails on one, it ends on all, and that failure is raised,
        which names the device."""
        meeting = _Meeting(self.mesh, self.log)
        results: list[Any] = [None] * self.mesh.devices
        failures: dict[int, BaseException] = {}

        def device(number: int) -> None:
            try:
                results[number] = program(number, lambda node, array: meeting.exchange(number, node, array))
                meeting.leave()
            except threading.BrokenBarrierError:
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


def _on_device(device: int, error: BaseException) -> BaseException:
    """The error, and where it happened."""
    if isinstance(error, CompileError):
        return CompileError.of([replace(d, message=f"device {device}: {d.message}") for d in error.diagnostics])
    named = AssertionError if isinstance(error, AssertionError) else RuntimeError
    found = named(f"device {device}: {error or type(error).__name__}")
    found.__cause__ = error
    return found


class _Meeting:
    """Where the devices meet for a collective: each leaves what it has, waits, and takes its result."""

    def __init__(self, mesh: Mesh, log: list[tuple[Collective, int]]) -> None:
        self.mesh = mesh
        self.log = log
        self.barrier = threading.Barrier(mesh.devices, action=self._met)
        self.left: list[tuple[Node, Array] | None] = [None] * mesh.devices
        self.lock = threading.Lock()
        self.inside = 0  # devices that wait, or are about to
        self.ended = False

    def abandon(self) -> None:
        self.barrier.abort()

    def leave(self) -> None:
        """A device has ended; the others can no longer meet. Raises AssertionError if they try to."""
        with self.lock:
            self.ended = True
            assert not self.inside, "a device has ended where others wait for it"

    def _wait(self) -> None:
        with self.lock:
            assert not self.ended, "a device waits for one that has ended"
            self.inside += 1
        self.barrier.wait()

    def _met(self) -> None:
        self.inside = 0

    def exchange(self, device: int, node: Node, array: Array) -> Array:
        if not isinstance(node, Collective) or isinstance(node, AllSlice):
            return alone(self.mesh, node, device, array).copy()
        if device == 0:
            self.log.append((node, array.nbytes))
        self.left[device] = (node, array)
        self._wait()
        axes = node.mesh_axes
        found = []
        for n in self._group(device, axes):
            entry = self.left[n]
            assert entry is not None and entry[0] is node, f"device {n} is at another place than device {device}"
            found.append(entry[1])
        result = np.asarray(combine(node, found, self.mesh.position(device, axes)))
        self._wait()
        return result

    def _group(self, device: int, axes: tuple[MeshAxis, ...]) -> tuple[int, ...]:
        return next(g for g in self.mesh.groups(axes) if device in g)


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


def merged(combiner: str, parts: Sequence[Array]) -> Array:
    """Floats of 16 bits are summed in f32 and rounded once, as reductions of them are."""
    merge = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[combiner]
    dtype = parts[0].dtype
    wide = np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
    result = parts[0].astype(wide)
    for other in parts[1:]:
        result = merge(result, other.astype(wide)).astype(wide)
    return result.astype(dtype)


def _slice(array: Array, dim: int, count: int, position: int) -> Array:
    extent = array.shape[dim] // count
    return array[(slice(None),) * dim + (slice(position * extent, (position + 1) * extent),)]
