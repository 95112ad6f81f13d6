"""Run by several processes of the kind that is named: every collective of every element type gives what `ir/spmd.py`
says it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, Array, DType
from intarsia.ir.graph import Parameter
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
from intarsia.ir.sharding import COMBINERS, Mesh, MeshAxis
from intarsia.ir.sizes import Size
from intarsia.ir.spmd import alone, combine
from intarsia.ir.types import TensorType
from intarsia.processes import Processes, processes, world

MESHES = {2: ("a=2",), 3: ("a=3",), 4: ("a=4", "a=2,b=2")}


def nodes(axes: tuple[str, ...], count: int, dtype: DType) -> Iterator[Collective]:
    """All collectives over axes, on one tensor that all of them can be done on."""
    x = Parameter("x", TensorType(dtype, (Size.of(2 * count), Size.of(3), Size.of(count)))).value
    for combiner in COMBINERS:
        yield AllReduce(x, axes, count, combiner)
        yield from (ReduceScatter(x, axes, count, dim, combiner) for dim in (0, 2))
    yield from (AllGather(x, axes, count, dim) for dim in range(3))
    yield from (AllSlice(x, axes, count, dim) for dim in (0, 2))
    yield from (AllToAll(x, axes, count, *dims) for dims in ((0, 2), (2, 0), (0, 1), (2, 1)))
    for sources in ((*range(1, count), 0), (0,) * count, (-1,) * (count - 1) + (0,), tuple(range(count))):
        yield CollectivePermute(x, axes, count, sources)


def elements(dtype: DType, shape: tuple[int, ...], device: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(device)
    if not dtype.is_float:
        most = 2 if dtype == BOOL else np.iinfo(dtype.numpy).max
        return generator.integers(0, most, shape, dtype.numpy if dtype != BOOL else np.int64).astype(dtype.numpy)
    array = generator.standard_normal(shape)
    array.flat[device] = np.nan
    return array.astype(dtype.numpy)


def compare(taken: Array, wanted: Array, bound: float, about: str) -> None:
    numbers = [a.astype(np.float64) for a in (taken, wanted)]
    np.testing.assert_allclose(*numbers, rtol=bound, atol=bound, err_msg=about)


def check_collectives(devices: Processes, mesh: Mesh) -> int:
    names = [n for n, _ in mesh.axes]
    count = 0
    for axes in ((n,) for n in names) if len(names) == 1 else ((names[0],), (names[1],), tuple(names[::-1])):
        along = tuple(map(MeshAxis.parse, axes))
        position = mesh.position(devices.device, along)
        group = next(g for g in mesh.groups(along) if devices.device in g)
        begun, waits = [], []
        for dtype in (F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, BOOL):
            for node in nodes(axes, mesh.size(along), dtype):
                parts = [elements(dtype, node.x.tensor.static_shape, n) for n in range(mesh.devices)]
                given = parts[devices.device]
                if isinstance(node, AllSlice):
                    wanted = alone(mesh, node, devices.device, given)
                else:
                    wanted = combine(node, [parts[n] for n in group], position)
                taken = np.ones(node.value.tensor.static_shape, dtype.numpy)
                devices.bind(node, given, taken).now()
                exact = not dtype.is_float or getattr(node, "combiner", "max") in ("max", "min")
                bound = 0.0 if exact else {16: 1e-2, 32: 1e-5, 64: 1e-12}[dtype.bits]
                about = f"{node.name} {dtype} {axes}"
                compare(taken, wanted, bound, about)
                count += 1
                begun.append((given, again := np.ones_like(taken), wanted, bound, about))
                waits.append(devices.bind(node, given, again).begin())
        for wait in waits:
            wait()
        for _, taken, wanted, bound, about in begun:  # all of them at the same time
            compare(taken, wanted, bound, f"{about}, begun")
        index = np.zeros((), np.int64)
        devices.bind(DeviceIndex(axes, mesh.size(along)), np.empty(0), index).now()
        assert index == position
    return count


def main() -> None:
    (kind,) = sys.argv[1:]
    count = 0
    for text in MESHES[world(kind).size]:
        mesh = Mesh.parse(text)
        count += check_collectives(processes(kind, mesh), mesh)
    if world(kind).rank == 0:
        print(f"{count} collectives are right")


if __name__ == "__main__":
    world(sys.argv[1]).or_end_all(main)
