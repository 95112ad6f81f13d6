"""Register buffers: memory whose subscripts are known while the code is written, held as SSA values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.backends.cpu.analysis import Layout
from intarsia.backends.cpu.llvm import Function
from intarsia.backends.cpu.values import Value, extract, insert, shuffle, widen, zero
from intarsia.ir.kernel import Buffer

Key: TypeAlias = "tuple[int, ...]"
Position: TypeAlias = "tuple[int, int]"
"""A subscript in lane 0, and how much it grows from one lane to the next."""


@dataclass(frozen=True)
class Place:
    """A register of a buffer."""

    buffer: str
    key: Key


class Registers:
    """The current value of every register, by buffer and key (the subscripts, that of the vector dimension divided by
    the number of lanes). A register that was not written holds 0."""

    def __init__(self, function: Function, layouts: Mapping[str, Layout], buffers: Mapping[str, Buffer]) -> None:
        self.function = function
        self.layouts = layouts
        self.buffers = buffers
        self.values: dict[Place, Value] = {}
        self.only_lane: int | None = None
        """The lane that is meant where lanes are written one by one; matters for private buffers."""

    def holds(self, buffer: str) -> bool:
        return buffer in self.layouts

    def clear(self, buffer: str) -> None:
        """Forget the values of a buffer: a fresh one is undefined."""
        for place in [p for p in self.values if p.buffer == buffer]:
            del self.values[place]

    def current(self, place: Place) -> Value:
        """The value of a register as one vector (or scalar)."""
        if place in self.values:
            return self.values[place]
        return zero(self.buffers[place.buffer].dtype, self.layouts[place.buffer].lanes)

    def places(self, buffer: str, index: tuple[Position, ...], lanes: int) -> list[tuple[Place, int]]:
        """Register and lane of each element that the lanes of an access touch."""
        layout = self.layouts[buffer]
        found = []
        for lane in range(1 if layout.private else lanes):
            subscripts = [start + step * lane for start, step in index]
            position = 0
            if layout.dimension is not None:
                subscripts[layout.dimension], position = divmod(subscripts[layout.dimension], layout.lanes)
            found.append((Place(buffer, tuple(subscripts)), position))
        return found

    def whole(self, buffer: str, index: tuple[Position, ...], lanes: int) -> Place | None:
        """The register whose lanes are, in order, those of the access; None if there is no such one."""
        layout = self.layouts[buffer]
        steps = [step for _, step in index]
        if layout.private or not any(steps):
            return self.places(buffer, index, 1)[0][0] if layout.private or layout.lanes == 1 else None
        aligned = layout.dimension is not None and index[layout.dimension][0] % layout.lanes == 0
        in_order = aligned and steps[layout.dimension or 0] == 1 and sum(map(abs, steps)) == 1
        return self.places(buffer, index, 1)[0][0] if in_order and lanes == layout.lanes else None

    def read(self, buffer: str, index: tuple[Position, ...], lanes: int) -> Value:
        """The elements that an access touches: a scalar if all lanes touch the same one."""
        place = self.whole(buffer, index, lanes)
        if place is not None:
            value = self.current(place)
            one = self.layouts[buffer].private and self.only_lane is not None
            return extract(self.function, value, self.only_lane or 0) if one else value
        places = self.places(buffer, index, lanes if any(step for _, step in index) else 1)
        if len(places) == 1:
            return extract(self.function, self.current(places[0][0]), places[0][1])
        return self.gather([(self.current(p), lane) for p, lane in places])

    def write(self, buffer: str, index: tuple[Position, ...], lanes: int, value: Value) -> None:
        """Replace the elements that an access touches."""
        layout = self.layouts[buffer]
        place = self.whole(buffer, index, lanes)
        if place is not None and layout.private and self.only_lane is not None:
            self.values[place] = insert(self.function, self.current(place), self.only_lane, value)
        elif place is not None:
            self.values[place] = widen(self.function, value, layout.lanes)
        else:
            count = lanes if any(step for _, step in index) else 1
            for lane, (other, position) in enumerate(self.places(buffer, index, count)):
                element = extract(self.function, value, lane) if value.lanes > 1 else value
                old = self.current(other)
                self.values[other] = insert(self.function, old, position, element) if old.lanes > 1 else element

    def written(self, buffer: str, index: tuple[Position, ...], lanes: int) -> Iterator[Place]:
        """The registers that a write would change."""
        place = self.whole(buffer, index, lanes)
        return iter((place,)) if place else (p for p, _ in self.places(buffer, index, lanes))

    # ------------------------------------------------------------------ moving lanes

    def gather(self, parts: list[tuple[Value, int]]) -> Value:
        """A vector of single lanes of vectors (or of scalars)."""
        sources = list(dict.fromkeys(v for v, _ in parts))
        wanted = [lane for _, lane in parts]
        first = sources[0]
        if len(sources) == 1 and first.lanes == len(parts) and wanted == list(range(len(parts))):
            return first
        if first.lanes > 1 and len(sources) <= 2:
            second = sources[-1]
            lanes = [lane + (first.lanes if v is second and second is not first else 0) for v, lane in parts]
            return shuffle(self.function, first, second, lanes)
        is_column = len(parts) == len(sources) <= first.lanes and len(set(wanted)) == 1
        if is_column and first.lanes & (first.lanes - 1) == 0:
            return transpose(self.function, sources)[wanted[0]]
        result = zero(first.dtype, len(parts))
        for position, (value, lane) in enumerate(parts):
            result = insert(self.function, result, position, extract(self.function, value, lane))
        return result


def transpose(function: Function, rows: list[Value]) -> list[Value]:
    """The columns of up to n vectors of n lanes, n a power of two: n vectors take n * log2(n) shuffles of two.

    Within 128 bits pairs of lanes are interleaved (one cheap instruction on x86 and ARM), then groups of 128 bits are
    exchanged. Shuffles are shared, so the columns may be asked for one by one.
    """
    n, wanted = rows[0].lanes, len(rows)
    vectors = rows + rows[-1:] * ((1 << (wanted - 1).bit_length()) - wanted)  # as many as a power of two
    group = min(n, 128 // max(8, rows[0].dtype.bits))  # what has fewer bits is a byte in a register
    # Each vector is followed by what it holds: (row, column) of each of its lanes.
    held = [[(r, c) for c in range(n)] for r in range(len(vectors))]

    def combine(a: int, b: int, lanes: list[int]) -> tuple[Value, list[tuple[int, int]]]:
        both = held[a] + held[b]
        return shuffle(function, vectors[a], vectors[b], lanes), [both[i] for i in lanes]

    distance = 1
    while distance < len(vectors):
        made: list[tuple[Value, list[tuple[int, int]]]] = [(vectors[0], held[0])] * len(vectors)
        block = distance if distance < group else group
        for a in range(len(vectors)):
            if a & distance:
                continue
            low, high = _exchange(n, block, group, distance)
            made[a], made[a + distance] = combine(a, a + distance, low), combine(a, a + distance, high)
        vectors, held = [v for v, _ in made], [h for _, h in made]
        distance *= 2
    columns: list[Value] = []
    for column in range(n):
        i = next(i for i, h in enumerate(held) if (0, column) in h)
        lanes = [held[i].index((r, column)) for r in range(wanted)]
        columns.append(vectors[i] if lanes == list(range(n)) else shuffle(function, vectors[i], vectors[i], lanes))
    return columns


def _exchange(n: int, block: int, group: int, distance: int) -> tuple[list[int], list[int]]:
    """The lanes of two vectors of n that make a new pair of vectors.

    Below `group` lanes: interleave blocks of `block` lanes of the low (high) halves of each group. Above: take the even
    (odd) groups of the first vector and then of the second.
    """
    if distance < group:
        low: list[int] = []
        high: list[int] = []
        for start in range(0, n, group):
            for half, into in ((0, low), (group // 2, high)):
                for offset in range(start + half, start + half + group // 2, block):
                    into += [*range(offset, offset + block), *range(n + offset, n + offset + block)]
        return low, high
    parts = [list(range(s, s + group)) for s in range(0, 2 * n, group)]
    return [i for p in parts[::2] for i in p], [i for p in parts[1::2] for i in p]
