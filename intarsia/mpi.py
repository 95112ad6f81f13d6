"""The devices of a mesh as processes of MPI: collectives on the buffers of the compiled program."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from intarsia.collectives import Group, Transfer, Wait
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.spmd import merged
from intarsia.processes import Sent, World
from intarsia.runtime.native import address_of

HINT = "install it with: pip install 'intarsia[mpi]'"

_PASSING_ON = 0.2
"""Seconds until all processes end after one has failed: by then mpiexec has passed on what that one wrote."""


def mpi() -> Any:
    """The module of MPI. Raises CompileError E1907 where it is missing."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise CompileError("E1907", f"there is no MPI: {error}", hint=HINT) from None
    return MPI


class MpiWorld(World):
    """The processes of MPI. Raises CompileError E1907 where there is none."""

    def __init__(self) -> None:
        self.mpi = mpi()
        self._world = self.mpi.COMM_WORLD.Dup()  # for messages of their own
        hint = "start {0}: mpiexec -n {0} …, by the mpiexec of the MPI that mpi4py uses"
        super().__init__(self._world.rank, self._world.size, hint)

    def group(self, ranks: Sequence[Sequence[int]]) -> Group:
        colour, own = next((n, group) for n, group in enumerate(ranks) if self.rank in group)
        return MpiGroup(self.mpi, self._world.Split(colour, own.index(self.rank)))

    def share(self, data: bytes) -> Sequence[bytes]:
        found = bytearray(len(data) * self.size)
        self._world.Allgather(data, found)
        return [bytes(found[n : n + len(data)]) for n in range(0, len(found), len(data))]

    def send(self, memory: Array, to: int, tag: int) -> Sent:
        request = self._world.Isend(_bytes(memory), to, tag)
        return Sent(request.Test, request.Wait)

    def receive(self, memory: Array, origin: int, tag: int) -> None:
        self._world.Recv(_bytes(memory), origin, tag)

    def abort(self) -> NoReturn:
        time.sleep(_PASSING_ON)
        self.mpi.COMM_WORLD.Abort(1)
        os._exit(1)


class MpiGroup(Group):
    """A communicator."""

    def __init__(self, module: Any, communicator: Any) -> None:
        self.mpi = module
        self.communicator = communicator
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self._operators = {"sum": module.SUM, "prod": module.PROD, "max": module.MAX, "min": module.MIN}

    def reduces(self, combiner: str, memory: Array) -> bool:
        """MPI does not say what a maximum does with NaN, and not every MPI has floats of 16 bits."""
        if memory.dtype.kind == "f":
            return combiner in ("sum", "prod") and memory.dtype.itemsize >= 4
        return memory.dtype.kind in "iu"

    def all_reduce(self, combiner: str, source: Array, target: Array) -> Transfer:
        own = self.communicator
        return _transfer(own.Allreduce, own.Iallreduce, source, target, self._operators[combiner])

    def reduce_scatter(self, combiner: str, source: Array, target: Array) -> Transfer:
        own = self.communicator
        operator = self._operators[combiner]
        return _transfer(own.Reduce_scatter_block, own.Ireduce_scatter_block, source, target, operator)

    def all_gather(self, source: Array, target: Array) -> Transfer:
        is_there = address_of(source) == address_of(target[self.rank])
        sent = self.mpi.IN_PLACE if is_there else _bytes(source)
        return _transfer(self.communicator.Allgather, self.communicator.Iallgather, sent, _bytes(target))

    def all_to_all(self, source: Array, target: Array) -> Transfer:
        return _transfer(self.communicator.Alltoall, self.communicator.Ialltoall, _bytes(source), _bytes(target))

    def permute(self, source: Array, target: Array, origin: int, receivers: Sequence[int]) -> Transfer:
        own, sent, taken = self.communicator, _bytes(source), _bytes(target)

        def begin() -> Wait:
            requests = [own.Irecv(taken, origin)] if origin >= 0 else []
            requests += [own.Isend(sent, n) for n in receivers]
            return lambda: self.mpi.Request.Waitall(requests)

        match receivers:
            case [] if origin >= 0:
                return Transfer(lambda: own.Recv(taken, origin), begin)
            case [to] if origin >= 0:
                return Transfer(lambda: own.Sendrecv(sent, to, 0, taken, origin), begin)
            case [to]:
                return Transfer(lambda: own.Send(sent, to), begin)
        return Transfer(lambda: begin()(), begin)

    # ------------------------------------------------------------------ memory

    def moved(self, memory: Array, order: Sequence[int]) -> Array:
        return memory.transpose(order)

    def is_dense(self, memory: Array) -> bool:
        return memory.flags.c_contiguous

    def merged(self, combiner: str, parts: Array) -> Array:
        return merged(combiner, list(parts))


def _transfer(now: Callable[..., object], begin: Callable[..., Any], *arguments: Any) -> Transfer:
    """A collective that MPI has in two forms, of which one gives a request."""
    return Transfer(lambda: now(*arguments), lambda: begin(*arguments).Wait)


def _bytes(array: Array) -> Array:
    """The memory of an array without gaps."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)
