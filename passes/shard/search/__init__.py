"""Shardings of the parameters found by an integer program: the way to split each op for which the whole takes least
time.

Each op has a variable for each way to split it, and each use of a value one for each pair of a way that makes it and a
way that uses it; ways cost what they compute, pairs what is sent between them. That is Alpa's formulation of
intra-operator parallelism (https://arxiv.org/abs/2201.12023), solved by HiGHS through SciPy. The body of a loop is
there once, with what it takes times its steps. What a device may hold limits, at each product, the ways of all values
that are in memory then.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.ir.cluster import Cluster
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Node, Parameter, Region, Structured, Value
from intarsia.ir.linear import passes_parts
from intarsia.ir.ops.collective import Shard
from intarsia.ir.ops.control import Loop
from intarsia.ir.sharding import Axes, Mesh, MeshAxis, Sharding
from intarsia.ir.types import ListType
from intarsia.passes.shard.edges import Edge, edge_of, shape_of
from intarsia.passes.shard.memory import Held, bytes_of, held_moments
from intarsia.passes.shard.meshes import require_numbers
from intarsia.passes.shard.search.integer_program import IntegerProgram
from intarsia.passes.shard.steps import reshard_steps
from intarsia.passes.shard.ways import Split, Way, elements_of, sharding_of, static_shape

IMPOSSIBLE = 1e9
"""Seconds of what cannot be done, such as sending a list of tensors."""

AT_ONCE = 8
"""Limits of memory that are added between two solutions."""

HELD = 1e-15
"""Seconds for each byte that a device holds: of ways that take equally long, the one that holds less."""


@dataclass(frozen=True)
class Found:
    """The sharding of each parameter, and of each value in the order of `Region.walk`; the seconds that the integer
    program says a run takes, and those of them in which something is sent."""

    parameters: tuple[Sharding, ...]
    values: tuple[Sharding, ...]
    seconds: float
    sending: float


@dataclass
class _Variable:
    """One op or parameter: its ways, the seconds of each, those of them in which neighbours send, and what it makes."""

    value: Value
    ways: list[Way]
    seconds: list[float]
    times: int
    taking: Sequence[float] = ()


@dataclass
class _Use:
    """A value made by one variable and used by another as operand `position`."""

    source: int
    target: int
    position: int
    value: Value
    times: int


def search(
    module: Module, mesh: Mesh, cluster: Cluster, memory: float = math.inf, donated: Collection[str] = ()
) -> Found:
    """The best sharding of every parameter with which a device holds at most `memory` bytes; those that the program
    says stay. donated: labels of parameters whose memory results of the same type may take.

    Raises CompileError: E1904 where sizes have no numbers, E1908 where nothing fits in memory.
    """
    require_numbers(module)
    problem = _Problem(mesh, cluster)
    problem.region(module.graph.body, 1)
    results = {value: problem.whole(value, 1) for value in module.graph.body.results}
    moments = held_moments(module.graph.body, donated) if memory < math.inf else ()
    chosen, seconds = _solve(problem, moments, memory)

    def sharding(value: Value) -> Sharding:
        number = results.get(value, problem.made[value])
        return problem.variables[number].ways[chosen[number]].result

    body = module.graph.body
    values = tuple(sharding(v) for node in body.walk() for v in node.values)
    return Found(tuple(sharding(p.value) for p in body.parameters), values, seconds, problem.all_sending(chosen))


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
        along = (*said.replicated, *said.partial) if said is not None else ()  # which split nothing
        ways: list[Way] = []
        for sharding in self.layouts(parameter.value):
            if any(self.mesh.overlap(a, b) for a in along for b in sharding.used):
                continue
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

    def add(self, value: Value, ways: list[Way], seconds: list[float], times: int, taking: Sequence[float] = ()) -> int:
        held = value.dtype.bits
        for n, way in enumerate(ways):
            split = self.mesh.size(a for d in way.result.axes for a in d)
            seconds[n] += HELD * elements_of(value) * held / 8 / split
        self.variables.append(_Variable(value, ways, seconds, times, taking))
        self.made[value] = len(self.variables) - 1
        return len(self.variables) - 1

    def use(self, value: Value, target: int, position: int, times: int) -> None:
        self.uses.append(_Use(self.made[value], target, position, value, times))

    def whole(self, value: Value, times: int) -> int:
        """What leaves the program is no parts of sums, and lies as it may. Its variable."""
        ways = [Way({}, (s,), s) for s in self.layouts(value)]
        target = len(self.variables)
        self.variables.append(_Variable(value, ways, [0.0] * len(ways), times))
        self.use(value, target, 0, times)
        return target

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
        edge = edge_of(node)
        ways = (
            list(self.ways(edge)) if edge.dimensions else [Way({}, (), Sharding.of(((),) * len(shape_of(node.value))))]
        )
        taking = [self.taking(edge, w) for w in ways]
        seconds = [self.computing(edge, w) + taken for w, taken in zip(ways, taking)]
        target = self.add(node.value, ways, seconds, times, taking)
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
        if (condition := node.condition) is not None:
            self.region(condition, times * steps)
            for parameter, own in zip(condition.parameters, node.states):
                self.use(own.value, self.made[parameter.value], -1, times * steps)
            for value in condition.results:
                self.whole(value, times * steps)
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
            if passes_parts(node, positions, "sum"):
                yield positions

    # ------------------------------------------------------------------ what it takes

    def computing(self, edge: Edge, way: Way) -> float:
        points = math.prod(e or 1 for e in edge.extents.values())
        devices = math.prod(self.mesh.size(a) for a in way.of_factor.values())
        if any(f.reduced for f in edge.factors):
            return 2 * points / devices / self.cluster.operations_per_second
        return 8 * points / devices / self.cluster.memory_bytes_per_second

    def taking(self, edge: Edge, way: Way) -> float:
        """The seconds in which neighbours send what is read beyond a device's own part."""
        return sum(
            self.cluster.seconds(self.mesh, "collective_permute", axes, count * value.dtype.bits / 8)
            for value, axes, count in Split(self.mesh, edge).taken(way)
        )

    def held(self, value: Value, sharding: Sharding) -> float:
        """The bytes of a value that one device has."""
        return bytes_of(value.type) / self.mesh.size(a for d in sharding.axes for a in d)

    def limit(
        self, moment: Held, ways: Sequence[range], pairs: Mapping[int, Sequence[tuple[int, float]]]
    ) -> tuple[tuple[int, float], ...]:
        """The bytes of each way of what a moment holds, and of each copy of an operand that is laid out anew."""
        variables = Counter(self.made[v] for v in moment.values if v in self.made)
        terms = [
            (ways[v][n], count * self.held(self.variables[v].value, way.result))
            for v, count in variables.items()
            for n, way in enumerate(self.variables[v].ways)
        ]
        own = self.made.get(moment.node.values[0]) if moment.node.values else None
        return (*terms, *pairs.get(own, ())) if own is not None else tuple(terms)

    def all_sending(self, chosen: Sequence[int]) -> float:
        """The seconds of what is sent between the chosen ways, and for them."""
        seconds = sum(v.times * v.taking[n] for v, n in zip(self.variables, chosen) if v.taking)
        for use in self.uses:
            made = self.variables[use.source].ways[chosen[use.source]].result
            way = self.variables[use.target].ways[chosen[use.target]]
            needed = way.result if use.position < 0 else way.operands[use.position]
            seconds += use.times * self.sending(use.value, made, needed)
        return seconds

    def sending(self, value: Value, source: Sharding, target: Sharding) -> float:
        if source == target:
            return 0.0
        if isinstance(value.type, ListType):
            return IMPOSSIBLE
        size = value.dtype.bits / 8
        return sum(
            self.cluster.seconds(self.mesh, s.kind, s.axes, math.prod(s.before) * size)
            for s in reshard_steps(self.mesh, static_shape(value), source, target)
        )


def _solve(problem: _Problem, moments: Sequence[Held], memory: float) -> tuple[list[int], float]:
    """The number of the way of each variable, and the seconds of all.

    A limit of memory is one constraint for each moment. Those that a solution breaks are added until it breaks none.
    """
    program = IntegerProgram()
    ways = [program.choice([variable.times * s for s in variable.seconds]) for variable in problem.variables]
    pairs: dict[int, list[tuple[int, float]]] = {}
    known: dict[tuple[Sharding, Sharding, Value], float] = {}
    for use in problem.uses:
        source, target = problem.variables[use.source], problem.variables[use.target]
        costs: list[list[float]] = []
        needed = [b.result if use.position < 0 else b.operands[use.position] for b in target.ways]
        for a in source.ways:
            for b in needed:
                key = (a.result, b, use.value)
                if key not in known:
                    known[key] = problem.sending(use.value, a.result, b)
            costs.append([known[a.result, b, use.value] * use.times for b in needed])
        made = program.pair(ways[use.source], ways[use.target], costs)
        copies = [
            (made[n][m], problem.held(use.value, b))
            for n, a in enumerate(source.ways)
            for m, b in enumerate(needed)
            if costs[n][m] > 0
        ]
        pairs.setdefault(use.target, []).extend(copies)
    limits = [problem.limit(moment, ways, pairs) for moment in moments]
    met: set[int] = set()
    while True:
        solution = program.solve()
        if solution is None:
            least = max(_least(limit, ways) for limit in limits)
            message = f"with {memory:,.0f} bytes in each device no way to split the program fits"
            hint = f"it takes more than {least:,.0f} bytes, or more devices"
            raise CompileError("E1908", message, hint=hint)
        held = [sum(count * solution.values[n] for n, count in limit) for limit in limits]
        broken = sorted((n for n, h in enumerate(held) if h > memory and n not in met), key=lambda n: -held[n])
        if not broken:
            return [solution.chosen(own) for own in ways], solution.cost
        met.update(broken[:AT_ONCE])
        for n in broken[:AT_ONCE]:
            program.limit(limits[n], memory)


def _least(limit: Sequence[tuple[int, float]], ways: Sequence[range]) -> float:
    """What a moment holds at least, each value split as far as it can be."""
    bytes_of_way = dict(limit)
    return sum(min(bytes_of_way[n] for n in own) for own in ways if own[0] in bytes_of_way)
