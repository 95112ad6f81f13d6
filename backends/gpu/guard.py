"""The memory of an interpreted kernel, which notices every access that a GPU would carry out wrongly without a word.

Each buffer lies far from the others at addresses of its own, so that no access beyond its end falls into another. One
program is taken to run at any time relative to the others: what one writes, no other may read or write in the same
launch, unless all do it by atomic operations. Inside a program, lanes may meet in one place only over a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from intarsia.ir.dtypes import Array

_ADDRESS_BITS = 40
_FAR = 1 << (_ADDRESS_BITS - 1)
_NOBODY = -1
_SEVERAL = -2  # programs that read; they do not disturb each other
_ATOMICALLY = -3
_SEVERAL_LANES = (1 << 32) - 1
_LANE_BITS = 32  # below them a lane of a tile, above them the number of barriers
_TILE_BITS = 20  # below them a lane, above them the number of the tile's shape
_READS = 1 << 30  # added to a program that reads

Update: TypeAlias = "Callable[[Array, Array], Array]"
"""New contents of memory from the old ones and an operand, lane by lane."""


class MemoryFault(Exception):
    """An access that must not be: the emitter's fault. `kernel`, `program`, `buffer` and `offset` (bytes) say where."""

    def __init__(self, message: str, kernel: str, program: tuple[int, ...], buffer: str, offset: int) -> None:
        where = ", ".join(map(str, program))
        super().__init__(f"kernel '{kernel}', program ({where}): {message}")
        self.message = message
        self.kernel = kernel
        self.program = program
        self.buffer = buffer
        self.offset = offset

    def at(self, place: str) -> MemoryFault:
        """The same, with words that say where in the text it was."""
        return MemoryFault(self.message + place, self.kernel, self.program, self.buffer, self.offset)


class _Notes:
    """For each element of some memory, who read and wrote it.

    readers, writers: programs. read_by, written_by: the lane in which the program did, behind the number of barriers
    that it had passed. Each is made when it is first needed.
    """

    def __init__(self, memory: Array, cell: int) -> None:
        """cell: bytes of an element."""
        self.cell = cell
        self.writable = False  # under some name
        self._place = (memory.ctypes.data, memory.size)
        self._count = -(-memory.size // cell)

    @cached_property
    def readers(self) -> Array:
        return np.full(self._count, _NOBODY, np.int32)

    @cached_property
    def writers(self) -> Array:
        return np.full(self._count, _NOBODY, np.int32)

    @cached_property
    def read_by(self) -> Array:
        return np.zeros(self._count, np.int64)

    @cached_property
    def written_by(self) -> Array:
        return np.zeros(self._count, np.int64)

    def is_of(self, memory: Array, cell: int) -> bool:
        return (memory.ctypes.data, memory.size) == self._place and cell == self.cell

    def has(self, name: str) -> bool:
        """Was one of them needed yet?"""
        return name in vars(self)


@dataclass
class _Buffer:
    """A buffer under a name; several may lie in one place, and share its notes."""

    name: str
    memory: Array  # bytes
    writable: bool
    notes: _Notes
    views: dict[Any, Array] = field(default_factory=dict)

    def view(self, dtype: np.dtype[Any]) -> Array:
        if dtype not in self.views:
            whole = self.memory.size // dtype.itemsize * dtype.itemsize
            self.views[dtype] = self.memory[:whole].view(dtype)
        return self.views[dtype]


@dataclass
class _Access:
    """The lanes of one access that are not masked."""

    buffer: _Buffer
    offsets: Array  # bytes
    places: Array  # elements of the type of the access
    lanes: Array  # who they are, for `read_by` and `written_by`
    replicated: bool  # are there fewer lanes than threads, so that several of them load the same?

    def cells(self, size: int) -> tuple[Array, Array]:
        """The elements of the buffer that are touched, and by which lanes."""
        cell = self.buffer.notes.cell
        if size <= cell:
            return self.offsets // cell, self.lanes
        parts = size // cell
        touched = (self.offsets // cell)[:, None] + np.arange(parts)
        return touched.reshape(-1), np.repeat(self.lanes, parts)


class DeviceMemory:
    """The buffers of one launch."""

    def __init__(self, kernel: str, warps: int) -> None:
        self._kernel = kernel
        self._warps = warps
        self._buffers: list[_Buffer] = []
        self._shapes: dict[tuple[int, ...], int] = {}
        self._program = (0, 0, 0)
        self._number = -1
        self._barriers = 0

    def add(self, name: str, array: Array) -> int:
        """The address of a buffer that is now part of the memory."""
        assert array.flags.c_contiguous, f"{name} is not contiguous"
        memory = array.reshape(-1).view(np.uint8)
        notes = _Notes(memory, array.itemsize)
        for other in self._buffers:
            if np.shares_memory(other.memory, memory):
                if other.notes.is_of(memory, array.itemsize):
                    notes = other.notes
                else:
                    written = other.writable or array.flags.writeable
                    assert not written, f"{name} and {other.name} overlap in part, and one of them may be written"
        notes.writable |= array.flags.writeable
        self._buffers.append(_Buffer(name, memory, array.flags.writeable, notes))
        return len(self._buffers) << _ADDRESS_BITS

    def start_program(self, program: tuple[int, int, int]) -> None:
        """From here on accesses are those of another program."""
        self._program = program
        self._number += 1
        self._barriers += 1

    def barrier(self) -> None:
        """All lanes wait for each other; what they wrote is there for all."""
        self._barriers += 1

    def load(self, addresses: Array, mask: Array | None, other: Array, dtype: np.dtype[Any]) -> Array:
        """What lies at the addresses; of `other`, which fits their shape, where the mask is not set."""
        access = self._access("load", addresses, mask, dtype.itemsize)
        if access is None:
            return np.array(np.broadcast_to(other, addresses.shape), dtype)
        if access.buffer.notes.writable:
            self._check_reading(access, dtype.itemsize)
        found = access.buffer.view(dtype)[access.places]
        if mask is None:
            return found.reshape(addresses.shape)
        result = np.array(np.broadcast_to(other, addresses.shape), dtype)
        result[np.broadcast_to(mask, addresses.shape)] = found
        return result

    def store(self, addresses: Array, mask: Array | None, values: Array) -> None:
        """Write values of the addresses' shape where the mask is set."""
        access = self._access("store", addresses, mask, values.itemsize)
        if access is None:
            return
        self._check_writing(access, values.itemsize)
        wanted = _active(values, mask, addresses.shape)
        memory = access.buffer.view(values.dtype)
        memory[access.places] = wanted
        bits = np.dtype(f"u{values.itemsize}")
        lost = memory[access.places].view(bits) != np.ascontiguousarray(wanted).view(bits)
        if lost.any():
            self._fail("several lanes store different values", access, lost)

    def update(
        self, addresses: Array, mask: Array | None, operands: Array, function: Update, dtype: np.dtype[Any]
    ) -> Array:
        """Lane after lane, replace what lies at an address by `function` of it and the lane's operand.

        Returns what the lanes found; zeros where the mask is not set.
        """
        result = np.zeros(addresses.shape, dtype)
        access = self._access("atomic update", addresses, mask, dtype.itemsize)
        if access is None:
            return result
        self._check_updating(access, dtype.itemsize)
        given = _active(operands, mask, addresses.shape)
        memory = access.buffer.view(dtype)
        if len(np.unique(access.places)) == len(access.places):
            found = memory[access.places]
            memory[access.places] = function(found, given)
        else:
            found = np.empty(len(given), dtype)
            for lane, place in enumerate(access.places):
                found[lane] = memory[place]
                memory[place] = function(found[lane : lane + 1], given[lane : lane + 1])[0]
        if mask is None:
            return found.reshape(addresses.shape)
        result[np.broadcast_to(mask, addresses.shape)] = found
        return result

    # ------------------------------------------------------------------ where

    def _access(self, what: str, addresses: Array, mask: Array | None, size: int) -> _Access | None:
        """The lanes that take part, checked to be inside of one buffer; None where there are none."""
        lanes = np.arange(addresses.size) if mask is None else np.flatnonzero(np.broadcast_to(mask, addresses.shape))
        if not lanes.size:
            return None
        chosen = addresses.reshape(-1)[lanes]
        number = (int(chosen[0]) + _FAR) >> _ADDRESS_BITS  # the nearest, so that it may lie before its buffer too
        if not 1 <= number <= len(self._buffers):
            message = f"{what} at an address of no buffer, {int(chosen[0]):#x}"
            raise MemoryFault(message, self._kernel, self._program, "", 0)
        buffer = self._buffers[number - 1]
        offsets = (chosen - np.uint64(number << _ADDRESS_BITS)).astype(np.int64)
        shape = self._shapes.setdefault(addresses.shape, len(self._shapes))
        replicated = self._warps > 1 and addresses.size < 32 * self._warps
        access = _Access(buffer, offsets, offsets // size, (shape << _TILE_BITS) + lanes, replicated)
        outside = (offsets < 0) | (offsets > buffer.memory.size - size)
        if outside.any():
            self._fail(f"{what} outside, as {buffer.name} has {buffer.memory.size} bytes", access, outside)
        crooked = offsets % size != 0
        if crooked.any():
            self._fail(f"{what} of {size} bytes at an address that is not a multiple of {size}", access, crooked)
        return access

    def _fail(self, message: str, access: _Access, wrong: Array, others: Array | None = None) -> None:
        lane = int(np.argmax(wrong))
        if others is not None:
            message = message.format(_named(int(others[lane])))
        count = int(np.count_nonzero(wrong))
        offset = int(access.offsets[lane]) if len(wrong) == len(access.offsets) else 0
        place = f"byte {offset} of {access.buffer.name}, {count} of {len(wrong)} accesses"
        raise MemoryFault(f"{message}: {place}", self._kernel, self._program, access.buffer.name, offset)

    # ------------------------------------------------------------------ who

    def _check_reading(self, access: _Access, size: int) -> None:
        cells, lanes = access.cells(size)
        notes, me = access.buffer.notes, self._number
        if notes.has("writers"):
            writers = notes.writers[cells]
            foreign = (writers != _NOBODY) & (writers != me)
            if foreign.any():
                self._fail("load of what {} in the same launch", access, foreign, writers)
            early = self._meets(notes.written_by[cells], lanes, always=access.replicated)
            if early.any():
                self._fail("load of what another lane stored, without a barrier between", access, early)
        known = notes.readers[cells]
        notes.readers[cells] = np.where((known == _NOBODY) | (known == me), me, _SEVERAL)
        before, moment = notes.read_by[cells], self._moment(lanes)
        several = (before >> _LANE_BITS == self._barriers) & (before != moment)
        notes.read_by[cells] = np.where(several, self._moment(_SEVERAL_LANES), moment)
        again = notes.read_by[cells] != moment  # lanes of this very load that share a cell
        if again.any():
            notes.read_by[cells[again]] = self._moment(_SEVERAL_LANES)

    def _check_writing(self, access: _Access, size: int) -> None:
        if not access.buffer.writable:
            self._fail("store to what may only be read", access, np.ones(len(access.offsets), bool))
        cells, lanes = access.cells(size)
        notes, me = access.buffer.notes, self._number
        found = notes.writers[cells]
        foreign = (found != _NOBODY) & (found != me)
        if foreign.any():
            self._fail("store to what {} in the same launch", access, foreign, found)
        if notes.has("readers"):
            self._check_readers(access, notes.readers[cells])
            early = self._meets(notes.read_by[cells], lanes)
            if early.any():
                self._fail("store to what another lane loaded, without a barrier between", access, early)
        notes.writers[cells] = me
        notes.written_by[cells] = self._moment(lanes)

    def _check_updating(self, access: _Access, size: int) -> None:
        if not access.buffer.writable:
            self._fail("atomic update of what may only be read", access, np.ones(len(access.offsets), bool))
        cells, _ = access.cells(size)
        notes, me = access.buffer.notes, self._number
        found = notes.writers[cells]
        foreign = (found >= 0) & (found != me)
        if foreign.any():
            self._fail("atomic update of what {} in the same launch", access, foreign, found)
        if notes.has("readers"):
            self._check_readers(access, notes.readers[cells])
        notes.writers[cells] = np.where(found == me, found, _ATOMICALLY)

    def _check_readers(self, access: _Access, found: Array) -> None:
        foreign = (found != _NOBODY) & (found != self._number)
        if foreign.any():
            readers = np.where(found >= 0, found + _READS, found)
            self._fail("write to what {} in the same launch", access, foreign, readers)

    def _moment(self, lanes: Array | int) -> Array:
        return np.asarray((np.int64(self._barriers) << _LANE_BITS) + np.asarray(lanes, np.int64))

    def _meets(self, before: Array, lanes: Array, *, always: bool = False) -> Array:
        """Where another lane of this program was since the last barrier; with `always`, or this one."""
        since = before >> _LANE_BITS == self._barriers
        return np.asarray(since if always else since & (before != self._moment(lanes)))


def _active(values: Array, mask: Array | None, shape: Sequence[int]) -> Array:
    whole = np.broadcast_to(values, shape)
    return whole.reshape(-1) if mask is None else whole[np.broadcast_to(mask, shape)]


def _named(program: int) -> str:
    """Who did what, in an error."""
    if program == _ATOMICALLY:
        return "is updated atomically"
    if program == _SEVERAL:
        return "several programs read"
    if program >= _READS:
        return f"program {program - _READS} reads"
    return f"program {program} writes"
