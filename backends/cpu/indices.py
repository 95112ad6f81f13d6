"""Index arithmetic: sizes, subscripts, bounds and masks as i64 instructions.

What is linear in the vector axis stays a scalar and a stride, so that loads and stores see contiguous lanes; only
what is not becomes a vector of indices.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from intarsia.backends.cpu.arithmetic import Arithmetic
from intarsia.backends.cpu.conversion import convert
from intarsia.backends.cpu.llvm import Function, Operand
from intarsia.backends.cpu.values import (
    Value,
    comparison,
    constant,
    instruction,
    intrinsic,
    recast,
    vector_constant,
    widen,
)
from intarsia.ir.dtypes import BOOL, I64, DType
from intarsia.ir.dtypes import dtype as named_dtype
from intarsia.ir.kernel import For
from intarsia.ir.proofs import Facts, ranges
from intarsia.ir.scalar import Expr, Mask
from intarsia.ir.sizes import Atom, Extremum, Opaque, Quotient, Remainder, Size
from intarsia.ir.target import Target


@dataclass(frozen=True)
class Lane:
    """The vector that is being written: `axis` is base, base + step, … in the lanes from the first on."""

    axis: str
    base: Operand
    step: int
    lanes: int


@dataclass(frozen=True)
class Linear:
    """constant + the sum of terms (coefficient times values) + the number of the lane times stride."""

    constant: int
    terms: tuple[tuple[int, tuple[str, ...]], ...]
    stride: Operand


@dataclass(frozen=True)
class Condition:
    """Where a mask holds: an i1 for all lanes together, and one for each lane."""

    uniform: str = "true"
    lanes: Value | None = None


class Indices:
    """Writes integer expressions over the axes that are open."""

    def __init__(self, function: Function, target: Target, sizes: Iterable[str]) -> None:
        self.function = function
        self.target = target
        self.arithmetic = Arithmetic(function, target)
        self.axes: dict[str, Operand] = {}
        self.lane: Lane | None = None
        self.multiples: dict[str, int] = {}
        self.sizes = frozenset(sizes)
        self.open_loops: tuple[For, ...] = ()
        self._facts: dict[tuple[str, ...], Facts] = {}

    @property
    def facts(self) -> Facts:
        """What is known of the axes of the loops that are open."""
        key = tuple(loop.axis for loop in self.open_loops)
        if key not in self._facts:
            bounds = {loop.axis: (loop.lower, loop.upper) for loop in self.open_loops}
            self._facts[key] = ranges(bounds, Facts(names=self.sizes))
        return self._facts[key]

    @abstractmethod
    def value(self, expression: Expr) -> Value:
        """The value of a scalar expression: a vector where it differs between lanes."""

    # ------------------------------------------------------------------ polynomials

    def number(self, size: Size) -> Operand:
        """A size that is the same in all lanes."""
        if size.constant is not None:
            return size.constant
        linear = self.linear(size)
        assert linear is not None and linear.stride == 0, f"{size} differs between lanes"
        return self.function.add(self._sum(linear.terms), linear.constant)

    def index(self, size: Size) -> Value:
        """Any size as an i64 value, or a vector of them."""
        if size.constant is not None:
            return constant(size.constant, I64)
        linear = self.linear(size)
        if linear is None:
            return self._vector(size)
        base = _scalar(self.function.add(self._sum(linear.terms), linear.constant))
        return base if linear.stride == 0 else instruction(self.function, "add", base, self._steps(linear.stride))

    def linear(self, size: Size) -> Linear | None:
        """The size as a sum; None where lanes differ in another way than by a stride."""
        size = self._with_known_axes(size)
        lane = self.lane
        if lane is not None and any(_mentions(a, lane.axis) for a in size.atoms()):
            resolved = self._take_apart(size, lane)
            return None if resolved == size else self.linear(resolved)
        total, stride = 0, 0
        terms: list[tuple[int, tuple[str, ...]]] = []
        symbolic_stride: Operand = 0
        for monomial, coefficient in size.terms:
            factors: list[str] = []
            in_lane = False
            for atom in monomial:
                if lane is not None and atom == lane.axis:
                    if in_lane:
                        return None
                    in_lane = True
                    continue
                value = self.axes[atom] if isinstance(atom, str) else self._atom(atom)
                if isinstance(value, Value):
                    return None
                if isinstance(value, int):
                    coefficient *= value
                else:
                    factors.append(value)
            if in_lane:
                assert lane is not None
                if factors:
                    step = self._product(coefficient * lane.step, factors)
                    symbolic_stride = self.function.add(symbolic_stride, step)
                else:
                    stride += coefficient * lane.step
                if isinstance(lane.base, str):
                    factors.append(lane.base)
                else:
                    coefficient *= lane.base
            if factors and coefficient:
                terms.append((coefficient, tuple(factors)))
            elif not factors:
                total += coefficient
        return Linear(total, tuple(terms), self.function.add(stride, symbolic_stride))

    def _with_known_axes(self, size: Size) -> Size:
        """Quotients, remainders and extrema of axes that are numbers, as numbers."""
        if all(isinstance(atom, str) for atom in size.atoms()):
            return size
        known = {name: Size.of(value) for name, value in self.axes.items() if isinstance(value, int)}
        return size.substitute(known, Size.opaque) if known.keys() & size.symbols else size

    def _take_apart(self, size: Size, lane: Lane) -> Size:
        """(64*a + lane) // 128 -> 64*a // 128, and (64*a + lane) % 128 -> 64*a % 128 + lane."""
        total = Size.of(0)
        base = Size.of(lane.base) if isinstance(lane.base, int) else Size.of(f"{lane.axis}.base")
        for monomial, coefficient in size.terms:
            product = Size.of(coefficient)
            for atom in monomial:
                match atom:
                    case Quotient(n, d) | Remainder(n, d) if (stride := n.coefficient(lane.axis)) and d.constant:
                        first = n + (base - lane.axis) * stride
                        span = stride * lane.step * lane.lanes
                        if span > 0 and d.constant % span == 0 and self.multiple(first) % span == 0:
                            steps = (Size.of(lane.axis) - base) * stride
                            product = product * (first // d if isinstance(atom, Quotient) else first % d + steps)
                            continue
                product = product * Size((((atom,), 1),))
            total = total + product
        return total

    def multiple(self, size: Size) -> int:
        """A number that divides the size in all iterations; 0 where the size is 0."""
        result = 0
        for monomial, coefficient in size.terms:
            for atom in monomial:
                if isinstance(atom, str):
                    value = self.axes.get(atom)
                    coefficient *= value if isinstance(value, int) else self.multiples.get(atom, 1)
            result = math.gcd(result, coefficient)
        return result

    def _product(self, coefficient: int, factors: list[str] | tuple[str, ...]) -> Operand:
        """Multiply, values of outer scopes first."""
        result: Operand = coefficient
        for factor in sorted(factors, key=self.function.depth_of):
            result = self.function.multiply(result, factor)
        return result

    def _sum(self, terms: tuple[tuple[int, tuple[str, ...]], ...]) -> Operand:
        """Add, values of outer scopes first, so that what is invariant in a loop is added before it."""
        result: Operand = 0
        for value in sorted((self._product(c, f) for c, f in terms), key=self.function.depth_of):
            result = self.function.add(result, value)
        return result

    def _steps(self, stride: Operand) -> Value:
        """0, stride, 2 * stride, … in the lanes."""
        assert self.lane is not None
        lanes = self.lane.lanes
        if isinstance(stride, int):
            return vector_constant([stride * i for i in range(lanes)], I64)
        return instruction(self.function, "mul", _scalar(stride), vector_constant(range(lanes), I64))

    def _vector(self, size: Size) -> Value:
        """A polynomial of which some atoms are vectors."""
        total = constant(0, I64)
        for monomial, coefficient in size.terms:
            product = constant(coefficient, I64)
            for atom in monomial:
                product = instruction(self.function, "mul", product, self._atom_value(atom))
            total = instruction(self.function, "add", total, product)
        return total

    # ------------------------------------------------------------------ atoms

    def _atom_value(self, atom: Atom) -> Value:
        if isinstance(atom, str):
            return self.index(Size.of(atom))
        value = self._atom(atom)
        return value if isinstance(value, Value) else _scalar(value)

    def _atom(self, atom: Atom) -> Operand | Value:
        """An atom other than a name; a `Value` only where it is a vector."""
        match atom:
            case Opaque(expression):
                return _operand(convert(self.function, self.value(expression), I64))
            case Extremum(name, arguments):
                values = [self.index(a) for a in arguments]
                result = values[0]
                for other in values[1:]:
                    result = self._extremum(name, result, other)
                return _operand(result)
            case Quotient(numerator, denominator):
                return _operand(self._divide(numerator, denominator)[0])
            case Remainder(numerator, denominator):
                return _operand(self._divide(numerator, denominator)[1])
        raise AssertionError(atom)

    def _extremum(self, name: str, a: Value, b: Value) -> Value:
        if a.lanes == b.lanes == 1:
            pick = self.function.minimum if name == "min" else self.function.maximum
            return _scalar(pick(_as_operand(a.text), _as_operand(b.text)))
        return intrinsic(self.function, f"s{name}", a, b)

    def _divide(self, numerator: Size, denominator: Size) -> tuple[Value, Value]:
        """Floor quotient and remainder; 0 where the denominator is 0."""
        function, a, d = self.function, self.index(numerator), denominator.constant
        if d is None or d <= 0:
            return self.arithmetic.divide(a, self.index(denominator))
        if d & (d - 1) == 0:
            shift, mask = constant(d.bit_length() - 1, I64), constant(d - 1, I64)
            return instruction(function, "ashr", a, shift), instruction(function, "and", a, mask)
        if self.facts.proves(numerator):
            quotient = instruction(function, "udiv", a, constant(d, I64))
            return quotient, instruction(function, "urem", a, constant(d, I64))
        return self.arithmetic.divide(a, constant(d, I64))

    # ------------------------------------------------------------------ masks

    def condition(self, mask: Mask) -> Condition:
        """Where every expression of the mask is greater than 0."""
        result = Condition()
        for size in mask:
            result = self.both(result, self._positive(size))
        return result

    def both(self, a: Condition, b: Condition) -> Condition:
        if "false" in (a.uniform, b.uniform):
            return Condition("false")
        uniform = a.uniform if b.uniform == "true" else b.uniform
        if a.uniform != "true" and b.uniform != "true":
            uniform = self.function.op(f"and i1 {a.uniform}, {b.uniform}")
        if a.lanes is None or b.lanes is None:
            return Condition(uniform, a.lanes or b.lanes)
        first, second = known_lanes(a.lanes), known_lanes(b.lanes)
        if first is not None and second is not None:
            return _known_condition([x and y for x, y in zip(first, second)], uniform)
        return Condition(uniform, instruction(self.function, "and", a.lanes, b.lanes))

    def lane_mask(self, condition: Condition) -> Value:
        """The whole condition as one i1 for each lane."""
        assert self.lane is not None
        uniform = widen(self.function, Value(condition.uniform, BOOL), self.lane.lanes)
        if condition.lanes is None:
            return uniform
        return (
            condition.lanes
            if condition.uniform == "true"
            else instruction(self.function, "and", uniform, condition.lanes)
        )

    def _positive(self, size: Size) -> Condition:
        if size.constant is not None:
            return Condition("true" if size.constant > 0 else "false")
        linear = self.linear(size)
        if linear is None:
            return Condition(lanes=comparison(self.function, "icmp sgt", self._vector(size), constant(0, I64)))
        base = self.function.add(self._sum(linear.terms), linear.constant)
        if linear.stride == 0:
            if isinstance(base, int):
                return Condition("true" if base > 0 else "false")
            return Condition(self.function.compare("sgt", base, 0))
        assert self.lane is not None
        if isinstance(base, int) and isinstance(linear.stride, int):
            return _known_condition([base + linear.stride * n > 0 for n in range(self.lane.lanes)])
        if linear.stride in (1, -1):
            return Condition(lanes=self._compare_lanes(base, int(linear.stride), self.lane.lanes))
        steps = instruction(self.function, "add", _scalar(base), self._steps(linear.stride))
        return Condition(lanes=comparison(self.function, "icmp sgt", steps, constant(0, I64)))

    def _compare_lanes(self, base: Operand, stride: int, lanes: int) -> Value:
        """base + stride * lane > 0, by a comparison in integers as wide as one lane of a full register."""
        dtype = self._lane_dtype(lanes)
        numbers = vector_constant(range(lanes), dtype)
        limit = base if stride < 0 else self.function.subtract(0, base)
        near = self.function.maximum(self.function.minimum(limit, lanes), -1)
        wide = widen(self.function, self._narrow(near, dtype), lanes)
        return comparison(self.function, "icmp slt" if stride < 0 else "icmp sgt", numbers, wide)

    def _lane_dtype(self, lanes: int) -> DType:
        bits = min(64, max(8, self.target.vector_bits // lanes))
        dtype = named_dtype(f"i{1 << (bits.bit_length() - 1)}" if lanes < 127 else "i32")
        assert dtype is not None
        return dtype

    def _narrow(self, number: Operand, dtype: DType) -> Value:
        if isinstance(number, int):
            return constant(number, dtype)
        return recast(self.function, "trunc", _scalar(number), dtype) if dtype != I64 else _scalar(number)


def _known_condition(lanes: list[bool], uniform: str = "true") -> Condition:
    """A condition that is known for every lane while the code is written."""
    if all(lanes) or not any(lanes):
        return Condition(uniform if all(lanes) else "false")
    return Condition(uniform, vector_constant(lanes, BOOL))


def known_lanes(mask: Value) -> list[bool] | None:
    """The lanes of a mask that is a constant."""
    if not mask.text.startswith("<"):
        return None
    return [lane.strip() == "i1 true" for lane in mask.text[1:-1].split(",")]


def _mentions(atom: Atom, name: str) -> bool:
    """Does a quotient, extremum or data-dependent value contain the name?"""
    return not isinstance(atom, str) and name in Size((((atom,), 1),)).symbols


def _scalar(operand: Operand) -> Value:
    return Value(str(operand), I64)


def _as_operand(text: str) -> Operand:
    return text if text.startswith("%") else int(text)


def _operand(value: Value) -> Operand | Value:
    """A scalar value as an operand; vectors as they are."""
    return value if value.lanes > 1 else _as_operand(value.text)
