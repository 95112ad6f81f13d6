"""exp, log, sin, … compiled and interpreted: within their stated bounds over all exponents, exact in special cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intarsia.backends.cpu.compile import compile_kernel, host_target, load
from intarsia.ir.approximations import BOUNDS, EXPANSIONS, expand, is_basic
from intarsia.ir.conversion import convert, reinterpret
from intarsia.ir.dtypes import BF16, F16, F32, F64, I8, I32, U8, Array, DType
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Buffer, For, Kernel, LoopKind, Put, Statement
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load, loads
from intarsia.ir.sizes import Size
from intarsia.runtime.native import NativeFunction, native_symbols

LANES = 8
SPECIAL = (
    0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, 2.0, -2.0, 3.0, -3.0, 4.0, float("inf"), -float("inf"), float("nan"),
    1e-30, -1e-30, 1e-40, -1e-40, 89.0, 88.72, 89.4, 89.42, -87.4, -103.9, -104.1, 709.78, 710.4, -745.1, 1e10, -1e10,
    1e22, 2.0**30, 2.0**31, 1.5707964, 3.1415927, 1e38, -1e38, 16777216.0, 16777217.0, 0.99999994, -0.99999994,
    1.0000001,
)  # fmt: skip
EXACT = np.finfo(np.longdouble).nmant > 52
"""Is there a type to judge f64 by?"""


def arity(name: str) -> int:
    return FUNCTIONS[name].arity


def kernel_of(value: Expr, dtypes: dict[str, DType], count: int, kind: LoopKind = "lane") -> Kernel:
    """y[i] = value, in vectors or one by one."""
    index = Size.of("i") * LANES + "l"
    put: Statement = Put("y", (index,), "=", value.substitute({"i": index}))
    inner = For("l", Size.of(0), Size.of(LANES), (put,), kind)
    loop = For("i", Size.of(0), Size.of(count // LANES), (inner,))
    inputs = [Buffer(n, d, (Size.of(count),), role="in") for n, d in dtypes.items()]
    return Kernel("f", (*inputs, Buffer("y", value.dtype, (Size.of(count),), role="out")), (loop,))


def apply_compiled(name: str, d: DType, arguments: list[Array], kind: LoopKind = "lane") -> Array:
    return compute_compiled(Apply(name, tuple(column(k, d) for k in range(len(arguments)))), d, arguments, kind)


def column(number: int, d: DType) -> Load:
    return Load(f"x{number}", (Size.of("i"),), d)


def compute_compiled(value: Expr, d: DType, arguments: list[Array], kind: LoopKind = "lane") -> Array:
    count = len(arguments[0])
    dtypes = {f"x{k}": d for k in range(len(arguments))}
    code = compile_kernel(kernel_of(value, dtypes, count, kind), host_target())
    loaded = load(code.object_code, code.entry, native_symbols())
    result = np.zeros(count, d.numpy)
    assert NativeFunction(loaded.address, len(arguments), 1, owner=loaded).run(arguments, [result]) is None
    return result


def exact_erf(x: Array) -> Array:
    """Of every |x| once, those of like size together: they need about as many terms."""
    z, places = np.unique(np.minimum(np.abs(x), x.dtype.type(6.5)), return_inverse=True)
    sizes = np.array_split(z, 1 + len(z) // 4096)
    return np.copysign(np.concatenate([kummer_series(z) for z in sizes])[places], x)


def kummer_series(z: Array) -> Array:
    """All of its terms have one sign: erf z = 2/sqrt(pi) e^(-z^2) sum of 2^n z^(2n+1) / (2n+1)!!"""
    term, total, n = z, z, 0
    while np.any(term > total * np.finfo(z.dtype).eps):
        n += 1
        term = term * 2 * z * z / (2 * n + 1)
        total = total + term
    root_pi = np.sqrt(np.arccos(z.dtype.type(-1)))
    return np.asarray(2 / root_pi * np.exp(-z * z) * total)


def exact_sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


OWN: dict[str, Callable[..., Array]] = {"erf": exact_erf, "sigmoid": exact_sigmoid}


def reference(name: str, arguments: list[Array]) -> Array:
    """The function in a type with more bits."""
    wide = np.longdouble if arguments[0].dtype == np.float64 or name == "erf" else np.float64
    with np.errstate(all="ignore"):
        return np.asarray(OWN.get(name, FUNCTIONS[name].reference)(*(a.astype(wide) for a in arguments)))


def errors(result: Array, wanted: Array, d: DType) -> Array:
    """In units in the last place of what is wanted; infinite where one is infinite or NaN and the other is not."""
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(wanted)
        least = np.finfo(result.dtype).minexp
        unit = np.ldexp(np.ones((), wanted.dtype), np.maximum(exponent - 1, least) - d.mantissa)
        rounded = wanted.astype(result.dtype)
        distance = np.abs(result.astype(wanted.dtype) - wanted) / unit
        same = (rounded == result) | (np.isnan(rounded) & np.isnan(result))
        finite = np.isfinite(rounded) & np.isfinite(result)
        return np.where(same, np.where(finite, distance, 0), np.where(finite, distance, np.inf))


def stratified(d: DType, count: int, seed: int) -> Array:
    """Numbers of every exponent and both signs alike, then some of ordinary size."""
    generator = np.random.default_rng(seed)
    unsigned = np.uint32 if d == F32 else np.uint64
    exponents = np.arange(count // 2, dtype=np.uint64) % (2 << d.exponent)
    fractions = generator.integers(0, 1 << d.mantissa, count // 2, dtype=np.uint64)
    wide = (exponents << np.uint64(d.mantissa) | fractions).astype(unsigned).view(d.numpy)
    ordinary = [generator.standard_normal(count // 4) * scale for scale in (1.5, 40.0)]
    values = np.concatenate([wide, *ordinary]).astype(d.numpy)
    values[: len(SPECIAL)] = np.array(SPECIAL, np.float64).astype(d.numpy)
    return values


def pairs(name: str, d: DType, count: int, seed: int) -> list[Array]:
    """Arguments of a function of two: all special values with each other, then strata."""
    x, y = stratified(d, count, seed), stratified(d, count, seed + 1)
    generator = np.random.default_rng(seed + 2)
    if name == "pow":
        part = slice(None, None, 3)
        x[part], y[part] = np.abs(x[part]) ** 0.05, generator.standard_normal(len(x[part])) * 50
        y[1::3] = generator.integers(-30, 30, len(y[1::3]))
    y = generator.permutation(y) if name == "atan2" else y
    special = np.array(SPECIAL).astype(d.numpy)
    first, second = (a.ravel() for a in np.meshgrid(special, special))
    x[: len(first)], y[: len(second)] = first, second
    return [x, y]


def arguments_of(name: str, d: DType, count: int, seed: int = 0) -> list[Array]:
    with np.errstate(all="ignore"):
        return [stratified(d, count, seed)] if arity(name) == 1 else pairs(name, d, count, seed)


def check_bound(name: str, d: DType, arguments: list[Array], result: Array) -> None:
    wanted = reference(name, arguments)
    distance = errors(result, wanted, d)
    worst = int(np.argmax(distance))
    at = [float(a[worst]) for a in arguments]
    bound = BOUNDS[name][d == F64]
    assert distance[worst] <= bound, f"{name}{at} is {result[worst]!r}, not {wanted[worst]!r}: {distance[worst]} ulp"
    zeros = (result == 0) & (wanted == 0)
    np.testing.assert_array_equal(np.signbit(result[zeros]), np.signbit(wanted[zeros]), err_msg=f"{name}: sign of zero")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("d", [F32, F64], ids=str)
@pytest.mark.parametrize("name", EXPANSIONS)
def test_bounds(name: str, d: DType) -> None:
    if d == F64 and not EXACT:
        pytest.skip("longdouble is f64 here")
    arguments = arguments_of(name, d, 1 << 15)
    check_bound(name, d, arguments, apply_compiled(name, d, arguments))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("d", [F32, F64], ids=str)
@pytest.mark.parametrize("name", EXPANSIONS)
def test_bounds_at_length(name: str, d: DType) -> None:
    if d == F64 and not EXACT:
        pytest.skip("longdouble is f64 here")
    for seed in range(10, 20):
        arguments = arguments_of(name, d, 1 << 19, seed)
        check_bound(name, d, arguments, apply_compiled(name, d, arguments))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("d", [F32, pytest.param(F64, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", EXPANSIONS)
def test_scalars_and_interpreter_agree_with_vectors(name: str, d: DType) -> None:
    """The expansion is a kernel like any other: NumPy gives the same numbers, so does code without vectors."""
    arguments = arguments_of(name, d, 2048, 3)
    vectors = apply_compiled(name, d, arguments)
    np.testing.assert_array_equal(apply_compiled(name, d, arguments, "seq"), vectors)
    dtypes = {f"x{k}": d for k in range(len(arguments))}
    application = Apply(name, tuple(Load(n, (), d) for n in dtypes))
    for unbounded in (False, True):
        value = expand(application, unbounded=unbounded)
        assert value is not application
        interpreted = interpret(value, dict(zip(dtypes, arguments)))
        # NumPy rounds fma twice in some subnormal cases; exponentials have two ways, with other last digits.
        assert np.max(errors(interpreted, vectors.astype(np.longdouble), d)) <= 1


def interpret(expression: Expr, arrays: dict[str, Array]) -> Array:
    """The value of an expression of basic functions in NumPy; shared parts are computed once."""
    memo: dict[Expr, Array] = {}

    def go(e: Expr) -> Array:
        if e not in memo:
            memo[e] = compute(e)
        return memo[e]

    def compute(e: Expr) -> Array:
        match e:
            case Const(number, dtype):
                return np.asarray(number).astype(dtype.numpy)
            case Load(name):
                return arrays[name]
            case Apply(function, arguments):
                assert is_basic(function)
                return np.asarray(FUNCTIONS[function].reference(*map(go, arguments)))
            case Cast(dtype, inner):
                return convert(go(inner), inner.dtype, dtype)
            case Bitcast(dtype, inner):
                return reinterpret(go(inner), inner.dtype, dtype)
        raise AssertionError(e)

    return go(expression)


def sums(d: DType) -> dict[str, Apply]:
    """Arguments of exponentials that are rounded themselves."""
    x, y = column(0, d), column(1, d)
    eighth, third, large = (Apply("mul", (x, Const(c, d))) for c in (0.125, -1 / 3, 1e20))
    return {
        "x + y": Apply("add", (x, y)),
        "x - y": Apply("sub", (x, y)),
        "x / 8 - y": Apply("sub", (eighth, y)),
        "y - x / 3": Apply("add", (third, y)),
        "-(x / 8 - 1)": Apply("neg", (Apply("sub", (eighth, Const(1.0, d))),)),
        "x y": Apply("mul", (x, y)),
        "x / 3": third,
        "1e20 x": large,
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("d", [F32, F64], ids=str)
@pytest.mark.parametrize("name", ["exp", "sigmoid"])
def test_rounded_arguments(name: str, d: DType) -> None:
    """Of a sum or product, whose rounding costs half a unit, exponentials may be off by as much as two units of it, as
    language.md allows; what is infinite, zero or NaN stays so, also where a part times log2(e) is beyond the range."""
    if d == F64 and not EXACT:
        pytest.skip("longdouble is f64 here")
    arguments = pairs(name, d, 1 << 13, 5)
    top = float(np.finfo(d.numpy).max)
    edges = np.array([f * top for f in (1, -1, 0.8, -0.8, 0.69, 0.7, 0.9999)] + [0.0, 1.0, float("inf")], d.numpy)
    first, second = (a.ravel() for a in np.meshgrid(edges, edges))
    arguments = [np.concatenate([a[: len(a) - len(e)], e]) for a, e in zip(arguments, (first, second))]
    wide = np.longdouble if d == F64 else np.float64
    columns = {f"x{k}": a.astype(wide) for k, a in enumerate(arguments)}
    for text, value in sums(d).items():
        x = np.asarray(interpret(value, columns))
        parts = np.minimum(sum((abs(columns[load.buffer]) for load in loads(value)), abs(x)) + 1, 1e30)
        result = compute_compiled(Apply(name, (value,)), d, arguments)
        wanted = reference(name, [x])
        distance = errors(result, wanted, d)
        wrong = ~(distance <= BOUNDS[name][d == F64] + 2 * parts) & ~(np.isnan(wanted) & np.isnan(result))
        k = int(np.argmax(wrong))
        assert not wrong.any(), f"{name}({text}) of {arguments[0][k]}, {arguments[1][k]}: {result[k]}, not {wanted[k]}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("d", [F16, BF16], ids=str)
def test_short_floats(d: DType) -> None:
    """All 65,536 arguments, within one unit and a bit: f32 inside, then rounded once."""
    x = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(d.numpy)
    for name in EXPANSIONS:
        if arity(name) == 1:
            result = apply_compiled(name, d, [x]).astype(np.float64)
            wanted = reference(name, [x.astype(np.float32)]).astype(np.float64)
            rounded = wanted.astype(np.float32).astype(d.numpy).astype(np.float64)
            with np.errstate(all="ignore"):
                close = np.abs(result - wanted) <= 0.5001 * d.epsilon * np.abs(wanted) + 2.0**-24
            assert np.all(close | (result == rounded) | (np.isnan(result) & np.isnan(wanted))), name


@pytest.mark.parametrize("d", [I32, I8, U8], ids=str)
def test_integer_powers(d: DType) -> None:
    generator = np.random.default_rng(0)
    base = generator.integers(-6 if d.kind == "int" else 0, 7, 512).astype(d.numpy)
    exponent = generator.integers(-3 if d.kind == "int" else 0, 40, 512).astype(d.numpy)
    np.testing.assert_array_equal(
        apply_compiled("pow", d, [base, exponent]), FUNCTIONS["pow"].reference(base, exponent)
    )


def test_short_powers_are_products() -> None:
    x = Load("x", (), F32)
    assert expand(Apply("pow", (x, Const(2.0, F32)))) == Apply("mul", (x, x))
    assert expand(Apply("pow", (x, Const(1.0, F32)))) == x


def test_every_function_is_covered() -> None:
    assert set(EXPANSIONS) == set(BOUNDS) <= set(FUNCTIONS)


def test_the_page_states_the_bounds() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cpu-backend.md").read_text("utf-8")
    for name, (single, double) in BOUNDS.items():
        assert f"| `{name}` | {single} | {double} |" in page
