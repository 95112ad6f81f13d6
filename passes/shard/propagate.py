"""Shardings of all tensors from those that the program says.

The algorithm is Shardy's (https://openxla.org/shardy/propagation): every op says which dimensions of its tensors are
one factor, and axes spread along factors, forwards and backwards, until nothing changes. What goes first is decided in
three nested orders: the priorities that the user gives; then stages of ops, those that only pass elements on before
those that move or merge them; then rules for conflicts, of which the careful ones (`basic`) come before the bold
(`aggressive`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Structured, Value
from intarsia.ir.ops.collective import Shard
from intarsia.ir.sharding import Axes, DimensionSharding, Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import mesh_of
from intarsia.passes.fuse.report import title
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.shard.edges import Edge, Projection, dimension_axes, edges_of, project, shape_of
from intarsia.passes.shard.meshes import check_shardings, described, reshard_values
from intarsia.passes.shard.readers import Readers


@dataclass(frozen=True)
class PropagateSharding(Pass):
    """Give every tensor a sharding, from those that the program says.

    Before:  func @f(%x: f32[8@data, 4], %w: f32[4, 6@model]) { %0 = matmul %x, %w : f32[8, 6] … }
    After:   … %0 = matmul %x, %w : f32[8@data, 6@model] …

    Keeps: values. Needs: a mesh in the header; without one it does nothing. Leaves: a sharding, perhaps an empty one,
    for every tensor. With `strict` a choice between shardings is an error; with `basic` what tensors do not agree on
    stays as it is. Source: https://openxla.org/shardy/propagation.

    Raises CompileError: E1901 a sharding that does not fit the mesh, E1902 under `strict`.
    """

    name: ClassVar[str] = "propagate-sharding"
    strict: bool = False
    basic: bool = False

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None:
            return module
        check_shardings(module, mesh)
        found = Propagation(mesh, self.strict, ("basic",) if self.basic else RULES)
        found.begin(module)
        parts = _parts(module)
        found.run(tuple(edges_of(module.graph.body)))
        for choice in found.choices:
            self.remark(context, "sharding", str(choice), choice.value.node.span)
        for name in found.unused():
            message = f"no tensor is split over {name}: the devices along it all do the same"
            self.remark(context, "sharding", message, None, done=False)

        def settled(value: Value) -> Sharding:
            own, said = found.settled(value), parts.get(value)
            if said is None or any(mesh.overlap(a, b) for a in own.used for b in said.partial):
                return own  # split over the axes of the parts, it is made and then becomes parts
            return replace(own, partial=said.partial, combiner=said.combiner)

        return module.with_body(reshard_values(module.graph.body, settled))


def _parts(module: Module) -> dict[Value, Sharding]:
    """What the program says is the sum, or maximum …, of parts: parameters, and values with a declared type, with what
    an op makes for these alone."""
    body = module.graph.body
    found = {p.value: s for p in body.parameters if (s := p.type.sharding) is not None and s.partial}
    readers = Readers(body)
    for node in body.walk():
        if isinstance(node, Shard) and (said := node.value.type.sharding) is not None and said.partial:
            found[node.value] = said
            is_made = isinstance(node.x.node, Structured) and not isinstance(node.x.node, Shard)
            if is_made and readers.is_for_one(node.x):
                found[node.x] = said
    return found


@dataclass(frozen=True)
class Choice:
    """Why a dimension is split: for a remark."""

    value: Value
    dimension: int
    axes: Axes
    edge: Edge
    source: Value
    rule: str

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes))
        return (
            f"dimension {self.dimension} of {described(self.value)} is split over {axes}, "
            f"as {described(self.source)} ({self.rule})"
        )


@dataclass
class _Laid:
    """How one tensor lies so far. A dimension is `fixed` where it takes no more axes: it is closed, or waits for the
    turn of its priority, and `hidden` while it waits. Along the axes `taken` it is copied, or is parts of a sum."""

    axes: list[Axes]
    closed: tuple[bool, ...]
    priorities: tuple[int, ...]
    taken: Axes


Rule = Literal["basic", "aggressive"]

RULES: tuple[Rule, ...] = ("basic", "aggressive")

STAGES = ("elementwise, operands read once", "elementwise", "factors that pass", "all but broadcasts", "all")
"""The stages of ops, in order: Shardy's op priorities."""


@dataclass
class Propagation:
    """Spreads axes over edges. `choices` are what it did, in order."""

    mesh: Mesh
    strict: bool = False
    rules: tuple[Rule, ...] = RULES
    laid: dict[Value, _Laid] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    priority: int = 0

    def begin(self, module: Module) -> None:
        """Take the shardings that the program says."""
        for node in (*module.graph.parameters, *_all_parameters(module)):
            self._add(node)
        for node in module.graph.body.walk():
            self._add(node)

    def _add(self, node: Node) -> None:
        for value in node.values:
            if value in self.laid:
                continue
            shape = shape_of(value)
            said = value.type.sharding or Sharding((DimensionSharding(),) * len(shape))
            dimensions = said.dimensions
            self.laid[value] = _Laid(
                [d.axes for d in dimensions],
                tuple(not d.open for d in dimensions),
                tuple(d.priority for d in dimensions),
                (*said.replicated, *said.partial),
            )

    def unused(self) -> list[str]:
        """The axes of several devices that split no tensor."""
        used = {a.name for laid in self.laid.values() for a in (*laid.taken, *(a for axes in laid.axes for a in axes))}
        return [name for name, size in self.mesh.axes if size > 1 and name not in used]

    def settled(self, value: Value) -> Sharding:
        return Sharding.of(tuple(self.laid[value].axes))

    def run(self, edges: Sequence[Edge]) -> None:
        """Propagate to the end, by priorities, stages and rules."""
        uses: dict[Value, list[int]] = {}
        for number, edge in enumerate(edges):
            for value in dict.fromkeys(edge.tensors):
                uses.setdefault(value, []).append(number)
        readers: dict[Value, int] = {}
        for edge in edges:
            for value in {edge.tensors[t] for t in edge.operands}:
                readers[value] = readers.get(value, 0) + 1
        for priority in sorted({p for laid in self.laid.values() for p in laid.priorities} | {0}):
            self.priority = priority
            for stage in range(len(STAGES)):
                for rule in self.rules:
                    self._to_the_end(edges, uses, readers, stage, rule)

    def _to_the_end(
        self,
        edges: Sequence[Edge],
        uses: dict[Value, list[int]],
        readers: dict[Value, int],
        stage: int,
        rule: Rule,
    ) -> None:
        queue = list(range(len(edges)))
        queued = set(queue)
        while queue:
            number = heapq.heappop(queue)
            queued.discard(number)
            edge = edges[number]
            turn = _Turn.of(edge, stage, readers)
            if turn is None:
                continue
            for value in self._step(edge, turn, rule, STAGES[stage]):
                for other in uses[value]:
                    if other not in queued:
                        queued.add(other)
                        heapq.heappush(queue, other)

    # ------------------------------------------------------------------ one edge

    def _step(self, edge: Edge, turn: _Turn, rule: Rule, stage: str) -> set[Value]:
        """Spread axes over one edge; the tensors that changed."""
        seen = [project(self.mesh, edge, t, self._visible(v)) for t, v in enumerate(edge.tensors)]
        if not any(axes for t in turn.sources for axes in seen[t].of_factor.values()):
            return set()
        wanted: dict[str, tuple[Axes, int]] = {}
        for factor in edge.factors:
            if not turn.takes(factor.reduced):
                continue
            found = self._compatible(edge, factor.name, seen, turn)
            if found is not None and found[0]:
                wanted[factor.name] = found
        if rule == "basic":
            wanted = {f: (self._uncontested(edge, f, axes, seen), t) for f, (axes, t) in wanted.items()}
        order = sorted(wanted, key=lambda f: self._preference(edge, f, *wanted[f]))
        changed: set[Value] = set()
        for name in order:
            axes, source = wanted[name]
            for t in sorted(turn.targets, reverse=True):  # results first
                if not axes or name not in seen[t].of_factor:
                    continue
                value = edge.tensors[t]
                sideways = not edge.is_flow and t in edge.operands and source in edge.operands
                spread = self._shared_with_results(edge, name, axes) if sideways else axes
                dimension = self._extend(edge, t, value, name, spread, seen, order)
                if dimension is None:
                    continue
                changed.add(value)
                own, origin = self.laid[value].axes[dimension], edge.tensors[source]
                self.choices.append(Choice(value, dimension, own, edge, origin, f"{rule}, {stage}"))
                for p, other in enumerate(edge.tensors):  # a tensor may be several operands
                    if other is value:
                        seen[p] = project(self.mesh, edge, p, self._visible(value))
        return changed

    def _visible(self, value: Value) -> tuple[Axes, ...]:
        laid = self.laid[value]
        return tuple(() if p > self.priority else a for a, p in zip(laid.axes, laid.priorities))

    def _compatible(self, edge: Edge, name: str, seen: Sequence[Projection], turn: _Turn) -> tuple[Axes, int] | None:
        """The axes on which all tensors agree as far as they say anything, and the tensor that says most."""
        lists = [(seen[t].of_factor[name], t) for t in turn.sources if name in seen[t].of_factor]
        # What may not change does not pull, but what it has must not be contradicted.
        lists += [(p.of_factor[name], t) for t, p in enumerate(seen) if name in p.of_factor and t not in turn.sources]
        result: list[MeshAxis] = []
        rests = [(axes, t) for axes, t in lists if axes]
        source = min((t for _, t in rests), default=None)
        while rests:
            heads = {axes[0] for axes, _ in rests}
            first = min(heads, key=self.mesh.size)
            agree = all(
                h.name == first.name and h.left == first.left and self.mesh.size(h) % self.mesh.size(first) == 0
                for h in heads
            )
            if not agree:
                if self._is_strict(edge):
                    self._refuse(edge, name, [(axes, t) for axes, t in lists if axes])
                break
            source = rests[0][1]
            result.append(first)
            rests = [(rest, t) for axes, t in rests if (rest := self.mesh.rest((first,), axes))]
        if source is None:
            return None
        from_sources = {axes for axes, t in lists if t in turn.sources}
        joined = self.mesh.joined(result)
        longest = max((self.mesh.common_prefix(joined, a) for a in from_sources), key=len, default=())
        return (longest if len(longest) < len(joined) else joined), source

    def _shared_with_results(self, edge: Edge, name: str, axes: Axes) -> Axes:
        """From operand to operand goes only what the results have too: more would have to be sent for them anyway."""
        for t in range(len(edge.operands), len(edge.tensors)):
            laid = tuple(self.laid[edge.tensors[t]].axes)
            if any(names and name in names for names in edge.dimensions[t]):
                axes = self.mesh.common_prefix(axes, project(self.mesh, edge, t, laid).of_factor.get(name, ()))
        return axes

    def _uncontested(self, edge: Edge, name: str, axes: Axes, seen: Sequence[Projection]) -> Axes:
        """The first of the axes that no other factor has in any tensor, and that no closed dimension goes without."""
        for t, p in enumerate(seen):
            if name in p.of_factor and self._is_closed(edge, t, name):
                axes = self.mesh.common_prefix(axes, p.of_factor[name])
        others = [a for p in seen for f, own in p.of_factor.items() if f != name for a in own]
        others += [a for p in seen for a in p.others]
        others += [a for p, v in zip(seen, edge.tensors) if name in p.of_factor for a in self.laid[v].taken]
        return self.mesh.free_prefix(axes, others)

    def _is_closed(self, edge: Edge, t: int, name: str) -> bool:
        return self.laid[edge.tensors[t]].closed[_dimension_of(edge, t, name)]

    def _preference(self, edge: Edge, name: str, axes: Axes, source: int) -> tuple[float, ...]:
        """Larger tensors first; for identities the factor that is split more; then the order in the text."""
        elements = math.prod(s.constant or 1 for s in shape_of(edge.tensors[source]))
        split = -self.mesh.size(axes) if edge.is_identity else 0
        position = next(p for p, f in enumerate(edge.factors) if f.name == name)
        return (-elements, split, source, position)

    def _extend(
        self,
        edge: Edge,
        t: int,
        value: Value,
        name: str,
        axes: Axes,
        seen: Sequence[Projection],
        order: Sequence[str],
    ) -> int | None:
        """Split the dimension of one tensor that has a factor further, and give it; None if nothing changes."""
        laid = self.laid[value]
        dimension = _dimension_of(edge, t, name)
        if laid.closed[dimension] or laid.priorities[dimension] > self.priority:
            return None
        own = seen[t].of_factor[name]
        if not self.mesh.is_prefix(own, axes):
            return None
        taken = [a for d, found in enumerate(laid.axes) if d != dimension for a in found]
        taken += [*laid.taken, *seen[t].others]
        taken += [a for f, found in seen[t].of_factor.items() if f != name for a in found]
        free = self.mesh.free_prefix(self.mesh.rest(own, axes), taken)
        if self._is_strict(edge) and len(free) < len(self.mesh.rest(own, axes)):
            rivals = [f for f in order if f != name and seen[t].of_factor.get(f)]
            if rivals:
                source = next((o for o in edge.operands if seen[o].of_factor.get(name)), t)
                self._refuse_both(edge, t, (rivals[0], name), axes, source)
        if not free:
            return None
        names = edge.dimensions[t][dimension] or ()
        wanted = self.mesh.joined((*own, *free))
        if len(names) > 1:
            wanted, _ = self.mesh.take(wanted, edge.extents[name])
        new = {**seen[t].of_factor, name: wanted}
        for major in names[: names.index(name)]:
            if self.mesh.size(new[major]) != edge.extents[major]:
                return None
        whole = dimension_axes(self.mesh, edge, names, new)
        if whole == laid.axes[dimension] or not self.mesh.is_prefix(laid.axes[dimension], whole):
            return None
        laid.axes[dimension] = whole
        return dimension

    def _is_strict(self, edge: Edge) -> bool:
        """Is a choice an error? A declared type is one that the user has made."""
        return self.strict and not isinstance(edge.node, Shard)

    def _refuse(self, edge: Edge, name: str, ways: Sequence[tuple[Axes, int]]) -> None:
        """Raise E1902: tensors are split in different ways."""
        said = " or ".join(f"{', '.join(map(str, axes))} as {described(edge.tensors[t])}" for axes, t in ways)
        (axes, _), (_, other) = ways[0], ways[-1]
        hint = f"lay one of them out as the other before it: {_declaration(edge, other, name, axes)}"
        raise CompileError("E1902", f"the {title(edge.node)} could be split over {said}", edge.node.span, hint=hint)

    def _refuse_both(self, edge: Edge, t: int, names: tuple[str, str], axes: Axes, source: int) -> None:
        """Raise E1902: two dimensions of one tensor could take the same axis."""
        first, second = (_dimension_of(edge, t, name) for name in names)
        over = ", ".join(map(str, axes))
        message = f"dimension {first} or {second} of {described(edge.tensors[t])} could be split over {over}"
        hint = f"make what gives one of them whole before it: {_declaration(edge, source, names[1], ())}"
        raise CompileError("E1902", message, edge.node.span, hint=hint)


def _declaration(edge: Edge, t: int, name: str, axes: Axes) -> str:
    """A statement that lays out a tensor otherwise in the dimension that has a factor."""
    value, d = edge.tensors[t], _dimension_of(edge, t, name)
    dimensions = [DimensionSharding()] * len(shape_of(value))
    dimensions[d] = DimensionSharding(axes, False)
    marks = ", ".join(f"…@{mark}" if (mark := str(own)) else "…" for own in dimensions)
    return f"v: {value.dtype}[{marks}] = {getattr(value.node, 'label', '') or '…'}"


@dataclass(frozen=True)
class _Turn:
    """What a stage does with one edge: which tensors pull, which may change, and which factors move."""

    sources: tuple[int, ...]
    targets: frozenset[int]
    reduced: bool

    def takes(self, combiner: str | None) -> bool:
        return self.reduced or combiner is None

    @staticmethod
    def of(edge: Edge, stage: int, readers: dict[Value, int]) -> _Turn | None:
        """None where it is not the turn of this edge."""
        every = tuple(range(len(edge.tensors)))
        if stage < 2 and not edge.passes_all:
            return None
        if stage == 4:
            return _Turn(every, frozenset(every), True)
        if stage == 0 and any(readers[edge.tensors[t]] > 1 for t in edge.operands):
            return None  # its readers may want it otherwise
        sources = tuple(t for t in every if t not in edge.spread)
        return _Turn(sources, frozenset(every), stage >= 3)


def _dimension_of(edge: Edge, t: int, name: str) -> int:
    """The dimension of a tensor that has a factor."""
    return next(d for d, names in enumerate(edge.dimensions[t]) if names and name in names)


def _all_parameters(module: Module) -> Iterator[Node]:
    for node in module.graph.body.walk():
        for region in node.regions:
            yield from region.parameters
