"""How a tensor that lies one way comes to lie another way: a sequence of collectives, with what each sends.

Source of the cases: https://openxla.org/shardy (reshard to collectives); bytes are those of ring algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intarsia.ir.sharding import Axes, Mesh, MeshAxis, Sharding, local_extent, ring_elements
from intarsia.ir.spmd import NEUTRAL


@dataclass(frozen=True)
class Step:
    """One collective over `axes`, or `first`, by which what all have becomes parts, of which the first device has all.
    dim: the dimension that it gathers, scatters or slices, or splits in an all_to_all, which joins `join`. before,
    after: the local shapes; what goes in is padded to `before` and what comes out cut to `after`. sources: of a
    permutation, by the position along `axes`."""

    kind: str
    axes: Axes
    before: tuple[int, ...]
    after: tuple[int, ...]
    dim: int = 0
    join: int = 0
    combiner: str = "sum"
    sources: tuple[int, ...] = ()

    def elements_sent(self, mesh: Mesh) -> float:
        """Elements that each device sends, by a ring."""
        return ring_elements(self.kind, math.prod(self.before), mesh.size(self.axes))


def reshard_steps(mesh: Mesh, shape: Sequence[int], source: Sharding, target: Sharding) -> tuple[Step, ...]:
    """The collectives that take a tensor of `shape` from one sharding to the other, in order."""
    if source.axes == target.axes and not source.partial and not target.partial:  # most often
        return ()
    return tuple(_Resharding(mesh, tuple(shape), _splitting(mesh, source), _splitting(mesh, target)).steps())


def _splitting(mesh: Mesh, sharding: Sharding) -> Sharding:
    """The sharding without axes of one device, which split nothing."""

    def several(axes: Axes) -> Axes:
        return tuple(a for a in axes if mesh.size(a) > 1)

    return Sharding.of(tuple(map(several, sharding.axes)), several(sharding.partial), sharding.combiner)


@dataclass
class _Resharding:
    mesh: Mesh
    shape: tuple[int, ...]
    source: Sharding
    target: Sharding

    def steps(self) -> Iterator[Step]:
        wanted = self.target.axes
        now = list(self.source.axes)
        source, target = self.source, self.target
        kept = tuple(a for a in source.partial if a in target.partial and source.combiner == target.combiner)
        yield from self._merged(now, wanted, tuple(a for a in source.partial if a not in kept))
        while tuple(now) != wanted:
            before = tuple(now)
            for way in (
                self._sliced,
                self._permuted,
                self._sliced_before,
                self._exchanged,
                self._rearranged,
                self._gathered,
            ):
                step = way(now, wanted)
                if step is not None:
                    yield step
                    break
            assert tuple(now) != before, f"no step from {before} to {wanted}"
        if (made := tuple(a for a in target.partial if a not in kept)) and target.combiner in NEUTRAL:
            yield self._step("first", made, tuple(now), now, combiner=target.combiner)

    def _merged(self, now: list[Axes], wanted: Sequence[Axes], parts: Axes) -> Iterator[Step]:
        """Partial results are merged: along an axis that the target splits a dimension over next, only in part."""
        rest = list(parts)
        combiner = self.source.combiner
        for d, target in enumerate(wanted):
            while rest and self._begins(now[d], target) and now[d] != target:
                axis = self.mesh.rest(now[d], target)[0]
                if axis not in rest or not self._leads(d, now[d], (axis,), target):
                    break
                rest.remove(axis)
                old = tuple(now)
                now[d] = self.mesh.joined((*now[d], axis))
                yield self._step("reduce_scatter", (axis,), old, now, dim=d, combiner=combiner, cut=d)
        if rest:
            yield self._step("all_reduce", tuple(rest), tuple(now), now, combiner=combiner)

    def _sliced(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """What the target splits over axes that nothing uses is cut where it lies."""
        for d, following in self._pending(now, wanted):
            free = self._unused(following, now)
            if free and self._leads(d, now[d], free, wanted[d]):
                old = tuple(now)
                now[d] = self.mesh.joined((*now[d], *free))
                return self._step("all_slice", free, old, now, dim=d, cut=d)
        return None

    def _sliced_before(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """Of the axes that come next in one dimension the first end another one, and nothing uses the others: that one
        is cut over these too, so that less is sent when all of them move."""
        for e, following in self._pending(now, wanted):
            for d, own in enumerate(now):
                for start in range(len(own)) if d != e else ():
                    last, kept = own[start:], own[:start]
                    if not self.mesh.is_prefix(last, following) or self.mesh.is_prefix(own, wanted[d]):
                        continue
                    more = self.mesh.rest(last, following)
                    fits = self._fits(d, own, more) and self._fits(d, kept, following)
                    if more and fits and self._unused(more, now) == more and self._fits(e, now[e], following):
                        old = tuple(now)
                        now[d] = self.mesh.joined((*own, *more))
                        return self._step("all_slice", more, old, now, dim=d, cut=d)
        return None

    def _permuted(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """Where each dimension is cut into as many parts as before, whole parts change places."""
        if any(self.mesh.size(a) != self.mesh.size(b) for a, b in zip(now, wanted)):
            return None
        axes = self._union([a for d in (*now, *wanted) for a in d])
        old = tuple(now)
        now[:] = wanted
        sources = _sources(self.mesh, axes, old, tuple(wanted))
        return self._step("collective_permute", axes, old, now, sources=sources)

    def _exchanged(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """The last axes of one dimension that come next in another one move there."""
        for e, following in self._pending(now, wanted):
            for d, own in enumerate(now):
                if d == e:
                    continue
                for count in range(len(following), 0, -1):
                    moved = self.mesh.joined(following[:count])
                    kept = _without_suffix(self.mesh, own, moved)
                    if kept is None or self.mesh.is_prefix((*kept, *moved), wanted[d]):
                        continue
                    if self._leads(e, now[e], moved, wanted[e]) and self._fits(d, kept, moved):
                        old = tuple(now)
                        now[e] = self.mesh.joined((*now[e], *moved))
                        now[d] = kept
                        return self._step("all_to_all", moved, old, now, dim=e, join=d, cut=e)
        return None

    def _rearranged(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """Where both are split over the same axes, but dimensions into other numbers of parts: whole parts change
        places, so that each dimension begins with what it will have, and the rest only has to be exchanged."""
        used, target = (self._whole([a for d in axes for a in d]) for axes in (now, wanted))
        if used is None or used != target or not all(map(self._is_even, range(len(now)), now, wanted)):
            return None
        new: list[Axes] = []
        left: list[MeshAxis] = []
        for own, axes in zip(now, wanted):
            first, rest = self.mesh.take(axes, self.mesh.size(own))
            new.append(first)
            left += rest
        for d, own in enumerate(now):
            more, rest = self.mesh.take(tuple(left), self.mesh.size(own) // self.mesh.size(new[d]))
            new[d], left = self.mesh.joined((*new[d], *more)), list(rest)
        if left or new == now or any(self.mesh.size(a) != self.mesh.size(b) for a, b in zip(now, new)):
            return None
        return self._permuted(now, new)

    def _whole(self, axes: Sequence[MeshAxis]) -> tuple[MeshAxis, ...] | None:
        """The axes in order, if they are whole ones."""
        return tuple(sorted(axes)) if all(a.is_whole for a in axes) else None

    def _is_even(self, d: int, *splits: Axes) -> bool:
        return all(self.shape[d] % self.mesh.size(axes) == 0 for axes in splits)

    def _gathered(self, now: list[Axes], wanted: Sequence[Axes]) -> Step | None:
        """What stands in the way is gathered: of each dimension all after what it keeps; and where nothing does, one
        that cannot be cut further as it is."""
        for d in sorted(range(len(now)), key=lambda d: (self._begins(now[d], wanted[d]), self.mesh.size(now[d]))):
            if now[d] == wanted[d]:
                continue
            kept = self.mesh.common_prefix(now[d], wanted[d])
            gathered = self.mesh.rest(kept, now[d])
            if not gathered or not self._fits(d, kept, gathered):
                kept, gathered = (), now[d]
            if gathered:
                old = tuple(now)
                now[d] = kept
                return self._step("all_gather", gathered, old, now, dim=d)
        return None

    # ------------------------------------------------------------------ helpers

    def _pending(self, now: Sequence[Axes], wanted: Sequence[Axes]) -> Iterator[tuple[int, Axes]]:
        """The dimensions that are split as they are to be, but not far enough, and the axes that come next."""
        for d, target in enumerate(wanted):
            if now[d] != target and self._begins(now[d], target):
                yield d, self.mesh.rest(now[d], target)

    def _step(
        self,
        kind: str,
        axes: Axes,
        old: Sequence[Axes],
        new: Sequence[Axes],
        dim: int = 0,
        join: int = 0,
        combiner: str = "sum",
        sources: tuple[int, ...] = (),
        cut: int | None = None,
    ) -> Step:
        before, after = list(self._local(old)), self._local(new)
        if cut is not None:  # padded, so that all parts are of one size
            before[cut] = after[cut] * self.mesh.size(axes)
        return Step(kind, axes, tuple(before), after, dim, join, combiner, sources)

    def _local(self, axes: Sequence[Axes]) -> tuple[int, ...]:
        return tuple(local_extent(s, self.mesh.size(a)) for s, a in zip(self.shape, axes))

    def _begins(self, own: Axes, target: Axes) -> bool:
        return self.mesh.is_prefix(own, target)

    def _fits(self, d: int, own: Axes, more: Axes) -> bool:
        """Do the parts over `own` and `more` lie within those over `own`?"""
        if not own:
            return True
        outer = local_extent(self.shape[d], self.mesh.size(own))
        inner = local_extent(self.shape[d], self.mesh.size(own) * self.mesh.size(more))
        return inner * self.mesh.size(more) == outer

    def _leads(self, d: int, own: Axes, more: Axes, target: Axes) -> bool:
        """Can a dimension be split over `more` too, and after that over the rest of its target?"""
        after = self.mesh.joined((*own, *more))
        return self._fits(d, own, more) and (after == target or self._fits(d, after, self.mesh.rest(after, target)))

    def _unused(self, axes: Axes, now: Sequence[Axes]) -> Axes:
        return self.mesh.free_prefix(axes, [a for d in now for a in d])

    def _union(self, axes: Sequence[MeshAxis]) -> Axes:
        """All axes that overlap with these, whole ones where parts of one differ."""
        names = dict.fromkeys(a.name for a in axes)
        found: list[MeshAxis] = []
        for name in names:
            own = {a for a in axes if a.name == name}
            found += own if len(own) == 1 else [MeshAxis(name)]
        return tuple(found)


def _without_suffix(mesh: Mesh, axes: Axes, suffix: Axes) -> Axes | None:
    """`axes` less `suffix`, with which they end; None if they do not."""
    for keep in range(len(axes), -1, -1):
        if axes[keep:] == suffix:
            return axes[:keep]
        if keep:
            last = axes[keep - 1]
            if suffix and last.name == suffix[0].name and axes[keep:] == suffix[1:] and last != suffix[0]:
                size, part = mesh.size(last), mesh.size(suffix[0])
                if size % part == 0 and suffix[0].left == last.left * (size // part):
                    return (*axes[: keep - 1], mesh.split(last, size // part)[0])
    return None


def _sources(mesh: Mesh, axes: Axes, old: tuple[Axes, ...], new: tuple[Axes, ...]) -> tuple[int, ...]:
    """For each position along `axes`, the position that has the part which is wanted there: itself if it has it."""
    small = Mesh(tuple((str(n), mesh.size(a)) for n, a in enumerate(axes)))

    def within(found: Axes) -> Axes:
        """The axes as those of the small mesh."""
        result: list[MeshAxis] = []
        for a in found:
            n = next(n for n, whole in enumerate(axes) if mesh.overlap(a, whole))
            whole = axes[n]
            result.append(small.part(str(n), a.left // whole.left, mesh.size(a)))
        return tuple(result)

    before, after = [within(a) for a in old], [within(a) for a in new]
    holders: dict[tuple[int, ...], list[int]] = {}
    for device in range(small.devices):
        holders.setdefault(tuple(small.position(device, a) for a in before), []).append(device)
    sources: list[int] = []
    for device in range(small.devices):
        have = holders[tuple(small.position(device, a) for a in after)]
        sources.append(device if device in have else have[device % len(have)])
    return tuple(sources)
