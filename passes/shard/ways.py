"""The ways to split one op over a mesh."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.graph import Value
from intarsia.ir.sharding import COMBINERS, Axes, Mesh, Sharding
from intarsia.passes.shard.edges import Edge, Place, dimension_axes, shape_of
from intarsia.passes.shard.windows import Halo, Run, find_halo


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
        self,
        of_factor: Mapping[str, Axes],
        kept: Sequence[int] = (),
        partial: Axes = (),
        combiner: str = "sum",
        whole: Collection[Place] = (),
    ) -> Way | None:
        """The way to give each factor these axes, or None if there is none. The operands `kept` are parts of sums along
        the axes `partial`, and the result too. Of the dimensions that are read in windows, those that are `whole`, and
        those of which neighbours do not have enough, are on every device."""
        used = [a for axes in of_factor.values() for a in axes]
        if any(self.mesh.overlap(a, b) for a, b in itertools.combinations((*used, *partial), 2)):
            return None
        far = {p for p in self.edge.windows if p in whole or self.halo(p, of_factor) is None}
        shown = [self._shown(t, of_factor, far) for t in range(len(self.edge.tensors))]
        if not self._axes_whole(of_factor):
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

    def _shown(self, t: int, of_factor: Mapping[str, Axes], far: Collection[Place]) -> tuple[Axes, ...] | None:
        """The axes of each dimension of a tensor; None where they cannot say how its factors are split."""
        if not self.edge.dimensions:
            return ((),) * len(shape_of(self.edge.tensors[t]))
        found: list[Axes] = []
        for d, dimension in enumerate(self.edge.dimensions[t]):
            names = None if (t, d) in far else dimension
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

    def halo(self, place: Place, of_factor: Mapping[str, Axes]) -> Halo | None:
        """What a device takes from its neighbours along a dimension of an operand; None where they do not have it."""
        window, (position, d) = self.edge.windows[place], place
        axes, made = of_factor.get(window.axis, ()), self.edge.extents[window.axis]
        if (devices := self.mesh.size(axes)) == 1:
            return Halo(0, 0)
        if made is None:
            return None
        whole = static_shape(self.edge.tensors[position])[d]
        return find_halo([(window, Run.part(axes, made, devices))], whole, devices)

    def taken(self, way: Way) -> Iterator[tuple[Value, Axes, float]]:
        """What a device takes from a neighbour, for each dimension that an op reads in windows and for each side: of
        which value, along which axes, and how many elements."""
        for position, d in self.edge.windows:
            value, lies = self.edge.tensors[position], way.operands[position]
            if lies.axes[d] and (halo := self.halo((position, d), way.of_factor)) is not None:
                held = elements_of(value) / self.mesh.size(a for axes in lies.axes for a in axes)
                across = max(1.0, static_shape(value)[d] / self.mesh.size(lies.axes[d]))
                yield from ((value, lies.axes[d], held / across * n) for n in (halo.before, halo.after) if n)


def sharding_of(value: Value) -> Sharding:
    return value.type.sharding or Sharding.of(((),) * len(shape_of(value)))


def sharding_of_stacked(emitted: Value) -> Sharding:
    """How what a loop stacks lies, by what each step emits."""
    own = sharding_of(emitted)
    return Sharding.of(((), *own.axes), own.partial, own.combiner)


def whole_windows(edge: Edge, operands: Sequence[Value]) -> frozenset[Place]:
    """The dimensions that are read in windows of operands that have them whole."""
    return frozenset((p, d) for p, d in edge.windows if not sharding_of(operands[p]).axes[d])


def static_shape(value: Value) -> list[int]:
    return [1 if s.constant is None else s.constant for s in shape_of(value)]


def elements_of(value: Value) -> int:
    return math.prod(static_shape(value))
