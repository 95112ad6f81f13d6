"""The derivative of a scalar expression with respect to one of its loads.

It is taken forwards, so that a `where` guards the derivative of an arm just as it guards the arm: nothing is read, and
no infinity is multiplied by zero, where the program does not do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load, apply, cast, constant, where
from intarsia.ir.terms import Term
from intarsia.ir.terms import where as choose

Partials = Callable[..., "tuple[Term | float | None, ...]"]


def _power(x: Term, y: Term) -> tuple[Term | None, Term | None]:
    """y x^(y - 1), and x^y log x; 0 where a factor that is 0 meets an infinite one: x^0 is 1 for every x."""
    known = y.expr.value if isinstance(y.expr, Const) else None
    if known == 0.0:
        return None, None
    less = constant(known - 1, y.dtype) if known is not None else (y - 1.0).expr
    slope = y * Term(apply("pow", x.expr, less))
    result = Term(apply("pow", x.expr, y.expr))
    growth = choose(x.equals(0.0) & (y >= 0.0), 0.0, result * _of("log", x))
    return (slope if known is not None else choose(y.equals(0.0), 0.0, slope)), growth


def _of(function: str, x: Term) -> Term:
    return Term(apply(function, x.expr))


def _atan2(y: Term, x: Term) -> tuple[Term, Term]:
    square = x * x + y * y
    return x / square, -y / square


PARTIALS: dict[str, Partials] = {
    "add": lambda x, y: (1.0, 1.0),
    "sub": lambda x, y: (1.0, -1.0),
    "mul": lambda x, y: (y, x),
    "div": lambda x, y: (1.0 / y, -(x / y) / y),
    "mod": lambda x, y: (1.0, -Term(apply("floordiv", x.expr, y.expr))),
    "neg": lambda x: (-1.0,),
    "fma": lambda x, y, z: (y, x, 1.0),
    "pow": _power,
    "abs": lambda x: (_of("sign", x),),
    "ldexp": lambda x, n: (Term(apply("ldexp", x.like(1.0).expr, n.expr)), None),
    "exp": lambda x: (_of("exp", x),),
    "exp2": lambda x: (_of("exp2", x) * math.log(2.0),),
    "log": lambda x: (1.0 / x,),
    "log2": lambda x: (1.0 / (x * math.log(2.0)),),
    "log1p": lambda x: (1.0 / (x + 1.0),),
    "expm1": lambda x: (_of("exp", x),),
    "sqrt": lambda x: (0.5 / _of("sqrt", x),),
    "rsqrt": lambda x: (-0.5 * _of("rsqrt", x) / x,),
    "sin": lambda x: (_of("cos", x),),
    "cos": lambda x: (-_of("sin", x),),
    "tan": lambda x: (1.0 + _of("tan", x) * _of("tan", x),),
    "tanh": lambda x: (1.0 - _of("tanh", x) * _of("tanh", x),),
    "sinh": lambda x: (_of("cosh", x),),
    "cosh": lambda x: (_of("sinh", x),),
    "asin": lambda x: (_of("rsqrt", 1.0 - x * x),),
    "acos": lambda x: (-_of("rsqrt", 1.0 - x * x),),
    "atan": lambda x: (1.0 / (1.0 + x * x),),
    "atan2": _atan2,
    "erf": lambda x: (_of("exp", -(x * x)) * (2.0 / math.sqrt(math.pi)),),
    "sigmoid": lambda x: (_of("sigmoid", x) * (1.0 - _of("sigmoid", x)),),
}
"""The derivative of each function with respect to each argument; None is 0."""

CONSTANT = frozenset({"floor", "ceil", "round", "sign", "floordiv", "stop_gradient"})
"""Functions of floats whose derivative is 0 wherever they have one, or by definition."""


def derivative(expression: Expr, variable: Load) -> Expr | None:
    """How the expression changes with one of its loads, as an expression of its dtype; None where it does not.

    At a tie `maximum(a, b)` and `minimum(a, b)` change with b. Raises E0325 for what has no derivative.
    """
    memo: dict[Expr, Expr | None] = {}

    def go(e: Expr) -> Expr | None:
        if e not in memo:
            memo[e] = find(e)
        return memo[e]

    def find(e: Expr) -> Expr | None:
        match e:
            case Load():
                return constant(1.0, e.dtype) if e == variable else None
            case Apply("where", (condition, then, otherwise)):
                return _either(condition, go(then), go(otherwise))
            case Apply("maximum" | "minimum" as name, (x, y)):
                return _either(apply("gt" if name == "maximum" else "lt", x, y), go(x), go(y))
            case Apply(function, arguments) if e.dtype.is_float and function not in CONSTANT:
                inner = [go(a) for a in arguments]
                return None if inner.count(None) == len(inner) else _chain(function, arguments, inner)
            case Cast(dtype, value) if dtype.is_float and (inside := go(value)) is not None:
                if dtype.is_narrow or value.dtype.is_narrow:
                    raise _no_derivative(f"a conversion from {value.dtype} to {dtype}")
                return converted(dtype, inside)
            case Bitcast(value=value) if go(value) is not None:
                raise _no_derivative("bitcast")
        return None

    return go(expression)


def _no_derivative(what: str) -> CompileError:
    hint = "stop_gradient(x) is x, taken as a constant"
    return CompileError("E0325", f"{what} has no derivative", hint=hint)


def _either(condition: Expr, then: Expr | None, otherwise: Expr | None) -> Expr | None:
    known = then or otherwise
    if known is None:
        return None
    zero = constant(0.0, known.dtype)
    return where(condition, then or zero, otherwise or zero)


def _chain(function: str, arguments: tuple[Expr, ...], inner: list[Expr | None]) -> Expr | None:
    """The sum, over the arguments, of the function's derivative times that of the argument."""
    if function not in PARTIALS:
        raise _no_derivative(function)
    terms = []
    for partial, inside in zip(PARTIALS[function](*map(Term, arguments)), inner):
        if partial is not None and inside is not None:
            factor = partial.expr if isinstance(partial, Term) else constant(partial, inside.dtype)
            terms.append(times(factor, inside))
    return _guarded_sum(terms)


def converted(dtype: DType, linear: Expr) -> Expr:
    """A derivative in another dtype, with zeros and ones still to be seen."""
    match linear:
        case Const(value):
            return constant(value, dtype)
        case Apply("where", (condition, then, otherwise)):
            return where(condition, converted(dtype, then), converted(dtype, otherwise))
    return cast(dtype, linear)


def plus(left: Expr | None, right: Expr | None) -> Expr | None:
    """The sum, where None is 0."""
    return apply("add", left, right) if left is not None and right is not None else left or right


def _guarded_sum(terms: list[Expr]) -> Expr | None:
    """The sum of derivatives, guarded where each of them is, so that what is read for it is read under a guard."""
    total = reduce(plus, terms, None)
    guards = [_guard(t) for t in terms]
    known = [g for g in guards if g is not None]
    if total is None or len(terms) < 2 or len(known) < len(terms):
        return total
    return where(reduce(lambda a, b: apply("or", a, b), known), total, constant(0.0, total.dtype))


def _guard(linear: Expr) -> Expr | None:
    """The condition without which a derivative is 0."""
    match linear:
        case Apply("where", (condition, _, Const(value=0.0))):
            return condition
        case Apply("where", (condition, Const(value=0.0), _)):
            return apply("not", condition)
    return None


def times(factor: Expr, linear: Expr) -> Expr:
    """The product of anything with a derivative, whose zeros stay zeros whatever the factor is."""
    match linear:
        case Const(value=1.0):
            return factor
        case Const(value=0.0):
            return linear
        case Const(value=-1.0):
            return apply("neg", factor)
        case Apply("where", (condition, then, otherwise)):
            return where(condition, times(factor, then), times(factor, otherwise))
    match factor:
        case Const(value=1.0):
            return linear
        case Const(value=-1.0):
            return apply("neg", linear)
    return apply("mul", factor, linear)
