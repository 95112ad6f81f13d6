"""Calling the native entry function of a compiled program, whose C interface is that of `intarsia.ir.plan`.

An entry function may run on several threads at once: every call has its own argument tables, workspace and error
record. Besides its arguments compiled code refers to what `native_symbols` names.

A call through this module costs a few microseconds of Python and ctypes; `dispatch.py` makes those that were made
before without it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.runtime import buffers
from intarsia.runtime.interrupts import complete
from intarsia.runtime.threads import thread_symbols

RECORDED_VALUES = 14

_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 6)  # releases the GIL around the call


class ErrorRecord(ctypes.Structure):
    """Where parallel lanes report a failed check: 16 words of 64 bits, zero before the call.

    A failing lane changes `number` from 0 to the number of the check (from 1) by one compare-and-swap, and if it was
    the first it stores `count` and `values`, at most `RECORDED_VALUES` of them.
    """

    _fields_ = (("number", ctypes.c_int64), ("count", ctypes.c_int64), ("values", ctypes.c_int64 * RECORDED_VALUES))
    number: int
    count: int
    values: ctypes.Array[ctypes.c_int64]

    @property
    def address(self) -> int:
        return ctypes.addressof(self)


@dataclass(frozen=True)
class CheckFailure:
    """The first failed run-time check of a call: its number in the program, from 1, and the values it recorded."""

    number: int
    values: tuple[int, ...]


def native_symbols(*, parallel: bool = True) -> dict[str, int]:
    """Names and addresses that compiled code may refer to, for the JIT linker; all live as long as the process.

    `intarsia_thread_count`: an `i32`, the threads to use, read on each call (1: call the body directly).
    `GOMP_parallel`, where the code has `parallel` loops: opens a parallel region.
    """
    return thread_symbols(parallel=parallel)


class NativeFunction:
    """An entry function at an address. `owner` is whatever keeps the code alive, such as the JIT engine."""

    def __init__(self, address: int, inputs: int, outputs: int, sizes: int = 0, *, owner: object = None) -> None:
        self.address = address
        self.owner = owner
        self._entry: Callable[..., int] = _ENTRY(address)
        # A packed bytes object is an array that this call alone owns: cheaper than a ctypes array, and no two threads
        # ever share one.
        self._pack_inputs = struct.Struct(f"{inputs}P").pack
        self._pack_outputs = struct.Struct(f"{outputs}P").pack
        self._pack_sizes = struct.Struct(f"{sizes}q").pack

    def call(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        sizes: Sequence[int] = (),
        workspace: int = 0,
        record: int = 0,
        *,
        interruptible: bool = True,
    ) -> int:
        """Run on addresses; returns the status. Takes about 0.6 us, and 1.4 us more when `interruptible`.

        A signal whose Python handler raises ends the call with that exception, Ctrl-C with KeyboardInterrupt. The
        caller keeps everything that the addresses point to alive and sees to sizes and alignment.
        """
        tables = self._pack_inputs(*inputs), self._pack_outputs(*outputs), self._pack_sizes(*sizes)
        if not interruptible:
            return self._entry(*tables, workspace, record, None)
        return complete(lambda flag: self._entry(*tables, workspace, record, flag))

    def run(
        self,
        inputs: Sequence[Array | Sequence[Array]],
        outputs: Sequence[Array],
        sizes: Sequence[int] = (),
        workspace_bytes: int = 0,
        *,
        interruptible: bool = True,
    ) -> CheckFailure | None:
        """Run on arrays, a sequence of them for a list parameter; returns the failed check, if any.

        The workspace comes from the pool and goes back to it.
        """
        workspace = buffers.lease(workspace_bytes) if workspace_bytes else None
        tables = [i if isinstance(i, np.ndarray) else pointer_table(i) for i in inputs]
        record = ErrorRecord()
        status = self.call(
            [address_of(t) for t in tables],
            [address_of(o) for o in outputs],
            sizes,
            address_of(workspace) if workspace is not None else 0,
            record.address,
            interruptible=interruptible,
        )
        if status == 0:
            return None
        assert status == record.number, f"entry function returned {status}, recorded {record.number}"
        return CheckFailure(status, tuple(record.values[: record.count]))


def pointer_table(arrays: Sequence[Array]) -> Array:
    """The table of pointers that stands for a list of tensors in the C interface. Does not keep `arrays` alive."""
    return np.array([address_of(a) for a in arrays], np.uintp)


def _read_data_pointer(array: Array) -> int:
    """The field `data` of PyArrayObject, which follows the object's head: 0.1 us against 0.9 us of the interface."""
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


def _ask_data_pointer(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _layout_is_known() -> bool:
    """Whether arrays of this NumPy under this Python are laid out as `_read_data_pointer` takes them to be."""
    samples: list[Array] = [np.zeros(3), np.zeros((4, 5), np.int8)[1:, 2:]]
    return all(_read_data_pointer(a) == _ask_data_pointer(a) for a in samples)


address_of: Callable[[Array], int] = _read_data_pointer if _layout_is_known() else _ask_data_pointer
"""The address of an array's first element."""
