"""The writes of a kernel, to memory and to tiles, in Triton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from intarsia.backends.gpu.descriptors import Block
from intarsia.backends.gpu.expressions import base_name
from intarsia.backends.gpu.lanes import lanes_of, single_axes
from intarsia.backends.gpu.loads import Tile, tuple_text
from intarsia.backends.gpu.products import Products
from intarsia.backends.gpu.values import Value, literal, type_name
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import ScheduleError, Span
from intarsia.ir.functions import COMBINERS
from intarsia.ir.kernel import COMBINER_OPERATORS, PUT_FUNCTIONS, Alloc, Buffer, For, Put, PutOperator, Statement, walk
from intarsia.ir.kernel_access import accesses, is_injective
from intarsia.ir.kernel_scan import running_values
from intarsia.ir.scalar import Const, Expr, Load, loads, transform
from intarsia.ir.sizes import Size, product

_COMBINER: dict[PutOperator, str] = {operator: name for name, operator in COMBINER_OPERATORS.items()}


class Writes(Products):
    """Writes statements that write. loops: those that are open, but for lanes.
    largest: elements of the largest block so far. span: the line of the user that was last shown. harmless: conditions
    that lanes may break, as nothing that they compute then is seen. shared: temporaries in memory. running: the buffers
    whose running values each open scan makes; totals: the tiles of those that it has made, for all lanes together."""

    def __init__(
        self, buffers: Mapping[str, Buffer], wide: bool, body: Sequence[Statement], shared: Iterable[str]
    ) -> None:
        super().__init__(buffers, wide)
        self.body = tuple(body)
        self.shared_buffers = frozenset(shared)
        self.lanes = lanes_of(self.body, dict(buffers))
        self.single = single_axes(self.body)
        self.harmless = self._kept_from_memory()
        self.open_loops: dict[str, For] = {}
        self.span: Span | None = None
        self.largest = 1
        self.running: dict[str, frozenset[str]] = {}
        self.totals: dict[str, dict[str, Tile]] = {}
        for access in accesses(body):
            self.users.setdefault(access.buffer, []).append(access)

    def canonical(self, condition: Size) -> str:
        """A condition with lanes under the names of their numbers, which those of one dimension share."""
        names = {axis: Size.of(lane.block) for axis, lane in self.lanes.items()}
        return str(condition.substitute(self.single).substitute(names))

    def _kept_from_memory(self) -> frozenset[str]:
        """Conditions of all writes to memory. Lanes for which they do not hold may compute anything."""
        local = {s.buffer.name for s, _ in walk(self.body) if isinstance(s, Alloc)} - self.shared_buffers
        masks = [s.mask for s, _ in walk(self.body) if isinstance(s, Put) and s.buffer not in local]
        found = [frozenset(map(self.canonical, mask)) for mask in masks]
        return frozenset.intersection(*found) if found else frozenset()

    def put(self, put: Put) -> None:
        """A write."""
        self.comment(put.span)
        value = self._without_implied(put)
        self.begin(value)
        self.holds = put.mask
        if put.buffer in self.tiles:
            self.put_tile(put, value)
        else:
            self.put_memory(put, value)
        self.holds, self.free = (), frozenset()
        self.forget({put.buffer})

    def _without_implied(self, put: Put) -> Expr:
        """The value, where loads of tiles need no conditions under which it is not written anyway."""
        held = frozenset(put.mask)
        tiles = [x for x in loads(put.value) if x.buffer in self.tiles]
        if not any(put.buffer in buffers for buffers in self.running.values()):  # later lanes see what others add
            held |= {m for x in tiles for m in x.mask if self.canonical(m) in self.harmless}

        def rule(e: Expr) -> Expr | None:
            if isinstance(e, Load) and e.buffer in self.tiles and not held.isdisjoint(e.mask):
                return replace(e, mask=tuple(m for m in e.mask if m not in held))
            return None

        return transform(put.value, rule=rule)

    def comment(self, span: Span | None) -> None:
        """The user's line, once for all that comes of it."""
        if span is None or (self.span is not None and span.line == self.span.line and span.source is self.span.source):
            return
        self.span = span
        self.line(f"# {span.source.name}:{span.line}: {span.source.line(span.line).strip()}")

    def put_memory(self, put: Put, value: Expr) -> None:
        """A write to memory."""
        buffer = self.buffers[put.buffer]
        target = frozenset(a for i in put.indices for a in self.lanes_of(i))
        open_lanes = [For(a, Size.of(0), Size.of(self.extents[a]), ()) for a in self.order if a in target]
        if not put.atomic and not is_injective(tuple(i.substitute(self.known) for i in put.indices), open_lanes):
            raise ScheduleError(f"lanes write one element of {put.buffer} at the same time")
        reduced = tuple(a for a in self.order if a not in target)
        if any(put.buffer in self.running[a] for a in reduced if a in self.running):
            raise ScheduleError(f"the running value {put.buffer} lies in memory")
        stored = self.value(value)
        if put.operator != "=" and reduced:
            stored = self.reduce(put, value, reduced)
        block = self.block_of(put.buffer, put.indices, put.mask)
        if block is not None and frozenset(stored.axes) <= frozenset(block):
            self.store_block(put, block, stored)
            return
        address = self.address(buffer, put.indices, self.order)
        mask = self.mask(
            [m for m in put.mask if not self.lanes_of(m) & set(reduced) or put.operator == "="], self.order
        )
        self._barrier(put)
        guard = "" if mask is None else f", mask={mask.text}"
        axes = address.axes
        if mask is not None:
            axes = tuple(a for a in self.order if a in address.axes or a in mask.axes)
            guard = f", mask={mask.spread(axes)}"
        pointer = self.spread_over(address, axes)
        self.transfer(buffer, True, axes, len(self.scopes) - 1)
        if put.atomic:
            if put.operator not in ("+=", "max=", "min="):
                raise ScheduleError(f"there is no atomic {put.operator}")
            name = {"+=": "add", "max=": "max", "min=": "min"}[put.operator]
            self.line(f"tl.atomic_{name}({pointer}, {stored.typed().spread(axes)}{guard})")
            return
        if put.operator != "=":
            old = Load(put.buffer, put.indices, value.dtype)
            self.transfer(buffer, False, axes, len(self.scopes) - 1)
            held = replace(self.address(buffer, put.indices, self.order))
            text = f"tl.load({self.spread_over(held, axes)}{guard})"
            loaded = Value(
                f"{text} != 0" if value.dtype == BOOL else text, old.dtype, axes, 1 if value.dtype == BOOL else 10
            )
            stored = self.apply(PUT_FUNCTIONS[put.operator], self.order, value.dtype, [loaded, stored])
        if len(stored.text) > 60:
            stored = self.named(stored, put.buffer)
        missing = set(stored.axes) - set(axes)
        if missing:
            raise ScheduleError(f"{put.buffer} is written at one place by several lanes of {', '.join(missing)}")
        self.line(f"tl.store({pointer}, {stored.spread(axes)}{guard})")
        self._barrier(put)

    def store_block(self, put: Put, block: Block, value: Value) -> None:
        """A write by a descriptor, in the order of the buffer's dimensions."""
        axes = tuple(a for a in block if a is not None)
        self.transfer(self.buffers[put.buffer], True, axes, len(self.scopes) - 1)
        if len(value.text) > 60:
            value = self.named(value, put.buffer)
        text = self.shaped(value, axes, [self.blocks[a] for a in axes], self.buffers[put.buffer].dtype)
        if None in block:
            text = f"tl.reshape({text}, {tuple_text(['1' if a is None else self.blocks[a] for a in block])})"
        offsets, _ = self.offsets(put.indices, block)
        self.line(f"{self.descriptor(put.buffer, block)}.store([{offsets}], {text})")

    def _barrier(self, put: Put) -> None:
        """Threads of a program see what others wrote only after a barrier. None is needed where each element is touched
        by one thread alone: by one statement, at one place, once."""
        users = self.users[put.buffer]
        alone = all(a.statement is put and a.indices == put.indices for a in users)
        if not alone or (any(a.reads for a in users) and any(x.kind != "grid" for x in self.open_loops.values())):
            self.line("tl.debug_barrier()")

    # ------------------------------------------------------------------ tiles

    def put_tile(self, put: Put, value: Expr) -> None:
        """A write of a tile."""
        tile = self.tiles[put.buffer]
        axes = (*tile.lanes, *self.tile_axes(tile, put.indices))
        reduced = tuple(a for a in self.order if a not in axes)
        kept = [m for m in put.mask if not self.lanes_of(m) & set(reduced)]
        is_fresh = put.buffer not in self.written and put.buffer not in self.pending
        self.free = frozenset(m for m in kept if is_fresh or self.canonical(m) in tile.conditions)
        if put.operator == "=":
            self.set_tile(put, tile, axes, value, kept)
            return
        if put.buffer not in self.written and put.buffer not in self.pending:
            raise ScheduleError(f"{put.buffer} is accumulated before it is set")
        if reduced and any(put.buffer in self.running[a] for a in reduced if a in self.running):
            self.put_running(put, tile, axes, reduced, value)
            return
        if put.operator == "+=" and self.dot(put, tile, axes, reduced, value):
            self._is_written(tile)
            return
        new = self.reduce(put, value, reduced) if reduced else self.value(value)
        if (held := self._neutral(put.operator, tile)) is not None and reduced:
            if (mask := self._unmet(tile, kept)) is not None:
                new = self.call("tl.where", self.order, new.dtype, mask, new, literal(held.value, new.dtype))
            del self.pending[put.buffer]
            self.assign(tile, axes, new)
            return
        order = tuple(a for a in self.order if a in axes)
        old = self.read_tile(Load(put.buffer, self._own_indices(tile, axes), tile.buffer.dtype), order)
        merged = self.apply(PUT_FUNCTIONS[put.operator], self.order, tile.buffer.dtype, [old, new])
        if put.operator == "+=" and isinstance(value, Load) and value.other is None:
            kept = [m for m in kept if not self.keeps(value, [m])]  # what is added is 0 where one of these fails
        self.assign(tile, axes, self._where_kept(tile, axes, kept, merged))

    def _unmet(self, tile: Tile, kept: Iterable[Size]) -> Value | None:
        """The mask of those of some conditions that may fail in lanes of a tile that are seen."""
        return self.mask((m for m in kept if self.canonical(m) not in tile.conditions | self.harmless), self.order)

    def _neutral(self, operator: PutOperator, tile: Tile) -> Const | None:
        """The neutral element of an operator, if that is all that a tile holds."""
        held = self.pending.get(tile.buffer.name)
        neutral = COMBINERS[_COMBINER[operator]].neutral(tile.buffer.dtype)
        return held if held is not None and held.value == neutral else None

    def _own_indices(self, tile: Tile, axes: tuple[str, ...]) -> tuple[Size, ...]:
        return tuple(map(Size.of, axes[len(tile.lanes) :]))

    def set_tile(self, put: Put, tile: Tile, axes: tuple[str, ...], value: Expr, kept: Sequence[Size]) -> None:
        if isinstance(value, Const) and (not kept or put.buffer not in self.written):
            self.forget({put.buffer})
            self.pending[put.buffer] = value
            tile.conditions.update(map(self.canonical, kept))
            return
        self.root = value
        new = self.value(value)
        self.root = None
        if put.buffer in self.written or put.buffer in self.pending:
            new = self._where_kept(tile, axes, kept, new)
        else:
            tile.conditions.update(map(self.canonical, kept))
        self.pending.pop(put.buffer, None)
        self.assign(tile, axes, new)

    def _where_kept(self, tile: Tile, axes: tuple[str, ...], kept: Sequence[Size], new: Value) -> Value:
        """A new value of a tile, where conditions hold that did not hold anyway."""
        if (mask := self._unmet(tile, kept)) is None:
            return new
        order = tuple(a for a in self.order if a in axes)
        old = self.read_tile(Load(tile.buffer.name, self._own_indices(tile, axes), tile.buffer.dtype), order)
        return self.call("tl.where", self.order, new.dtype, mask, new, old)

    def assign(self, tile: Tile, axes: tuple[str, ...], value: Value) -> None:
        """Give a tile a value that has some of its dimensions."""
        self.line(f"{tile.variable} = {self.shaped(value, axes, tile.blocks, tile.buffer.dtype)}")
        self._is_written(tile)

    def shaped(self, value: Value, axes: tuple[str, ...], blocks: Sequence[str], dtype: DType) -> str:
        """A value with just these dimensions, of which it has some."""
        order = tuple(a for a in self.order if a in axes)
        text = value.text
        if value.axes != order or value.literal:
            if value.literal or not value.axes:
                text = f"tl.full({tuple_text(blocks)}, {value.text}, {type_name(dtype)})"
                if not axes and not value.literal:
                    text = value.text
                order = axes
            else:
                names = [self.blocks[a] for a in order]
                text = f"tl.broadcast_to({value.spread(order)}, {tuple_text(names)})"
        if order != axes:
            places = tuple(order.index(a) for a in axes)
            text = f"tl.trans({text})" if len(axes) == 2 else f"tl.permute({text}, {places})"
        return text

    def _is_written(self, tile: Tile) -> None:
        self.written.add(tile.buffer.name)
        self.largest = max(self.largest, int(product(tile.shape)))

    def reduce(self, put: Put, value: Expr, reduced: tuple[str, ...]) -> Value:
        """The value merged along lanes that the target does not have."""
        new = self._elements(put, value, reduced, [m for m in put.mask if self.lanes_of(m) & set(reduced)])
        for axis in reversed(reduced):
            new = self._reduced(put.operator, new, axis)
        return new

    def _elements(self, put: Put, value: Expr, reduced: tuple[str, ...], conditions: list[Size]) -> Value:
        """What is merged along lanes, the neutral element where conditions do not hold."""
        neutral = COMBINERS[_COMBINER[put.operator]].neutral(value.dtype)
        match value:
            case Load(other=other) if self.keeps(value, conditions):
                if (other.value if other else 0) == neutral:
                    conditions = []
        new = self.value(value)
        if conditions and (mask := self.mask(conditions, self.order)) is not None:
            new = self.call("tl.where", self.order, value.dtype, mask, new, literal(neutral, value.dtype))
        wanted = tuple(a for a in self.order if a in new.axes or a in reduced)
        if new.axes != wanted:
            names = tuple_text([self.blocks[a] for a in wanted])
            new = replace(new, text=f"tl.broadcast_to({new.typed().spread(wanted)}, {names})", axes=wanted, level=10)
        self.largest = max(self.largest, int(product(self.extents[a] for a in wanted)))
        return new

    def _reduced(self, operator: PutOperator, value: Value, axis: str) -> Value:
        """A block merged along one of its dimensions."""
        text = self._reduction(operator, value, value.axes.index(axis))
        return replace(value, text=text, axes=tuple(a for a in value.axes if a != axis), level=10, literal=False)

    def _reduction(self, operator: PutOperator, value: Value, place: int) -> str:
        """A reduction along a dimension. NaN wins in extrema; `tl.max` would drop it."""
        dtype = value.dtype
        if operator == "+=":
            return f"tl.sum({value.text}, axis={place})"
        if operator in ("max=", "min=") and not dtype.is_float:
            return f"tl.{operator[:3]}({value.text}, axis={place})"
        names = {"max=": "max", "min=": "min", "*=": "mul", "and=": "and", "or=": "or"}
        return f"tl.reduce({value.text}, {place}, {self.helper(f'combine_{names[operator]}')})"

    # ------------------------------------------------------------------ scans

    def begin_scan(self, loop: For) -> None:
        """From here on lanes see the running values of a loop."""
        self.running[loop.axis] = frozenset(put.buffer for put in running_values(loop))
        self.totals[loop.axis] = {}

    def end_scan(self, axis: str) -> None:
        """From here on the running values of a scan are those of its last lane."""
        self.forget(self.running.pop(axis))
        self.tiles.update(self.totals.pop(axis))

    def put_running(self, put: Put, tile: Tile, axes: tuple[str, ...], reduced: tuple[str, ...], value: Expr) -> None:
        """A write of a running value. To what is read after it in the scan, the tile has a value for each lane."""
        if len(reduced) != 1:
            raise ScheduleError(f"{put.buffer} is scanned along {' and '.join(reduced)} at once")
        (along,) = reduced
        new = self.named(self._elements(put, value, reduced, list(put.mask)), put.buffer)
        scanned = self._scanned(put.operator, new, along)
        total, is_used = new, self._is_used_after(put.buffer, along)
        if is_used and len(new.axes) > 1:
            scanned = self.named(scanned, put.buffer)
            total = self._last(put.operator, scanned, along)
        total = self._reduced(put.operator, total, along)
        if self._neutral(put.operator, tile) is not None:
            del self.pending[put.buffer]
        else:
            order = tuple(a for a in self.order if a in axes)
            old = self.read_tile(Load(put.buffer, self._own_indices(tile, axes), tile.buffer.dtype), order)
            function = PUT_FUNCTIONS[put.operator]
            scanned = self.apply(function, self.order, tile.buffer.dtype, [old, scanned])
            total = self.apply(function, self.order, tile.buffer.dtype, [old, total])
        lanes = (*tile.lanes, along)
        running = replace(
            tile,
            variable=self.fresh(f"{put.buffer}_{base_name(along)}"),
            lanes=lanes,
            shape=(*(self.extents[a] for a in lanes), *tile.shape[len(tile.lanes) :]),
            blocks=(*(self.blocks[a] for a in lanes), *tile.blocks[len(tile.lanes) :]),
        )
        self.assign(running, (*lanes, *axes[len(tile.lanes) :]), scanned)
        if is_used:
            self.assign(tile, axes, total)
        self.totals[along][put.buffer] = tile
        self.tiles[put.buffer] = running

    def _last(self, operator: PutOperator, scanned: Value, axis: str) -> Value:
        """The last prefix, and the neutral element in its other places. The sum of a block as it was loaded would do
        too, but for Triton's pass that lets threads add up such sums of several dimensions by themselves, where nothing
        else needs them in between: 3.6 fails on others."""
        dtype = scanned.dtype
        neutral = COMBINERS[_COMBINER[operator]].neutral(dtype)
        other = literal(-0.0 if operator == "+=" and dtype.is_float else neutral, dtype)
        mask = self.mask((Size.of(axis) - (self.extents[axis] - 2),), self.order)
        return scanned if mask is None else self.call("tl.where", self.order, dtype, mask, scanned, other)

    def _is_used_after(self, buffer: str, axis: str) -> bool:
        """Is a running value needed when its scan is done, or by the next step of a loop around it?"""
        inside = [any(x.axis == axis for x in a.loops) for a in self.users[buffer]]
        later = self.users[buffer][len(inside) - inside[::-1].index(True) :]
        return any(a.reads for a in later) or any(x.kind != "grid" for x in self.open_loops.values())

    def _scanned(self, operator: PutOperator, value: Value, axis: str) -> Value:
        """The block of all prefixes along a dimension."""
        place = value.axes.index(axis)
        names = {"+=": "add", "max=": "max", "min=": "min", "*=": "mul", "and=": "and", "or=": "or"}
        if operator == "+=" and value.dtype.bits >= 32:
            return replace(value, text=f"tl.cumsum({value.text}, axis={place})", level=10, literal=False)
        text = f"tl.associative_scan({value.text}, {place}, {self.helper(f'combine_{names[operator]}')})"
        return replace(value, text=text, level=10, literal=False)
