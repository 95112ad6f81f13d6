"""Products too large to keep: each sweep over one computes it again.

    s = a @ transpose(b)                        s = a @ transpose(b); t = b @ transpose(a)
    r = logsumexp(s, axis=1)                =>  r = logsumexp(s, axis=1)
    c = logsumexp(s, axis=0)                    c = logsumexp(t, axis=1)

What is made of a product, element by element, and then reduced need not be stored where one kernel holds it all. But
one sweep cannot do everything: the gradient of attention needs sums over the keys of each row before it can sum over
the rows, and a log-sum-exp of rows and one of columns go different ways. So the reductions are shared out among sweeps,
each with what can be finished in one, and each gets a copy of the products and of what is done to their elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from intarsia.ir.graph import Node, Region, Structured, Value, reachable
from intarsia.ir.ops import Compute, Transpose
from intarsia.ir.sizes import ONE
from intarsia.ir.space import operand_position
from intarsia.ir.types import TensorType, Type
from intarsia.passes.fuse.groups import is_free
from intarsia.passes.fuse.members import Member, is_contraction, wide
from intarsia.passes.lower.uses import CHEAP
from intarsia.passes.schedule.domains import conditions_in

Labels = tuple["int | None", ...]
"""For each dimension of a value which one of the products' it is; None for one of a single element."""

Trial = Callable[[Sequence[Member], frozenset[Value], bool], bool]
"""Can one kernel make these members, of which some values are needed outside? Either in a sweep over rows or, asked for
that, in blocks of rows and columns."""


@dataclass(frozen=True)
class Large:
    """Products with what is done to each element of them (`nodes`, in order), and the reductions of that: the labels of
    the dimensions that each keeps."""

    labels: Mapping[Node, Labels]
    reductions: Mapping[Node, frozenset[int]]

    def moved(self, nodes: Mapping[Node, Node]) -> Large:
        """The same where nodes have become others."""
        return Large(
            {nodes.get(n, n): x for n, x in self.labels.items()},
            {nodes.get(n, n): x for n, x in self.reductions.items()},
        )


@dataclass(frozen=True)
class Sweep:
    """Reductions that one kernel makes, and all nodes of it, in order: those and what lies between them, which are its
    `own`, and what of the products and of views they need. `rows` are the dimensions of the products whose rows it goes
    along; None: it goes through blocks of rows and columns."""

    reductions: tuple[Node, ...]
    own: frozenset[Node]
    nodes: tuple[Node, ...]
    rows: frozenset[int] | None


def with_sweeps(region: Region, products: Collection[Node], trial: Trial) -> tuple[Region, dict[frozenset[Node], bool]]:
    """The region with a copy of these products for each sweep over them; the nodes of each sweep, and whether it goes
    through blocks of rows and columns."""
    together: dict[frozenset[Node], bool] = {}
    waiting = _find(region, products)
    while waiting:
        large = waiting.pop(0)
        sweeps = _Planner(region, large, trial).run()
        if sweeps and (len(sweeps) > 1 or sweeps[0].rows is None):
            region, made, moved = _copied(region, large, sweeps)
            together = {frozenset(moved.get(n, n) for n in nodes): way for nodes, way in together.items()}
            together |= {nodes: s.rows is None for nodes, s in zip(made, sweeps)}
            waiting = [other.moved(moved) for other in waiting]
    return region, together


# ---------------------------------------------------------------------- what is large


def _find(region: Region, products: Collection[Node]) -> list[Large]:
    """Products of which nothing is needed but reductions, those together that the same nodes read."""
    found = _Finder()
    for node in region.nodes:
        found.visit(node, node in products)
    results = frozenset(region.results)
    spoiled = {found.component(v) for v in found.labels if v in results} | {*map(found.root, found.spoiled)}
    components: dict[int, tuple[dict[Node, Labels], dict[Node, frozenset[int]]]] = {}
    for value in found.labels:
        labels = found.of(value)
        if len({n for n in labels if n is not None}) < len([n for n in labels if n is not None]):
            spoiled.add(found.component(value))  # one dimension meets another one of the same value
        components.setdefault(found.component(value), ({}, {}))[0][value.node] = labels
    for node, (component, kept) in found.reductions.items():
        components[found.root(component)][1][node] = frozenset(map(found.root, kept))
    return [Large(*c) for root, c in components.items() if root not in spoiled and c[1]]


@dataclass
class _Finder:
    """Follows the elements of products through the nodes of a region; labels that turn out to be the same are joined.

    `first` is a label that all values have in common which the same nodes read."""

    labels: dict[Value, Labels] = field(default_factory=dict)
    first: dict[Value, int] = field(default_factory=dict)
    reductions: dict[Node, tuple[int, frozenset[int]]] = field(default_factory=dict)
    spoiled: set[int] = field(default_factory=set)
    parents: list[int] = field(default_factory=list)

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            label = self.parents[label]
        return label

    def component(self, value: Value) -> int:
        return self.root(self.first[value])

    def of(self, value: Value) -> Labels:
        return tuple(None if n is None else self.root(n) for n in self.labels[value])

    def fresh(self) -> int:
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def join(self, one: int, other: int) -> None:
        self.parents[self.root(other)] = self.root(one)

    def visit(self, node: Node, is_product: bool) -> None:
        read = [v for v in dict.fromkeys(node.inputs) if v in self.labels]
        if not read:
            if is_product:
                shape = node.value.tensor.shape
                self.labels[node.value] = tuple(None if e == ONE else self.fresh() for e in shape)
                self.first[node.value] = self.fresh()
            return
        for value in read[1:]:
            self.join(self.first[read[0]], self.first[value])
        axes: dict[str, int] = {}
        places = [_places(node, value) for value in read]
        for value, names in zip(read, places):
            if names is None:
                self.spoiled.add(self.first[value])
                return
            for name, label in zip(names, self.labels[value]):
                if label is not None and axes.setdefault(name, label) != label:
                    self.join(axes[name], label)
        assert isinstance(node, Structured)
        space = node.space
        whole = set(axes)
        if any(
            {n for n, x in zip(names or (), self.labels[v]) if x is not None} != whole for v, names in zip(read, places)
        ):
            self.spoiled.add(self.first[read[0]])  # it reads one along more dimensions than another one
            return
        kept = {a.name for a in space.axes if a.extent != ONE}
        if whole - kept:
            self.reductions[node] = (self.first[read[0]], frozenset(axes[n] for n in whole & kept))
        elif whole == kept and not any(a.extent != ONE for a in space.reduced):
            self.labels[node.value] = tuple(axes.get(a.name) for a in space.axes)
            self.first[node.value] = self.first[read[0]]
        else:
            self.spoiled.add(self.first[read[0]])


def _places(node: Node, value: Value) -> tuple[str, ...] | None:
    """The axes at which a node reads a value, one for each dimension; None unless it does so in one way."""
    if not isinstance(node, Structured) or not isinstance(value.type, TensorType):
        return None
    extents = {a.name: a.extent for a in node.space.all_axes}
    reads = {x.indices for x in node.space.loads() if node.operands[operand_position(x.buffer)] is value}
    if len(reads) != 1:
        return None
    names: list[str] = []
    for index, extent in zip(next(iter(reads)), value.tensor.shape):
        name = "" if extent == ONE else index.as_name
        if name is None or (name and (name in names or extents.get(name) != extent)):
            return None
        names.append(name)
    return tuple(names)


def is_masked(node: Node, types: Collection[Type]) -> bool:
    """Does a node go through as many elements as one of these types has, and choose them by two of its axes?"""
    if not isinstance(node, Structured):
        return False
    axes = wide(node.space.all_axes)
    shapes = (Counter(e for e in t.shape if e != ONE) for t in types if isinstance(t, TensorType))
    by_two = (len(c.symbols & {a.name for a in axes}) > 1 for c in conditions_in(node.space.body))
    return any(by_two) and Counter(a.extent for a in axes) in shapes


# ---------------------------------------------------------------------- sweeps


class _Planner:
    """Shares the reductions of large products out among sweeps."""

    def __init__(self, region: Region, large: Large, trial: Trial) -> None:
        self.region = region
        self.large = large
        self.trial = trial
        self.position = {node: n for n, node in enumerate(region.nodes)}
        self.users: dict[Value, list[Node]] = {}
        self.needs: dict[Node, frozenset[Node]] = {}  # the reductions that a node depends on
        for node in region.nodes:
            own = [v.node for v in node.inputs]
            above = frozenset().union(*(self.needs.get(n, frozenset()) for n in own))
            self.needs[node] = above | {n for n in own if n in large.reductions}
            for value in dict.fromkeys(node.inputs):
                self.users.setdefault(value, []).append(node)

    def run(self) -> list[Sweep]:
        """The sweeps in order, as few as a greedy search finds; none where some reduction fits into no sweep."""
        sweeps: list[Sweep] = []
        done: set[Node] = set()
        rest = list(self.large.reductions)
        while rest:
            kinds = dict.fromkeys(self.large.reductions[r] for r in rest)
            found = max((self._next(rows, rest, done) for rows in kinds), key=partial(self._worth, rest))
            if not found.reductions:
                return []
            sweeps.append(found)
            done.update(found.reductions)
            rest = [r for r in rest if r not in done]
        return sweeps

    def _next(self, rows: frozenset[int], rest: Sequence[Node], done: Collection[Node]) -> Sweep:
        """The sweep that makes most of the reductions that keep some dimensions, with others if it goes both ways."""
        alike = [r for r in rest if self.large.reductions[r] == rows]
        ways = (self._along_rows(alike, done), self._in_blocks(rest, done), self._in_blocks(alike, done))
        return max(ways, key=lambda s: len(s.reductions))

    def _worth(self, rest: Sequence[Node], sweep: Sweep) -> tuple[bool, bool, bool, int]:
        """What speaks for a sweep to be the next one: it leaves no reduction for which another one like it is needed,
        or others wait for what it makes."""
        made = {*sweep.reductions}
        kinds = {self.large.reductions[r] for r in made}
        left = [r for r in rest if r not in made]
        leaves = any(self.large.reductions[r] in kinds for r in left)
        return bool(made), not leaves, any(self.needs[r] & made for r in left), len(made)

    def _along_rows(self, rest: Sequence[Node], done: Collection[Node]) -> Sweep:
        """Those of some reductions that keep the same dimensions which fit into one sweep."""
        rows = self.large.reductions[rest[0]]
        found: tuple[Node, ...] = ()
        own: tuple[Node, ...] = ()  # a maximum alone may be no sweep, with a sum that needs it one
        for node in rest:
            if self.needs[node] <= {*done, *own}:
                more = (*own, node)
                if self._works(self._sweep(more, rows)):
                    own = found = more
                elif not found:
                    own = more
        return self._sweep(found, rows)

    def _in_blocks(self, rest: Sequence[Node], done: Collection[Node]) -> Sweep:
        """Those of some reductions that wait for no others, if one kernel makes all of them in blocks."""
        sweep = self._sweep(tuple(r for r in rest if self.needs[r] <= {*done}), None)
        return sweep if sweep.reductions and self._works(sweep) else self._sweep((), None)

    def _sweep(self, reductions: tuple[Node, ...], rows: frozenset[int] | None) -> Sweep:
        """A sweep that makes these reductions, with what lies between them, and what of the products they need."""
        own = frozenset(reductions)
        between = (n for n in reachable(v.node for r in reductions for v in r.inputs) if n not in self.large.labels)
        own |= {n for n in between if self.needs.get(n, frozenset()) & own}
        nodes = {*own}
        stack = [*own]
        while stack:
            above = {v.node for v in stack.pop().inputs if v.node in self.position} - nodes
            above = {n for n in above if n in self.large.labels or _is_light(n)}
            nodes |= above
            stack += above
        return Sweep(reductions, own, tuple(sorted(nodes, key=self.position.__getitem__)), rows)

    def _works(self, sweep: Sweep) -> bool:
        """Can one kernel make a sweep?"""
        if any(is_contraction(n.space) for n in sweep.own - {*sweep.reductions} if isinstance(n, Structured)):
            return False  # it waits for another product
        copies: dict[Value, Value] = {}
        made = [new for node in sweep.nodes for new in _copy(node, self.large, sweep, copies)]
        members = [member for node in made if (member := Member.of(node))]
        needed = {
            copies[v]
            for node in sweep.own
            for v in node.values
            if v in self.region.results or not sweep.own.issuperset(self.users[v])
        }
        return len(members) == len(made) and self.trial(members, frozenset(needed), sweep.rows is None)


def _is_light(node: Node) -> bool:
    """Is it a view, or made by little work of less than it is? It had better be made again in each sweep."""
    member = Member.of(node)
    if member is None or is_free(member):
        return member is not None
    read = [v for v in node.operands if isinstance(v.type, TensorType)]
    spreads = all(v.tensor.rank < node.value.tensor.rank or ONE in v.tensor.shape for v in read)
    return isinstance(node, Structured) and not member.is_reduced and member.work <= CHEAP and spreads


# ---------------------------------------------------------------------- copies


def _copied(
    region: Region, large: Large, sweeps: Sequence[Sweep]
) -> tuple[Region, list[frozenset[Node]], Mapping[Node, Node]]:
    """The region with the nodes of each sweep of its own; those nodes; what other nodes have become."""
    copies: dict[Sweep, dict[Value, Value]] = {s: {} for s in sweeps}
    made: dict[Sweep, list[Node]] = {s: [] for s in sweeps}
    values: dict[Value, Value] = {}
    moved: dict[Node, Node] = {}
    nodes: list[Node] = []
    inside = frozenset().union(*(s.nodes for s in sweeps))
    elsewhere = {v for n in region.nodes if n not in inside for v in n.inputs} | {*region.results}
    for node in region.nodes:
        for sweep in (s for s in sweeps if node in s.nodes):
            new = _copy(node, large, sweep, copies[sweep], values)
            made[sweep] += new
            nodes += new
            if node in sweep.own:
                values.update((v, copies[sweep][v]) for v in node.values)
                moved[node] = new[-1]
        if node not in inside or (node not in moved and not elsewhere.isdisjoint(node.values)):
            moved[node] = node.with_operands(values)
            values.update(zip(node.values, moved[node].values))
            nodes.append(moved[node])
    copied = Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))
    return copied, [frozenset(made[s]) for s in sweeps], moved


def _copy(
    node: Node, large: Large, sweep: Sweep, copies: dict[Value, Value], values: Mapping[Value, Value] | None = None
) -> tuple[Node, ...]:
    """A copy of a node for a sweep, with what the sweep has of its own in place of its operands. A product has the rows
    of the sweep as its leading dimensions, and a view follows in which they are where they were."""
    new = replace(node.with_operands({**(values or {}), **copies}))
    made: tuple[Node, ...] = (new,)
    rows, labels = sweep.rows, large.labels.get(node)
    if rows is not None and labels is not None and not any(v.node in large.labels for v in node.inputs):
        order = sorted(range(len(labels)), key=lambda d: labels[d] is not None and labels[d] not in rows)
        made = _with_dimensions(new, tuple(order))
    copies.update(zip(node.values, made[-1].values))
    return made


def _with_dimensions(product: Node, order: tuple[int, ...]) -> tuple[Node, ...]:
    """A product with its dimensions in another order, and a view in which they are where they were."""
    assert isinstance(product, Structured)
    space = product.space
    if order == tuple(range(len(order))):
        return (product,)
    turned = replace(space, axes=tuple(space.axes[d] for d in order))
    new = Compute(product.operands, turned, **product.spans)
    back = tuple(order.index(d) for d in range(len(order)))
    return new, Transpose(new.value, back, **product.spans)
