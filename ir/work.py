"""What evaluating a node costs, read off its space: scalar operations, bytes read and written.

The counts are those of an ideal machine: a sub-expression is evaluated once for each point of the axes that it uses,
every element that is needed is read once. A range that depends on data is taken to visit each element of what it
subscripts alone once in all, as the rows of a sparse matrix do; a loop whose count depends on data counts as one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops.collective import Done
from intarsia.ir.ops.control import After, Fused, ListGet, Loop
from intarsia.ir.ops.index import Update
from intarsia.ir.ops.order import Argsort, Cumulative, Sort
from intarsia.ir.ops.reduction import ArgReduce
from intarsia.ir.points import Context, Points
from intarsia.ir.scalar import Apply, Expr, Load, loads, walk
from intarsia.ir.space import Axis, operand, size_loads
from intarsia.ir.types import TensorType


@dataclass(frozen=True)
class Work:
    """Scalar arithmetic operations, and bytes of memory read and written."""

    operations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Operations for each byte moved."""
        return self.operations / max(1, self.bytes)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def __mul__(self, times: int) -> Work:
        return Work(self.operations * times, self.bytes_read * times, self.bytes_written * times)


def work(node: Node, sizes: Mapping[str, int]) -> Work:
    """The work of one node; `sizes` gives dimension names and the counters that it uses. Not for calls of kernels:
    `ir/kernel_counts.py` counts those."""
    reads = sum(bytes_read(node, sizes).values())
    written = sum(t.bytes_for(sizes) for t in node.results)
    match node:
        case Structured():
            points = _SpacePoints.of(node, sizes)
            space = node.space
            reductions = points.count(a.name for a in space.all_axes) if space.combiner else 0
            return Work(points.operations(space.body) + reductions, reads, written)
        case Update(axes=axes, body=body, base=base):
            points = _SpacePoints.of(node, sizes)
            writes = points.count(a.name for a in axes)
            merges = writes if node.operator != "=" else 0
            return Work(points.operations(body) + merges, reads, writes * base.dtype.bits // 8)
        case Loop():
            depends_on_data = node.lower.opaques or node.upper.opaques
            lower, upper = (0, 1) if depends_on_data else (node.lower.evaluate(sizes), node.upper.evaluate(sizes))
            inner = {**sizes, node.counter: lower}
            step = region_work(node.body, inner)
            if node.condition is not None:
                step = step + region_work(node.condition, inner)
            return step * max(0, upper - lower)
        case Fused(body=region):
            return Work(region_work(region, sizes).operations, reads, written)
        case ListGet() | After() | Done():
            return Work()
        case Sort(x) | Argsort(x):
            length = x.tensor.shape[-1].evaluate(sizes)
            return Work(x.type.elements.evaluate(sizes) * max(1, math.ceil(math.log2(max(2, length)))), reads, written)
        case Cumulative(x) | ArgReduce(x):
            return Work(x.type.elements.evaluate(sizes), reads, written)
    raise AssertionError(f"the work of a {node.name} is not read off the graph")


def region_work(region: Region, sizes: Mapping[str, int]) -> Work:
    """The work of all nodes of a region."""
    return sum((work(node, sizes) for node in region.nodes), Work())


def bytes_read(node: Node, sizes: Mapping[str, int]) -> dict[Value, int]:
    """Bytes of each value that a node reads, each element once."""
    match node:
        case Structured() | Update():
            points = _SpacePoints.of(node, sizes)
            touched = ((v, points.count(load.symbols) * load.dtype.bits // 8) for v, load in points.reads())
        case Fused(body=region):
            own = set(region.nodes)
            touched = (t for n in region.nodes for t in bytes_read(n, sizes).items() if t[0].node not in own)
        case Loop() | ListGet() | After() | Done():
            return {}
        case _:
            touched = ((v, v.type.bytes_for(sizes)) for v in node.operands)
    found: dict[Value, int] = {}
    for value, count in touched:
        found[value] = min(found.get(value, 0) + count, value.type.bytes_for(sizes))
    return found


@dataclass(frozen=True)
class _SpacePoints:
    """Counts the points of some of the axes of a space, or of the region of an update."""

    axes: tuple[Axis, ...]
    loads: tuple[Load, ...]
    operands: Mapping[str, Value]
    sizes: Mapping[str, int]

    @staticmethod
    def of(node: Structured | Update, sizes: Mapping[str, int]) -> _SpacePoints:
        if isinstance(node, Structured):
            axes, found = node.space.all_axes, tuple(node.space.loads())
            values: tuple[Value, ...] = node.operands
        else:
            axes, values = node.axes, (node.base, *node.arguments)
            bounds = (b for a in node.axes for b in (a.lower, a.upper))
            found = (*size_loads((*node.targets, *bounds)), *loads(node.body))
            if node.operator != "=":
                found = (*found, Load(operand(0), node.targets, node.base.dtype))
        return _SpacePoints(axes, found, {operand(p): v for p, v in enumerate(values)}, sizes)

    def reads(self) -> Iterator[tuple[Value, Load]]:
        """Each distinct load with what it reads."""
        return ((self.operands[load.buffer], load) for load in dict.fromkeys(self.loads))

    def operations(self, body: Expr) -> int:
        """Every distinct sub-expression, once for each point of the axes that it uses."""
        applied = dict.fromkeys(e for e in walk(body) if isinstance(e, Apply))
        return sum(FUNCTIONS[e.function].operations * self.count(e.symbols) for e in applied)

    def count(self, names: Iterable[str]) -> int:
        """The points of the axes of these names, and of those that their bounds use."""
        wanted = set(names)
        for axis in reversed(self.axes):
            if axis.name in wanted:
                wanted |= axis.lower.symbols | axis.upper.symbols
        chosen = [a for a in self.axes if a.name in wanted]
        plain = [a for a in chosen if not (a.lower.opaques or a.upper.opaques)]
        layout = Points(plain, Context(self.sizes, Arithmetic()), {})
        total = layout.count
        if layout.is_ragged:
            rest = (extent for extent, own in zip(layout.shape, layout.active.shape) if own == 1)
            total = int(np.sum(layout.active)) * math.prod(rest)
        for axis in chosen:
            if axis not in plain:
                used = axis.lower.symbols | axis.upper.symbols
                driving = math.prod(high - low for name, (low, high) in layout.ranges.items() if name in used)
                total = total * self._visited(axis.name) // max(1, driving)
        return total

    def _visited(self, name: str) -> int:
        """The elements that a range which depends on data visits in all: those of what it subscripts alone."""
        extents: list[int] = []
        for value, load in self.reads():
            if isinstance(value.type, TensorType):
                extents += [
                    s.evaluate(self.sizes) for i, s in zip(load.indices, value.tensor.shape) if i.as_name == name
                ]
        return min(extents, default=1)
