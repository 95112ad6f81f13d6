"""The devices of a mesh as processes, each of which runs the same calls on its part: what all kinds of them share.

Before each run they compare what they are about to run, and at its end each process takes part in one more comparison.
So none waits for one that does something else, or that is gone: what goes wrong in one process ends all of them, after
one error that names it.
"""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from traceback import format_exception
from types import TracebackType
from typing import NoReturn, TypeVar

from intarsia.collectives import Group, Memory, Transfer, Wait, all_gather, all_reduce, empty, transfer
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Node
from intarsia.ir.ops.collective import AllSlice, Collective
from intarsia.ir.sharding import Axes, Mesh
from intarsia.ir.spmd import alone
from intarsia.ir.types import TensorType
from intarsia.mesh_program import MeshProgram
from intarsia.options import ProcessKind
from intarsia.runtime import buffers

T = TypeVar("T")

DIGEST_BYTES = 16

_ABOUT = (
    "has another version of Intarsia",
    "runs another program",
    "has arguments of other types",
    "has other measured schedules, and another plan,",
    "has other numbers among its arguments",
)
_PATIENCE = 60.0
"""Seconds that a process waits for one that is to end them all."""

_ENDED = bytes(DIGEST_BYTES * len(_ABOUT))


@dataclass(frozen=True)
class Sent:
    """Memory that is being sent, and must not change until that is done."""

    is_done: Callable[[], bool]
    wait: Wait


class World(ABC):
    """All processes, of which this is number `rank` of `size`. All of them make it together, once."""

    def __init__(self, rank: int, size: int, hint: str) -> None:
        """hint: how to start another number of them, with `{}` for the number."""
        self.rank = rank
        self.size = size
        self.hint = hint
        self.lock = threading.RLock()
        sys.excepthook = self._uncaught
        atexit.register(self._leave)

    @abstractmethod
    def group(self, ranks: Sequence[Sequence[int]]) -> Group:
        """The group of this process, of several that have no process in common and that all make together."""

    @abstractmethod
    def share(self, data: bytes) -> Sequence[bytes]:
        """What each process gives, all of one length."""

    @abstractmethod
    def send(self, memory: Array, to: int, tag: int) -> Sent:
        """Begin to send memory without gaps to another process."""

    @abstractmethod
    def receive(self, memory: Array, origin: int, tag: int) -> None:
        """Wait for what another process sends under a tag, in the order in which it does."""

    @abstractmethod
    def abort(self) -> NoReturn:
        """End all processes at once."""

    def agree(self, digest: bytes) -> None:
        """Raise CompileError E1907 if another process is about to do something else. `digest`: `DIGEST_BYTES` for
        each of what `_ABOUT` tells apart."""
        for n, other in enumerate(self.share(digest)):
            if other == _ENDED:
                raise CompileError("E1907", f"device {n} has ended, and device {self.rank} runs a program")
            if other != digest:
                starts = range(0, len(digest), DIGEST_BYTES)
                differs = [digest[s : s + DIGEST_BYTES] != other[s : s + DIGEST_BYTES] for s in starts]
                message = f"device {n} {_ABOUT[differs.index(True)]} than device {self.rank}"
                raise CompileError("E1907", message, hint="all processes have to make the same calls")

    def or_end_all(self, work: Callable[[], T]) -> T:
        """What `work` gives; if it fails in one process, all of them end."""
        try:
            return work()
        except BaseException as error:
            self.end_all(error)

    def end_all(self, error: BaseException, text: str = "") -> NoReturn:
        """End all processes, after one error that says which of them failed, and why."""
        time.sleep(min(0.5 * self.rank, 2.0))  # where all fail alike, the first one tells
        known = isinstance(error, CompileError)
        text = text or (str(error) if known else f"error: {type(error).__name__}: {error}")
        sys.stdout.flush()
        print(f"device {self.rank} of {self.size} failed\n{text}", file=sys.stderr, flush=True)
        self.abort()

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """An error that nobody catches, outside of a run too."""
        self.end_all(error, "".join(format_exception(kind, error, trace)).rstrip())

    def _leave(self) -> None:
        """Let the others know that there will be no more runs here. One that still wants one says so, and ends all."""
        if any(other != _ENDED for other in self.share(_ENDED)):
            time.sleep(_PATIENCE)
            os._exit(1)


class Letters:
    """What one process sends others, which take it one by one. It is kept until it has been sent, for which nothing
    waits."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._under_way: list[tuple[Array, Sent]] = []

    def send(self, array: Array, to: int, tag: int) -> None:
        self._under_way = [(kept, sent) for kept, sent in self._under_way if not sent.is_done()]
        self._under_way.append((array, self.world.send(array, to, tag)))

    def receive(self, type_: TensorType, origin: int, tag: int) -> Array:
        memory = buffers.empty(type_.static_shape, type_.dtype.numpy)
        self.world.receive(memory, origin, tag)
        return memory

    def finish(self) -> None:
        """Wait until everything has been sent."""
        for _, sent in self._under_way:
            sent.wait()
        self._under_way.clear()


@dataclass(frozen=True)
class Room:
    """Memory for a whole array, and the view of it that is for the part of this device."""

    whole: Array
    place: Array


class Processes:
    """The device of a mesh that this process is."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        """Raises CompileError E1907 where the mesh has another number of devices than there are processes."""
        self.world = world
        self.mesh = mesh
        self.device = world.rank
        self._groups: dict[Axes, Group] = {}
        if world.size != mesh.devices:
            here = "this is one process" if world.size == 1 else f"there are {world.size} processes"
            message = f"the mesh {mesh.said} has {mesh.devices} devices, and {here}"
            raise CompileError("E1907", message, hint=world.hint.format(mesh.devices))

    def run(self, program: MeshProgram, digest: bytes, call: Callable[[], T]) -> T:
        """What a run of the program gives, which all devices begin together (`World.agree`). A failure ends all."""

        def work() -> T:
            with self.world.lock:
                self.world.agree(digest)
                for axes in program.groups:
                    self.group(axes)
                return call()

        return self.world.or_end_all(work)

    def group(self, axes: Axes) -> Group:
        """The devices that differ along axes only, in the order of their numbers along these."""
        if axes not in self._groups:
            self._groups[axes] = self.world.group(self.mesh.groups(axes))
        return self._groups[axes]

    def bind(self, node: Node, given: Memory, taken: Memory) -> Transfer:
        """What does a collective between two places in memory."""
        if not isinstance(node, Collective) or isinstance(node, AllSlice):
            return Transfer.at_once(lambda: self._alone(node, given, taken))
        if not math.prod(given.shape) and not math.prod(taken.shape):
            return Transfer.at_once(lambda: None)
        return transfer(self.group(node.mesh_axes), node, given, taken)

    def _alone(self, node: Node, given: Memory, taken: Memory) -> None:
        found = alone(self.mesh, node, self.device, given)
        taken[...] = found if isinstance(node, AllSlice) else int(found)

    def room(self, type_: TensorType) -> Room | None:
        """Memory for a whole array of which this device's part lies in one piece, and as code wants results to lie;
        None where it does not."""
        if type_.sharding is None or type_.sharding.partial:
            return None
        first, *others = type_.sharding.axes or ((),)
        if not first or any(others) or type_.static_shape[0] % self.mesh.size(first):
            return None
        whole = buffers.empty(type_.static_shape, type_.dtype.numpy)
        own = len(whole) // self.mesh.size(first)
        place = whole[own * self.mesh.position(self.device, first) :][:own]
        return Room(whole, place) if place.nbytes % buffers.CACHE_LINE == 0 else None

    def whole(self, part: Memory, type_: TensorType, room: Room | None = None) -> Memory:
        """The array, or tensor, of which each device has a part: in `room`, if the part has been made there."""
        if type_.sharding is None:
            return part
        if not math.prod(part.shape):
            return empty(type_.static_shape, part)
        if axes := type_.sharding.partial:
            group, found = self.group(axes), empty(tuple(part.shape), part)
            all_reduce(group, type_.sharding.combiner, group.memory(part), group.memory(found)).now()
            part = found
        for d, axes in enumerate(type_.sharding.axes):
            if axes:
                group, shape = self.group(axes), tuple(part.shape)
                gathered = (*shape[:d], shape[d] * group.size, *shape[d + 1 :])
                found = empty(gathered, part) if room is None else room.whole
                all_gather(group, d, group.memory(part), group.memory(found)).now()
                part, extent = found, type_.static_shape[d]
                if extent < gathered[d]:  # what pads the last parts
                    cut = found[(slice(None),) * d + (slice(extent),)]
                    part = empty(cut.shape, cut)
                    part[...] = cut
        return part


def digest_of(version: str, program: str, types: str, plan: str, numbers: str = "") -> bytes:
    """What processes compare before they run something; `numbers` are the arguments of one element."""
    texts = version, program, types, plan, numbers
    return b"".join(hashlib.blake2b(t.encode(), digest_size=DIGEST_BYTES).digest() for t in texts)


@cache
def world(kind: ProcessKind) -> World:
    """All processes. Raises CompileError E1907 where there are none."""
    if kind == "mpi":
        from intarsia.mpi import MpiWorld

        return MpiWorld()
    from intarsia.torch_processes import TorchWorld

    return TorchWorld(kind)


@cache
def processes(kind: ProcessKind, mesh: Mesh) -> Processes:
    """The processes of a kind as the devices of a mesh. Raises CompileError E1907."""
    return Processes(world(kind), mesh)
