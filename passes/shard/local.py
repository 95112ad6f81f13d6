"""One op on what one device has: the space of its part.

An axis that is cut over devices runs over the part only. Where a subscript runs along a dimension that is cut in the
same way, it stays as it is: the offsets of both cancel. Everywhere else (the value of an index, a bound, a subscript
into a tensor that the device has whole) the axis stands for its place in the whole, `number of the device * part + i`.
What is beyond the end of the whole, where the devices do not divide an extent, is left out of reductions, and of what
run-time checks look at; in results it is arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.collective import CollectivePermute
from intarsia.ir.ops.elementwise import Cast as CastOp
from intarsia.ir.ops.elementwise import Elementwise, axes_for, broadcast_load
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.reduction import Matmul, Reduce
from intarsia.ir.ops.shape import BroadcastTo, Concat, Reshape, Slice, Transpose
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, apply, loads, where
from intarsia.ir.sharding import Axes, Mesh, local_extent
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.shard.checked import body_inside, size_inside, space_inside
from intarsia.passes.shard.edges import Edge
from intarsia.passes.shard.windows import Window

PLAIN = (Elementwise, CastOp, Matmul, Reduce, Transpose)
"""Ops whose meaning follows from the shapes of their operands: the same op computes a part."""


@dataclass
class LocalOp:
    """Makes one op local. `of_factor`: the axes of the mesh of each factor; `index`: the value that is the number of
    the device along axes; `checks`: there will be run-time checks."""

    mesh: Mesh
    edge: Edge
    of_factor: Mapping[str, Axes]
    index: Callable[[Axes], Value]
    add: Callable[[Node], Value]
    checks: bool = False

    def __post_init__(self) -> None:
        self.numbers: dict[Axes, int] = {}
        self.values: list[Value] = []
        self.done: dict[Expr, Expr] = {}
        self.shifts: dict[tuple[int, int], Size] = {}
        self.picked: dict[Expr, Expr] = {}
        self.ranges: dict[int, int] = {}
        self.axes: dict[str, Axes] = {}
        for factor in self.edge.factors:
            name = factor.name.split(".")[0]
            self.axes[name] = (*self.axes.get(name, ()), *self.of_factor.get(factor.name, ()))
        self.axes = {name: axes for name, axes in self.axes.items() if self.mesh.size(axes) > 1}

    def structured(self, node: Structured, operands: tuple[Value, ...], result: TensorType) -> Node:
        """The op on local operands; `result` is the local type of what it gives."""
        space = node.space
        self.values = list(operands)
        for (position, d), window in self.edge.windows.items():
            if window.axis in self.axes:
                self._widen(position, d, window)
        if self.checks and (ends := self._ends(space.axes)):
            space = space_inside(space, node.operands, _every(ends))
        body = space.body
        if space.combiner is not None:
            neutral = Const(COMBINERS[space.combiner].neutral(body.dtype), body.dtype)
            body = self._inside(space.reduced, body, neutral)
        body = self._of_own(self._expression(body))
        local = replace(
            space,
            axes=tuple(self._axis(a) for a in space.axes),
            reduced=tuple(self._axis(a) for a in space.reduced),
            body=body,
        )
        if tuple(self.values) == operands and body == space.body:
            if isinstance(node, PLAIN):
                return replace(node.with_operands_in_order(operands), shardings=())
            if isinstance(node, (Reshape, BroadcastTo)):
                return replace(node, x=operands[0], shape=result.shape, shardings=())
        return Compute(tuple(self.values), local, span=node.span, more_spans=node.more_spans)

    def update(self, node: Update, operands: tuple[Value, ...]) -> Node:
        """The update of what this device has. Of writes that are merged it makes its own, over the old tensor on the
        first device and over what changes nothing on the others."""
        self.values = list(operands)
        merged = [f for f in self.edge.factors if f.reduced and self.of_factor.get(f.name)]
        body, places = node.body, node.targets
        if self.checks and (ends := self._ends(node.axes)):
            body = body_inside(body, node.axes, node.operands, _every(ends))
            places = tuple(size_inside(t, _every(ends)) for t in places)
        if merged:
            combiner = merged[0].reduced
            assert combiner is not None
            neutral = Const(COMBINERS[combiner].neutral(body.dtype), body.dtype)
            body = self._inside([a for a in node.axes if a.name in {f.name for f in merged}], body, neutral)
            along = tuple(a for f in merged for a in self.of_factor[f.name])
            self.values[0] = self.add(on_first(operands[0], self.index(along), combiner))
        targets = tuple(self._size(t, aligned=bool(d)) for t, d in zip(places, self.edge.dimensions[0]))
        axes = tuple(self._axis(a) for a in node.axes)
        body = self._expression(body)
        return replace(
            node,
            base=self.values[0],
            arguments=tuple(self.values[1:]),
            axes=axes,
            targets=targets,
            body=body,
            shardings=(),
        )

    # ------------------------------------------------------------------ parts

    def _inside(self, axes: Sequence[Axis], body: Expr, neutral: Const) -> Expr:
        """The body without what is beyond the end of axes that the devices do not divide."""
        ends = self._ends(axes)
        return where(_every(ends), body, neutral) if ends else body

    def _ends(self, axes: Sequence[Axis]) -> list[Expr]:
        """What holds within the whole, of axes that the devices do not divide."""
        uneven = [a for a in axes if a.name in self.axes and self._is_uneven(a)]
        return [apply("lt", Index(Size.of(a.name)), Index(a.upper)) for a in uneven]

    def _is_uneven(self, axis: Axis) -> bool:
        extent = axis.upper.constant
        return extent is None or extent % self.mesh.size(self.axes[axis.name]) != 0

    def _extent(self, axis: str) -> int:
        """The part of an axis that a device has."""
        return local_extent(self._whole(axis), self.mesh.size(self.axes[axis]))

    def _whole(self, axis: str) -> int:
        extent = 1
        for factor in self.edge.factors:
            if factor.name.split(".")[0] == axis:
                extent *= int(factor.extent)
        return extent

    def _axis(self, axis: Axis) -> Axis:
        if axis.name in self.axes:
            return Axis.of(axis.name, self._extent(axis.name))
        return Axis(axis.name, self._size(axis.lower), self._size(axis.upper))

    def _place(self, axis: str) -> Size:
        """The place of a local axis in the whole."""
        return self._offset(axis) + Size.of(axis)

    def _offset(self, axis: str) -> Size:
        """Where the part of an axis begins."""
        return self._number(self.axes[axis]) * self._extent(axis)

    def _number(self, axes: Axes) -> Size:
        """The number of this device along axes."""
        if axes not in self.numbers:
            self.numbers[axes] = len(self.values)
            self.values.append(self.index(axes))
        return Size.opaque(Load(operand(self.numbers[axes]), (), I64))

    def _size(self, size: Size, aligned: bool = False) -> Size:
        """An integer expression on the device: `aligned` along a dimension that is cut as the axes in it are."""
        names = {} if aligned else {n: self._place(n) for n in size.symbols if n in self.axes}
        return size.substitute(names, lambda e: Size.opaque(self._expression(e)))

    def _expression(self, e: Expr) -> Expr:
        """A body on the device. Parents go first: a name that has been given its place must not be given it again."""
        if e not in self.done:
            self.done[e] = self._rebuilt(e)
        return self.done[e]

    def _rebuilt(self, e: Expr) -> Expr:
        match e:
            case Load(buffer):
                return self._load(e, operand_position(buffer))
            case Index(size):
                return Index(self._size(size))
            case Apply(function, arguments):
                return Apply(function, tuple(map(self._expression, arguments)))
            case Cast(dtype, value):
                return Cast(dtype, self._expression(value))
            case Bitcast(dtype, value):
                return Bitcast(dtype, self._expression(value))
        return e

    def _load(self, load: Load, position: int) -> Expr:
        known = self.edge.dimensions[position]
        skip = len(load.indices) - len(known)  # the subscript of a list
        indices = [self._size(i) for i in load.indices[:skip]]
        inside: list[Expr] = []
        for d, (index, names) in enumerate(zip(load.indices[skip:], known)):
            if (position, d) in self.shifts:
                indices.append(index + self.shifts[position, d])
            elif (position, d) in self.edge.windows or not names:
                indices.append(self._size(index))
            elif names[0] in self.edge.selected and names[0] in self.axes:
                whole = self._whole(names[0])
                place = self._in_range(self._size(index), whole) if self.checks else self._size(index)
                picked = maximum(0, minimum(whole - 1, place)) - self._offset(names[0])
                inside += [apply("ge", Index(picked), Index(ZERO))]
                inside += [apply("lt", Index(picked), Index(Size.of(self._extent(names[0]))))]
                indices.append(picked)
            else:
                indices.append(self._size(index, aligned=names[0] not in self.edge.selected))
        found = replace(load, indices=tuple(indices))
        if inside:
            self.picked[found] = _every(inside)
        return found

    def _in_range(self, index: Size, extent: int) -> Size:
        """A subscript, read from all that there are: so that it is checked before a device looks for what it has."""
        if extent not in self.ranges:
            self.ranges[extent] = len(self.values)
            self.values.append(self.add(Compute((), Space((Axis.of("i", extent),), Index(Size.of("i")), I64))))
        return Size.opaque(Load(operand(self.ranges[extent]), (index,), I64))

    def _of_own(self, e: Expr) -> Expr:
        """A body that is linear in what data select, without the summands of which other devices have a factor: a
        whole summand, for 0 times infinity is NaN. A zero that is added changes no sign."""
        conditions = self._conditions(e)
        several = [c for c in e.children if len(self._conditions(c)) > 1]
        match e:
            case Apply(function, arguments) if several or (len(conditions) > 1 and function != "mul"):
                return Apply(function, tuple(map(self._of_own, arguments)))
            case Cast(dtype, value) if several:
                return Cast(dtype, self._of_own(value))
        nothing = Const(-0.0 if e.dtype.is_float else 0, e.dtype)
        return where(_every(conditions), e, nothing) if conditions else e

    def _conditions(self, e: Expr) -> tuple[Expr, ...]:
        """Where this device has what is selected in an expression."""
        return tuple(dict.fromkeys(self.picked[x] for x in loads(e) if x in self.picked))

    def _widen(self, position: int, d: int, window: Window) -> None:
        """Put what the neighbours have of the window before and after an operand's own part."""
        value, axes = self.values[position], self.axes[window.axis]
        devices = self.mesh.size(axes)
        whole = int(self.edge.tensors[position].tensor.shape[d])
        own, made = int(value.tensor.shape[d]), self._extent(window.axis)
        halo = window.halo(whole, self._whole(window.axis), devices)
        assert halo is not None, "the neighbours do not have all of the window"
        before, after = halo
        names = tuple(map(str, axes))
        parts = [value]
        if before > 0:
            last = self.add(_cut(value, d, own - before, before))
            parts.insert(0, self.add(CollectivePermute(last, names, devices, (-1, *range(devices - 1)))))
        if after > 0:
            first = self.add(_cut(value, d, 0, after))
            parts.append(self.add(CollectivePermute(first, names, devices, (*range(1, devices), -1))))
        if len(parts) > 1:
            self.values[position] = self.add(Concat(tuple(parts), d))
        drift = window.stride * made - own
        self.shifts[position, d] = (self._number(axes) * drift if drift else ZERO) + before


def on_first(value: Value, index: Value, combiner: str) -> Compute:
    """A value on the device of index 0; what changes nothing on the others, the sign of a zero neither."""
    axes = axes_for(value.tensor.shape)
    neutral: float | bool = COMBINERS[combiner].neutral(value.dtype)
    if combiner == "sum" and value.dtype.is_float:
        neutral = -0.0
    first = apply("eq", Load(operand(1), (), I64), Const(0, I64))
    body = where(first, broadcast_load(0, value, axes), Const(neutral, value.dtype))
    return Compute((value, index), Space(axes, body, value.dtype))


def _cut(value: Value, d: int, start: int, extent: int) -> Slice:
    starts = tuple(Size.of(start if k == d else 0) for k in range(value.tensor.rank))
    extents = tuple(Size.of(extent) if k == d else s for k, s in enumerate(value.tensor.shape))
    return Slice(value, starts, extents, (1,) * value.tensor.rank)


def _every(conditions: Sequence[Expr]) -> Expr:
    result = conditions[0]
    for other in conditions[1:]:
        result = apply("and", result, other)
    return result


def local_type(mesh: Mesh, type_: TensorType, axes: Sequence[Axes]) -> TensorType:
    """What one device has of a tensor."""
    shape = tuple(s if not a else Size.of(local_extent(int(s), mesh.size(a))) for s, a in zip(type_.shape, axes))
    return TensorType(type_.dtype, shape)
