"""Blocks of memory moved by tensor descriptors: reads, and what writes need.

A descriptor moves a rectangle of a buffer. What lies outside of the buffer it reads as 0 and does not write, so an
access needs no mask where it is masked off just beyond the buffer's edge. Anything else is proved or done by pointers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from intarsia.backends.gpu.loads import Loads, tuple_text
from intarsia.backends.gpu.values import ATOM, PRODUCT, SUM, Value, joined
from intarsia.ir.dtypes import I64
from intarsia.ir.kernel import LANES, Buffer, Put, Statement
from intarsia.ir.kernel_access import Access, accesses, trips
from intarsia.ir.rectangles import layout_problem, rectangle
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import Size, row_major_strides

Block: TypeAlias = "tuple[str | None, ...]"
"""The axis of lanes along each dimension of a buffer; None where a block is one element wide."""


class Descriptors(Loads):
    """Writes accesses of rectangles. described: the buffers that descriptors may touch; descriptors: their names, by
    buffer and extents of the block. wide_axes: those that count in 64 bits, as they go by numbers in memory.
    free: conditions of the statement beyond which what it makes may be anything; has_plain_loads: is anything read by
    pointers inside a loop?"""

    def __init__(self, buffers: Mapping[str, Buffer], wide: bool) -> None:
        super().__init__(buffers, wide)
        self.described: frozenset[str] = frozenset()
        self.wide_axes: set[str] = set()
        self.free: frozenset[Size] = frozenset()
        self.has_plain_loads = False
        self.descriptors: dict[tuple[str, tuple[str, ...]], str] = {}

    def load(self, load: Load, order: tuple[str, ...]) -> Value:
        """A read of a tile or of memory."""
        zero = load.other is None or (load.other.value == 0 and math.copysign(1.0, load.other.value) > 0)
        conditions = [m for m in self.conditions(load) if m not in self.free]
        block = self.block_of(load.buffer, load.indices, conditions) if zero else None
        if block is None or not frozenset(filter(None, block)) <= frozenset(order):
            inside = any(scope.loop is not None for scope in self.scopes)
            self.has_plain_loads |= inside and load.buffer not in self.tiles
            return super().load(load, order)
        axes = tuple(a for a in block if a is not None)
        offsets, depends = self.offsets(load.indices, block)
        text = f"{self.descriptor(load.buffer, block)}.load([{offsets}])"
        if None in block:
            text = f"tl.reshape({text}, {tuple_text([self.blocks[a] for a in axes])})"
        value = self.loaded(Value(text, load.dtype, axes, depends=depends | {load.buffer}), self.buffers[load.buffer])
        return self.in_order(value, order)

    def block_of(self, buffer: str, indices: Sequence[Size], conditions: Iterable[Size]) -> Block | None:
        """The block that an access is, if it is a rectangle, and conditions hold wherever it is inside the buffer. It
        is inside wherever they hold."""
        if buffer not in self.described:
            return None
        indices = [i.substitute(self.known) for i in indices]
        block = rectangle(self.buffers[buffer], indices, {a: self.extents[a] for a in self.order})
        inside = [e for i, n in zip(indices, self.buffers[buffer].shape) for e in (i, n - 1 - i)]
        facts = self.facts.given(*inside)
        return block if block and all(facts.proves(m.substitute(self.known) - 1) for m in conditions) else None

    def offsets(self, indices: Sequence[Size], block: Block) -> tuple[str, frozenset[str]]:
        """Where a block begins, as numbers of 32 bits; the buffers that this reads."""
        indices = [i.substitute(self.known) for i in indices]
        found = [self._start(i, axis) for i, axis in zip(indices, block)]
        wide = [self.wide or not i.symbols.isdisjoint(self.wide_axes) for i in indices]
        words = [f"{v.at(ATOM)}.to(tl.int32)" if w and not v.literal else v.text for v, w in zip(found, wide)]
        return ", ".join(words), joined(*found)

    def _start(self, index: Size, axis: str | None) -> Value:
        """The first element of a block along a dimension: of lanes that are a part of an axis, `pid * BLOCK`."""
        if axis is None:
            return self.size(index, ())
        part = next((p for p in self.parts if p.inner == axis and index.coefficient(p.outer) == p.count), None)
        if part is None:
            return self.size(index - Size.of(axis), ())
        whole = Value(f"{self.variables[part.outer]} * {self.blocks[axis]}", I64, level=PRODUCT)
        rest = index - Size.of(axis) - Size.of(part.outer) * part.count
        if rest.constant == 0:
            return whole
        more = self.size(rest, ())
        return Value(f"{whole.text} + {more.at(SUM)}", whole.dtype, level=SUM, depends=more.depends)

    def descriptor(self, buffer: str, block: Block) -> str:
        """The name of a descriptor, which is made at the beginning of the function."""
        extents = tuple("1" if a is None else self.blocks[a] for a in block)
        if (buffer, extents) not in self.descriptors:
            name = self.descriptors[buffer, extents] = self.fresh(f"{buffer}_desc")
            shape = self.buffers[buffer].shape
            lists = [list(map(int, shape)), list(map(int, row_major_strides(shape)))]
            words = [self.pointer(buffer, None), *(f"{n}={x}" for n, x in zip(("shape", "strides"), lists))]
            words.append(f"block_shape=[{', '.join(extents)}]")
            self.first_lines.append(f"    {name} = tl.make_tensor_descriptor({', '.join(words)})")
        return self.descriptors[buffer, extents]


def described_in(
    body: Sequence[Statement], buffers: Mapping[str, Buffer], unaligned: Collection[str]
) -> frozenset[str]:
    """The buffers that descriptors may touch in a launch. What they write, nothing else touches, as they are not in
    order with it."""
    uses: dict[str, list[Access]] = {}
    for access in accesses(body):
        uses.setdefault(access.buffer, []).append(access)
    found = [b for n, b in buffers.items() if b.described and n not in unaligned and layout_problem(b) is None]
    return frozenset(
        b.name for b in found if not any(a.writes for a in uses.get(b.name, ())) or _is_set_once(uses[b.name])
    )


def _is_set_once(uses: Sequence[Access]) -> bool:
    """Is all that is done to a buffer one write, in loops whose iterations are in no order?"""
    (first, *others) = uses
    around = [x for x in first.loops if x.kind not in LANES | {"grid"} and trips(x).constant != 1]
    plain = isinstance(first.statement, Put) and first.operator == "=" and not first.statement.atomic
    return plain and not others and not around
