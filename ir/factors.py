"""How a node may be cut over devices: its axes as factors of the dimensions of its operands and results.

As in Shardy, a rule is an einsum: `[i0, k], [k, i1] -> [i0, i1] sum(k)` says that a product of matrices may be cut
along i0, along i1, or along k with a sum at the end. A dimension may hold several factors, the major one first, as
those of a reshape do; `*` marks a dimension that every device needs whole, 1 one of a single element.
Source: https://openxla.org/shardy/propagation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.kernel import COMBINER_OPERATORS
from intarsia.ir.ops.index import Update
from intarsia.ir.ops.order import Argsort, Cumulative, Sort
from intarsia.ir.ops.reduction import ArgReduce
from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Load, loads
from intarsia.ir.sharding import COMBINERS
from intarsia.ir.sizes import ONE, ZERO, Quotient, Remainder, Size, product
from intarsia.ir.space import Axis, Space, operand, size_loads

MERGED = {operator: combiner for combiner, operator in COMBINER_OPERATORS.items() if combiner in COMBINERS}
"""What merges the parts of an update that each device makes, by its operator."""

Dimension = tuple[str, ...] | None
"""The factors of a dimension, the major one first; None where it has to be whole."""


@dataclass(frozen=True)
class Factor:
    """A part of an axis: `extent` values. Of a `reduced` one each device has a partial result, to be merged by the
    combiner."""

    name: str
    extent: Size
    reduced: str | None = None


@dataclass(frozen=True)
class Factors:
    """The rule of one node: the factors of each dimension of each operand and of the result."""

    factors: tuple[Factor, ...]
    operands: tuple[tuple[Dimension, ...], ...]
    result: tuple[Dimension, ...]

    def __str__(self) -> str:
        reduced = "".join(f" {f.reduced}({f.name})" for f in self.factors if f.reduced)
        return f"{', '.join(map(_text, self.operands))} -> {_text(self.result)}{reduced}"


def factors(node: Node) -> Factors | None:
    """The rule of a node, or None for a loop, a group, a list or a call: there it follows from what is inside."""
    match node:
        case Structured():
            return _of_space(node.space, tuple(v.type.extents for v in node.operands))
        case Update():
            return _update(node)
        case Sort(x) | Argsort(x):
            return _along(x, x.tensor.rank - 1, keeps=True)
        case Cumulative(x, _, axis):
            return _along(x, axis, keeps=True)
        case ArgReduce(x, _, axis):
            return _along(x, axis, keeps=False)
    return None


@lru_cache(maxsize=4096)  # layers of a model are alike
def _of_space(space: Space, shapes: tuple[tuple[Size, ...], ...]) -> Factors:
    found = tuple(space.loads())
    digits = _Digits.of(space.axes, space.reduced, found, space.combiner)
    return _rule(digits, shapes, found, tuple(digits.axis(a.name) for a in space.axes))


def _rule(
    digits: _Digits, shapes: Sequence[tuple[Size, ...]], found: Sequence[Load], result: tuple[Dimension, ...]
) -> Factors:
    operands = tuple(_operand(digits, operand(p), shape, found) for p, shape in enumerate(shapes))
    used = {name for dims in (*operands, result) for d in dims if d for name in d}
    return Factors(tuple(f for f in digits.factors if f.name in used), operands, result)


def _operand(digits: _Digits, name: str, shape: Sequence[Size], found: Sequence[Load]) -> tuple[Dimension, ...]:
    """The factors of each dimension of one operand: those that all its loads agree on, each in one dimension only."""
    dimensions: list[Dimension] = []
    for d, extent in enumerate(shape):
        ways = {digits.subscript(load.indices[d], extent) for load in found if load.buffer == name}
        dimensions.append(ways.pop() if len(ways) == 1 else None)
    names = [f for dimension in dimensions for f in dimension or ()]
    return tuple(d if d is None or all(names.count(f) == 1 for f in d) else None for d in dimensions)


def _update(node: Update) -> Factors:
    """A dimension passes where each write stays at the place along it that the body reads of. Where writes are merged,
    any device may make them: the other axes are reduced, unless something reads the old tensor."""
    bounds = (b for a in node.axes for b in (a.lower, a.upper))
    found = (*size_loads((*node.targets, *bounds)), *loads(node.body), Load(operand(0), node.targets, node.base.dtype))
    digits = _Digits.of(node.axes, (), found, None)
    rule = _rule(digits, tuple(v.type.extents for v in (node.base, *node.arguments)), found, ())
    result = rule.operands[0]
    passing = {name for d in result if d for name in d}
    combiner = MERGED.get(node.operator)
    reads_old = any(load.buffer == operand(0) for load in found[:-1])
    merged = {a.name for a in node.axes} - passing if combiner is not None and not reads_old else set()
    kept = passing | merged
    operands = tuple(tuple(d if d is not None and kept.issuperset(d) else None for d in o) for o in rule.operands)
    of_rule = tuple(replace(f, reduced=combiner if f.name in merged else None) for f in rule.factors if f.name in kept)
    return Factors(of_rule, operands, result)


def _along(x: Value, axis: int, keeps: bool) -> Factors:
    """An op along one dimension, which has to be whole; all others pass."""
    dimensions: list[Dimension] = [None if d == axis else (f"i{d}",) for d in range(x.tensor.rank)]
    passing = tuple(Factor(f"i{d}", s) for d, s in enumerate(x.tensor.shape) if d != axis)
    result = tuple(d for p, d in enumerate(dimensions) if keeps or p != axis)
    return Factors(passing, (tuple(dimensions),), result)


@dataclass(frozen=True)
class _Digits:
    """The axes of a space as numbers of mixed radix: an axis that is subscripted as i // 64 and i % 64 has two digits.

    `of_axis` gives the digits of each axis, the major one first, each with the size that it counts in.
    """

    factors: tuple[Factor, ...]
    of_axis: Mapping[str, tuple[tuple[Factor, Size], ...]]

    @staticmethod
    def of(axes: Sequence[Axis], reduced: Sequence[Axis], found: Sequence[Load], combiner: str | None) -> _Digits:
        own = {a.name for a in (*axes, *reduced)}
        of_axis: dict[str, tuple[tuple[Factor, Size], ...]] = {}
        for axis in (*axes, *reduced):
            if axis.upper == ONE:
                of_axis[axis.name] = ()
            if axis.lower != ZERO or axis.upper.symbols & own or axis.upper.opaques or axis.upper == ONE:
                continue
            cuts = _cuts(axis, [i for load in found for i in load.indices])
            ends = [*cuts[1:], axis.upper]
            extents = [_exact(end, cut) for cut, end in zip(cuts, ends)]
            if any(e is None for e in extents):
                cuts, extents = [ONE], [axis.upper]
            names = [axis.name] if len(cuts) == 1 else [f"{axis.name}.{len(cuts) - 1 - k}" for k in range(len(cuts))]
            how = combiner if axis in reduced else None
            pairs = [(Factor(n, e, how), cut) for n, e, cut in zip(names, extents, cuts) if e is not None]
            of_axis[axis.name] = tuple(reversed(pairs))
        return _Digits(tuple(f for digits in of_axis.values() for f, _ in digits), of_axis)

    def axis(self, name: str) -> Dimension:
        return tuple(f.name for f, _ in self.of_axis[name]) if name in self.of_axis else None

    def subscript(self, index: Size, extent: Size) -> Dimension:
        """The factors of a subscript that runs over a whole dimension in order, or None."""
        if extent == ONE:
            return ()
        found: list[Factor] = []
        stride, rest = ONE, index
        while rest.terms:
            run = next((r for r, value in self._runs() if _contains(rest, value * stride)), None)
            if run is None or stride == ZERO:  # beyond a dimension without elements nothing is in order
                return None
            rest = rest - self._value(run) * stride
            stride = stride * product(f.extent for f, _ in run)
            found = [*(f for f, _ in run), *found]
        return tuple(f.name for f in found) if stride == extent else None

    def _runs(self) -> Iterator[tuple[tuple[tuple[Factor, Size], ...], Size]]:
        """Every run of neighbouring digits of an axis, with its value."""
        for digits in self.of_axis.values():
            for start in range(len(digits)):
                for end in range(start + 1, len(digits) + 1):
                    yield digits[start:end], self._value(digits[start:end])

    def _value(self, run: Sequence[tuple[Factor, Size]]) -> Size:
        (first, _), (_, unit) = run[0], run[-1]
        name = first.name.rsplit(".", 1)[0] if first.name not in self.of_axis else first.name
        value = Size.of(name) // unit if unit != ONE else Size.of(name)
        whole = self.of_axis[name][0][0] == first
        return value if whole else value % product(f.extent for f, _ in run)


def _cuts(axis: Axis, indices: Sequence[Size]) -> list[Size]:
    """The sizes in which the digits of an axis count, from 1 up, as quotients and remainders of it say."""
    found: dict[Size, None] = {}
    for index in indices:
        for atom in index.atoms():
            match atom:
                case Quotient(n, d) if n.as_name == axis.name:
                    found[d] = None
                case Remainder(n, d) if n.as_name == axis.name:
                    found[d] = None
                case Remainder(Size(terms=(((Quotient(n, a),), 1),)), b) if n.as_name == axis.name:
                    found.update({a: None, a * b: None})
    ordered = sorted(found, key=lambda s: (s.constant is None, s.constant or 0, str(s)))
    return [ONE, *(c for c in ordered if c not in (ONE, axis.upper))]


def _exact(end: Size, unit: Size) -> Size | None:
    """end / unit if unit divides it for all values of its names."""
    if unit == ONE:
        return end
    if len(unit.terms) != 1:
        return None
    names = Facts(tuple(Size.of(n) - 1 for n in sorted(unit.symbols)), unit.symbols)
    quotient = simplify(end // unit, names)
    return quotient if quotient * unit == end else None


def _contains(index: Size, value: Size) -> bool:
    """Are all terms of `value` terms of `index`?"""
    terms = dict(index.terms)
    return all(terms.get(m) == c for m, c in value.terms)


def _text(dimensions: Sequence[Dimension]) -> str:
    shown = ("*" if d is None else "1" if not d else d[0] if len(d) == 1 else f"({' '.join(d)})" for d in dimensions)
    return f"[{', '.join(shown)}]"
