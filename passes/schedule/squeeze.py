"""The step that lets elements of few bits share words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import U8, U16, U32, DType
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Bitcast, Expr, Index, Load, apply, cast, constant, transform
from intarsia.ir.schedule import Squeeze
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.passes.schedule.tree import Body, NameSource, change_loads, find_buffer, find_loop, rewrite

WORDS = {word.name: word for word in (U32, U16, U8)}
"""What codes share, widest first."""


def squeeze(kernel: Kernel, step: Squeeze) -> Kernel:
    """See `Squeeze`."""
    buffer, word = find_buffer(kernel, step.buffer), WORDS.get(step.element)
    if buffer.role != "temp" or buffer.dtype.bits >= 8:
        raise ScheduleError(f"{step.buffer} is no temporary of elements of fewer than 8 bits")
    if word is None:
        raise ScheduleError(f"{step.element} is none of {', '.join(WORDS)}")
    NameSource(kernel).claim(step.new)
    put, places = _written(kernel, step, buffer)
    lengths = tuple(int(buffer.shape[d]) for d in places)
    if math.prod(lengths) * buffer.dtype.bits % word.bits:
        count = " by ".join(map(str, lengths))
        along = " and ".join(step.axes)
        raise ScheduleError(f"{count} elements along {along} do not fill whole words of {word.bits} bits")
    stream = _Stream(step.new, buffer.dtype, word, places, lengths)
    if lengths[0] % stream.steps:
        raise ScheduleError(f"{stream.elements} elements that fill whole words are no whole steps of {step.axes[0]}")

    def read(e: Expr) -> Expr | None:
        return stream.element(e) if isinstance(e, Load) and e.buffer == buffer.name else None

    def change(statement: Statement) -> Statement | Body | None:
        match statement:
            case Alloc(found) if found == buffer:
                along = Size.of(math.prod(lengths) * buffer.dtype.bits // word.bits)
                shape = stream.at(buffer.shape, along, ONE)
                return Alloc(replace(buffer, name=step.new, dtype=word, shape=shape))
            case Put() if statement is put:
                return tuple(stream.written(put, step.axes, n) for n in range(stream.words))
            case Prefetch() if statement.buffer == buffer.name:
                first = stream.position(statement.indices) // word.bits
                return replace(statement, buffer=step.new, indices=stream.at(statement.indices, first, ZERO))
            case Prefetch():
                begin = stream.place(step.axes, 0)
                return replace(statement, indices=tuple(i.substitute(begin) for i in statement.indices))
            case For() if statement.axis in step.axes:
                length = lengths[0] // stream.steps if statement.axis == step.axes[0] else 1
                return replace(statement, upper=Size.of(length))
        return None

    return kernel.with_body(change_loads(rewrite(kernel.body, change), read))


@dataclass(frozen=True)
class _Stream:
    """Elements along dimensions, of which the last one changes first, as bits of words of a buffer, lowest first."""

    buffer: str
    dtype: DType
    word: DType
    dimensions: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def steps(self) -> int:
        """How many steps along the first dimension fill whole words."""
        inside = math.prod(self.lengths[1:])
        return math.lcm(self.dtype.bits * inside, self.word.bits) // (self.dtype.bits * inside)

    @property
    def elements(self) -> int:
        """How many elements these are."""
        return self.steps * math.prod(self.lengths[1:])

    @property
    def words(self) -> int:
        """How many words these are."""
        return self.elements * self.dtype.bits // self.word.bits

    def position(self, indices: tuple[Size, ...]) -> Size:
        """The first bit of an element."""
        number = ZERO
        for dimension, length in zip(self.dimensions, self.lengths):
            number = number * length + indices[dimension]
        return number * self.dtype.bits

    def at(self, indices: tuple[Size, ...], along: Size, inside: Size) -> tuple[Size, ...]:
        """Subscripts or extents, but for those of the dimensions: `along` the first one, and `inside` of it."""
        new = dict.fromkeys(self.dimensions, inside) | {self.dimensions[0]: along}
        return tuple(new.get(d, i) for d, i in enumerate(indices))

    def written(self, put: Put, axes: tuple[str, ...], number: int) -> Put:
        """The statement that sets one of the words that elements fill, in place of one that sets an element."""
        bits = self.dtype.bits
        begin, end = number * self.word.bits, (number + 1) * self.word.bits
        parts = []
        for position in range(begin // bits, -(-end // bits)):
            own = transform(put.value, self.place(axes, position))
            code, distance = cast(self.word, Bitcast(U8, own)), position * bits - begin
            how = "shift_left" if distance > 0 else "shift_right"
            parts.append(apply(how, code, constant(abs(distance), self.word)) if distance else code)
        whole = parts[0]
        for part in parts[1:]:
            whole = apply("bit_or", whole, part)
        along = Size.of(axes[0]) * self.words + number
        return replace(put, buffer=self.buffer, indices=self.at(put.indices, along, ZERO), value=whole)

    def place(self, axes: tuple[str, ...], position: int) -> dict[str, Size]:
        """Which element of those that the loops are at is meant."""
        found: dict[str, Size] = {}
        for axis, length in reversed(tuple(zip(axes[1:], self.lengths[1:]))):
            found[axis], position = Size.of(position % length), position // length
        return found | {axes[0]: Size.of(axes[0]) * self.steps + position}

    def element(self, load: Load) -> Expr:
        """An element. Its upper bits come from the word in which it ends, and are above those that count if that is the
        one in which it begins."""
        bits, width = self.dtype.bits, self.word.bits
        begin = self.position(load.indices)

        def word(position: Size) -> Load:
            return Load(self.buffer, self.at(load.indices, position // width, ZERO), self.word, load.mask)

        code = apply("shift_right", word(begin), cast(self.word, Index(begin % width)))
        if width % bits:
            upper = apply("shift_left", word(begin + (bits - 1)), constant(1, self.word))
            upper = apply("shift_left", upper, cast(self.word, Index(width - 1 - begin % width)))
            code = apply("bit_or", code, upper)
        return Bitcast(self.dtype, cast(U8, code))


def _written(kernel: Kernel, step: Squeeze, buffer: Buffer) -> tuple[Put, tuple[int, ...]]:
    """The statement that sets a buffer, and the dimensions that loops go through."""
    found = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.buffer == buffer.name]
    if len(found) != 1 or any(a.writes and not isinstance(a.statement, Put) for a in accesses(kernel.body)):
        raise ScheduleError(f"{buffer.name} is set by {len(found)} statements")
    put, around = found[0]
    places = tuple(_dimension(kernel, axis, put, buffer) for axis in step.axes)
    loops = [loop for loop in around if loop.axis in step.axes]
    if put.operator != "=" or put.mask or len(loops) != len(step.axes):
        raise ScheduleError(f"{put.buffer} is not simply set along {' and '.join(step.axes)}")
    if [s for s, _ in walk(loops[0].body) if isinstance(s, Put)] != [put]:
        raise ScheduleError(f"{loops[0].axis} does more than set {put.buffer}")
    return put, places


def _dimension(kernel: Kernel, axis: str, put: Put, buffer: Buffer) -> int:
    """The dimension that a loop goes through."""
    loop, _ = find_loop(kernel, axis)
    places = [d for d, index in enumerate(put.indices) if index.as_name == axis]
    if len(places) != 1 or sum(axis in index.symbols for index in put.indices) != 1:
        raise ScheduleError(f"{put.buffer} is not simply set along {axis}")
    extent = buffer.shape[places[0]].constant
    bounds = (loop.lower, loop.upper, loop.step)
    if extent is None or bounds != (ZERO, Size.of(extent), 1) or loop.kind not in ("seq", "unroll"):
        raise ScheduleError(f"{axis} does not go through all of a dimension one by one")
    return places[0]
