"""Loops of the kind `dot` inside vectors: their iterations are the parts of a word in each lane.

A sum of products becomes a dot instruction of the target (`ir/dots.py`), a copy moves whole words. Words come from
memory where the parts lie side by side, and are put together by shuffles elsewhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from intarsia.backends.cpu.analysis import trip_count
from intarsia.backends.cpu.indices import Condition
from intarsia.backends.cpu.llvm import Operand
from intarsia.backends.cpu.memory import Address
from intarsia.backends.cpu.values import (
    Value,
    constant,
    insert,
    instruction,
    resized,
    select,
    shuffle,
    vector_type,
    widen,
    zero,
)
from intarsia.backends.cpu.writes import Writes
from intarsia.ir.dots import Dot, find_dot, widened_factors
from intarsia.ir.dtypes import BF16, BOOL, I8, I16, U8, U16, U32, U64, DType
from intarsia.ir.kernel import For, Prefetch, Put
from intarsia.ir.scalar import Expr, Index, Load, Mask, loads, walk

_WORDS = {16: U16, 32: U32, 64: U64}

_PARTS = {BF16: "bfloat", I8: "i8", U8: "i8", I16: "i16"}


@dataclass(frozen=True)
class _Open:
    """The dot loop that is being written, the conditions of its statement on its axis, and the instruction, if the
    statement adds products."""

    loop: For
    conditions: Mask
    dot: Dot | None


class Dots(Writes):
    """Writes dot loops."""

    _open: _Open | None = None

    @abstractmethod
    def bind_axis(self, loop: For, operand: Operand) -> None:
        """Give an axis its value in the current iteration."""

    def dot(self, loop: For) -> bool:
        """Write a dot loop at once; False, and nothing is written, where that cannot be."""
        (put,) = (s for s in loop.body if isinstance(s, Put))
        if self.lane is None or put.atomic:
            return False
        self.bind_axis(loop, int(self.number(loop.lower)))
        own = tuple(m for m in put.mask if loop.axis in m.symbols)
        if put.operator == "=":
            if own or not self._is_whole(put, loop):
                return False
            self._open = _Open(loop, (), None)
        else:
            found = find_dot(self.target, put)
            moves = any(loop.axis in i.symbols for i in put.indices)
            if found is None or found.width != trip_count(loop) or moves or not self._is_apart(put):
                return False
            self._open = _Open(loop, own, found)
        for i in range(int(self.number(loop.lower)), int(self.number(loop.upper)), loop.step):
            self.bind_axis(loop, i)
            self.block(tuple(s for s in loop.body if isinstance(s, Prefetch)))
        self.bind_axis(loop, int(self.number(loop.lower)))
        self.forget_values()
        self.put(replace(put, mask=tuple(m for m in put.mask if m not in own)))
        self.forget_values()
        self._open = None
        return True

    def _is_apart(self, put: Put) -> bool:
        """Does every lane write an element of its own?"""
        return not self._is_reduction(put) and not self._may_collide(put)

    def _is_whole(self, put: Put, loop: For) -> bool:
        """Does a statement write whole words, one after the other?"""
        width, buffer = trip_count(loop), self.buffers[put.buffer]
        if buffer.dtype == BOOL or 8 * buffer.dtype.bytes * (width or 0) not in _WORDS:
            return False
        place = self._place(put.buffer, put.indices, loop)
        return place is not None and place.stride == 1

    def combined(self, put: Put, old: Callable[[], Value]) -> Value:
        """The new value of the target: words, in a dot loop that copies."""
        if self._open is None:
            return super().combined(put, old)
        if self._open.dot is None:
            return self._words(put.value, self._open)
        pair = widened_factors(put)
        assert pair is not None
        left, right = (self._words(e, self._open) for e in pair)
        return self._add_products(self._open.dot, old(), left, right)

    # ------------------------------------------------------------------ words

    def _words(self, expression: Expr, of: _Open) -> Value:
        """The values of an expression in all iterations of the loop, side by side in each lane."""
        if not of.conditions:
            if isinstance(expression, Load) and (whole := self._word_load(expression, of.loop)) is not None:
                return whole
            if (value := self._elementwise(expression, of.loop)) is not None:
                return value
        parts = []
        for i in range(int(self.number(of.loop.lower)), int(self.number(of.loop.upper)), of.loop.step):
            self.bind_axis(of.loop, i)
            self.forget_values()
            parts.append(self._where_holds(self.condition(of.conditions), expression))
        self.bind_axis(of.loop, int(self.number(of.loop.lower)))
        return self._interleaved(parts)

    def _where_holds(self, condition: Condition, expression: Expr) -> Value:
        """A value, or 0 where a condition does not hold: products of two of those add nothing."""
        nothing = zero(expression.dtype)
        if condition.uniform == "false":
            return nothing
        value = self.value(expression)
        if condition.lanes is not None:
            return select(self.function, self.lane_mask(condition), value, nothing)
        return select(self.function, Value(condition.uniform, BOOL), value, nothing)

    def _elementwise(self, expression: Expr, loop: For) -> Value | None:
        """What is computed part by part from whole words; None where it needs anything else."""
        leaves = list(dict.fromkeys(loads(expression)))
        if self.lane is None:
            return None
        changing = {self.lane.axis, loop.axis}
        if any(isinstance(e, Index) and e.symbols & changing for e in walk(expression)):
            return None
        parts = [self._part_load(x, loop, self.lane.lanes) for x in leaves]
        self.forget_values()
        for load, value in zip(leaves, parts):
            if value is None:
                return None
            self._values[load] = value
        lanes = self.lane.lanes * (trip_count(loop) or 1)
        result = widen(self.function, self.value(expression), lanes)
        self.forget_values()
        return self._as_words(result, trip_count(loop) or 1)

    def _part_load(self, load: Load, loop: For, lanes: int) -> Value | None:
        """What a load gives in all iterations, side by side in each lane; None if it does not lie so."""
        if loop.axis not in load.symbols:
            same, width = widen(self.function, self.value(load), lanes), trip_count(loop) or 1
            return shuffle(self.function, same, same, [n // width for n in range(lanes * width)])
        words = self._word_load(load, loop)
        return None if words is None else self._parts(widen(self.function, words, lanes), load.dtype)

    def _word_load(self, load: Load, loop: For) -> Value | None:
        """What a load gives in all iterations, if that lies side by side."""
        width = trip_count(loop) or 0
        if load.dtype == BOOL or 8 * load.dtype.bytes * width not in _WORDS or loop.axis in _symbols(load.mask):
            return None
        if load.other is not None and str(load.other.value) not in ("0", "0.0"):
            return None
        if self.registers.holds(load.buffer):
            return None if load.mask else self._register_words(load, loop)
        place = self._place(load.buffer, load.indices, loop)
        if place is None:
            return None
        condition = self.condition(load.mask)
        if self.active is not None and not self._in_bounds(load):
            condition = self.both(condition, Condition(lanes=self.active))
        nothing = constant(0, _WORDS[8 * load.dtype.bytes * width])
        return nothing if condition.uniform == "false" else self._load_at(load.buffer, place, condition, nothing)

    def _place(self, name: str, indices: tuple[object, ...], loop: For) -> Address | None:
        """Where the words of all lanes lie in memory, counted in words; None if their parts do not lie together."""
        if self.registers.holds(name) or self.buffers[name].length is not None or loop.step != 1:
            return None
        width = trip_count(loop)
        if not width or self._flat_index(name, indices).coefficient(loop.axis) != 1:  # type: ignore[arg-type]
            return None
        return self.in_words(self.address(name, indices), width, self.buffers[name].dtype)  # type: ignore[arg-type]

    def _register_words(self, load: Load, loop: For) -> Value | None:
        """Words of registers that hold their parts in neighbouring lanes."""
        width, layout = trip_count(loop) or 1, self.registers.layouts[load.buffer]
        if layout.private or layout.lanes % width or loop.step != 1:
            return None
        start, columns = int(self.number(loop.lower)), []
        for i in range(start, start + width):
            self.bind_axis(loop, i)
            columns.append(self.registers.places(load.buffer, self.positions(load.indices), self.lanes))
        self.bind_axis(loop, start)
        found: list[tuple[Value, int]] = []
        for parts in zip(*columns):
            (place, first), *rest = parts
            if first % width or any(part != (place, first + n) for n, part in enumerate(rest, 1)):
                return None
            found.append((self._as_words(self.registers.current(place), width), first // width))
        return self.registers.gather(found)

    def _parts(self, words: Value, dtype: DType) -> Value:
        """The parts of words as a vector of them."""
        lanes = words.lanes * (words.dtype.bytes // dtype.bytes)
        kind = Value("", dtype, lanes).type
        return Value(self.function.op(f"bitcast {words} to {kind}"), dtype, lanes)

    def _as_words(self, parts: Value, width: int) -> Value:
        """Neighbouring lanes as the words that they are part of."""
        words = Value("", _WORDS[8 * parts.dtype.bytes * width], parts.lanes // width)
        return replace(words, text=self.function.op(f"bitcast {parts} to {words.type}"))

    def _interleaved(self, parts: list[Value]) -> Value:
        """Words of which each value gives one part."""
        if all(p.lanes == 1 for p in parts):
            together = zero(parts[0].dtype, len(parts))
            for n, part in enumerate(parts):
                together = insert(self.function, together, n, part)
            return self._as_words(together, len(parts))
        mixed = [widen(self.function, p, self.lanes) for p in parts]
        while len(mixed) > 1:
            half = len(mixed) // 2
            pairs = zip(mixed[:half], mixed[half:])
            mixed = [shuffle(self.function, a, b, _alternating(a.lanes)) for a, b in pairs]
        return self._as_words(mixed[0], len(parts))

    # ------------------------------------------------------------------ products

    def _add_products(self, dot: Dot, old: Value, left: Value, right: Value) -> Value:
        """Sums after the products of the parts of two words were added to them."""
        most = self.target.vector_bits // 32
        if not self.target.triple.startswith("aarch64") and not any("avx512" in f for f in dot.features):
            most = min(most, 8)
        part = min(most, max(4, 1 << (self.lanes - 1).bit_length()))
        whole = -(-self.lanes // part) * part
        wide = [resized(self.function, widen(self.function, v, self.lanes), whole) for v in (old, left, right)]
        sums = self.arithmetic.in_parts(lambda c, a, b: self._instruction(dot, c, a, b), part, *wide)
        return resized(self.function, sums, self.lanes)

    def _instruction(self, dot: Dot, old: Value, left: Value, right: Value) -> Value:
        """The instruction on vectors of a width that the target has."""
        bits, kind = old.lanes * 32, vector_type(_PARTS[dot.left], old.lanes * dot.width)
        if (dot.left, dot.right) == (I8, U8):
            left, right = right, left
        pair = [(kind, self.function.op(f"bitcast {v} to {kind}")) for v in (left, right)]
        if dot.left == I16:
            name = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}[bits]
            products = self.function.call(old.type, f"llvm.x86.{name}", pair)
            return instruction(self.function, "add", old, Value(products, old.dtype, old.lanes))
        table = _NEON if self.target.triple.startswith("aarch64") else _X86
        name = table[dot.left, dot.right].format(bits)
        return replace(old, text=self.function.call(old.type, f"llvm.{name}", [(old.type, old.text), *pair]))


_X86 = {
    (BF16, BF16): "x86.avx512bf16.dpbf16ps.{}",
    (U8, I8): "x86.avx512.vpdpbusd.{}",
    (I8, U8): "x86.avx512.vpdpbusd.{}",
    (I8, I8): "x86.avx2.vpdpbssd.{}",
    (U8, U8): "x86.avx2.vpdpbuud.{}",
}

_NEON = {
    (BF16, BF16): "aarch64.neon.bfdot.v4f32.v8bf16",
    (U8, I8): "aarch64.neon.usdot.v4i32.v16i8",
    (I8, U8): "aarch64.neon.usdot.v4i32.v16i8",
    (I8, I8): "aarch64.neon.sdot.v4i32.v16i8",
    (U8, U8): "aarch64.neon.udot.v4i32.v16i8",
}


def _alternating(lanes: int) -> list[int]:
    """Lanes of two vectors by turns."""
    return [n // 2 + (lanes if n % 2 else 0) for n in range(2 * lanes)]


def _symbols(mask: Mask) -> frozenset[str]:
    return frozenset().union(*(m.symbols for m in mask))
