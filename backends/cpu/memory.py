"""Loads and stores of buffers: addresses, vectors, masks, gathers and scatters.

Loads are kept until a store to their buffer, so that the same element is read once. A load under a mask touches no
memory where the mask does not hold: a mask that is the same for all lanes selects the address of a constant instead,
one that differs between lanes becomes a masked load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from intarsia.backends.cpu.conversion import from_memory, to_memory
from intarsia.backends.cpu.indices import Condition, Indices, known_lanes
from intarsia.backends.cpu.llvm import Function, Operand
from intarsia.backends.cpu.registers import Position, Registers
from intarsia.backends.cpu.values import (
    Value,
    constant,
    extract,
    select,
    shuffle,
    splat,
    storage_type,
    suffix,
    vector_constant,
    vector_type,
    widen,
    zero,
)
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.kernel import Buffer
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import Size, row_major_strides
from intarsia.ir.target import Target


@dataclass(frozen=True)
class Address:
    """Where the lanes of an access are: from `pointer` on every `stride` elements, or at `index` elements from it.
    `align`: bytes at whose multiples they lie, if these are words of several elements."""

    pointer: str
    stride: Operand = 0
    index: Value | None = None
    align: int = 0

    @property
    def is_uniform(self) -> bool:
        return self.index is None and self.stride == 0

    @property
    def is_contiguous(self) -> bool:
        return self.index is None and self.stride == 1


class Memory(Indices):
    """Writes loads and stores of the buffers of a kernel.

    `aliasing` says that buffers may be the same memory, so that a store to one makes loads of all unknown.
    """

    def __init__(
        self,
        function: Function,
        target: Target,
        sizes: Iterable[str],
        buffers: Mapping[str, Buffer],
        registers: Registers,
        *,
        aliasing: bool,
    ) -> None:
        super().__init__(function, target, sizes)
        self.buffers = buffers
        self.registers = registers
        self.aliasing = aliasing
        self.pointers: dict[str, str] = {}
        self.size_operands: set[str] = set()
        self.operand_multiples: dict[str, int] = {}
        self.active: Value | None = None
        self.wrote_nontemporal = False
        self.numbers: dict[str, Value] = {}
        self._known: dict[tuple[str, str], Value] = {}
        self._flat: dict[tuple[str, tuple[Size, ...]], Size] = {}
        self._proved: dict[tuple[str, str, tuple[Size, ...]], bool] = {}

    # ------------------------------------------------------------------ addresses

    def address(self, name: str, indices: tuple[Size, ...]) -> Address:
        """The address of an element, for all lanes."""
        buffer = self.buffers[name]
        pointer = self.pointers[name]
        if buffer.length is not None:
            pointer = self._table_entry(pointer, indices[0])
        flat = self._flat_index(name, indices)
        element = storage_type(buffer.dtype)
        linear = self.linear(flat)
        if linear is None:
            return Address(pointer, index=self.index(flat))
        # Outer loops first, so that what is invariant is added outside; what only sizes and numbers decide last, so
        # that accesses at fixed distances share the rest.
        groups: dict[tuple[bool, int], Operand] = {}
        for coefficient, factors in linear.terms:
            fixed = all(f in self.size_operands for f in factors)
            order = (fixed, max(self.function.depth_of(f) for f in factors))
            term = self._product(coefficient, factors)
            groups[order] = self.function.add(groups.get(order, 0), term)
        for order in sorted(groups):
            pointer = self.function.offset(pointer, element, groups[order])
        return Address(self.function.offset(pointer, element, linear.constant), linear.stride)

    def in_words(self, address: Address, width: int, dtype: DType) -> Address | None:
        """The address of words of `width` elements; None where lanes do not lie whole words apart."""
        if address.index is not None or not isinstance(address.stride, int) or address.stride % width:
            return None
        return Address(address.pointer, address.stride // width, align=_bytes(dtype))

    def _flat_index(self, name: str, indices: tuple[Size, ...]) -> Size:
        """Elements from the start of the buffer."""
        key = (name, indices)
        if key not in self._flat:
            buffer = self.buffers[name]
            strides = row_major_strides(buffer.shape)
            self._flat[key] = sum((i * s for i, s in zip(indices[-len(strides) :], strides)), Size.of(0))
        return self._flat[key]

    def _unaligned_part(self, name: str, indices: tuple[Size, ...]) -> str:
        """The address without what is a multiple of the lanes: as well aligned, and the same in more iterations."""
        linear = self.linear(self._flat_index(name, indices))
        assert linear is not None
        element, pointer = storage_type(self.buffers[name].dtype), self.pointers[name]
        for coefficient, factors in linear.terms:
            multiple = coefficient * math.prod(self.operand_multiples.get(f, 1) for f in factors)
            if multiple % self.lanes:
                pointer = self.function.offset(pointer, element, self._product(coefficient, factors))
        return self.function.offset(pointer, element, linear.constant % self.lanes)

    def _table_entry(self, table: str, index: Size) -> str:
        entry = self.function.offset(table, "ptr", self.number(index))
        key = ("<tables>", entry)
        if key not in self._known:
            self._known[key] = Value(self.function.emit(f"load ptr, ptr {entry}"), BOOL)
        return self._known[key].text

    def positions(self, indices: tuple[Size, ...]) -> tuple[Position, ...]:
        """Subscripts of a register buffer as numbers."""
        found = []
        for index in indices:
            linear = self.linear(index)
            assert linear is not None and not linear.terms and isinstance(linear.stride, int), f"{index} is not known"
            found.append((linear.constant, linear.stride))
        return tuple(found)

    @property
    def lanes(self) -> int:
        """Lanes of the vector that is being written; 1 outside lane loops."""
        return self.lane.lanes if self.lane is not None else 1

    # ------------------------------------------------------------------ loads

    def load(self, load: Load) -> Value:
        """The value of a load expression."""
        other = constant(load.other.value if load.other is not None else 0, load.dtype)
        condition = self.condition(load.mask)
        if condition.uniform == "false":
            return other
        if self.registers.holds(load.buffer):
            value = self.registers.read(load.buffer, self.positions(load.indices), self.lanes)
            return self._where(condition, value, other)
        if load.buffer in self.numbers and not load.mask:
            return self.numbers[load.buffer]
        if self.active is not None and not self._in_bounds(load):
            condition = self.both(condition, Condition(lanes=self.active))
        return self._load_at(load.buffer, self.address(load.buffer, load.indices), condition, other)

    def read_numbers(self) -> None:
        """Read what is one number, and is given, on entry: no loop reads it again for fear of what it writes."""
        for name, pointer in self.pointers.items():
            buffer = self.buffers[name]
            if buffer.role == "in" and not buffer.shape and buffer.length is None and pointer.startswith("%"):
                self.numbers[name] = self._load_at(name, self.address(name, ()), Condition(), zero(buffer.dtype))

    def _where(self, condition: Condition, value: Value, other: Value) -> Value:
        if condition.lanes is not None:
            return select(self.function, self.lane_mask(condition), value, other)
        return select(self.function, Value(condition.uniform, BOOL), value, other)

    def read(self, name: str, indices: tuple[Size, ...], lanes_mask: Value | None = None) -> Value:
        """The current elements at the target of a write; unspecified where the mask does not hold."""
        if self.registers.holds(name):
            return self.registers.read(name, self.positions(indices), self.lanes)
        address = self.address(name, indices)
        return self._load_at(name, address, Condition(lanes=lanes_mask), zero(self.buffers[name].dtype))

    def _load_at(self, name: str, address: Address, condition: Condition, other: Value) -> Value:
        key = (name, f"{address} {condition} {other.text} {self.lanes}")
        if key not in self._known:
            self._known[key] = self._new_load(address, condition, other)
        return self._known[key]

    def _new_load(self, address: Address, condition: Condition, other: Value) -> Value:
        dtype, align = other.dtype, address.align or _bytes(other.dtype)
        if address.is_uniform:
            if condition.lanes is not None:
                # No lane may need it, and then the address may lie outside.
                some = self.arithmetic.reduce_lanes("or", self.lane_mask(condition))
                pointer = self._safe_pointer(address.pointer, Condition(some.text), other, 1)
                value = self._plain_load(pointer, dtype, 1, align)
                return select(self.function, self.lane_mask(condition), value, other)
            return self._plain_load(self._safe_pointer(address.pointer, condition, other, 1), dtype, 1, align)
        lanes = self.lanes
        if address.index is None and address.stride in (1, -1) and condition.lanes is None:
            first = address.pointer
            if address.stride == -1:
                first = self.function.offset(first, storage_type(dtype), 1 - lanes)
            value = self._plain_load(self._safe_pointer(first, condition, other, lanes), dtype, lanes, align)
            return value if address.stride == 1 else self._reversed(value)
        if condition.lanes is None and isinstance(address.stride, int) and 1 < abs(address.stride) <= _NEAR:
            return self._near_load(address, address.stride, condition, other)
        mask = self.lane_mask(condition)
        stored = storage_type(dtype)
        kind = vector_type(stored, lanes)
        rest = other if dtype != BOOL else constant(int(other.text == "true"), _BYTE)
        passthru = (kind, splat(self.function, rest.text, stored, lanes))
        if address.is_contiguous:
            place = (f"ptr align {align}", address.pointer)
            name = f"llvm.masked.load.{suffix(stored, lanes)}.p0"
        else:
            place = (f"<{lanes} x ptr> align {align}", self._pointers(address, stored))
            name = f"llvm.masked.gather.{suffix(stored, lanes)}.v{lanes}p0"
        text = self.function.call(kind, name, [place, (mask.type, mask.text), passthru], pure=False)
        return from_memory(self.function, text, dtype, lanes)

    def _near_load(self, address: Address, stride: int, condition: Condition, other: Value) -> Value:
        """Every second, third or fourth element: whole vectors that begin and end with such elements, and shuffles.

        What lies between two elements of a buffer is in the buffer too.
        """
        lanes, step = self.lanes, abs(stride)
        span, pointer = step * (lanes - 1) + 1, address.pointer
        if stride < 0:
            pointer = self.function.offset(pointer, storage_type(other.dtype), stride * (lanes - 1))
        pointer = self._safe_pointer(pointer, condition, other, span)
        result: Value | None = None
        for start in range(0, span, lanes):
            first = min(start, span - lanes)
            place = self.function.offset(pointer, storage_type(other.dtype), first)
            part = self._plain_load(place, other.dtype, lanes, address.align or _bytes(other.dtype))
            here = [step * lane - first for lane in range(lanes)]
            if result is None:
                result = shuffle(self.function, part, part, [i if i < lanes else 0 for i in here])
            else:
                taken = [lane if step * lane < start else lanes + i for lane, i in enumerate(here)]
                result = shuffle(self.function, result, part, [i if i < 2 * lanes else 0 for i in taken])
        assert result is not None
        return result if stride > 0 else self._reversed(result)

    def _plain_load(self, pointer: str, dtype: DType, lanes: int, align: int) -> Value:
        kind = vector_type(storage_type(dtype), lanes)
        text = self.function.emit(f"load {kind}, ptr {pointer}, align {align}")
        return from_memory(self.function, text, dtype, lanes)

    def _safe_pointer(self, pointer: str, condition: Condition, other: Value, lanes: int) -> str:
        """The pointer, or where the condition does not hold that of a constant vector of `other`."""
        if condition.uniform == "true":
            return pointer
        stored = storage_type(other.dtype)
        number = other.text if other.dtype != BOOL else str(int(other.text == "true"))
        elements = ", ".join([f"{stored} {number}"] * lanes)
        instead = self.function.module.constant("other", f"[{lanes} x {stored}] [{elements}]")
        function, chosen = self.function, condition.uniform
        if function.depth_of(chosen) < function.depth_of(pointer):
            return self._masked_pointer(pointer, chosen, instead)
        return function.op(f"select i1 {chosen}, ptr {pointer}, ptr {instead}")

    def _masked_pointer(self, pointer: str, chosen: str, instead: str) -> str:
        """The same for a condition that a loop around decides: there it becomes a mask of bits.

        A `select` would compare again for each address, and code generation puts all loads that one comparison decides
        beside each other, so that what they give fills the registers and is spilled.
        """
        op = self.function.op
        mask, base = op(f"sext i1 {chosen} to i64"), op(f"ptrtoint ptr {instead} to i64")
        away = op(f"sub i64 {op(f'ptrtoint ptr {pointer} to i64')}, {base}")
        kept = op(f"and i64 {away}, {mask}")
        return op(f"inttoptr i64 {op(f'add i64 {kept}, {base}')} to ptr")

    def _pointers(self, address: Address, stored: str) -> str:
        index = address.index or self._steps(address.stride)
        index = widen(self.function, index, self.lanes)
        return self.function.op(f"getelementptr {stored}, ptr {address.pointer}, {index}")

    def _reversed(self, value: Value) -> Value:
        return shuffle(self.function, value, value, range(value.lanes - 1, -1, -1))

    def _in_bounds(self, load: Load) -> bool:
        """Is the element inside its buffer wherever the loops lead, whatever masks say?"""
        key = (self.open_loops[-1].axis if self.open_loops else "", load.buffer, load.indices)
        if key not in self._proved:
            pairs = zip(load.indices, self.buffers[load.buffer].extents)
            self._proved[key] = not any(i.opaques for i in load.indices) and all(
                self.facts.proves(i) and self.facts.proves_below(i, n) for i, n in pairs
            )
        return self._proved[key]

    # ------------------------------------------------------------------ stores

    def write(
        self, name: str, indices: tuple[Size, ...], value: Value, mask: Value | None = None, nontemporal: bool = False
    ) -> None:
        """Store elements that differ from lane to lane (or one, outside lane loops), where `mask` holds."""
        if self.registers.holds(name):
            if mask is not None:
                value = select(self.function, mask, value, self.read(name, indices))
            self.registers.write(name, self.positions(indices), self.lanes, value)
            return
        address = self.address(name, indices)
        if address.is_uniform:
            assert value.lanes == 1 and mask is None, f"{name}: one element from several lanes"
            kind, text = to_memory(self.function, value)
            self.function.do(f"store {kind} {text}, ptr {address.pointer}, align {_bytes(value.dtype)}")
        else:
            self._store_lanes(name, indices, widen(self.function, value, self.lanes), mask, nontemporal)
        self.forget([name])

    def _store_lanes(
        self, name: str, indices: tuple[Size, ...], value: Value, mask: Value | None, nontemporal: bool
    ) -> None:
        address = self.address(name, indices)
        kind, text = to_memory(self.function, value)
        stored, size = storage_type(value.dtype), _bytes(self.buffers[name].dtype)
        if (width := _bytes(value.dtype) // size) > 1:
            words = self.in_words(address, width, self.buffers[name].dtype)
            assert words is not None
            address = words
        if address.is_contiguous and mask is None:
            store = f"store {kind} {text}, ptr {address.pointer}, align {size}"
            if nontemporal and width == 1:
                self._store_nontemporal(self._unaligned_part(name, indices), store, size * self.lanes)
            else:
                self.function.do(store)
            return
        if address.is_contiguous and (count := _first_lanes(mask)):
            part = shuffle(self.function, value, value, range(count)) if count > 1 else extract(self.function, value, 0)
            kind, text = to_memory(self.function, part)
            self.function.do(f"store {kind} {text}, ptr {address.pointer}, align {size}")
            return
        if mask is None and address.index is None and isinstance(address.stride, int) and 1 < address.stride <= _NEAR:
            self._near_store(address.pointer, address.stride, value)
            return
        everywhere = mask or widen(self.function, Value("true", BOOL), self.lanes)
        if address.is_contiguous:
            callee, pointer = f"llvm.masked.store.{suffix(stored, self.lanes)}.p0", address.pointer
            pointer_type = f"ptr align {size}"
        else:
            callee = f"llvm.masked.scatter.{suffix(stored, self.lanes)}.v{self.lanes}p0"
            pointer, pointer_type = self._pointers(address, stored), f"<{self.lanes} x ptr> align {size}"
        arguments = [(kind, text), (pointer_type, pointer), (everywhere.type, everywhere.text)]
        self.function.call("void", callee, arguments)

    def _near_store(self, pointer: str, step: int, value: Value) -> None:
        """Every second, third or fourth element: whole vectors with masks that leave out what lies between."""
        lanes, stored = self.lanes, storage_type(value.dtype)
        for first in range(0, step * (lanes - 1) + 1, lanes):
            places = range(first, first + lanes)
            part = shuffle(self.function, value, value, [min(p // step, lanes - 1) for p in places])
            mask = vector_constant([p % step == 0 and p // step < lanes for p in places], BOOL)
            place = self.function.offset(pointer, stored, first)
            arguments = [to_memory(self.function, part), (f"ptr align {_bytes(value.dtype)}", place)]
            name = f"llvm.masked.store.{suffix(stored, lanes)}.p0"
            self.function.call("void", name, [*arguments, (mask.type, mask.text)])

    def _store_nontemporal(self, pointer: str, store: str, size: int) -> None:
        """Past the caches, if the run-time address allows it: such stores have to be aligned."""
        vector = min(size, self.target.vector_bits // 8)
        if not self.target.triple.startswith("x86_64") or size % vector or vector & (vector - 1):
            self.function.do(store)
            return
        self.wrote_nontemporal = True
        number = self.function.op(f"ptrtoint ptr {pointer} to i64")
        aligned = self.function.compare("eq", self.function.op(f"and i64 {number}, {vector - 1}"), 0)
        past = store[: store.rindex("align")] + f"align {vector}, !nontemporal !0"
        self.function.fork(aligned, lambda: self.function.do(past), lambda: self.function.do(store))

    def forget(self, names: Iterable[str]) -> None:
        """Loads of these buffers have to be made anew."""
        gone = set(names)
        if self.aliasing:
            gone |= {n for n, b in self.buffers.items() if b.memory == "global"}
        self._known = {k: v for k, v in self._known.items() if k[0] not in gone}

    def known_loads(self) -> dict[tuple[str, str], Value]:
        """What was loaded so far, to be given back by `restore_loads` where a branch or loop ends."""
        return dict(self._known)

    def restore_loads(self, known: dict[tuple[str, str], Value], written: Iterable[str]) -> None:
        self._known = known
        self.forget(written)


_BYTE = DType("u8", "uint", 8)

_NEAR = 4
"""Elements between lanes up to which whole vectors are loaded in place of single elements."""


def _bytes(dtype: DType) -> int:
    return dtype.bytes


def _first_lanes(mask: Value | None) -> int:
    """How many lanes a mask leaves that is a constant and true in the first lanes only; 0 for other masks."""
    known = known_lanes(mask) if mask is not None else None
    if known is None or known != sorted(known, reverse=True):
        return 0
    return sum(known)
