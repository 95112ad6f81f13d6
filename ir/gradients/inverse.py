"""Index expressions solved for the axes: which points of a space read a given element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from intarsia.ir.proofs import Facts, simplify
from intarsia.ir.scalar import Expr, Index, apply
from intarsia.ir.sizes import ONE, ZERO, Monomial, Quotient, Remainder, Size
from intarsia.ir.space import Axis

_STEPS = 32


@dataclass
class Inverse:
    """The points of `axes` at which `indices` are `places`, axes that run over the elements of a tensor.

    names: axes that are decided, as expressions in the places and in the axes that are left. axes: those that are left.
    guards: what must hold besides for a point to be one.
    """

    places: tuple[Axis, ...]
    axes: dict[str, Axis]
    names: dict[str, Size] = field(default_factory=dict)
    guards: list[Expr] = field(default_factory=list)
    fresh: int = 0

    @property
    def facts(self) -> Facts:
        """The ranges of the places and of the axes that are left."""
        found = Facts(names=frozenset(n for p in self.places for n in p.upper.symbols))
        for axis in (*self.places, *self.axes.values()):
            if not axis.lower.opaques and not axis.upper.opaques:
                found = found.within(axis.name, axis.lower, axis.upper)
        return found

    # ------------------------------------------------------------------ steps

    def solve(self, equations: list[Size]) -> bool:
        """Make every equation 0 by deciding axes; False where one cannot be."""
        for _ in range(_STEPS):
            if not equations:
                return True
            facts = self.facts
            equations = [simplify(e.substitute(self.names), facts) for e in equations]
            equations.sort(key=lambda e: (len(self._linear(e)) != 1, bool(self._divisions(e))))
            found = self._step(equations[0], facts)
            if found is None:
                return False
            equations = [*found, *equations[1:]]
        return False

    def _step(self, equation: Size, facts: Facts) -> list[Size] | None:
        """The equations that one is replaced by."""
        if equation.symbols.isdisjoint(self.axes):
            place = next((p.name for p in self.places if equation.coefficient(p.name)), None)
            self._require("eq", *((Size.of(place), equation + place) if place is not None else (equation, ZERO)))
            return []
        linear = self._linear(equation)
        for name in linear:
            if (found := self._digits(name, equation, facts)) is not None:
                return found
        for name in linear:
            coefficient = equation.coefficient(name) or 0
            rest = (equation - Size.of(name) * coefficient) * (-1 if coefficient > 0 else 1)
            self._require("eq", rest % abs(coefficient), ZERO)
            return self._decide(name, rest // abs(coefficient))
        return self._divide(equation)

    def _linear(self, equation: Size) -> list[str]:
        """The axes in which an equation is linear, in order."""
        return [n for n in self.axes if equation.coefficient(n)]

    def _decide(self, name: str, value: Size) -> list[Size] | None:
        """Replace an axis by its value, which must lie in its range."""
        axis = self.axes.pop(name)
        if axis.lower.opaques or axis.upper.opaques:
            return None
        self.names = {n: s.substitute({name: value}) for n, s in self.names.items()} | {name: value}
        self._require("ge", value, axis.lower.substitute(self.names))
        self._require("lt", value, axis.upper.substitute(self.names))
        self.axes = {n: a.substitute({name: value}) for n, a in self.axes.items()}
        return []

    def _digits(self, name: str, equation: Size, facts: Facts) -> list[Size] | None:
        """c * a + b = v with 0 <= b < c is a = v // c and b = v % c."""
        coefficient = equation.coefficient(name) or 0
        if abs(coefficient) < 2:
            return None
        if coefficient < 0:
            equation, coefficient = -equation, -coefficient
        terms = tuple((m, c) for m, c in equation.terms if Size(((m, c),)).symbols & self.axes.keys())
        rest = Size(terms) - Size.of(name) * coefficient
        value = Size(terms) - equation
        if not facts.proves(rest) or not facts.proves(coefficient - 1 - rest):
            return None
        decided = self._decide(name, value // coefficient)
        return None if decided is None else [*decided, rest - value % coefficient]

    def _divisions(self, equation: Size) -> list[tuple[Quotient | Remainder, int]]:
        """The quotients and remainders of axes that an equation is a sum of."""
        return [
            (m[0], c)
            for m, c in equation.terms
            if len(m) == 1 and isinstance(m[0], (Quotient, Remainder)) and _of(m).symbols & self.axes.keys()
        ]

    def _divide(self, equation: Size) -> list[Size] | None:
        """n // d = v is n = d * v + q with a new axis q in 0..d; n % d = v is n = d * q + v."""
        for atom, coefficient in self._divisions(equation):
            value = (equation - _of((atom,)) * coefficient) * -coefficient
            if abs(coefficient) != 1 or atom.denominator.symbols & self.axes.keys():
                continue
            if value.symbols & self.axes.keys():
                continue
            match atom:
                case Quotient(n, d):
                    return [n - d * value - self._new_axis(d)]
                case Remainder(Size(as_name=str() as name) as n, d) if name in self.axes:
                    self._require("ge", value, ZERO)
                    self._require("lt", value, d)
                    return [n - d * self._new_axis((self.axes[name].upper + d - 1) // d) - value]
        return None

    def _new_axis(self, extent: Size) -> Size:
        if extent == ONE:
            return ZERO
        name = f"r{self.fresh}"
        self.fresh += 1
        self.axes[name] = Axis.of(name, extent)
        return Size.of(name)

    def _require(self, comparison: Literal["eq", "ge", "lt"], left: Size, right: Size) -> None:
        """Add a guard, unless it is known to hold."""
        match comparison:
            case "eq":
                known = left == right
            case "ge":
                known = self.facts.proves(left - right)
            case "lt":
                known = self.facts.proves(right - 1 - left)
        if not known:
            self.guards.append(apply(comparison, Index(left), Index(right)))


def _of(monomial: Monomial) -> Size:
    return Size(((monomial, 1),))


def invert(axes: Sequence[Axis], indices: Sequence[Size], places: Sequence[Axis]) -> Inverse | None:
    """The points of `axes` that read the element at `places`; None where that cannot be said in index expressions."""
    if any(i.opaques for i in indices):
        return None
    inverse = Inverse(tuple(places), {a.name: a for a in axes})
    equations = [
        index - Size.of(place.name)
        for index, place in zip(indices, places)
        if not (place.extent == ONE and index == ZERO)
    ]
    if not inverse.solve(equations):
        return None
    seen: set[str] = set()
    for axis in inverse.axes.values():
        later = inverse.axes.keys() - seen
        if (axis.lower.symbols | axis.upper.symbols) & later:
            return None
        seen.add(axis.name)
    inverse.guards = [g.substitute(inverse.names) for g in inverse.guards]
    return inverse
