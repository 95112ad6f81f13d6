"""One op on what one device has: the space of its part.

An axis that is cut over devices runs over the part only. Where a subscript runs along a dimension that is cut in the
same way, it stays as it is: the offsets of both cancel. Everywhere else (the value of an index, a bound, a subscript
into a tensor that the device has whole) the axis stands for its place in the whole, `number of the device * part + i`.
What is beyond the end of the whole, where the devices do not divide an extent, is left out of reductions, and of what
run-time checks look at; in results it is arbitrary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.dtypes import I64
from intarsia.ir.factors import Factor
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.ops.elementwise import Cast as CastOp
from intarsia.ir.ops.elementwise import Elementwise, axes_for, broadcast_load
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.reduction import Matmul, Reduce
from intarsia.ir.ops.shape import BroadcastTo, Reshape, Transpose
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, apply, every, loads, where
from intarsia.ir.sharding import Axes, Mesh, local_extent
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import TensorType
from intarsia.passes.shard.checked import body_inside, size_inside, space_inside
from intarsia.passes.shard.edges import Edge, Place
from intarsia.passes.shard.ways import sharding_of
from intarsia.passes.shard.windows import Run

PLAIN = (Elementwise, CastOp, Matmul, Reduce, Transpose)
"""Ops whose meaning follows from the shapes of their operands: the same op computes a part."""


@dataclass
class LocalOp:
    """Makes one op local. `runs`: the places that the device computes along each axis that is split; `origins`: those
    that it has of dimensions of operands, None for all of them; dimensions that it does not name are cut as the axes in
    their subscripts are. `index`: the value that is the number of the device along axes; `checks`: there will be
    run-time checks."""

    mesh: Mesh
    edge: Edge
    runs: Mapping[str, Run]
    origins: Mapping[Place, Run | None]
    index: Callable[[Axes], Value]
    add: Callable[[Node], Value]
    checks: bool = False
    numbers: dict[Axes, int] = field(default_factory=dict, init=False)
    values: list[Value] = field(default_factory=list, init=False)
    done: dict[Expr, Expr] = field(default_factory=dict, init=False)
    picked: dict[Expr, Expr] = field(default_factory=dict, init=False)
    ranges: dict[int, int] = field(default_factory=dict, init=False)

    def structured(self, node: Structured, operands: tuple[Value, ...], result: TensorType) -> Node:
        """The op on local operands; `result` is the local type of what it gives."""
        space = node.space
        self.values = list(operands)
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
        if self.checks and (ends := self._ends(a.name for a in space.axes)):
            local = space_inside(local, self.values, self._expression(every(ends)))
        if tuple(self.values) == operands and local.body == space.body:
            if isinstance(node, PLAIN):
                return replace(node.with_operands_in_order(operands), shardings=())
            if isinstance(node, (Reshape, BroadcastTo)):
                return replace(node, x=operands[0], shape=result.shape, shardings=())
        return Compute(tuple(self.values), local, **node.spans)

    def update(self, node: Update, operands: tuple[Value, ...]) -> Node:
        """The update of what this device has. Of writes that are merged it makes its own, over the old tensor on the
        first device and over what changes nothing on the others, if it is not in parts already."""
        self.values = list(operands)
        merged = {f.name.split(".")[0]: f.reduced for f in self.edge.factors if f.reduced}
        merged = {name: combiner for name, combiner in merged.items() if name in self.runs}
        body = node.body
        for combiner in set(merged.values()):
            neutral = Const(COMBINERS[combiner].neutral(body.dtype), body.dtype)
            body = self._inside([a for a in node.axes if a.name in merged], body, neutral)
            along = tuple(a for n in merged for a in self.runs[n].axes)
            if not sharding_of(node.base).partial:
                self.values[0] = self.add(on_first(operands[0], self.index(along), combiner))
        targets = tuple(self._size(t, aligned=bool(d)) for t, d in zip(node.targets, self.edge.dimensions[0]))
        axes = tuple(self._axis(a) for a in node.axes)
        body = self._expression(body)
        if self.checks and (ends := self._ends(a.name for a in node.axes)):
            targets = tuple(size_inside(t, self._expression(every(ends))) for t in targets)
        if self.checks and (ends := self._ends(a.name for a in node.axes if a.name not in merged)):
            body = body_inside(body, axes, self.values, self._expression(every(ends)))
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
        ends = self._ends(a.name for a in axes)
        return where(every(ends), body, neutral) if ends else body

    def _ends(self, axes: Iterable[str]) -> list[Expr]:
        """What holds within the whole, of axes along which a device also computes what is beyond."""
        found: list[Expr] = []
        for axis, run in ((a, self.runs[a]) for a in axes if a in self.runs):
            if run.start < 0:
                found.append(apply("ge", Index(Size.of(axis)), Index(ZERO)))
            if run.goes_beyond(self.mesh.size(run.axes)):
                found.append(apply("lt", Index(Size.of(axis)), Index(Size.of(run.whole))))
        return found

    def _axis(self, axis: Axis) -> Axis:
        if axis.name in self.runs:
            return Axis.of(axis.name, self.runs[axis.name].extent)
        return Axis(axis.name, self._size(axis.lower), self._size(axis.upper))

    def _offset(self, run: Run) -> Size:
        """Where a run begins."""
        return self._number(run.axes) * run.step + run.start

    def _number(self, axes: Axes) -> Size:
        """The number of this device along axes."""
        if axes not in self.numbers:
            self.numbers[axes] = len(self.values)
            self.values.append(self.index(axes))
        return Size.opaque(Load(operand(self.numbers[axes]), (), I64))

    def _size(self, size: Size, aligned: bool = False) -> Size:
        """An integer expression on the device: `aligned` along a dimension that is cut as the axes in it are."""
        names = {} if aligned else {n: self._offset(self.runs[n]) + n for n in size.symbols if n in self.runs}
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
        whole: set[str] = set()
        for d, (index, names) in enumerate(zip(load.indices[skip:], known)):
            start = self.origins.get((position, d))
            if start is not None:
                indices.append(self._size(index) - self._offset(start))
            elif (position, d) in self.origins or (position, d) in self.edge.windows or not names:
                indices.append(self._size(index))
                whole |= index.symbols if not index.opaques else set()
            elif names[0] in self.edge.selected and names[0] in self.runs:
                run = self.runs[names[0]]
                place = self._in_range(self._size(index), run.whole) if self.checks else self._size(index)
                picked = maximum(0, minimum(run.whole - 1, place)) - self._offset(run)
                inside += [apply("ge", Index(picked), Index(ZERO))]
                inside += [apply("lt", Index(picked), Index(Size.of(run.extent)))]
                indices.append(picked)
            else:
                indices.append(self._size(index, aligned=names[0] not in self.edge.selected))
        found = replace(load, indices=tuple(indices))
        if inside:
            self.picked[found] = every(inside)
        if ends := self._ends(sorted(whole)):  # beyond the end there is nothing to read
            return where(self._expression(every(ends)), found, Const(0, load.dtype))
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
            case Apply("where", (guard, a, b)):  # outside of which subscripts may be of nothing
                return Apply("where", (guard, self._of_own(a), self._of_own(b)))
            case Apply(function, arguments) if several or (len(conditions) > 1 and function != "mul"):
                return Apply(function, tuple(map(self._of_own, arguments)))
            case Cast(dtype, value) if several:
                return Cast(dtype, self._of_own(value))
        nothing = Const(-0.0 if e.dtype.is_float else 0, e.dtype)
        return where(every(conditions), e, nothing) if conditions else e

    def _conditions(self, e: Expr) -> tuple[Expr, ...]:
        """Where this device has what is selected in an expression."""
        return tuple(dict.fromkeys(self.picked[x] for x in loads(e) if x in self.picked))


def on_first(value: Value, index: Value, combiner: str) -> Compute:
    """A value on the device of index 0; what changes nothing on the others, the sign of a zero neither."""
    axes = axes_for(value.tensor.shape)
    neutral: float | bool = COMBINERS[combiner].neutral(value.dtype)
    if combiner == "sum" and value.dtype.is_float:
        neutral = -0.0
    first = apply("eq", Load(operand(1), (), I64), Const(0, I64))
    body = where(first, broadcast_load(0, value, axes), Const(neutral, value.dtype))
    return Compute((value, index), Space(axes, body, value.dtype))


def runs_of(mesh: Mesh, edge: Edge, of_factor: Mapping[str, Axes]) -> dict[str, Run]:
    """The places that each device computes along the axes of an op whose factors are split so."""
    digits: dict[str, list[Factor]] = {}
    for factor in edge.factors:
        digits.setdefault(factor.name.split(".")[0], []).append(factor)
    runs: dict[str, Run] = {}
    for name, factors in digits.items():
        axes = tuple(a for f in factors for a in of_factor.get(f.name, ()))
        if (devices := mesh.size(axes)) > 1:
            runs[name] = Run.part(axes, math.prod(int(f.extent) for f in factors), devices)
    return runs


def local_type(mesh: Mesh, type_: TensorType, axes: Sequence[Axes]) -> TensorType:
    """What one device has of a tensor."""
    shape = tuple(s if not a else Size.of(local_extent(int(s), mesh.size(a))) for s, a in zip(type_.shape, axes))
    return TensorType(type_.dtype, shape)
