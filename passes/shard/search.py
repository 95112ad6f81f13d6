"""Shardings of the parameters found by an integer program: the way to split each op for which the whole takes least
time.

Each op has a variable for each way to split it, and each use of a value one for each pair of a way that makes it and a
way that uses it; ways cost what they compute, pairs what is sent between them. That is Alpa's formulation of
intra-operator parallelism (https://arxiv.org/abs/2201.12023), solved by HiGHS through SciPy. The body of a loop is
there once, with what it takes times its steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from intarsia.ir.cluster import Cluster
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value
from intarsia.ir.linear import passes_parts
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.sharding import Axes, Mesh, MeshAxis, Sharding
from intarsia.ir.types import ListType
from intarsia.passes.shard.edges import Edge, edges_of_node, shape_of
from intarsia.passes.shard.meshes import require_numbers, with_parameters_laid
from intarsia.passes.shard.steps import reshard_steps
from intarsia.passes.shard.ways import Split, Way, elements_of, sharding_of, static_shape

IMPOSSIBLE = 1e9
"""Seconds of what cannot be done, such as sending a list of tensors."""

HELD = 1e-15
"""Seconds for each byte that a device holds: of ways that take equally long, the one that holds less."""


@dataclass(frozen=True)
class Found:
    """The sharding of each parameter, and the seconds that the integer program says a run takes."""

    parameters: tuple[Sharding, ...]
    seconds: float


@dataclass
class _Variable:
    """One op or parameter: its ways, what each takes, and what it makes."""

    value: Value
    ways: list[Way]
    seconds: list[float]
    times: int


@dataclass
class _Use:
    """A value made by one variable and used by another as operand `position`."""

    source: int
    target: int
    position: int
    value: Value
    times: int


def search(module: Module, mesh: Mesh, cluster: Cluster) -> Found:
    """The best sharding of every parameter; those that the program says stay. Raises CompileError E1904 where sizes
    have no numbers."""
    require_numbers(module)
    problem = _Problem(mesh, cluster)
    problem.region(module.graph.body, 1)
    for value in module.graph.body.results:
        problem.whole(value, 1)
    chosen, seconds = _solve(problem)
    parameters = tuple(
        problem.variables[problem.made[p.value]].ways[chosen[problem.made[p.value]]].result
        for p in module.graph.parameters
    )
    return Found(parameters, seconds)


def with_parameters(module: Module, shardings: Sequence[Sharding]) -> Module:
    """The module with these shardings of its parameters."""
    return module.with_body(with_parameters_laid(module.graph.body, shardings))


@dataclass
class _Problem:
    mesh: Mesh
    cluster: Cluster
    variables: list[_Variable] = field(default_factory=list)
    uses: list[_Use] = field(default_factory=list)
    made: dict[Value, int] = field(default_factory=dict)

    def region(self, region: Region, times: int) -> None:
        for parameter in region.parameters:
            self.parameter(parameter, times)
        for node in region.nodes:
            self.node(node, times)

    def parameter(self, parameter: Parameter, times: int) -> None:
        """Any way that its type allows; a loop's states are parameters too."""
        said = parameter.type.sharding
        ways: list[Way] = []
        for sharding in self.layouts(parameter.value):
            if said is None or all(
                w == d.axes or (d.open and self.mesh.is_prefix(d.axes, w))
                for d, w in zip(said.dimensions, sharding.axes)
            ):
                ways.append(Way({}, (), sharding))
        self.add(parameter.value, ways, [0.0] * len(ways), times)

    def layouts(self, value: Value) -> Iterator[Sharding]:
        """Every way to lay a tensor out with each axis of the mesh on one dimension or none."""
        shape = static_shape(value)
        places = [d for d, s in enumerate(shape) if s > 1]
        for chosen in itertools.product((None, *places), repeat=len(self.mesh.axes)):
            axes: list[Axes] = [()] * len(shape)
            for (name, _), d in zip(self.mesh.axes, chosen):
                if d is not None:
                    axes[d] = (*axes[d], MeshAxis(name))
            if all(self.mesh.size(a) <= s for a, s in zip(axes, shape) if a):
                yield Sharding.of(axes)

    def add(self, value: Value, ways: list[Way], seconds: list[float], times: int) -> int:
        held = value.type.element.dtype.bits if isinstance(value.type, ListType) else value.type.dtype.bits
        for n, way in enumerate(ways):
            split = self.mesh.size(a for d in way.result.axes for a in d)
            seconds[n] += HELD * elements_of(value) * held / 8 / split
        self.variables.append(_Variable(value, ways, seconds, times))
        self.made[value] = len(self.variables) - 1
        return len(self.variables) - 1

    def use(self, value: Value, target: int, position: int, times: int) -> None:
        self.uses.append(_Use(self.made[value], target, position, value, times))

    def whole(self, value: Value, times: int) -> None:
        """What leaves the program is no parts of sums, and lies as it may."""
        ways = [Way({}, (s,), s) for s in self.layouts(value)]
        target = len(self.variables)
        self.variables.append(_Variable(value, ways, [0.0] * len(ways), times))
        self.use(value, target, 0, times)

    def node(self, node: Node, times: int) -> None:
        match node:
            case Shard(x):
                wanted = sharding_of(node.value).settled()
                target = self.add(node.value, [Way({}, (wanted,), wanted)], [0.0], times)
                self.use(x, target, 0, times)
                return
            case Loop():
                self.loop(node, times)
                return
        edge = next(iter(edges_of_node(node)), None) or Edge(node, (*node.operands, *node.values), (), (), 1)
        ways = (
            list(self.ways(edge)) if edge.dimensions else [Way({}, (), Sharding.of(((),) * len(shape_of(node.value))))]
        )
        target = self.add(node.value, ways, [self.computing(edge, w) for w in ways], times)
        for position, value in enumerate(node.operands):
            self.use(value, target, position, times)

    def loop(self, node: Loop, times: int) -> None:
        steps = int(node.upper - node.lower) if (node.upper - node.lower).constant is not None else 1
        self.region(node.body, times * steps)
        states = [self.made[p.value] for p in node.states]
        for value, state in zip(node.initial, states):
            self.use(value, state, -1, times)
        for value, state in zip(node.body.results, states):
            self.use(value, state, -1, times * steps)
        for value, state in zip(node.values, states):
            self.made[value] = state
        for value, emitted in zip(node.values[len(states) :], node.body.results[len(states) :]):
            ways = [Way({}, (s,), Sharding.of(((), *s.axes))) for s in self.layouts(emitted)]
            target = self.add(value, ways, [0.0] * len(ways), times)
            self.use(emitted, target, 0, times * steps)

    def ways(self, edge: Edge) -> Iterator[Way]:
        """Every way to give each axis of the mesh to one factor, to none, or to the parts of sums that an op passes
        on."""
        split = Split(self.mesh, edge)
        passing = list(self.passing(edge))
        names = [f.name for f in edge.factors]
        for chosen in itertools.product((None, *names, *passing), repeat=len(self.mesh.axes)):
            of_factor: dict[str, Axes] = {}
            kept: tuple[int, ...] = ()
            partial: Axes = ()
            for (axis, _), place in zip(self.mesh.axes, chosen):
                if isinstance(place, str):
                    of_factor[place] = (*of_factor.get(place, ()), MeshAxis(axis))
                elif place is not None:
                    if partial and kept != place:
                        break
                    kept, partial = place, (*partial, MeshAxis(axis))
            else:
                if any((edge.extents[f] or 0) < self.mesh.size(a) for f, a in of_factor.items()):
                    continue
                if (way := split.way(of_factor, kept, partial)) is not None:
                    yield way

    def passing(self, edge: Edge) -> Iterator[tuple[int, ...]]:
        """The operands that may be parts of a sum: one, or all."""
        node = edge.node
        if not isinstance(node, Structured):
            return
        count = len(node.operands)
        sets = {*((p,) for p in range(count)), tuple(range(count))} if count else set()
        for positions in sorted(sets):
            if passes_parts(node.space, positions, "sum"):
                yield positions

    # ------------------------------------------------------------------ what it takes

    def computing(self, edge: Edge, way: Way) -> float:
        points = math.prod(e or 1 for e in edge.extents.values())
        devices = math.prod(self.mesh.size(a) for a in way.of_factor.values())
        if any(f.reduced for f in edge.factors):
            return 2 * points / devices / self.cluster.operations_per_second
        return 8 * points / devices / self.cluster.memory_bytes_per_second

    def sending(self, value: Value, source: Sharding, target: Sharding) -> float:
        if source == target:
            return 0.0
        if isinstance(value.type, ListType):
            return IMPOSSIBLE
        size = value.type.dtype.bits / 8
        return sum(
            self.cluster.seconds(self.mesh, s.kind, s.axes, math.prod(s.before) * size)
            for s in reshard_steps(self.mesh, static_shape(value), source, target)
        )


def _solve(problem: _Problem) -> tuple[list[int], float]:
    """The number of the way of each variable, and the seconds of all."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    first: list[int] = []
    costs: list[float] = []
    for variable in problem.variables:
        first.append(len(costs))
        costs += [variable.times * s for s in variable.seconds]
    binary = len(costs)
    rows: list[int] = []
    columns: list[int] = []
    entries: list[float] = []
    wanted: list[float] = []

    def constrain(terms: Sequence[tuple[int, float]], equals: float) -> None:
        for column, entry in terms:
            rows.append(len(wanted))
            columns.append(column)
            entries.append(entry)
        wanted.append(equals)

    for variable, start in zip(problem.variables, first):
        constrain([(start + n, 1.0) for n in range(len(variable.ways))], 1.0)
    known: dict[tuple[Sharding, Sharding, Value], float] = {}
    for use in problem.uses:
        source, target = problem.variables[use.source], problem.variables[use.target]
        start = len(costs)
        wide = len(target.ways)
        for a in source.ways:
            for b in target.ways:
                needed = b.result if use.position < 0 else b.operands[use.position]
                key = (a.result, needed, use.value)
                if key not in known:
                    known[key] = problem.sending(use.value, a.result, needed)
                costs.append(known[key] * use.times)
        for n in range(len(source.ways)):
            terms = [(start + n * wide + m, 1.0) for m in range(wide)]
            constrain([*terms, (first[use.source] + n, -1.0)], 0.0)
        for m in range(wide):
            terms = [(start + n * wide + m, 1.0) for n in range(len(source.ways))]
            constrain([*terms, (first[use.target] + m, -1.0)], 0.0)
    scale = 1e6  # microseconds: the solver's tolerances are absolute
    integrality = np.array([1] * binary + [0] * (len(costs) - binary))
    matrix = csr_matrix((entries, (rows, columns)), shape=(len(wanted), len(costs)))
    result = milp(
        np.array(costs) * scale,
        integrality=integrality,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, np.array(wanted), np.array(wanted)),
        options={"mip_rel_gap": 1e-7},
    )
    assert result.x is not None, result.message  # to leave everything whole is always a solution
    chosen = [int(np.argmax(result.x[start : start + len(v.ways)])) for v, start in zip(problem.variables, first)]
    return chosen, float(result.fun) / scale
