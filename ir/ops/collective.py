"""Tensors on a mesh of devices: how one lies, and what moves its elements between devices.

`Shard` belongs to the program of all devices, whose types are those of whole tensors. The others belong to the program
that each device runs: their types are those of what one device has, and what they give depends on what the others have.
`axes` are those of the mesh along which devices take part, the major one first, and `devices` how many these are.

A collective that is `started` has only begun: other work goes on until a `done` of it, which is its value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from intarsia.ir.dtypes import I64, Array
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.elementwise import axes_for, broadcast_load
from intarsia.ir.sharding import COMBINERS, Axes, MeshAxis
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space
from intarsia.ir.types import TensorType, Type


@dataclass(frozen=True, eq=False)
class Shard(Structured):
    """x, laid out over the mesh as the type of the result says: `%1 = shard %0 : f32[8@data, 4]`."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        return (self.x.tensor,)

    @property
    def space(self) -> Space:
        axes = axes_for(self.x.tensor.shape)
        return Space(axes, broadcast_load(0, self.x, axes), self.x.dtype)

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        return arrays


@dataclass(frozen=True, eq=False)
class Collective(Node):
    """A node that takes what other devices have.

    A `started` one gives memory that is being filled, while x is being sent: a `Done` is all that may read it, x stays
    as it is until then, and everything between the two may run meanwhile.
    """

    x: Value
    axes: tuple[str, ...]
    devices: int
    started: bool = field(default=False, kw_only=True)

    @property
    def mesh_axes(self) -> Axes:
        return tuple(map(MeshAxis.parse, self.axes))

    def resized(self, **factors: tuple[int, int]) -> TensorType:
        """The type of x with extents multiplied and divided: `d0=(4, 1)` is four times dimension 0."""
        x = self.x.tensor
        shape = list(x.shape)
        for name, (times, over) in factors.items():
            d = int(name[1:])
            self.require(0 <= d < x.rank, f"{x} has no dimension {d}")
            extent = shape[d].constant
            self.require(over == 1 or (extent is not None and extent % over == 0), f"{over} do not divide {shape[d]}")
            shape[d] = shape[d] * times if over == 1 else Size.of(int(shape[d]) // over)
        return TensorType(x.dtype, tuple(shape))


@dataclass(frozen=True, eq=False)
class AllReduce(Collective):
    """The sum, or maximum …, of what all devices have."""

    combiner: str = "sum"

    def infer(self) -> tuple[Type, ...]:
        self.require(self.combiner in COMBINERS, f"there is no reduction '{self.combiner}' over devices")
        return (self.x.tensor,)


@dataclass(frozen=True, eq=False)
class AllGather(Collective):
    """What all devices have, one after the other along `dim`."""

    dim: int = 0

    def infer(self) -> tuple[Type, ...]:
        return (self.resized(**{f"d{self.dim}": (self.devices, 1)}),)


@dataclass(frozen=True, eq=False)
class ReduceScatter(Collective):
    """The sum of what all devices have, of which each device takes its part along `dim`."""

    dim: int = 0
    combiner: str = "sum"

    def infer(self) -> tuple[Type, ...]:
        self.require(self.combiner in COMBINERS, f"there is no reduction '{self.combiner}' over devices")
        return (self.resized(**{f"d{self.dim}": (1, self.devices)}),)


@dataclass(frozen=True, eq=False)
class AllToAll(Collective):
    """Each device cuts what it has along `split`, sends one part to each, and joins what it gets along `join`."""

    split: int = 0
    join: int = 0

    def infer(self) -> tuple[Type, ...]:
        self.require(self.split != self.join, "an all_to_all splits one dimension and joins another")
        return (self.resized(**{f"d{self.split}": (1, self.devices), f"d{self.join}": (self.devices, 1)}),)


@dataclass(frozen=True, eq=False)
class CollectivePermute(Collective):
    """Device number p along the axes takes what number `sources[p]` has; zeros where that is -1."""

    sources: tuple[int, ...] = ()

    def infer(self) -> tuple[Type, ...]:
        fits = len(self.sources) == self.devices and all(-1 <= s < self.devices for s in self.sources)
        self.require(fits, f"{self.sources} are not one source for each of {self.devices} devices")
        return (self.x.tensor,)


@dataclass(frozen=True, eq=False)
class AllSlice(Collective):
    """The part of x along `dim` that is this device's; nothing is sent."""

    dim: int = 0

    def infer(self) -> tuple[Type, ...]:
        return (self.resized(**{f"d{self.dim}": (1, self.devices)}),)


@dataclass(frozen=True, eq=False)
class Done(Node):
    """What a started collective gives, once all of it is there: `%1 = all_reduce %0 … started=true`, `%2 = done %1`."""

    x: Value

    def infer(self) -> tuple[Type, ...]:
        made = self.x.node
        self.require(isinstance(made, Collective) and made.started, f"the {made.name} was not started")
        return (self.x.tensor,)


@dataclass(frozen=True, eq=False)
class DeviceIndex(Node):
    """The number of this device along the axes, an i64."""

    axes: tuple[str, ...]
    devices: int

    def infer(self) -> tuple[Type, ...]:
        return (TensorType(I64),)
