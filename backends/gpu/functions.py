"""The scalar functions of `ir/functions.py` in Triton, and the small functions that generated files bring along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from intarsia.backends.gpu.lines import Lines
from intarsia.backends.gpu.values import (
    AND,
    ATOM,
    COMPARISON,
    FLOATS_OF_8_BITS,
    OR,
    PRODUCT,
    SHIFT,
    SUM,
    UNARY,
    XOR,
    Value,
    joined,
    literal,
    type_name,
    union,
)
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, U8, DType

INFIX: dict[str, tuple[str, int]] = {
    "add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT),
    "eq": ("==", COMPARISON), "ne": ("!=", COMPARISON), "lt": ("<", COMPARISON), "le": ("<=", COMPARISON),
    "gt": (">", COMPARISON), "ge": (">=", COMPARISON),
    "and": ("&", AND), "or": ("|", OR), "bit_and": ("&", AND), "bit_or": ("|", OR), "bit_xor": ("^", XOR),
}  # fmt: skip
"""Operators: the symbol, and how tightly it binds."""

CALLS: dict[str, str] = {
    "abs": "tl.abs", "floor": "tl.floor", "ceil": "tl.ceil", "exp": "tl.exp", "exp2": "tl.exp2", "erf": "tl.erf",
    "sqrt": "tl.sqrt_rn", "rsqrt": "tl.rsqrt", "fma": "tl.fma", "where": "tl.where", "round": "libdevice.rint",
    "log": "libdevice.log", "log2": "libdevice.log2", "log1p": "libdevice.log1p", "expm1": "libdevice.expm1",
    "sin": "libdevice.sin", "cos": "libdevice.cos", "tan": "libdevice.tan", "tanh": "libdevice.tanh",
    "sinh": "libdevice.sinh", "cosh": "libdevice.cosh", "asin": "libdevice.asin", "acos": "libdevice.acos",
    "atan": "libdevice.atan", "atan2": "libdevice.atan2", "pow": "libdevice.pow", "sigmoid": "tl.sigmoid",
}  # fmt: skip
"""Functions that Triton, or NVIDIA's library of functions, has under another name."""

HELPERS: dict[str, str] = {
    "is_nan": '''
@triton.jit
def is_nan(x):
    """Is it not a number?"""
    return ~(x <= float("inf"))
''',
    "sign": '''
@triton.jit
def sign(x):
    """-1, 0 or 1; NaN stays."""
    return tl.where(x > 0, 1, tl.where(x < 0, -1, x)).to(x.dtype)
''',
    "floordiv": '''
@triton.jit
def floordiv(a, b):
    """The integer quotient, rounded down; 0 where b is 0."""
    divisor = tl.where(b == 0, 1, b)
    quotient = a // divisor
    inexact = (a % divisor != 0) & ((a < 0) != (divisor < 0))
    return tl.where(b == 0, 0, quotient - inexact.to(quotient.dtype)).to(quotient.dtype)
''',
    "mod": '''
@triton.jit
def mod(a, b):
    """The integer remainder, with the sign of b; 0 where b is 0."""
    divisor = tl.where(b == 0, 1, b)
    rest = a % divisor
    rest = tl.where((rest != 0) & ((rest < 0) != (divisor < 0)), rest + divisor, rest)
    return tl.where(b == 0, 0, rest).to(rest.dtype)
''',
    "float_mod": '''
@triton.jit
def float_mod(a, b):
    """The remainder, with the sign of b."""
    rest = libdevice.fmod(a, b)
    rest = tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
    return tl.where(rest == 0, libdevice.copysign(rest, b), rest)
''',
    "float_floordiv": '''
@triton.jit
def float_floordiv(a, b):
    """The quotient, rounded down."""
    rest = libdevice.fmod(a, b)
    quotient = libdevice.rint((a - rest) / b)
    quotient = tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1, quotient)
    return tl.where((b == 0) | (tl.abs(a) == float("inf")), a / b, quotient)
''',
    "popcount": '''
@triton.jit
def popcount(x):
    """The number of bits that are 1."""
    count = x & 1
    bits: tl.constexpr = x.dtype.primitive_bitwidth
    for bit in tl.static_range(1, bits):
        count += (x >> bit) & 1
    return count
''',
    "pack_pairs": '''
@triton.jit
def pack_pairs(codes):
    """Codes of 4 bits, two neighbours of a row to a byte, the first one in the low bits."""
    low, high = tl.split(tl.reshape(codes, (codes.shape[0], codes.shape[1] // 2, 2)))
    return low & 15 | high << 4
''',
    "combine_max": '''
@triton.jit
def combine_max(a, b):
    """The maximum; NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "combine_min": '''
@triton.jit
def combine_min(a, b):
    """The minimum; NaN wins."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "combine_add": """
@triton.jit
def combine_add(a, b):
    return a + b
""",
    "combine_mul": """
@triton.jit
def combine_mul(a, b):
    return a * b
""",
    "combine_or": """
@triton.jit
def combine_or(a, b):
    return a | b
""",
    "combine_and": """
@triton.jit
def combine_and(a, b):
    return a & b
""",
}
"""Functions that are written before a kernel that calls them."""


class Functions(Lines):
    """Writes scalar functions. `helpers` are the names of those of `HELPERS` that were needed."""

    def __init__(self) -> None:
        super().__init__()
        self.helpers: dict[str, str] = {}
        self.used.update(HELPERS.keys())

    def helper(self, name: str) -> str:
        """Bring a helper along, and its name."""
        self.helpers.setdefault(name, HELPERS[name].strip())
        return name

    def infix(self, name: str, order: tuple[str, ...], dtype: DType, left: Value, right: Value) -> Value:
        """Two values with an operator between them."""
        symbol, level = INFIX[name]
        axes = union(order, left, right)
        if left.literal and right.literal:
            left = left.typed()
        own = level + (level == COMPARISON)  # comparisons in a row mean something else in Python
        text = f"{left.spread(axes, own)} {symbol} {right.spread(axes, level + 1)}"
        return Value(text, dtype, axes, level, depends=joined(left, right))

    def call(self, name: str, order: tuple[str, ...], dtype: DType, *arguments: Value, suffix: str = "") -> Value:
        """A call of a function of Triton, or of a helper."""
        axes = union(order, *arguments)
        texts = [a.typed().spread(axes) for a in arguments]
        return Value(f"{name}({', '.join(texts)}{suffix})", dtype, axes, depends=joined(*arguments))

    def apply(self, name: str, order: tuple[str, ...], dtype: DType, arguments: Sequence[Value]) -> Value:
        """The value of a function of `ir/functions.py`, on types that Triton computes with."""
        first = arguments[0]
        own = first.dtype
        if name in INFIX:
            return self.infix(name, order, dtype, *arguments)
        match name:
            case "sqrt" if own == F64:
                return self.call("tl.sqrt", order, dtype, *arguments)
            case "maximum" | "minimum":
                suffix = ", propagate_nan=tl.PropagateNan.ALL" if own.is_float else ""
                return self.call(f"tl.{name}", order, dtype, *arguments, suffix=suffix)
            case "neg":
                return Value(f"-{first.at(UNARY)}", dtype, first.axes, UNARY, depends=first.depends)
            case "not" | "bit_not":
                return Value(f"~{first.at(UNARY)}", dtype, first.axes, UNARY, depends=first.depends)
            case "isnan":
                return self.call(self.helper("is_nan"), order, BOOL, first)
            case "isinf":
                return Value(
                    f'tl.abs({first.text}) == float("inf")', BOOL, first.axes, COMPARISON, depends=first.depends
                )
            case "shift_left" | "shift_right":
                return self._shift("<<" if name == "shift_left" else ">>", order, dtype, *arguments)
            case "floordiv" | "mod":
                return self.call(self.helper(f"float_{name}" if own.is_float else name), order, dtype, *arguments)
            case "sign" | "popcount":
                return self.call(self.helper(name), order, dtype, *arguments)
            case "ldexp":
                whole = Value(
                    f"{arguments[1].at(10)}.to(tl.int32)", dtype, arguments[1].axes, depends=arguments[1].depends
                )
                return self.call("libdevice.ldexp", order, dtype, first, whole)
        return self.call(CALLS[name], order, dtype, *arguments)

    def _shift(self, symbol: str, order: tuple[str, ...], dtype: DType, x: Value, count: Value) -> Value:
        if count.literal and not int(count.text) & (dtype.bits - 1):
            return x
        axes = union(order, x, count)
        bits = dtype.bits - 1
        by = str(int(count.text) & bits) if count.literal else f"({count.spread(axes, AND + 1)} & {bits})"
        return Value(f"{x.typed().spread(axes, SHIFT)} {symbol} {by}", dtype, axes, SHIFT, depends=joined(x, count))

    def convert(self, value: Value, dtype: DType) -> Value:
        """A value as another type: floats to integers truncate and saturate, NaN becomes 0."""
        source = value.dtype
        if source == dtype:
            return value
        if source in FLOATS_OF_8_BITS:
            halves = dtype if dtype in (F16, BF16) else F32  # what chips have instructions for
            typed = self.as_float_of_8_bits(value.typed())
            return self.convert(replace(typed, text=f"{typed.text}.to({type_name(halves)})", dtype=halves), dtype)
        if dtype == BOOL:
            return Value(f"{value.at(OR)} != 0", BOOL, value.axes, COMPARISON, depends=value.depends)
        value = value.typed()
        if value.literal:
            value = Value(f"tl.full((), {value.text}, {type_name(source)})", source)
        if source.is_float and not dtype.is_float:
            name = f"{source}_to_{dtype}"
            self.helpers.setdefault(name, _to_integer(name, source, dtype))
            return Value(f"{name}({value.text})", dtype, value.axes, depends=value.depends)
        return Value(f"{value.at(10)}.to({type_name(dtype)})", dtype, value.axes, depends=value.depends)

    def as_float_of_8_bits(self, value: Value) -> Value:
        """A block of codes as one of the type that Triton has for them."""
        text = f"{value.at(ATOM)}.to({FLOATS_OF_8_BITS[value.dtype]}, bitcast=True)"
        return replace(value, text=text, level=ATOM)

    def bitcast(self, value: Value, dtype: DType) -> Value:
        """The bits of a value as another type. An element of a narrow type is a byte whose low bits are its code;
        where one is made, the others are 0 or its sign, as PyTorch has it."""
        if value.dtype.is_narrow or dtype.is_narrow:
            bits = min(value.dtype.bits, dtype.bits)
            code = value if bits == 8 else self._bits("bit_and", value, (1 << bits) - 1)
            if dtype.kind == "int" and bits < 8 and dtype.is_narrow:
                sign = 1 << (bits - 1)
                code = self._bits("sub", self._bits("bit_xor", code, sign), sign)
            return replace(code, dtype=dtype)
        value = value.typed()
        return replace(value, text=f"{value.at(ATOM)}.to({type_name(dtype)}, bitcast=True)", dtype=dtype, level=ATOM)

    def _bits(self, function: str, value: Value, number: int) -> Value:
        return self.infix(function, value.axes, U8, value, literal(number, U8))


def _to_integer(name: str, source: DType, target: DType) -> str:
    """A function that truncates and saturates. Below both bounds lies what can be converted: the upper one is a power
    of two, which every float type that is wide enough has."""
    low, high, kind = int(target.least), int(target.greatest), type_name(target)
    above, below = float(high + 1), float(low) - (1.0 if target.bits < 32 else 0.0)
    return f'''
@triton.jit
def {name}(x):
    """Truncated, cut to the range of the type; NaN becomes 0."""
    inside = (x > {below!r}) & (x < {above!r})
    whole = tl.where(inside, x, 0.0).to({kind})
    return tl.where(x >= {above!r}, {high}, tl.where(x <= {below!r}, {low}, whole)).to({kind})
'''.strip()
