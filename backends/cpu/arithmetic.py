"""The basic scalar functions of `ir/functions.py` as instructions, on scalars and vectors alike.

What is not basic (exp, sin, …) is rewritten into basic functions by `ir/approximations.py` before it comes here.
f16 and bf16 are computed in f32 and rounded after each function, as NumPy does.
"""

from __future__ import annotations

from collections.abc import Callable

from intarsia.backends.cpu.conversion import convert, wide_float
from intarsia.backends.cpu.llvm import Function
from intarsia.backends.cpu.values import (
    Value,
    absolute,
    comparison,
    constant,
    extract,
    instruction,
    intrinsic,
    recast,
    resized,
    select,
    shuffle,
    widen,
    zero,
)
from intarsia.ir.dtypes import BOOL, F32, I32, I64, DType
from intarsia.ir.target import Target

_FLOAT_COMPARISONS = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_FLOAT_INSTRUCTIONS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_FLOAT_INTRINSICS = {"floor": "floor", "ceil": "ceil", "round": "roundeven", "sqrt": "sqrt", "abs": "fabs"}
_INTEGER_INSTRUCTIONS = {
    "add": "add", "sub": "sub", "mul": "mul", "bit_and": "and", "bit_or": "or", "bit_xor": "xor", "and": "and",
    "or": "or",
}  # fmt: skip


class Arithmetic:
    """Writes scalar functions into a function for a target."""

    def __init__(self, function: Function, target: Target) -> None:
        self.function = function
        self.target = target

    def apply(self, name: str, arguments: tuple[Value, ...], *, numbers: bool = False) -> Value:
        """The value of a basic function. With `numbers`, any will do for an extremum of NaN and something else."""
        if name == "where":
            return select(self.function, *arguments)
        dtype = arguments[0].dtype
        if dtype.is_float and dtype.bits == 16:
            wide = tuple(wide_float(self.function, a) for a in arguments)
            result = self.apply(name, wide, numbers=numbers)
            return convert(self.function, result, dtype) if result.dtype == F32 else result
        if numbers and dtype.is_float and name in ("minimum", "maximum"):
            return self._extremum_of_numbers(name, *arguments)
        return self._float(name, arguments) if dtype.is_float else self._integer(name, arguments)

    def fused_multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c of f64 or f32, rounded once."""
        return intrinsic(self.function, "fma", a, b, c)

    # ------------------------------------------------------------------ floats

    def _float(self, name: str, arguments: tuple[Value, ...]) -> Value:
        function, x = self.function, arguments[0]
        if name in _FLOAT_COMPARISONS:
            return comparison(function, f"fcmp {_FLOAT_COMPARISONS[name]}", *arguments)
        if name in _FLOAT_INSTRUCTIONS:
            return instruction(function, _FLOAT_INSTRUCTIONS[name], *arguments)
        if name in _FLOAT_INTRINSICS:
            return intrinsic(function, _FLOAT_INTRINSICS[name], x)
        match name:
            case "fma":
                return self.fused_multiply_add(*arguments)
            case "neg":
                return Value(function.op(f"fneg {x}"), x.dtype, x.lanes)
            case "minimum" | "maximum":
                return self._float_extremum(name, *arguments)
            case "sign":
                return self._sign(x)
            case "isnan":
                return comparison(function, "fcmp uno", x, x)
            case "isinf":
                return comparison(function, "fcmp oeq", intrinsic(function, "fabs", x), self._number(x, float("inf")))
            case "rsqrt":
                return instruction(function, "fdiv", self._number(x, 1.0), intrinsic(function, "sqrt", x))
            case "ldexp":
                return self._ldexp(*arguments)
            case "floordiv":
                return self._float_floordiv(*arguments)
            case "mod":
                return self._float_mod(*arguments)
        raise NotImplementedError(f"{name} of {x.dtype} is not basic")

    def _number(self, like: Value, number: float) -> Value:
        return constant(number, like.dtype, like.lanes)

    def _float_extremum(self, name: str, a: Value, b: Value) -> Value:
        """NaN wins: one in b by itself, which leaves one in a to care for."""
        either = self._extremum_of_numbers(name, a, b)
        if self.target.triple.startswith("aarch64"):
            return either
        return select(self.function, comparison(self.function, "fcmp uno", a, a), a, either)

    def _extremum_of_numbers(self, name: str, a: Value, b: Value) -> Value:
        """One instruction: on x86 it gives b if either is NaN, elsewhere NaN."""
        if self.target.triple.startswith("aarch64"):
            return intrinsic(self.function, name, a, b)
        better = comparison(self.function, "fcmp ogt" if name == "maximum" else "fcmp olt", a, b)
        return select(self.function, better, a, b)

    def _sign(self, x: Value) -> Value:
        function, nothing = self.function, zero(x.dtype, x.lanes)
        one = intrinsic(function, "copysign", self._number(x, 1.0), x)
        different = comparison(function, "fcmp one", x, nothing)
        result = select(function, different, one, nothing)
        return select(function, comparison(function, "fcmp uno", x, x), x, result)

    def _float_mod(self, a: Value, b: Value) -> Value:
        """The remainder with the sign of the divisor, exact, as NumPy's `mod`."""
        function = self.function
        rest = instruction(function, "frem", a, b)
        nothing = zero(rest.dtype, rest.lanes)
        differ = comparison(
            function,
            "icmp ne",
            comparison(function, "fcmp olt", rest, nothing),
            comparison(function, "fcmp olt", b, nothing),
        )
        shifted = select(function, differ, instruction(function, "fadd", rest, b), rest)
        signed_zero = intrinsic(function, "copysign", nothing, b)
        result = select(function, comparison(function, "fcmp oeq", rest, nothing), signed_zero, shifted)
        # A divisor of 0 has given NaN already.
        return select(function, comparison(function, "fcmp oeq", b, nothing), rest, result)

    def _float_floordiv(self, a: Value, b: Value) -> Value:
        """The quotient rounded down, found from the exact remainder, as NumPy's `floor_divide`."""
        function = self.function
        rest = instruction(function, "frem", a, b)
        nothing, one = zero(rest.dtype, rest.lanes), self._number(rest, 1.0)
        whole = instruction(function, "fdiv", instruction(function, "fsub", a, rest), b)
        negative = comparison(function, "fcmp olt", rest, nothing)
        differ = comparison(function, "icmp ne", negative, comparison(function, "fcmp olt", b, nothing))
        lower = instruction(function, "and", differ, comparison(function, "fcmp une", rest, nothing))
        whole = select(function, lower, instruction(function, "fsub", whole, one), whole)
        down = intrinsic(function, "floor", whole)
        short = comparison(function, "fcmp ogt", instruction(function, "fsub", whole, down), self._number(rest, 0.5))
        nearest = select(function, short, instruction(function, "fadd", down, one), down)
        plain = instruction(function, "fdiv", a, b)
        signed_zero = intrinsic(function, "copysign", nothing, plain)
        result = select(function, comparison(function, "fcmp oeq", whole, nothing), signed_zero, nearest)
        return select(function, comparison(function, "fcmp oeq", b, nothing), plain, result)

    def _ldexp(self, x: Value, power: Value) -> Value:
        """x times 2 to a whole number: any where the target says so, else less than 2^(exponent bits) in magnitude."""
        lanes = max(x.lanes, power.lanes)
        x, power = widen(self.function, x, lanes), widen(self.function, power, lanes)
        if not self.target.has_unbounded_ldexp:
            return self._ldexp_in_steps(x, power)
        native = 512 // x.dtype.bits
        whole = -(-lanes // native) * native
        x, power = resized(self.function, x, whole), resized(self.function, power, whole)
        return resized(self.function, self.in_parts(self._scalef, native, x, power), lanes)

    def _scalef(self, x: Value, power: Value) -> Value:
        kind, mask = ("ps", "i16") if x.dtype == F32 else ("pd", "i8")
        arguments = [(x.type, x.text), (x.type, power.text), (x.type, "zeroinitializer"), (mask, "-1"), ("i32", "4")]
        text = self.function.call(x.type, f"llvm.x86.avx512.mask.scalef.{kind}.512", arguments)
        return Value(text, x.dtype, x.lanes)

    def in_parts(self, write: Callable[..., Value], lanes: int, *values: Value) -> Value:
        """Apply `write` to parts of so many lanes, of which there may be any number."""
        whole = values[0].lanes
        count = whole // lanes
        if count == 1:
            return write(*values)
        function, half = self.function, (count + 1) // 2 * lanes
        low, high = (
            self.in_parts(write, lanes, *(shuffle(function, v, v, r) for v in values))
            for r in (range(half), range(half, whole))
        )
        if high.lanes < half:  # LLVM joins vectors of one width only
            high = shuffle(function, high, high, [lane % high.lanes for lane in range(half)])
        return shuffle(function, low, high, range(whole))

    def _ldexp_in_steps(self, x: Value, power: Value) -> Value:
        """Multiply by two powers of two that are normal numbers: of a number near 1 the first product is exact."""
        function, lanes = self.function, x.lanes
        whole = self._small_integer(power, I32 if x.dtype == F32 else I64)
        half = instruction(function, "ashr", whole, constant(1, whole.dtype, lanes))
        rest = instruction(function, "sub", whole, half)
        first = instruction(function, "fmul", x, self._power_of_two(half, x.dtype))
        return instruction(function, "fmul", first, self._power_of_two(rest, x.dtype))

    def _small_integer(self, x: Value, integer: DType) -> Value:
        """A whole number of small magnitude as an integer: its bits after adding 1.5 * 2^mantissa."""
        function = self.function
        magic = 1.5 * 2.0**x.dtype.mantissa
        bits = recast(function, "bitcast", instruction(function, "fadd", x, self._number(x, magic)), integer)
        base = recast(function, "bitcast", Value(self._number(x, magic).text, x.dtype, x.lanes), integer)
        return instruction(function, "sub", bits, base)

    def _power_of_two(self, exponent: Value, dtype: DType) -> Value:
        function = self.function
        bias = (1 << (dtype.exponent - 1)) - 1
        biased = instruction(function, "add", exponent, constant(bias, exponent.dtype, exponent.lanes))
        bits = instruction(function, "shl", biased, constant(dtype.mantissa, exponent.dtype, exponent.lanes))
        return recast(function, "bitcast", bits, dtype)

    # ------------------------------------------------------------------ integers and booleans

    def _integer(self, name: str, arguments: tuple[Value, ...]) -> Value:
        function, x = self.function, arguments[0]
        signed = "s" if x.dtype.kind == "int" else "u"
        if name in _FLOAT_COMPARISONS:
            predicate = name if name in ("eq", "ne") else signed + name
            return comparison(function, f"icmp {predicate}", *arguments)
        if name in _INTEGER_INSTRUCTIONS:
            return instruction(function, _INTEGER_INSTRUCTIONS[name], *arguments)
        ones = constant(-1, x.dtype, x.lanes) if x.dtype != BOOL else constant(True, BOOL, x.lanes)
        match name:
            case "neg":
                return instruction(function, "sub", zero(x.dtype, x.lanes), x)
            case "not" | "bit_not":
                return instruction(function, "xor", x, ones)
            case "minimum" | "maximum":
                return intrinsic(function, signed + name[:3], *arguments)
            case "abs":
                return absolute(function, x) if signed == "s" else x
            case "sign":
                return self._integer_sign(x)
            case "popcount":
                return intrinsic(function, "ctpop", x)
            case "shift_left" | "shift_right":
                width = constant(x.dtype.bits - 1, x.dtype)
                count = instruction(function, "and", arguments[1], width)
                opcode = "shl" if name == "shift_left" else "ashr" if signed == "s" else "lshr"
                return instruction(function, opcode, x, count)
            case "floordiv":
                return self.divide(*arguments)[0]
            case "mod":
                return self.divide(*arguments)[1]
        raise NotImplementedError(f"{name} of {x.dtype} is not basic")

    def _integer_sign(self, x: Value) -> Value:
        function, nothing = self.function, zero(x.dtype, x.lanes)
        positive = recast(function, "zext", comparison(function, "icmp ne", x, nothing), x.dtype)
        if x.dtype.kind == "uint":
            return positive
        negative = comparison(function, "icmp slt", x, nothing)
        return select(function, negative, constant(-1, x.dtype, x.lanes), positive)

    def divide(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Quotient rounded down and remainder with the sign of the divisor; both 0 where the divisor is 0."""
        function, dtype, lanes = self.function, a.dtype, max(a.lanes, b.lanes)
        nothing, one = zero(dtype, lanes), constant(1, dtype, lanes)
        by_zero = comparison(function, "icmp eq", b, zero(dtype, b.lanes))
        safe = select(function, by_zero, constant(1, dtype, b.lanes), b)
        if dtype.kind == "uint":
            quotient, rest = instruction(function, "udiv", a, safe), instruction(function, "urem", a, safe)
        else:
            # The least integer by -1 traps; by way of 1 and a negation it wraps, as it must.
            minus = comparison(function, "icmp eq", b, constant(-1, dtype, b.lanes))
            safe = select(function, minus, constant(1, dtype, b.lanes), safe)
            quotient, rest = instruction(function, "sdiv", a, safe), instruction(function, "srem", a, safe)
            differ = comparison(function, "icmp slt", instruction(function, "xor", rest, safe), nothing)
            inexact = comparison(function, "icmp ne", rest, nothing)
            low = instruction(function, "and", differ, inexact)
            quotient = select(function, low, instruction(function, "sub", quotient, one), quotient)
            rest = select(function, low, instruction(function, "add", rest, safe), rest)
            quotient = select(function, minus, instruction(function, "sub", nothing, a), quotient)
        return select(function, by_zero, nothing, quotient), select(function, by_zero, nothing, rest)

    # ------------------------------------------------------------------ over lanes

    def reduce_lanes(self, name: str, value: Value, *, numbers: bool = False) -> Value:
        """Combine the lanes of a vector by add, mul, minimum, maximum, and, or: halves with halves."""
        function, lanes = self.function, value.lanes
        if lanes == 1:
            return value
        if lanes % 2 or lanes == 2:
            rest = value if lanes == 2 else shuffle(function, value, value, range(lanes - 1))
            first = extract(function, value, 0) if lanes == 2 else self.reduce_lanes(name, rest, numbers=numbers)
            return self.apply(name, (first, extract(function, value, lanes - 1)), numbers=numbers)
        low = shuffle(function, value, value, range(lanes // 2))
        high = shuffle(function, value, value, range(lanes // 2, lanes))
        return self.reduce_lanes(name, self.apply(name, (low, high), numbers=numbers), numbers=numbers)
