"""What a process has of an array whose elements are split over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.sharding import Axes, Mesh, Sharding
from intarsia.ir.text_parts import read_type
from intarsia.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Unmade:
    """An array of which each process makes what it needs: `cut` gives what slices select of it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    cut: Callable[[tuple[slice, ...]], Array]

    def stand_in(self) -> Array:
        """An array of the type, without its elements."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    def __getitem__(self, places: tuple[slice, ...]) -> Array:
        return self.cut(places)

    def made(self) -> Array:
        """All of it."""
        return self.cut((slice(None),) * len(self.shape))


@dataclass(frozen=True, eq=False)
class Part:
    """This process's part of an array: `array`, of a whole of the type `type`, such as `f32[64@data, 32]`. On a GPU
    it is a tensor; it is None where a device of another stage of a pipeline has the array.

    A function on processes takes parts beside whole arrays, and `Function.local` gives its results as such, so that
    what one call makes is there for the next, and is whole nowhere. Where the devices do not divide a dimension, parts
    are padded at its end.
    """

    array: Any
    type: str

    @cached_property
    def whole_type(self) -> TensorType:
        """The type as data. Raises CompileError where its text is none."""
        found = read_type(Source("type of a part", self.type))
        if not isinstance(found, TensorType):
            raise CompileError("E1911", f"a part has the type of a tensor, not {self.type}")
        return found

    @staticmethod
    def without_processes() -> CompileError:
        """What is wrong where there are parts, and one process has all devices."""
        return CompileError("E1911", "parts are for devices that are processes", hint="such as devices='mpi'")

    def stand_in(self) -> Array:
        """An array of the whole's type, without its elements."""
        kind = self.whole_type
        return np.broadcast_to(np.zeros((), kind.dtype.numpy), kind.static_shape)

    def of(self, mesh: Mesh, label: str, wanted: TensorType, shape: tuple[int, ...], dtype: object) -> Any:
        """The array as the part of an argument that lies as `wanted`, of which a device has `shape` in elements of
        `dtype`. Raises CompileError E1911 if it lies otherwise."""
        if self.array is None:
            message = f"{label} is on a device of another stage"
            raise CompileError("E1911", message, hint="several stages read it: give the whole array")
        if _axes(mesh, self.whole_type) != _axes(mesh, wanted):
            message = f"{label} is a part of {self.type}, and the program takes one of {wanted}"
            raise CompileError("E1911", message, hint=f"declare {label} so, or give the whole array")
        if self.array.dtype != dtype or tuple(self.array.shape) != shape:
            own = f"{self.array.dtype}{list(self.array.shape)}"
            raise CompileError(
                "E1911", f"{label}: {own} is no part of {wanted}, of which each device has {list(shape)}"
            )
        return self.array

    def __len__(self) -> int:
        return self.whole_type.static_shape[0]

    def __getitem__(self, index: tuple[Any, ...]) -> Part:
        """A row, `part[n, ...]`, of an array whose first dimension is that of a list of structs, which is not split."""
        row, rest = index
        assert rest is ...
        kind = self.whole_type
        own = replace(kind.sharding, dimensions=kind.sharding.dimensions[1:]) if kind.sharding else None
        array = None if self.array is None else self.array[row, ...]
        return Part(array, str(replace(kind, shape=kind.shape[1:], sharding=own)))

    def __repr__(self) -> str:
        return f"<{'no part' if self.array is None else f'part {list(self.array.shape)}'} of {self.type}>"


def _axes(mesh: Mesh, kind: TensorType) -> tuple[tuple[Axes, ...], str]:
    """The axes that split each dimension, and those of parts, without those of one device; what makes a whole of
    parts."""
    found = kind.sharding or Sharding.of(((),) * kind.rank)
    axes = tuple(tuple(a for a in own if mesh.size(a) > 1) for own in (*found.axes, found.partial))
    return axes, found.combiner if axes[-1] else ""
