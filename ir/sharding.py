"""Where the elements of a tensor live: meshes of devices with named axes, and how dimensions are split over these.

The model is that of Shardy (https://openxla.org/shardy/sharding_representation) with the text of types as JAX prints
it: `f32[8@data, 128@(model, ?)]{sum: model}`. A dimension is split over the axes after its `@`, major first; a size
that they do not divide is padded at its end. All that is not said is replicated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

_AXIS = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::\s*\(\s*(\d+)\s*\)\s*(\d+))?\s*")
_MESH = re.compile(r"mesh\s+(\w+)\((.*)\)")

COMBINERS = ("sum", "max", "min", "prod")
"""How the parts of a partial value make the value."""


@dataclass(frozen=True, order=True)
class MeshAxis:
    """An axis of the mesh, or a part of it: `x`, or `x:(2)4`, 4 devices of x at a distance.

    An axis of `left * size * right` devices is a number of three digits; `x:(left)size` is the one in the middle. A
    whole axis has `size` 0.
    """

    name: str
    left: int = 1
    size: int = 0

    @property
    def is_whole(self) -> bool:
        return self.size == 0

    def __str__(self) -> str:
        return self.name if self.is_whole else f"{self.name}:({self.left}){self.size}"

    @staticmethod
    def parse(text: str) -> MeshAxis:
        """The inverse of `str`. Raises ValueError."""
        found = _AXIS.fullmatch(text)
        if not found:
            raise ValueError(f"'{text.strip()}' is no axis of a mesh: model, or model:(2)4 for a part of it")
        return MeshAxis(found[1], int(found[2] or 1), int(found[3] or 0))


Axes = tuple[MeshAxis, ...]
"""Axes of one dimension, the major one first."""


@dataclass(frozen=True)
class Mesh:
    """Devices in a grid with named axes, numbered in row-major order: `mesh pod(data=2, model=4)`."""

    axes: tuple[tuple[str, int], ...]
    name: str = "devices"

    def __str__(self) -> str:
        return f"mesh {self.name}({self.said})"

    @property
    def said(self) -> str:
        """The axes as a user gives them: `data=2, model=4`."""
        return ", ".join(f"{name}={size}" for name, size in self.axes)

    @staticmethod
    def parse(text: str) -> Mesh:
        """Read `mesh pod(data=2, model=4)`, or only `data=2,model=4`. Raises ValueError with what is wrong."""
        found = _MESH.fullmatch(text.strip())
        name, inner = (found[1], found[2]) if found else ("devices", text)
        axes: list[tuple[str, int]] = []
        for part in inner.split(","):
            axis = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\d+)\s*", part)
            if not axis or not int(axis[2]):
                raise ValueError(f"'{part.strip()}' is no axis of a mesh: data=2 is one")
            if axis[1] in dict(axes):
                raise ValueError(f"the mesh has two axes '{axis[1]}'")
            axes.append((axis[1], int(axis[2])))
        return Mesh(tuple(axes), name)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        return dict(self.axes)

    @cached_property
    def devices(self) -> int:
        return math.prod(size for _, size in self.axes)

    def size(self, axes: MeshAxis | Iterable[MeshAxis]) -> int:
        """The number of devices along an axis, or along several."""
        if isinstance(axes, MeshAxis):
            return axes.size or self.sizes[axes.name]
        count = 1
        for axis in axes:
            count *= axis.size or self.sizes[axis.name]
        return count

    def position(self, device: int, axes: Iterable[MeshAxis]) -> int:
        """The number of a device along axes, the major one first."""
        position = 0
        for axis in axes:
            position = position * self.size(axis) + self._digit(device, axis)
        return position

    def _digit(self, device: int, axis: MeshAxis) -> int:
        coordinate = device
        for name, size in reversed(self.axes):
            coordinate, own = divmod(coordinate, size)
            if name == axis.name:
                right = size // (axis.left * self.size(axis))
                return own // right % self.size(axis)
        raise KeyError(axis.name)

    def groups(self, axes: Axes) -> tuple[tuple[int, ...], ...]:
        """The devices that differ along `axes` only, in the order of their numbers along these."""
        found: dict[tuple[int, ...], dict[int, int]] = {}
        others = self.without(axes)
        for device in range(self.devices):
            key = tuple(self._digit(device, a) for a in others)
            found.setdefault(key, {})[self.position(device, axes)] = device
        return tuple(tuple(group[p] for p in sorted(group)) for group in found.values())

    def without(self, axes: Iterable[MeshAxis]) -> Axes:
        """All parts of all axes that are not in `axes`, in the order of the mesh."""
        rest: list[MeshAxis] = []
        for name, size in self.axes:
            used = sorted((a.left, self.size(a)) for a in axes if a.name == name)
            left = 1
            for start, count in (*used, (size, 1)):
                if start > left:
                    rest.append(self.part(name, left, start // left))
                left = start * count
        return tuple(rest)

    def part(self, name: str, left: int, size: int) -> MeshAxis:
        """Part of an axis, which is the axis itself if it is all of it."""
        return MeshAxis(name) if left == 1 and size == self.sizes[name] else MeshAxis(name, left, size)

    def split(self, axis: MeshAxis, major: int) -> tuple[MeshAxis, MeshAxis]:
        """An axis as its major part of `major` devices and the rest. `major` divides its size and is less."""
        size = self.size(axis)
        return self.part(axis.name, axis.left, major), self.part(axis.name, axis.left * major, size // major)

    def joined(self, axes: Iterable[MeshAxis]) -> Axes:
        """Neighbouring parts of one axis as one part."""
        result: list[MeshAxis] = []
        for axis in axes:
            last = result[-1] if result else None
            if last is not None and last.name == axis.name and last.left * self.size(last) == axis.left:
                result[-1] = self.part(axis.name, last.left, self.size(last) * self.size(axis))
            else:
                result.append(axis)
        return tuple(result)

    def take(self, axes: Axes, extent: int | None) -> tuple[Axes, Axes]:
        """The first axes, as many as divide `extent`, and the rest; an axis may be cut in two."""
        if extent is None:
            return axes, ()
        taken: list[MeshAxis] = []
        for position, axis in enumerate(axes):
            size = self.size(axis)
            if extent % size == 0:
                taken.append(axis)
                extent //= size
                continue
            if size % extent == 0 and extent > 1:
                first, second = self.split(axis, extent)
                return (*taken, first), (second, *axes[position + 1 :])
            return tuple(taken), axes[position:]
        return tuple(taken), ()

    def overlap(self, a: MeshAxis, b: MeshAxis) -> bool:
        """Can two axes not stand side by side? They have a part in common, or are digits of different numbers: of six
        devices `x:(1)2` is the first digit of 2 x 3 and `x:(3)2` the last of 3 x 2."""
        if a.name != b.name:
            return False
        return b.left % (a.left * self.size(a)) != 0 and a.left % (b.left * self.size(b)) != 0

    def free_prefix(self, axes: Axes, taken: Iterable[MeshAxis]) -> Axes:
        """The first of the axes, up to what is taken: of an axis of which a later part is taken, the part before it."""
        taken = tuple(taken)
        free: list[MeshAxis] = []
        for axis in axes:
            overlapping = [other for other in taken if self.overlap(axis, other)]
            if overlapping:
                before, rest = divmod(min(other.left for other in overlapping), axis.left)
                if before > 1 and not rest and self.size(axis) % before == 0:
                    first = self.part(axis.name, axis.left, before)
                    free += [first] if not any(self.overlap(first, other) for other in taken) else []
                break
            free.append(axis)
        return tuple(free)

    def common_prefix(self, a: Axes, b: Axes) -> Axes:
        """The longest list of axes with which both begin, a part of an axis at its end if need be."""
        result: list[MeshAxis] = []
        for x, y in zip(a, b):
            if x != y:
                if x.name == y.name and x.left == y.left:
                    common = math.gcd(self.size(x), self.size(y))
                    if common > 1 and common in (self.size(x), self.size(y)):
                        result.append(self.part(x.name, x.left, common))
                break
            result.append(x)
        return tuple(result)

    def is_prefix(self, a: Axes, b: Axes) -> bool:
        """Does b begin with a?"""
        return self.common_prefix(a, b) == a

    def rest(self, a: Axes, b: Axes) -> Axes:
        """The axes of b after those of a, with which it begins."""
        if not a:
            return b
        if b[: len(a)] == a:
            return b[len(a) :]
        last, longer = a[-1], b[len(a) - 1]
        return (self.split(longer, self.size(last))[1], *b[len(a) :])


@dataclass(frozen=True)
class DimensionSharding:
    """How one dimension is split. An `open` one may be split further by propagation; `priority` 0 is the strongest."""

    axes: Axes = ()
    open: bool = True
    priority: int = 0

    def __str__(self) -> str:
        """What stands after `@`; nothing where nothing is said."""
        marks = [*map(str, self.axes), *(["?"] if self.open else [])]
        plain = len(marks) == 1 and (self.open or self.axes[0].is_whole)
        text = "_" if not marks else marks[0] if plain else f"({', '.join(marks)})"
        if self.priority:
            return f"{text}!{self.priority}"
        return "" if text == "?" else text

    @staticmethod
    def parse(text: str) -> DimensionSharding:
        """Read `data`, `(data, model, ?)`, `_`, `?`, `data!1`, or nothing. Raises ValueError."""
        body, _, priority = text.strip().partition("!")
        body = body.strip()
        if body.startswith("(") and body.endswith(")"):
            body = body[1:-1]
        marks = [m.strip() for m in body.split(",") if m.strip()]
        if marks == ["_"]:
            return DimensionSharding((), False, int(priority or 0))
        axes = tuple(MeshAxis.parse(m) for m in marks if m != "?")
        return DimensionSharding(axes, "?" in marks or not marks, int(priority or 0))


@dataclass(frozen=True)
class Sharding:
    """How a tensor lies on the mesh.

    replicated: axes along which it is copied, and may not be split. partial: axes along which each device has a part of
    each element; `combiner` of all is the element.
    """

    dimensions: tuple[DimensionSharding, ...]
    replicated: Axes = ()
    partial: Axes = ()
    combiner: str = "sum"

    @staticmethod
    def of(axes: Sequence[Axes], partial: Axes = (), combiner: str = "sum") -> Sharding:
        """A sharding that is settled: what is split is closed."""
        return Sharding(tuple(DimensionSharding(a, not a) for a in axes), (), partial, combiner)

    @cached_property
    def axes(self) -> tuple[Axes, ...]:
        """The axes of each dimension."""
        return tuple(d.axes for d in self.dimensions)

    @cached_property
    def used(self) -> Axes:
        """Every axis that splits a dimension or carries parts."""
        return (*(a for d in self.dimensions for a in d.axes), *self.partial)

    def settled(self) -> Sharding:
        """The same without what only propagation needs."""
        return Sharding.of(self.axes, self.partial, self.combiner)

    def whole(self) -> Sharding:
        """The same where each device has all of its elements: no longer partial."""
        return replace(self, partial=(), combiner="sum")

    def marks(self) -> tuple[str, ...]:
        """What stands after `@` in each dimension."""
        return tuple(map(str, self.dimensions))

    def suffix(self) -> str:
        """What stands between braces after the type, if anything."""
        parts = []
        if self.partial:
            parts.append(f"{self.combiner}: {', '.join(map(str, self.partial))}")
        if self.replicated:
            parts.append(f"replicated: {', '.join(map(str, self.replicated))}")
        return "; ".join(parts)

    @staticmethod
    def parse(marks: Sequence[str], suffix: str) -> Sharding | None:
        """The inverse of `marks` and `suffix`; None where they say nothing. Raises ValueError."""
        if not any(marks) and not suffix.strip():
            return None
        found: dict[str, Axes] = {}
        for part in filter(None, (p.strip() for p in suffix.split(";"))):
            name, colon, axes = part.partition(":")
            if not colon or name.strip() not in (*COMBINERS, "replicated"):
                raise ValueError(f"'{part}' is none of replicated, {', '.join(COMBINERS)} with axes of a mesh")
            found[name.strip()] = tuple(MeshAxis.parse(a) for a in axes.split(","))
        combiner = next((c for c in COMBINERS if c in found), "sum")
        dimensions = tuple(map(DimensionSharding.parse, marks))
        return Sharding(dimensions, found.get("replicated", ()), found.get(combiner, ()), combiner)

    def problem(self, mesh: Mesh) -> str | None:
        """What is wrong with it on this mesh, or None."""
        every = [*self.used, *self.replicated]
        for axis in every:
            if axis.name not in mesh.sizes:
                return f"the mesh has no axis '{axis.name}'"
            size = mesh.sizes[axis.name]
            if not axis.is_whole and (axis.size < 2 or size % (axis.left * axis.size)):
                return f"{axis} is no part of an axis of {size} devices"
        for position, axis in enumerate(every):
            if any(mesh.overlap(axis, other) for other in every[:position]):
                return f"the axis '{axis}' stands in it twice"
        return None


def ring_elements(kind: str, elements: float, devices: int) -> float:
    """Elements that each of so many devices sends in a collective by a ring, of those that it puts in."""
    match kind:
        case "all_gather":
            return elements * (devices - 1)
        case "all_reduce":
            return 2 * elements * (devices - 1) / devices
        case "reduce_scatter" | "all_to_all":
            return elements * (devices - 1) / devices
        case "collective_permute":
            return elements
    return 0.0


def local_extent(extent: int, devices: int) -> int:
    """Elements of each device where `devices` share a dimension; the last ones may be padding."""
    return -(-extent // devices)
