"""Scalars, functions and integers as texts of PyTorch, for single tensors or at every point of a space.

All texts have brackets around their operators; `python_layout.tidy` leaves those that Python needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from intarsia.backends.gpu.torch_types import TORCH_TYPES, has_type
from intarsia.ir.dtypes import DType
from intarsia.ir.scalar import Expr
from intarsia.ir.sizes import Atom, Extremum, Opaque, Quotient, Remainder, Size

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "eq": "==", "ne": "!=", "lt": "<",
    "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|", "bit_and": "&", "bit_or": "|", "bit_xor": "^",
    "shift_left": "<<", "shift_right": ">>",
}  # fmt: skip
_PREFIX = {"neg": "-", "not": "~", "bit_not": "~"}
_SAME_NAME = frozenset(
    {"abs", "sign", "floor", "ceil", "round", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "rsqrt", "sin"}
    | {
        "cos",
        "tan",
        "tanh",
        "sinh",
        "cosh",
        "asin",
        "acos",
        "atan",
        "atan2",
        "erf",
        "sigmoid",
        "isnan",
        "isinf",
        "ldexp",
    }
    | {"pow", "where", "minimum", "maximum"}
)
_TAKE_NUMBERS = frozenset({"where", "pow"})
"""Functions that take a number for a tensor."""


class Unwritten(Exception):
    """What PyTorch has no function for."""


@dataclass(frozen=True)
class Text:
    """An expression. literal: is it a number of Python, whose type is that of the tensor it meets? scalar: is it an
    integer of Python (a size) or a number, and no tensor?"""

    text: str
    dtype: DType
    literal: bool = False

    @property
    def tensor(self) -> str:
        """The text of a tensor, also of a number."""
        if not self.literal:
            return self.text
        return f"torch.tensor({self.text}, dtype={torch_arithmetic_type(self.dtype)}, device=device)"


def torch_arithmetic_type(dtype: DType) -> str:
    """The type in which PyTorch computes. Raises Unwritten for one that it hardly knows."""
    if dtype not in TORCH_TYPES or (dtype.kind == "uint" and dtype.bits > 8):
        raise Unwritten(f"PyTorch does not compute in {dtype}")
    return TORCH_TYPES[dtype]


def number(value: int | float | bool, dtype: DType) -> Text:
    """A number as Python writes it."""
    torch_arithmetic_type(dtype)
    if not dtype.is_float:
        return Text(repr(value), dtype, literal=True)
    value = float(value)
    special = value != value or value in (float("inf"), float("-inf"))
    return Text(f'float("{value}")' if special else repr(value), dtype, literal=True)


def applied(function: str, arguments: Sequence[Text], dtype: DType) -> Text:
    """A function of `ir/functions.py` applied to tensors and numbers."""
    texts = [a.text for a in arguments]
    literals = [a.literal for a in arguments]
    all_literal = all(literals)
    torch_arithmetic_type(arguments[-1].dtype)
    if all_literal:
        texts = [a.tensor for a in arguments]
    if function in ("floordiv", "mod") and not dtype.is_float and not literals[1]:
        a, b = texts
        quotient = f"({a} {INFIX[function]} torch.where({b} != 0, {b}, 1))"
        return Text(f"torch.where({b} != 0, {quotient}, 0)", dtype)
    if function in INFIX:
        return Text(f"({texts[0]} {INFIX[function]} {texts[1]})", dtype)
    if function in _PREFIX:
        return Text(f"({_PREFIX[function]}{texts[0]})", dtype)
    if function == "fma":
        return Text(f"(({texts[0]} * {texts[1]}) + {texts[2]})", dtype)
    if function in ("minimum", "maximum") and any(literals) and not all_literal:
        bound, tensor = texts if literals[0] else texts[::-1]
        return Text(f"{tensor}.clamp({'max' if function == 'minimum' else 'min'}={bound})", dtype)
    if function not in _SAME_NAME:
        raise Unwritten(f"PyTorch has no function {function}")
    if function not in _TAKE_NUMBERS:
        texts = [a.tensor for a in arguments]
    elif function == "where":
        texts[0] = arguments[0].tensor
        if literals[1] and literals[2]:
            texts[1] = arguments[1].tensor
    return Text(f"torch.{function}({', '.join(texts)})", dtype)


def converted(value: Text, dtype: DType) -> Text:
    """A value as another type."""
    if value.dtype == dtype:
        return value
    wanted = torch_arithmetic_type(dtype)
    require_type(value.dtype)
    return Text(f"{value.tensor}.to({wanted})", dtype)


def require_type(dtype: DType) -> None:
    """Raise Unwritten for a type whose elements PyTorch cannot convert."""
    if not has_type(dtype):
        raise Unwritten(f"PyTorch has no {dtype}")


def reinterpreted(value: Text, dtype: DType) -> Text:
    """The bits of a value as another type."""
    if min(value.dtype.bits, dtype.bits) < 8:
        raise Unwritten(f"PyTorch has no codes of {min(value.dtype.bits, dtype.bits)} bits")
    return Text(f"{value.tensor}.view({torch_arithmetic_type(dtype)})", dtype)


def integer(size: Size, names: Callable[[str], str], opaque: Callable[[Expr], str], of_tensors: bool) -> str:
    """An integer expression. `names` gives the text of a name, `opaque` that of what depends on data; `of_tensors`: are
    there tensors among them?"""

    def whole(s: Size) -> str:
        text = ""
        for monomial, coefficient in sorted(s.terms, key=lambda t: (t[1] < 0, not t[0])):
            factors = [atom(a) for a in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.append(str(abs(coefficient)))
            term = " * ".join(factors)
            if text:
                text += f" {'-' if coefficient < 0 else '+'} {term}"
            else:
                text = f"-({term})" if coefficient < 0 else term
        return f"({text or '0'})"

    def atom(a: Atom) -> str:
        match a:
            case str():
                return names(a)
            case Quotient(x, y):
                return f"({whole(x)} // {whole(y)})"
            case Remainder(x, y):
                return f"({whole(x)} % {whole(y)})"
            case Extremum(name, arguments):
                return extremum(name, list(arguments))
            case Opaque(value):
                return opaque(value)

    def extremum(name: str, arguments: list[Size]) -> str:
        if not of_tensors:
            return f"{name}({', '.join(map(whole, arguments))})"
        constants = [a for a in arguments if a.constant is not None]
        others = [whole(a) for a in arguments if a.constant is None]
        text = others[0]
        for other in others[1:]:
            text = f"torch.{name}imum(torch.as_tensor({text}), torch.as_tensor({other}))"
        bound = "max" if name == "min" else "min"
        for constant in constants:
            text = f"torch.as_tensor({text}).clamp({bound}={constant})"
        return text

    return whole(size)
