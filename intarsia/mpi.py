"""The devices of a mesh as processes of MPI: collectives on the buffers of the compiled program.

Every process runs the same calls with whole arguments, takes its part of them, and has whole results.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Node
from intarsia.ir.ops.collective import (
    AllGather,
    AllReduce,
    AllToAll,
    Collective,
    CollectivePermute,
    Done,
    ReduceScatter,
)
from intarsia.ir.sharding import Mesh, MeshAxis
from intarsia.ir.spmd import alone
from intarsia.mesh_program import Argument, MeshProgram

T = TypeVar("T")

HINT = "install it with: pip install 'intarsia[mpi]'"


def mpi() -> Any:
    """The module of MPI. Raises CompileError E1907 where it is missing."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise CompileError("E1907", f"there is no MPI: {error}", hint=HINT) from None
    return MPI


def end_all(error: BaseException) -> NoReturn:
    """End the processes of all devices, after one error that says which of them failed, and why."""
    world = mpi().COMM_WORLD
    time.sleep(min(0.1 * world.rank, 2.0))  # where all fail alike, the first one tells
    text = str(error) if isinstance(error, CompileError) else f"error: {type(error).__name__}: {error}"
    sys.stdout.flush()
    print(f"device {world.rank} of {world.size} failed\n{text}", file=sys.stderr, flush=True)
    world.Abort(1)
    os._exit(1)


def or_end_all(work: Callable[[], T]) -> T:
    """What `work` gives; if it fails in one process, all of them end."""
    try:
        return work()
    except BaseException as error:
        end_all(error)


class MpiDevices:
    """The device of a mesh that this process is.

    Raises CompileError E1907 where there is no MPI, or another number of processes than of devices.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mpi = mpi()
        self.mesh = mesh
        self.device: int = self.mpi.COMM_WORLD.rank
        count = self.mpi.COMM_WORLD.size
        if count != mesh.devices:
            hint = f"start {mesh.devices}: mpiexec -n {mesh.devices} …, by the mpiexec of the MPI that mpi4py uses"
            raise CompileError("E1907", f"{mesh} has {mesh.devices} devices, and MPI has {count} processes", hint=hint)
        self._along: dict[tuple[MeshAxis, ...], Any] = {}

    @cached_property
    def _world(self) -> Any:
        """All devices, in messages of their own."""
        return self.mpi.COMM_WORLD.Dup()

    def run(self, program: MeshProgram, arguments: Sequence[Argument], *about: str) -> list[Array]:
        """Run a program on whole arguments; `about` says what program it is. A failure ends all processes."""
        return or_end_all(lambda: self._run(program, arguments, about))

    def _run(self, program: MeshProgram, arguments: Sequence[Argument], about: Sequence[str]) -> list[Array]:
        self._agree((program.text, *map(str, program.inputs), *about))
        for node in program.collectives:  # communicators are made by all devices together
            self._group(node.mesh_axes)
        results = program.run(program.parts(arguments, self.device), self._exchange)
        everywhere = [self._gathered(r) for r in results]
        return program.whole([[r[n] for r in everywhere] for n in range(self.mesh.devices)])

    def _agree(self, texts: Sequence[str]) -> None:
        """Raise CompileError E1907 if another process runs something else."""
        own = hashlib.sha256("\0".join(texts).encode()).digest()
        different = [n for n, other in enumerate(self._world.allgather(own)) if other != own]
        if different:
            message = f"device {different[0]} runs another program, or has arguments of other types"
            raise CompileError("E1907", message, hint="all processes have to run the same command")

    def _gathered(self, array: Array) -> Array:
        """What each device has of an array."""
        found = np.empty((self.mesh.devices, *array.shape), array.dtype)
        self._world.Allgather(_bytes(array), _bytes(found))
        return found

    def _group(self, axes: tuple[MeshAxis, ...]) -> Any:
        """The devices that differ along axes only, in the order of their numbers along these."""
        if axes not in self._along:
            groups = self.mesh.groups(axes)
            colour = next(n for n, group in enumerate(groups) if self.device in group)
            self._along[axes] = self._world.Split(colour, self.mesh.position(self.device, axes))
        return self._along[axes]

    # ------------------------------------------------------------------ collectives

    def _exchange(self, node: Node, given: Array, taken: Array) -> None:
        if isinstance(node, Done):  # all of it was there when it was started
            return
        if (own := alone(self.mesh, node, self.device, given)) is not None:
            taken[...] = own
            return
        assert isinstance(node, Collective)
        group, count = self._group(node.mesh_axes), node.devices
        match node:
            case AllReduce(combiner=combiner):
                self._reduced(group.Allreduce, combiner, given, taken)
            case ReduceScatter(dim=dim, combiner=combiner):
                self._reduced(group.Reduce_scatter_block, combiner, _blocks(given, dim, count), taken)
            case AllGather(dim=dim):
                _into(_blocks(taken, dim, count), lambda target: group.Allgather(_bytes(given), _bytes(target)))
            case AllToAll(split=split, join=join):
                parts = np.ascontiguousarray(_blocks(given, split, count))
                _into(_blocks(taken, join, count), lambda target: group.Alltoall(_bytes(parts), _bytes(target)))
            case CollectivePermute(sources=sources):
                self._permuted(group, sources, given, taken)
            case _:
                raise AssertionError(node.name)

    def _permuted(self, group: Any, sources: Sequence[int], given: Array, taken: Array) -> None:
        own = sources[group.rank]
        requests = [group.Irecv(_bytes(taken), own)] if own >= 0 and own != group.rank else []
        requests += [group.Isend(_bytes(given), n) for n, s in enumerate(sources) if s == group.rank != n]
        if not requests or own in (-1, group.rank):
            taken[...] = given if own == group.rank else 0
        self.mpi.Request.Waitall(requests)

    def _reduced(self, reduce: Callable[..., None], combiner: str, given: Array, taken: Array) -> None:
        """Reduce in the type of the arrays; floats of 16 bits in f32, rounded once; bools as bits."""
        given = np.ascontiguousarray(given)
        if given.dtype == np.bool_:
            combiner = {"sum": "max", "prod": "min"}.get(combiner, combiner)
            reduce(given.view(np.uint8), taken.view(np.uint8), self._operator(combiner, np.dtype(np.uint8)))
        elif given.dtype.kind in "iuf" and given.dtype != np.float16:
            reduce(given, taken, self._operator(combiner, given.dtype))
        else:
            wide = np.empty(taken.shape, np.float32)
            reduce(given.astype(np.float32), wide, self._operator(combiner, wide.dtype))
            taken[...] = wide.astype(taken.dtype)

    def _operator(self, combiner: str, dtype: np.dtype[Any]) -> Any:
        """MPI does not say what a maximum of floats does with NaN: here it is NaN, as everywhere in a program."""
        if combiner in ("max", "min") and dtype.kind == "f":
            return self._extremes[combiner, dtype]
        return {"sum": self.mpi.SUM, "prod": self.mpi.PROD, "max": self.mpi.MAX, "min": self.mpi.MIN}[combiner]

    @cached_property
    def _extremes(self) -> dict[tuple[str, np.dtype[Any]], Any]:
        def operator(merge: np.ufunc, dtype: np.dtype[Any]) -> Any:
            def into(given: Any, taken: Any, datatype: Any) -> None:
                result = np.frombuffer(taken, dtype)
                merge(np.frombuffer(given, dtype), result, out=result)

            return self.mpi.Op.Create(into, commute=True)

        merges = {"max": np.maximum, "min": np.minimum}
        types = [np.dtype(t) for t in (np.float32, np.float64)]
        return {(name, dtype): operator(merge, dtype) for name, merge in merges.items() for dtype in types}


def _bytes(array: Array) -> Array:
    """The memory of a contiguous array."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def _blocks(array: Array, dim: int, count: int) -> Array:
    """A view whose first dimension counts the parts of one dimension."""
    shape = array.shape
    return np.moveaxis(array.reshape(*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :]), dim, 0)


def _into(target: Array, receive: Callable[[Array], None]) -> None:
    """Receive into an array, through another one where it is not contiguous."""
    if target.flags.c_contiguous:
        receive(target)
        return
    memory = np.empty(target.shape, target.dtype)
    receive(memory)
    target[...] = memory
