"""Products too large to keep, of which readers reduce different dimensions: one copy of the product for each of them.

    s = a @ transpose(b)                        s = a @ transpose(b); t = b @ transpose(a)
    r = logsumexp(s, axis=1)                =>  r = logsumexp(s, axis=1)
    c = logsumexp(s, axis=0)                    c = logsumexp(t, axis=1)

No sweep goes along rows and columns at once, so that a product with both would have to be stored. A copy for each
direction, with the rows that are kept as its leading dimensions, is one sweep, and in memory is a block of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops import Compute, Transpose
from intarsia.ir.space import operand_position
from intarsia.passes.fuse.members import wide

Dims = tuple[int, ...]
"""Dimensions of a product, in order."""


@dataclass(frozen=True)
class Large:
    """A product with what is done to each element of it (`own`, the last of which all others read), and its readers:
    for each the directions that it leads to, each as the dimensions that are kept."""

    own: tuple[Node, ...]
    readers: Mapping[Node, frozenset[Dims]]

    @property
    def directions(self) -> tuple[Dims, ...]:
        return tuple(sorted(frozenset().union(*self.readers.values())))


def with_copies(region: Region, products: Sequence[Node]) -> Region:
    """The region with a copy of each of these products for each direction in which it is reduced; itself where none has
    several."""
    users: dict[Value, list[Node]] = {}
    for node in region.nodes:
        for value in dict.fromkeys(node.inputs):
            users.setdefault(value, []).append(node)
    for product in products:
        found = _find(product, users, frozenset(region.results))
        if found is not None and len(found.directions) > 1:
            region = _copied(region, found)
            return with_copies(region, [p for p in products if p is not product and p in region.nodes])
    return region


def _find(product: Node, users: Mapping[Value, Sequence[Node]], results: frozenset[Value]) -> Large | None:
    """A product with its readers, if each of them leads to reductions only."""
    own = [product]
    while len(after := users.get(own[-1].value, ())) == 1 and own[-1].value not in results:
        if not _is_pointwise(after[0], own[-1].value):
            break
        own.append(after[0])
    search = _Readers(users, results)
    rank = own[-1].value.tensor.rank
    if not search.visit(own[-1].value, tuple(range(rank))):
        return None
    return Large(tuple(own), search.found)


def _is_pointwise(node: Node, value: Value) -> bool:
    """Does a node compute one element for each one of a value that it reads, and in the same place?"""
    rank = value.tensor.rank
    dims = _dims_read(node, value, tuple(range(rank)))
    return dims is not None and list(dims[0]) == list(range(rank)) and not dims[1]


def _dims_read(node: Node, value: Value, dims: Dims) -> tuple[Dims, Dims] | None:
    """Along which dimensions of a value, in the numbers `dims`, the axes of a node go, those of its result and those
    that it reduces; None unless it reads the value in one way, and each axis goes along one of its dimensions."""
    if not isinstance(node, Structured):
        return None
    space = node.space
    reads = {x.indices for x in space.loads() if node.operands[operand_position(x.buffer)] is value}
    if len(reads) != 1:
        return None
    numbers = {i.as_name: d for i, d in zip(next(iter(reads)), dims)}
    kept, reduced = wide(space.axes), wide(space.reduced)
    if sorted(a.name for a in (*kept, *reduced)) != sorted(str(n) for n in numbers) or len(numbers) < len(dims):
        return None
    return tuple(numbers[a.name] for a in kept), tuple(numbers[a.name] for a in reduced)


@dataclass
class _Readers:
    """Collects what reads a value, through pointwise work on it, up to the reductions of it."""

    users: Mapping[Value, Sequence[Node]]
    results: frozenset[Value]
    found: dict[Node, frozenset[Dims]] = field(default_factory=dict)

    def visit(self, value: Value, dims: Dims) -> bool:
        """Do all readers of a value lead to reductions? `dims` are those of the product, in the order of the value."""
        readers = self.users.get(value, ())
        return value not in self.results and bool(readers) and all(self._reader(n, value, dims) for n in readers)

    def _reader(self, node: Node, value: Value, dims: Dims) -> bool:
        read = _dims_read(node, value, dims)
        if read is None or node in self.found:
            return read is not None
        kept, reduced = read
        if reduced:
            self.found[node] = frozenset({tuple(sorted(kept))})
            return bool(kept)
        self.found[node] = frozenset()
        if not self.visit(node.value, kept):
            return False
        self.found[node] = frozenset().union(*(self.found[n] for n in self.users[node.value]))
        return True


def _copied(region: Region, large: Large) -> Region:
    """The region with a copy of a product, and of what is done to its elements, for each direction."""
    copies: dict[Dims, dict[Value, Value]] = {d: {} for d in large.directions}
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        directions = large.directions if node in large.own else sorted(large.readers.get(node, ()))
        for direction in directions:
            made = copies[direction]
            new = replace(node.with_operands({**values, **made}))
            if node is large.own[0]:
                nodes += (laid_out := _with_rows(new, direction))
                new = laid_out[-1]
            else:
                nodes.append(new)
            made[node.value] = new.value
            if node not in large.own:
                values[node.value] = new.value  # nothing else reads what is copied several times
        if not directions:
            rebuilt = node.with_operands(values)
            values.update(zip(node.values, rebuilt.values))
            nodes.append(rebuilt)
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _with_rows(product: Node, rows: Dims) -> tuple[Node, ...]:
    """A product whose leading dimensions are `rows`, and a view in which they are where they were."""
    assert isinstance(product, Structured)
    space = product.space
    order = (*rows, *(d for d in range(len(space.axes)) if d not in rows))
    if order == tuple(range(len(space.axes))):
        return (product,)
    turned = replace(space, axes=tuple(space.axes[d] for d in order))
    new = Compute(product.operands, turned, span=product.span, more_spans=product.more_spans)
    back = tuple(order.index(d) for d in range(len(order)))
    return new, Transpose(new.value, back, span=product.span, more_spans=product.more_spans)
