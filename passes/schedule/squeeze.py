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
from intarsia.ir.sizes import ZERO, Size
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
    put, dimension, count = _written(kernel, step, buffer)
    if count * buffer.dtype.bits % word.bits:
        raise ScheduleError(f"{count} elements along {step.axis} do not fill whole words of {word.bits} bits")
    stream = _Stream(step.new, buffer.dtype, word, dimension)

    def read(e: Expr) -> Expr | None:
        return stream.element(e) if isinstance(e, Load) and e.buffer == buffer.name else None

    def change(statement: Statement) -> Statement | Body | None:
        match statement:
            case Alloc(found) if found == buffer:
                shape = stream.at(buffer.shape, Size.of(count * buffer.dtype.bits // word.bits))
                return Alloc(replace(buffer, name=step.new, dtype=word, shape=shape))
            case Put() if statement is put:
                return tuple(stream.written(put, step.axis, n) for n in range(stream.words))
            case Prefetch() if statement.buffer == buffer.name:
                first = stream.position(statement.indices[dimension]) // word.bits
                return replace(statement, buffer=step.new, indices=stream.at(statement.indices, first))
            case For() if statement.axis == step.axis:
                return replace(statement, upper=Size.of(count // stream.elements))
        return None

    return kernel.with_body(change_loads(rewrite(kernel.body, change), read))


@dataclass(frozen=True)
class _Stream:
    """Elements along a dimension as bits of words of a buffer, the lowest first."""

    buffer: str
    dtype: DType
    word: DType
    dimension: int

    @property
    def elements(self) -> int:
        """How many elements fill whole words."""
        return math.lcm(self.dtype.bits, self.word.bits) // self.dtype.bits

    @property
    def words(self) -> int:
        """How many words these are."""
        return math.lcm(self.dtype.bits, self.word.bits) // self.word.bits

    def position(self, index: Size) -> Size:
        """The first bit of an element."""
        return index * self.dtype.bits

    def at(self, indices: tuple[Size, ...], along: Size) -> tuple[Size, ...]:
        """Subscripts, but for that along the dimension."""
        return tuple(along if d == self.dimension else i for d, i in enumerate(indices))

    def written(self, put: Put, axis: str, number: int) -> Put:
        """The statement that sets one of the words that elements fill, in place of one that sets an element."""
        bits = self.dtype.bits
        begin, end = number * self.word.bits, (number + 1) * self.word.bits
        parts = []
        for position in range(begin // bits, -(-end // bits)):
            own = transform(put.value, {axis: Size.of(axis) * self.elements + position})
            code, distance = cast(self.word, Bitcast(U8, own)), position * bits - begin
            how = "shift_left" if distance > 0 else "shift_right"
            parts.append(apply(how, code, constant(abs(distance), self.word)) if distance else code)
        whole = parts[0]
        for part in parts[1:]:
            whole = apply("bit_or", whole, part)
        along = Size.of(axis) * self.words + number
        return replace(put, buffer=self.buffer, indices=self.at(put.indices, along), value=whole)

    def element(self, load: Load) -> Expr:
        """An element. Its upper bits come from the word in which it ends, and are above those that count if that is the
        one in which it begins."""
        bits, width = self.dtype.bits, self.word.bits
        begin = self.position(load.indices[self.dimension])

        def word(position: Size) -> Load:
            return Load(self.buffer, self.at(load.indices, position // width), self.word, load.mask)

        code = apply("shift_right", word(begin), cast(self.word, Index(begin % width)))
        if width % bits:
            upper = apply("shift_left", word(begin + (bits - 1)), constant(1, self.word))
            upper = apply("shift_left", upper, cast(self.word, Index(width - 1 - begin % width)))
            code = apply("bit_or", code, upper)
        return Bitcast(self.dtype, cast(U8, code))


def _written(kernel: Kernel, step: Squeeze, buffer: Buffer) -> tuple[Put, int, int]:
    """The statement that sets a buffer, the dimension that a loop goes through, and its length."""
    loop, _ = find_loop(kernel, step.axis)
    found = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.buffer == buffer.name]
    if len(found) != 1 or any(a.writes and not isinstance(a.statement, Put) for a in accesses(kernel.body)):
        raise ScheduleError(f"{buffer.name} is set by {len(found)} statements")
    put, around = found[0]
    places = [d for d, index in enumerate(put.indices) if index.as_name == step.axis]
    if put.operator != "=" or put.mask or loop not in around or len(places) != 1:
        raise ScheduleError(f"{put.buffer} is not simply set along {step.axis}")
    if sum(step.axis in index.symbols for index in put.indices) != 1 or [
        s for s, _ in walk(loop.body) if isinstance(s, Put)
    ] != [put]:
        raise ScheduleError(f"{step.axis} does more than set {put.buffer}")
    extent = buffer.shape[places[0]].constant
    if (
        extent is None
        or (loop.lower, loop.upper, loop.step) != (ZERO, Size.of(extent), 1)
        or loop.kind not in ("seq", "unroll")
    ):
        raise ScheduleError(f"{step.axis} does not go through all of a dimension one by one")
    return put, places[0], extent
