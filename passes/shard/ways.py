"""The ways to split one op over a mesh."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.graph import Value
from intarsia.ir.sharding import COMBINERS, Axes, Mesh, Sharding
from intarsia.passes.shard.edges import Edge, dimension_axes, shape_of


@dataclass(frozen=True)
class Way:
    """How one op is split: the axes of each factor, and the parts that it is given and leaves."""

    of_factor: Mapping[str, Axes]
    operands: tuple[Sharding, ...]
    result: Sharding


@dataclass(frozen=True)
class Split:
    """Says which ways to split an op there are."""

    mesh: Mesh
    edge: Edge

    def way(
        self, of_factor: Mapping[str, Axes], kept: Sequence[int] = (), partial: Axes = (), combiner: str = "sum"
    ) -> Way | None:
        """The way to give each factor these axes, or None if there is none. The operands `kept` are parts of sums along
        the axes `partial`, and the result too."""
        used = [a for axes in of_factor.values() for a in axes]
        if any(self.mesh.overlap(a, b) for a, b in itertools.combinations((*used, *partial), 2)):
            return None
        shown = [self._shown(t, of_factor) for t in range(len(self.edge.tensors))]
        if not self._axes_whole(of_factor) or not self._near(of_factor):
            return None
        merged = {f.reduced for f in self.edge.factors if f.reduced and of_factor.get(f.name)}
        merged |= {combiner} if partial else set()
        if len(merged) > 1 or not merged <= set(COMBINERS):
            return None
        left = tuple(a for f in self.edge.factors if f.reduced for a in of_factor.get(f.name, ()))
        operands: list[Sharding] = []
        for position, axes in enumerate(shown):
            if axes is None:
                return None
            operands.append(Sharding.of(axes, partial, combiner) if position in kept else Sharding.of(axes))
        (name,) = merged or {"sum"}
        return Way(of_factor, tuple(operands[:-1]), Sharding.of(operands[-1].axes, (*partial, *left), name))

    def _shown(self, t: int, of_factor: Mapping[str, Axes]) -> tuple[Axes, ...] | None:
        """The axes of each dimension of a tensor; None where they cannot say how its factors are split."""
        if not self.edge.dimensions:
            return ((),) * len(shape_of(self.edge.tensors[t]))
        found: list[Axes] = []
        for names in self.edge.dimensions[t]:
            if not self._is_run(names or (), of_factor):
                return None
            found.append(dimension_axes(self.mesh, self.edge, names, of_factor))
        return tuple(found)

    def _is_run(self, names: Sequence[str], of_factor: Mapping[str, Axes]) -> bool:
        """Is a minor factor split only where the major ones are split wholly, and each divided exactly?"""
        whole = True
        for name in names:
            devices, extent = self.mesh.size(of_factor.get(name, ())), self.edge.extents[name]
            if devices > 1 and (not whole or (len(names) > 1 and (extent is None or extent % devices))):
                return False
            whole = devices == extent
        return True

    def _axes_whole(self, of_factor: Mapping[str, Axes]) -> bool:
        """The same for the digits of each axis of the space."""
        digits: dict[str, list[str]] = {}
        for f in self.edge.factors:
            digits.setdefault(f.name.split(".")[0], []).append(f.name)
        return all(self._is_run(names, of_factor) for names in digits.values() if len(names) > 1)

    def _near(self, of_factor: Mapping[str, Axes]) -> bool:
        """Do neighbours have all of each window, whose other axes are not split?"""
        for place, window in self.edge.windows.items():
            if any(of_factor.get(name) for name in window.others) and of_factor.get(window.axis):
                return False
            if self.halo(place, of_factor) is None:
                return False
        return True

    def halo(self, place: tuple[int, int], of_factor: Mapping[str, Axes]) -> tuple[int, int] | None:
        """Elements that a device takes from its neighbours along a dimension of an operand."""
        window, (position, d) = self.edge.windows[place], place
        devices, made = self.mesh.size(of_factor.get(window.axis, ())), self.edge.extents[window.axis]
        if devices == 1:
            return (0, 0)
        return None if made is None else window.halo(static_shape(self.edge.tensors[position])[d], made, devices)


def sharding_of(value: Value) -> Sharding:
    return value.type.sharding or Sharding.of(((),) * len(shape_of(value)))


def static_shape(value: Value) -> list[int]:
    return [1 if s.constant is None else s.constant for s in shape_of(value)]


def elements_of(value: Value) -> int:
    return math.prod(static_shape(value))
