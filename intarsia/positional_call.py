"""A call of compiled code that has been made before: all that is left to do is to take addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intarsia.executable import Executable, PreparedCall
from intarsia.ir.dtypes import Array
from intarsia.results import in_form
from intarsia.runtime import dlpack
from intarsia.runtime.dispatch import NativeCall, TensorGuard
from intarsia.runtime.native import address_of, pointer_table

_DENSE = 0x101
"""Flags of NumPy's arrays: C-contiguous and aligned."""


class PositionalCall:
    """A call whose arguments are NumPy arrays and numbers of known types.

    `inputs` are those of one such call, of which the bound ones stay, `prepared` what was made of these, `given` its
    arguments by name, in order.
    """

    def __init__(
        self,
        executable: Executable,
        sizes: Mapping[str, int],
        inputs: Sequence[Array | tuple[Array, ...]],
        prepared: Sequence[Array],
        given: Mapping[str, object],
    ) -> None:
        self.is_repeated = False
        self._prepared: PreparedCall = executable.prepare(sizes)
        self._labels = executable.labels
        self._count = len(given)
        positions = {name: position for position, name in enumerate(given)}
        self._given: list[tuple[int, int, dlpack.Parameter]] = []
        self._guards: dict[int, TensorGuard] = {}
        self._bound: list[object] = []
        self._addresses: list[int] = []
        for index, (layout, array) in enumerate(zip(executable.inputs, inputs)):
            if layout.label in positions:
                shape = layout.concrete_shape(sizes)
                parameter = dlpack.Parameter(layout.label, layout.dtype, shape)
                position = positions[layout.label]
                self._given.append((index, position, parameter))
                self._guards[position] = TensorGuard(layout.dtype.numpy, shape, index, type(given[layout.label]))
                self._addresses.append(0)
                continue
            table = array if isinstance(array, np.ndarray) else pointer_table(array)
            self._bound += [array, table]
            self._addresses.append(address_of(table))
        self._bound += prepared
        self._addresses += [address_of(array) for array in prepared]

    def __call__(self, positional: Sequence[object]) -> Any:
        addresses = self._addresses.copy()
        alive = []
        for index, position, parameter in self._given:
            array = positional[position]
            if type(array) is not np.ndarray or array.flags.num & _DENSE != _DENSE:
                array = dlpack.adapt(array, parameter)
                alive.append(array)
            addresses[index] = address_of(array)
        return in_form(self._labels, self._prepared(addresses))

    def dispatched(self) -> NativeCall | None:
        """The same for a dispatcher, if it can be made by one."""
        if len(self._guards) != self._count:
            return None
        return self._prepared.dispatched(self._addresses, [self._guards[p] for p in range(self._count)], self._bound)
