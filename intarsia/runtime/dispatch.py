"""Calls that were made before, made again without the interpreter: guards on the arguments, results, the native call.

A `Dispatcher` is given calls whose arguments are NumPy arrays and Python's numbers, by the types that these must have.
Its `function` then looks through them in native code (`calls.ll`) and makes the first that fits; it gives
NotImplemented where none does, and where a run-time check fails: the caller then goes the general way, which says what
is wrong.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.runtime.buffers import POOL, SMALL, BufferPool
from intarsia.runtime.native import address_of

MOST_CALLS = 64
"""More are not looked through: 64 take a quarter of a microsecond."""


_NUMBERS: dict[tuple[type, str], int] = {
    (float, "float64"): 1,
    (float, "float32"): 2,
    (int, "int64"): 3,
    (int, "int32"): 4,
    (int, "float64"): 5,
    (int, "float32"): 6,
}
"""Kinds of the structure %Tensor: what Python's numbers can become."""


@dataclass(frozen=True)
class TensorGuard:
    """The type of an argument, and its place among the inputs; or the type of a result.

    given: NumPy's array type, or the type of a Python number that becomes an element.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: int = 0
    given: type = np.ndarray

    @property
    def kind(self) -> int | None:
        """What the structure %Tensor says of the argument; None where native code does not take it."""
        return 0 if self.given is np.ndarray else _NUMBERS.get((self.given, self.dtype.name))


@dataclass(frozen=True)
class NativeCall:
    """A call of an entry function (`ir/plan.py`) as data.

    inputs: addresses, those of arguments left open. alone: it is so short that other Python threads need not be let
    run meanwhile. owner: what keeps alive all that the addresses refer to.
    """

    entry: int
    inputs: tuple[int, ...]
    sizes: tuple[int, ...]
    workspace: int
    arguments: tuple[TensorGuard, ...]
    results: tuple[TensorGuard, ...]
    alone: bool
    owner: object


def nothing_fits(*arguments: object) -> Any:
    """The function of a dispatcher without calls."""
    return NotImplemented


class Dispatcher:
    """The calls of one function; safe to add to from several threads."""

    def __init__(self, pool: BufferPool = POOL) -> None:
        self._pool = pool
        self._calls: list[tuple[int, object]] = []
        self._lock = threading.Lock()
        self.function: Callable[..., Any] = nothing_fits

    def add(self, call: NativeCall) -> None:
        """Make this call natively from now on, if that can be done here and there are not too many calls yet."""
        extension = self._pool.extension
        if extension is None or any(guard.kind is None for guard in call.arguments):
            return
        with self._lock:
            if len(self._calls) < MOST_CALLS:
                self._calls.append(_described(call))
                addresses, owners = zip(*self._calls)
                self.function = extension.dispatcher(addresses, owners)

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._calls.clear()
            self.function = nothing_fits


def _described(call: NativeCall) -> tuple[int, object]:
    """The address of the structure %Call for a call, and what keeps it alive."""
    kept: list[object] = [call]

    def table(words: Sequence[int]) -> int:
        array: Array = np.array(words, np.int64)
        kept.append(array)
        return address_of(array)

    def tensors(guards: Sequence[TensorGuard], number: Callable[[TensorGuard], int]) -> int:
        rows = [(id(g.dtype), len(g.shape), table(g.shape), number(g), g.kind or 0) for g in guards]
        return table([word for row in rows for word in row])

    fields = (
        call.entry,
        call.workspace,
        table(call.sizes),
        len(call.inputs),
        table(call.inputs),
        len(call.arguments),
        tensors(call.arguments, lambda g: g.place),
        len(call.results),
        tensors(call.results, _pooled_bytes),
        int(not call.alone),
    )
    return table(fields), kept


def _pooled_bytes(result: TensorGuard) -> int:
    """What a result takes from the pool: nothing if it is small, which the structure %Tensor has as 0."""
    size = math.prod(result.shape) * result.dtype.itemsize
    return size if size >= SMALL else 0
