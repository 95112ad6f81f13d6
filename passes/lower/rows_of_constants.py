"""Kernels in a loop that read rows of constants at its counter are given the row: `w[i, k, j]` becomes `w[k, j]`. So it
is with items of lists.

    loop i { call @f_matmul(%w, %h)[i] }   =>   loop i { %1 = list_get %w[i]; call @f_matmul(%1, %h) }

A stack of the weights of layers is then what a list of them is, also where items of the list are read in index
notation. Such a kernel knows no counter, so that it is the same for all layers, and what its schedule lays out in
advance can be laid out before the loop, for every layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.ir.kernel import Buffer, Kernel, Prefetch
from intarsia.ir.kernel import Call as RoutineCall
from intarsia.ir.kernel_access import accesses
from intarsia.ir.ops import Call, ListGet, Loop, Reshape
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, Load
from intarsia.ir.sizes import ZERO, Size, product, row_major_strides
from intarsia.ir.types import ListType
from intarsia.passes.dce import without_dead_kernels
from intarsia.passes.lower.constants import Constants
from intarsia.passes.lower.stages import Names, symbols
from intarsia.passes.regions import change_node_regions, change_nodes
from intarsia.passes.schedule.tree import change_loads


def with_rows(module: Module) -> Module:
    """The lowered program with rows of constants passed as such."""
    dimensions = frozenset(module.graph.dimensions)
    made = _Made(module, dimensions)
    body = made.region(module.graph.body, Facts(names=dimensions), frozenset())
    if body is module.graph.body:
        return module
    return without_dead_kernels(replace(module.with_body(body), kernels=tuple(made.named.values())))


class _Made:
    """Changes calls, and makes the kernels that they call."""

    def __init__(self, module: Module, dimensions: frozenset[str]) -> None:
        self.named = {k.name: k for k in module.kernels}
        self.constants = Constants(self.named.__getitem__, dimensions)
        self._names = Names(self.named)
        self._known: dict[Kernel, Kernel] = {}

    def region(self, region: Region, facts: Facts, counters: frozenset[str]) -> Region:
        """A region with the calls in its loops changed."""

        def change(node: Node) -> Sequence[Node]:
            match node:
                case Loop(counter, lower, upper):
                    inside = facts if lower.opaques else facts.given(Size.of(counter) - lower)
                    inside = inside if upper.opaques else inside.given(upper - 1 - counter)
                    return (change_node_regions(node, lambda r: self.region(r, inside, counters | {counter})),)
                case Call() if counters:
                    return self.call(node, facts, counters)
            return (node,)

        return change_nodes(region, change)

    def call(self, call: Call, facts: Facts, counters: frozenset[str]) -> Sequence[Node]:
        """A call after the rows that it is given; the call alone if it reads none."""
        kernel = self.named[call.kernel]
        sizes = dict(zip(kernel.sizes, call.sizes))
        given = dict(zip((b.name for b in kernel.parameters if b.role in ("in", "inout")), call.arguments))
        depths: dict[str, int] = {}
        views: list[Node] = []
        for name, row in _rows(kernel, frozenset(n for n, s in sizes.items() if s.symbols & counters)).items():
            source, place = given[name], tuple(i.substitute(sizes) for i in row)
            extents = _extents(source)[: len(row)]
            is_inside = all(facts.proves(i) and facts.proves_below(i, e) for i, e in zip(place, extents))
            if is_inside and isinstance(source.node, Parameter) and source.node.constant:
                views += _row(source, place)
                given[name], depths[name] = views[-1].value, len(row)
        if not views:
            return (call,)
        arguments = tuple(given.values())
        new = self._kernel(kernel, depths, arguments, counters)
        return (*views, replace(call, kernel=new.name, arguments=arguments, sizes=tuple(sizes[n] for n in new.sizes)))

    def _kernel(
        self, old: Kernel, depths: Mapping[str, int], arguments: Sequence[Value], counters: frozenset[str]
    ) -> Kernel:
        """A kernel that is given rows of some inputs: so many leading subscripts of them are gone."""

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load) or e.buffer not in depths:
                return None
            return replace(e, indices=e.indices[depths[e.buffer] :])

        parameters = tuple(_without(b, depths.get(b.name, 0)) for b in old.parameters)
        body = change_loads(old.body, read)
        used = symbols(body, parameters)
        new = Kernel("", parameters, body, tuple(n for n in old.sizes if n in used), old.span)
        if counters.isdisjoint(new.sizes):
            new = self.constants.marked(new, arguments)
        if new not in self._known:
            self._known[new] = replace(new, name=self._names.fresh(f"{old.name}_row"))
            self.named[self._known[new].name] = self._known[new]
        return self._known[new]


def _rows(kernel: Kernel, counters: frozenset[str]) -> dict[str, tuple[Size, ...]]:
    """The leading subscripts, all of them formulas of counters, that everything which reads an input has in common; of
    the inputs that only loads read. Of a list that is which item."""
    found = {b.name: [a for a in accesses(kernel.body) if a.buffer == b.name] for b in kernel.inputs}
    lists = {b.name for b in kernel.inputs if b.length is not None}
    rows: dict[str, tuple[Size, ...]] = {}
    for name, own in found.items():
        columns = (set(column) for column in zip(*(a.indices for a in own)))
        same = itertools.takewhile(lambda places: len(places) == 1, columns)
        leading = tuple(itertools.takewhile(lambda i: i.symbols and i.symbols <= counters, (p for (p,) in same)))
        if leading and not any(isinstance(a.statement, (RoutineCall, Prefetch)) for a in own):
            rows[name] = leading[:1] if name in lists else leading
    return rows


def _extents(source: Value) -> tuple[Size, ...]:
    """How long a tensor is along its dimensions, a list along that of its items first."""
    kind = source.type
    if isinstance(kind, ListType):
        return (kind.length, *kind.element.shape)
    return source.tensor.shape


def _without(buffer: Buffer, depth: int) -> Buffer:
    """A buffer for what is at the first so many subscripts."""
    if depth and buffer.length is not None:
        return replace(buffer, length=None)
    return replace(buffer, shape=buffer.shape[depth:])


def _row(source: Value, place: Sequence[Size]) -> tuple[Node, ...]:
    """The nodes that give a row of a tensor at some leading subscripts."""
    if len(place) == 1:
        return (ListGet(source, place[0]),)
    shape, depth = source.tensor.shape, len(place)
    rows = Reshape(source, (product(shape[:depth]), *shape[depth:]))
    strides = row_major_strides(shape[:depth])
    return (rows, ListGet(rows.value, sum((i * s for i, s in zip(place, strides)), ZERO)))
