"""Reads of memory and of temporaries that are Triton tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.backends.gpu.expressions import Expressions
from intarsia.backends.gpu.triton_kernel import Transfer
from intarsia.backends.gpu.values import ATOM, COMPARISON, SUM, Value, joined, literal, type_name, union
from intarsia.ir.dtypes import BOOL, I64
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Buffer
from intarsia.ir.proofs import simplify
from intarsia.ir.scalar import Const, Load, Mask, loads
from intarsia.ir.sizes import Size, row_major_strides


@dataclass(frozen=True)
class Tile:
    """A temporary that is a Triton tensor. lanes: the axes of lanes around where it was made; shape: the number of
    elements along these and along its own dimensions, blocks their names. conditions: the masks under which it was
    first written, beyond which it holds anything."""

    variable: str
    buffer: Buffer
    lanes: tuple[str, ...]
    shape: tuple[int, ...]
    blocks: tuple[str, ...]
    conditions: set[str] = field(default_factory=set, compare=False)


class Loads(Expressions):
    """Writes reads.

    pointers: what parameters are called; arguments: sizes that come from outside. tiles: temporaries that are blocks,
    written those that have a value, pending those whose constant is not written yet. holds: the mask of the statement.
    transfers: accesses of memory so far.
    """

    def __init__(self, buffers: Mapping[str, Buffer], wide: bool) -> None:
        super().__init__(wide)
        self.buffers = buffers
        self.arguments: frozenset[str] = frozenset()
        self.pointers: dict[tuple[str, Size | None], str] = {}
        self.tiles: dict[str, Tile] = {}
        self.written: set[str] = set()
        self.pending: dict[str, Const] = {}
        self.holds: Mask = ()
        self.transfers: list[Transfer] = []

    def pointer(self, buffer: str, element: Size | None) -> str:
        """The parameter that points to a buffer."""
        key = (buffer, element)
        if key not in self.pointers:
            self.pointers[key] = self.fresh(f"{buffer}_ptr" if element is None else f"{buffer}_{element}_ptr")
        return self.pointers[key]

    def offset(self, buffer: Buffer, indices: Sequence[Size], order: tuple[str, ...]) -> tuple[str, Value | None]:
        """The pointer parameter of an access and the offset in elements."""
        element: Size | None = None
        if buffer.length is not None:
            element, indices = indices[0].substitute(self.known), indices[1:]
            if not element.symbols <= self.arguments:
                raise ScheduleError(f"which tensor of {buffer.name} is read is known only inside a program")
        pointer = self.pointer(buffer.name, element)
        total = Size.of(0)
        for index, stride in zip(indices, row_major_strides(buffer.shape)):
            total = total + simplify(index.substitute(self.known), self.facts) * stride
        if total.constant == 0:
            return pointer, None
        return pointer, self.size(total, order)

    def address(self, buffer: Buffer, indices: Sequence[Size], order: tuple[str, ...]) -> Value:
        pointer, offset = self.offset(buffer, indices, order)
        if offset is None:
            return Value(pointer, buffer.dtype, level=ATOM)
        return Value(f"{pointer} + {offset.at(SUM)}", buffer.dtype, offset.axes, SUM, depends=offset.depends)

    def load(self, load: Load, order: tuple[str, ...]) -> Value:
        """A read of a tile or of memory."""
        buffer = self.buffers[load.buffer]
        if buffer.name in self.tiles:
            return self.read_tile(load, order)
        value = self._load(load, buffer, order)
        if load.dtype == BOOL:
            value = replace(value, text=f"{value.text} != 0", level=COMPARISON)
        return self.loaded(value, buffer)

    def _load(self, load: Load, buffer: Buffer, order: tuple[str, ...]) -> Value:
        """A read of memory, with its dimensions in an order."""
        mask = self.mask(self.guard(load, order), order)
        address = self.address(buffer, load.indices, order)
        axes = union(order, address, *([mask] if mask else []))
        text = f"tl.load({self.spread_over(address, axes)}"
        if mask is not None:
            other = literal(0, load.dtype) if load.other is None else literal(load.other.value, load.dtype)
            if load.dtype == BOOL:
                other = literal(int(load.other.value) if load.other else 0, I64)
            text += f", mask={mask.spread(axes)}, other={other.text}"
        depends = joined(address, *([mask] if mask else [])) | {load.buffer}
        return Value(f"{text})", load.dtype, axes, depends=depends)

    def turned(self, load: Load, order: tuple[str, ...]) -> Value | None:
        """The transpose of a block that has been read, if it is what a load reads. Products that need a block both as
        rows and as columns read it once."""
        buffer, across = self.buffers[load.buffer], order[::-1]
        read = {t: v for scope in self.scopes for t, v in scope.names.items() if len(v.axes) == 2}
        if not any(v.depends == {buffer.name} for v in read.values()) or buffer.name in self.tiles:
            return None
        start = f"tl.load({self.address(buffer, load.indices, across).text}"
        if not any(text.startswith(start) for text in read):
            return None
        value = self._load(load, buffer, across)
        return self.in_order(self.named(value, buffer.name), order) if value.text in read else None

    def loaded(self, value: Value, buffer: Buffer) -> Value:
        """A read of memory under its name."""
        is_new = all(value.text not in scope.names for scope in self.scopes)
        named = self.named(value, buffer.name)
        if is_new:
            level = next(n for n, s in enumerate(self.scopes) if value.text in s.names)
            self.transfer(buffer, False, value.axes, level)
        return named

    def transfer(self, buffer: Buffer, writes: bool, axes: tuple[str, ...], level: int) -> None:
        """Take down that memory is read or written in a scope, along some lanes."""
        loops = tuple(s.loop for s in self.scopes[1 : level + 1] if s.loop is not None)
        steps = tuple((x.axis, x.lower.substitute(self.known), x.upper.substitute(self.known), x.step) for x in loops)
        elements = math.prod(self.extents[a] for a in axes)
        self.transfers.append(Transfer(buffer.name, buffer.dtype, writes, elements, steps))

    def spread_over(self, value: Value, axes: tuple[str, ...]) -> str:
        """The text of an address for accesses along some axes. A mask widens blocks of addresses, but no scalar."""
        if value.axes or not axes:
            return value.spread(axes)
        return f"tl.broadcast_to({value.text}, {tuple_text([self.blocks[a] for a in axes])})"

    def guard(self, load: Load, order: tuple[str, ...]) -> Mask:
        """The conditions under which memory is read: those of the load, and, where these do not keep it within the
        buffer, those of the statement, as far as they are about the lanes that the load depends on."""
        missing = tuple(m for m in self.holds if self.lanes_of(m) <= frozenset(order))
        mine = frozenset().union(*map(self.lanes_of, load.indices))
        mask = self.conditions(load)
        indices = [i.substitute(self.known) for i in load.indices]
        for more in ((), [m for m in missing if self.lanes_of(m) <= mine], missing):
            mask = tuple(dict.fromkeys((*mask, *more)))
            facts = self.facts.given(*(m.substitute(self.known) - 1 for m in mask if not m.opaques))
            bounds = zip(indices, self.buffers[load.buffer].extents)
            if all(facts.proves(i) and facts.proves(extent - 1 - i) for i, extent in bounds):
                break
        return mask

    def conditions(self, load: Load) -> Mask:
        """The conditions of a load that make a difference: not those of the statement, unless they are about the lanes
        that the load depends on alone, for which it gives `other` then."""
        mine = frozenset().union(*map(self.lanes_of, load.indices))
        return tuple(m for m in load.mask if m not in self.holds or (self.lanes_of(m) and self.lanes_of(m) <= mine))

    def keeps(self, load: Load, conditions: Iterable[Size]) -> bool:
        """Does a load of memory give `other` wherever one of some conditions does not hold? See `guard`."""
        mine = frozenset().union(*map(self.lanes_of, load.indices))
        known = load.buffer not in self.tiles
        return known and all(m in load.mask and self.lanes_of(m) and self.lanes_of(m) <= mine for m in conditions)

    def lanes_of(self, size: Size) -> frozenset[str]:
        """The open lanes on which an integer depends."""
        size = size.substitute(self.known)
        names = set(size.symbols)
        for load in (x for value in size.opaques for x in loads(value)):
            if load.buffer in self.tiles:
                names.update(self.tiles[load.buffer].lanes)
        return frozenset(names & set(self.order))

    def read_tile(self, load: Load, order: tuple[str, ...]) -> Value:
        """The whole of a tile, its dimensions in the order of the lanes."""
        tile = self.tiles[load.buffer]
        axes = (*tile.lanes, *self.tile_axes(tile, load.indices))
        self.settle(load.buffer)
        value = self.in_order(Value(tile.variable, load.dtype, axes, depends=frozenset({load.buffer})), order)
        if load.mask and (mask := self.mask(load.mask, order)) is not None:
            other = load.other or Const(0, load.dtype)
            value = self.call("tl.where", order, load.dtype, mask, value, literal(other.value, load.dtype))
        return value

    def in_order(self, value: Value, order: tuple[str, ...]) -> Value:
        """A block with its dimensions in the order of the lanes."""
        axes = tuple(a for a in order if a in value.axes)
        if axes == value.axes:
            return value
        places = tuple(value.axes.index(a) for a in axes)
        text = f"tl.trans({value.text})" if len(axes) == 2 else f"tl.permute({value.text}, {places})"
        return replace(value, text=text, axes=axes, level=ATOM)

    def tile_axes(self, tile: Tile, indices: Sequence[Size]) -> tuple[str, ...]:
        """The axes that subscripts of a tile are. Raises ScheduleError where they are anything else."""
        axes = []
        for index, extent in zip(indices, tile.shape[len(tile.lanes) :]):
            name = index.substitute(self.known).as_name
            if name is None or self.extents.get(name) != extent or name in axes:
                raise ScheduleError(
                    f"{tile.buffer.name} is subscripted by {index}, not by a whole dimension of a block"
                )
            axes.append(name)
        return tuple(axes)

    def settle(self, buffer: str) -> None:
        """Write down the constant that a tile holds, if that was put off."""
        if (constant := self.pending.pop(buffer, None)) is not None:
            tile = self.tiles[buffer]
            number = literal(constant.value, constant.dtype).text
            self.line(f"{tile.variable} = tl.full({tuple_text(tile.blocks)}, {number}, {type_name(tile.buffer.dtype)})")
            self.written.add(buffer)


def tuple_text(items: Sequence[object]) -> str:
    """A tuple as it is written in Python."""
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"
