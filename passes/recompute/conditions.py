"""What of a value only a condition needs: one bit for each element, eight to a byte.

The derivative of a relu asks whether its argument is positive:

    %0 = matmul %x, %w                                            %0 = matmul %x, %w
    …                                                             %1 = compute [i < N, j < K] (%0[i, j] > 0.0)
    %5 = compute [i < N, j < K] where(%0[i, j] > 0.0, …)    =>    …
                                                                  %5 = compute [i < N, j < K] where(%1[i, j], …)

`with_conditions` makes values of such conditions, of which a cut may keep some; `packed` and `unpacked` are how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from intarsia.ir.dtypes import BOOL, U8
from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.ops import Compute
from intarsia.ir.scalar import Const, Expr, Index, Load, constant, loads, transform
from intarsia.ir.sizes import ZERO, Size, product
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.terms import Term, where
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.groups import estimated
from intarsia.passes.recompute.storage import Storage

BITS = 8


def with_conditions(region: Region, position: int, storage: Storage) -> tuple[Region, int]:
    """The region with a value, before the position, for each condition on values from there in nodes after it, and
    where the position is then. What a product reads would have to be stored again for it."""
    first, second = region.nodes[:position], region.nodes[position:]
    place = {v: n for n, node in enumerate(first) for v in node.values}
    later = {v for node in second for v in node.values}
    made: dict[tuple[tuple[Value, ...], Space], Compute] = {}
    behind: dict[int, list[Node]] = {}
    values: dict[Value, Value] = {}
    nodes: list[Node] = []

    def value_of(node: Structured, condition: Expr) -> tuple[Load, Value] | None:
        """A condition as an element of a value of its own; None where it is none of all elements of an operand."""
        axes = {a.name: a for a in node.space.all_axes}
        widest = max(loads(condition), key=lambda load: len(load.indices))
        names = [str(index) for index in widest.indices]
        if not condition.symbols <= set(names) or not all(_is_whole(load, node, axes) for load in loads(condition)):
            return None
        own = {name: Axis.of(f"i{d}", axes[name].extent) for d, name in enumerate(names)}
        renamed = condition.substitute({name: Size.of(a.name) for name, a in own.items()})
        new = Compute(node.operands, Space(tuple(own.values()), renamed, BOOL), span=node.span)
        if later.intersection(new.arguments) or place.keys().isdisjoint(new.arguments):
            return None
        return replace(widest, dtype=BOOL), made.setdefault((new.arguments, new.definition), new).value

    for node in second:
        new = node
        if isinstance(node, Structured) and not storage.is_heavy(node):
            operands, elements = [*node.operands], {}
            for condition in _conditions(node.space.body):
                if (found := value_of(node, condition)) is not None:
                    load, value = found
                    elements[condition] = replace(load, buffer=operand(len(operands)))
                    operands.append(value)
                    behind.setdefault(max(place.get(v, 0) for v in value.node.operands), []).append(value.node)
            if elements:
                body = transform(node.space.body, rule=elements.get)
                new = Compute(tuple(operands), replace(node.space, body=body), **node.spans)
        new = new.with_operands(values)
        values.update((a, b) for a, b in zip(node.values, new.values) if a is not b)
        nodes.append(new)
    before = [one for n, node in enumerate(first) for one in (node, *dict.fromkeys(behind.get(n, ())))]
    results = tuple(values.get(r, r) for r in region.results)
    return Region(region.parameters, (*before, *nodes), results), len(before)


def _conditions(e: Expr) -> Iterator[Expr]:
    """The largest parts of an expression that are true or false by nothing but elements at axes, each along its own."""
    if e.dtype == BOOL and not isinstance(e, Load | Const) and _is_plain(e):
        yield e
    else:
        for child in e.children:
            yield from _conditions(child)


def _is_plain(condition: Expr) -> bool:
    found = list(loads(condition))
    return bool(found) and all(not load.mask and all(i.as_name for i in load.indices) for load in found)


def _is_whole(load: Load, node: Structured, axes: Mapping[str, Axis]) -> bool:
    """Does a node read all of an operand, element by element?"""
    names = [str(index) for index in load.indices]
    operand_type = node.operands[operand_position(load.buffer)].type
    if not isinstance(operand_type, TensorType) or len({*names} & axes.keys()) < operand_type.rank:
        return False
    return all(axes[n].lower == ZERO and axes[n].upper == e for n, e in zip(names, operand_type.shape))


def is_packable(value: Value) -> bool:
    """Is a value one of truth values that would take less memory as bits?"""
    return isinstance(value.type, TensorType) and value.dtype == BOOL and value.tensor.rank > 0


def packed_bytes(value: Value) -> int:
    """The bytes of truth values as bits, with a typical number for extents that have none."""
    d = _axis(value)
    return estimated(product(_with(value.tensor.shape, d, (value.tensor.shape[d] + (BITS - 1)) // BITS)))


def _with(shape: Sequence[Size], d: int, size: Size) -> list[Size]:
    return [*shape[:d], size, *shape[d + 1 :]]


def _axis(value: Value) -> int:
    """The dimension along which eight share a byte: the first one whose extent is a multiple of it, if one is."""
    shape = value.tensor.shape
    return next((d for d, extent in enumerate(shape) if extent % BITS == ZERO), 0)


def packed(value: Value) -> Compute:
    """Truth values as bits: element 8 * n + k of a dimension is bit k of byte n."""
    d, shape = _axis(value), value.tensor.shape
    axes = tuple(Axis.of(f"i{n}", e) for n, e in enumerate(_with(shape, d, (shape[d] + (BITS - 1)) // BITS)))
    indices = [Size.of(a.name) for a in axes]

    def bit(k: int) -> Term:
        place = BITS * indices[d] + k
        element = Term(Load(operand(0), tuple(_with(indices, d, place)), BOOL))
        if shape[d] % BITS != ZERO:
            element = where(Term(Index(shape[d])) > Term(Index(place)), element, False)
        return where(element, Term(constant(1 << k, U8)), 0)

    byte = reduce(Term.__or__, map(bit, range(BITS)))
    return Compute((value,), Space(axes, byte.expr, U8), span=value.node.span)


def unpacked(bits: Value, value: Value) -> Compute:
    """The truth values that `bits` were made of."""
    d, shape = _axis(value), value.tensor.shape
    axes = tuple(Axis.of(f"i{n}", extent) for n, extent in enumerate(shape))
    indices = [Size.of(a.name) for a in axes]
    count = Term(Index(indices[d] % BITS)).cast(U8)
    bit = (Term(Load(operand(0), tuple(_with(indices, d, indices[d] // BITS)), U8)) >> count) & 1
    return Compute((bits,), Space(axes, bit.differs(0).expr, BOOL), span=value.node.span)
