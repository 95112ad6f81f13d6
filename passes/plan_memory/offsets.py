"""Where in the workspace each piece of memory lies: pieces that are needed at the same time must not overlap.

Choosing offsets so that the peak is least is NP-hard (storage allocation); placing in a good order wherever there is
room comes close (Buchsbaum et al., 2003). Several orders are tried against the lower bound, the largest sum of what is
needed at one time, and small programs that miss it are searched. Sizes that stay open share regions instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from intarsia.ir.proofs import Facts
from intarsia.ir.sizes import Size, maximum

ALIGNMENT = 64
"""Bytes; every offset is a multiple: a cache line and the widest vector."""

_SEARCHED = 12
"""Pieces up to which a program is searched for the best placement."""

_SEARCH_STEPS = 20_000


@dataclass(frozen=True)
class Piece:
    """A piece of memory of `bytes` bytes, needed in each of the (closed) intervals of time."""

    bytes: Size
    intervals: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        return min(a for a, _ in self.intervals)

    @property
    def duration(self) -> int:
        return sum(b - a + 1 for a, b in self.intervals)

    def meets(self, other: Piece) -> bool:
        return any(a <= d and c <= b for a, b in self.intervals for c, d in other.intervals)


@dataclass(frozen=True)
class Placement:
    """An offset for each piece and the bytes in all."""

    offsets: tuple[Size, ...]
    bytes: Size


def place(pieces: Sequence[Piece], dimensions: Iterable[str] = ()) -> Placement:
    """Offsets for pieces; `dimensions` are names of sizes that are not negative."""
    known = [n for n, p in enumerate(pieces) if p.bytes.constant is not None]
    offsets: dict[int, Size] = {}
    fixed, total = _place_known([pieces[n] for n in known])
    offsets.update(zip(known, map(Size.of, fixed)))
    end = Size.of(total)
    for region in _regions(
        pieces, [n for n in range(len(pieces)) if n not in offsets], Facts(names=frozenset(dimensions))
    ):
        offsets.update((n, end) for n in region.members)
        end = end + aligned(region.bytes)
    return Placement(tuple(offsets[n] for n in range(len(pieces))), end)


def aligned(bytes_: Size) -> Size:
    """Rounded up to whole units of the alignment."""
    return (bytes_ + (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT


def peak(pieces: Sequence[Piece]) -> int:
    """The largest sum, at one time, of the aligned bytes of pieces of known size: no placement needs less."""
    changes: dict[int, int] = {}
    for piece in pieces:
        bytes_ = int(aligned(piece.bytes))
        for start, end in _disjoint(piece.intervals):
            changes[start] = changes.get(start, 0) + bytes_
            changes[end + 1] = changes.get(end + 1, 0) - bytes_
    now = highest = 0
    for time in sorted(changes):
        now += changes[time]
        highest = max(highest, now)
    return highest


def _disjoint(intervals: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same times without overlap."""
    reached = -1
    for start, end in sorted(intervals):
        if end > reached:
            yield max(start, reached + 1), end
            reached = end


# ---------------------------------------------------------------------- known sizes


def _place_known(pieces: Sequence[Piece]) -> tuple[list[int], int]:
    """The best of several orders, searched further where that is affordable."""
    sizes = [int(aligned(p.bytes)) for p in pieces]
    conflicts = _conflicts(pieces)
    bound = peak(pieces)
    best, least = [0] * len(pieces), -1
    for order in _orders(pieces, sizes):
        offsets, total = _first_fit(order, sizes, conflicts)
        if least < 0 or total < least:
            best, least = offsets, total
        if least == bound:
            return best, least
    if 0 < len(pieces) <= _SEARCHED:
        return _Search(sizes, conflicts, bound, best, least).run()
    return best, max(least, 0)


def _conflicts(pieces: Sequence[Piece]) -> list[list[int]]:
    """For each piece the others that it meets, by a sweep over starts."""
    found: list[list[int]] = [[] for _ in pieces]
    ends = [max(b for _, b in p.intervals) for p in pieces]
    active: list[int] = []
    for n in sorted(range(len(pieces)), key=lambda n: pieces[n].start):
        active = [m for m in active if ends[m] >= pieces[n].start]
        for m in active:
            if pieces[n].meets(pieces[m]):
                found[n].append(m)
                found[m].append(n)
        active.append(n)
    return found


def _orders(pieces: Sequence[Piece], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Orders that tend to place well: large ones first, long ones first, both, and as the program makes them."""
    everything = range(len(pieces))
    yield sorted(everything, key=lambda n: (-sizes[n], pieces[n].start, n))
    yield sorted(everything, key=lambda n: (-sizes[n] * pieces[n].duration, n))
    yield sorted(everything, key=lambda n: (-pieces[n].duration, -sizes[n], n))
    yield sorted(everything, key=lambda n: (pieces[n].start, -sizes[n], n))
    yield sorted(everything, key=lambda n: (-max(b for _, b in pieces[n].intervals), -sizes[n], n))


def _first_fit(order: Sequence[int], sizes: Sequence[int], conflicts: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Place in the order given, each as low as possible."""
    offsets = [-1] * len(sizes)
    for n in order:
        offsets[n] = _lowest(n, offsets, sizes, conflicts)
    return offsets, max((o + s for o, s in zip(offsets, sizes)), default=0)


def _lowest(n: int, offsets: Sequence[int], sizes: Sequence[int], conflicts: Sequence[Sequence[int]]) -> int:
    """The lowest offset at which piece n meets none that is placed."""
    offset = 0
    for start, end in sorted((offsets[m], offsets[m] + sizes[m]) for m in conflicts[n] if offsets[m] >= 0):
        if start >= offset + sizes[n]:
            break
        offset = max(offset, end)
    return offset


@dataclass
class _Search:
    """Depth first over the orders of placing, cut where the best so far is reached; stops at the bound."""

    sizes: Sequence[int]
    conflicts: Sequence[Sequence[int]]
    bound: int
    best: list[int]
    least: int
    steps: int = 0

    def run(self) -> tuple[list[int], int]:
        self._extend([-1] * len(self.sizes), 0)
        return self.best, self.least

    def _extend(self, offsets: list[int], top: int) -> None:
        self.steps += 1
        if top >= self.least or self.least == self.bound or self.steps > _SEARCH_STEPS:
            return
        left = [n for n, o in enumerate(offsets) if o < 0]
        if not left:
            self.best, self.least = list(offsets), top
            return
        for n in sorted(left, key=lambda n: -self.sizes[n]):
            offsets[n] = _lowest(n, offsets, self.sizes, self.conflicts)
            self._extend(offsets, max(top, offsets[n] + self.sizes[n]))
            offsets[n] = -1


# ---------------------------------------------------------------------- open sizes


@dataclass
class _Region:
    """Pieces of open sizes that are never needed at the same time, one over the other."""

    members: list[int]
    bytes: Size


def _regions(pieces: Sequence[Piece], open_: Sequence[int], facts: Facts) -> list[_Region]:
    """Each piece goes where one of the same size was, else where a larger or smaller one was, else to any free region,
    else to a new one."""
    regions: list[_Region] = []
    for n in sorted(open_, key=lambda n: (pieces[n].start, n)):
        size = pieces[n].bytes
        free = [r for r in regions if not any(pieces[n].meets(pieces[m]) for m in r.members)]
        best = min(free, key=lambda r: _distance(r.bytes, size, facts), default=None)
        if best is None:
            regions.append(_Region([n], size))
        else:
            best.members.append(n)
            best.bytes = _larger(best.bytes, size, facts)
    return regions


def _distance(region: Size, size: Size, facts: Facts) -> int:
    """How well a size fits a region: equal, known to be smaller, known to be larger, unknown."""
    if region == size:
        return 0
    return 1 if facts.proves(region - size) else 2 if facts.proves(size - region) else 3


def _larger(a: Size, b: Size, facts: Facts) -> Size:
    if facts.proves(a - b):
        return a
    return b if facts.proves(b - a) else maximum(a, b)
