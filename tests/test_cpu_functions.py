"""Every basic scalar function and every cast, compiled as scalars and as vectors, against its NumPy meaning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from intarsia.backends.cpu.compile import compile_kernel, host_target, load
from intarsia.ir import kernel_interpreter
from intarsia.ir.dtypes import BOOL, F32, F64, I64, Array, DType, dtype
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Buffer, For, Kernel, LoopKind, Put, Statement
from intarsia.ir.scalar import Apply, Bitcast, Cast, Expr, Load
from intarsia.ir.sizes import Size
from intarsia.runtime.native import NativeFunction, native_symbols

NAMES = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool")
DTYPES: tuple[DType, ...] = tuple(d for n in NAMES if (d := dtype(n)) is not None)
COUNT = 512
BASIC = (
    "add", "sub", "mul", "div", "floordiv", "mod", "neg", "fma", "minimum", "maximum", "abs", "sign", "floor",
    "ceil", "round", "sqrt", "rsqrt", "ldexp", "isnan", "isinf", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "not", "where", "bit_and", "bit_or", "bit_xor", "bit_not", "shift_left", "shift_right", "popcount",
)  # fmt: skip


def samples(d: DType, seed: int) -> Array:
    """Values that hurt, each beside each other (by position), and random ones."""
    generator = np.random.default_rng(seed)
    if d == BOOL:
        return generator.integers(0, 2, COUNT).astype(np.bool_)
    if d.is_integer:
        low, high = int(d.least), int(d.greatest)
        special = [n for n in (low, low + 1, -1, 0, 1, 2, 3, 7, high - 1, high) if n >= low]
        near = generator.integers(max(low, -20), 20, COUNT // 2)
        wide = generator.integers(low, high, COUNT // 4, dtype=np.uint64 if low == 0 else np.int64, endpoint=True)
        random = np.concatenate([near, wide.astype(d.numpy)]).tolist()
    else:
        tiny, huge = 2.0 ** (2 - (1 << (d.exponent - 1)) - d.mantissa), float(np.finfo(np.float32).max)
        special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, 3.7, -3.7, tiny, -tiny, huge, -huge]
        special += [float("inf"), -float("inf"), float("nan"), 100.0, -100.0, 2.0**31, -(2.0**31), 65504.0]
        random = (generator.standard_normal(COUNT // 2) * 10).tolist() + generator.standard_normal(COUNT // 4).tolist()
    chosen = [special[i] for i in generator.integers(0, len(special), COUNT)]
    values = [s if generator.random() < 0.5 else random[generator.integers(len(random))] for s in chosen]
    with np.errstate(over="ignore"):
        return np.array(values, np.float64 if d.is_float else d.numpy).astype(d.numpy)


def elementwise(arguments: dict[str, DType], values: dict[str, Expr], kind: LoopKind, width: int = 16) -> Kernel:
    """y[i] = value for all i and each named value, one by one or in vectors of `width`."""
    i, length, lanes = Size.of("i"), (Size.of(COUNT),), kind == "lane"
    index = i * width + "l" if lanes else i
    inner: tuple[Statement, ...] = tuple(Put(n, (index,), "=", v.substitute({"i": index})) for n, v in values.items())
    if lanes:
        inner = (For("l", Size.of(0), Size.of(width), inner, "lane"),)
    loop = For("i", Size.of(0), Size.of(COUNT // width if lanes else COUNT), inner)
    inputs = [Buffer(n, d, length, role="in") for n, d in arguments.items()]
    outputs = [Buffer(n, v.dtype, length, role="out") for n, v in values.items()]
    return Kernel("elementwise", (*inputs, *outputs), (loop,))


def results(kernel: Kernel, arrays: dict[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Each result by name: what the compiled kernel and what the interpreter write."""
    ours, reference = ({b.name: np.zeros(COUNT, b.dtype.numpy) for b in kernel.outputs} for _ in range(2))
    kernel_interpreter.run(kernel, {**arrays, **reference}, {})
    compiled = compile_kernel(kernel, host_target())
    loaded = load(compiled.object_code, compiled.entry, native_symbols())
    function = NativeFunction(loaded.address, len(arrays), len(ours), owner=loaded)
    assert function.run(list(arrays.values()), list(ours.values())) is None
    return ((n, ours[n], reference[n]) for n in ours)


def argument(name: str, d: DType) -> Load:
    return Load(name, (Size.of("i"),), d)


@pytest.mark.parametrize("kind", ["seq", "lane"])
@pytest.mark.parametrize("d", DTYPES, ids=str)
def test_functions(d: DType, kind: LoopKind) -> None:
    functions = [FUNCTIONS[n] for n in BASIC if FUNCTIONS[n].accepts(d)]
    dtypes = {"c": BOOL, "n": d, **{f"x{k}": d for k in range(3)}}
    values = {
        f"y_{f.name}": Apply(f.name, tuple(argument(a, dtypes[a]) for a in arguments_of(f.name))) for f in functions
    }
    arrays = {n: samples(t, seed) for seed, (n, t) in enumerate(dtypes.items())}
    if d.is_float:
        limit = min(140, 1 << d.exponent)
        arrays["n"] = np.random.default_rng(6).integers(-limit, limit, COUNT).astype(d.numpy)
    for name, ours, reference in results(elementwise(dtypes, values, kind), arrays):
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, reference, err_msg=name)
        else:
            check_floats(name[2:], d, ours, reference)


def arguments_of(name: str) -> tuple[str, ...]:
    """Which columns a function is applied to."""
    special = {"where": ("c", "x1", "x2"), "ldexp": ("x0", "n")}
    return special.get(name, tuple(f"x{k}" for k in range(FUNCTIONS[name].arity)))


def check_floats(name: str, d: DType, ours: Array, reference: Array) -> None:
    """Equal bit for bit but for which NaN it is; where NumPy rounds more often than the machine, to the last digit."""
    wide, wanted = ours.astype(np.float64), reference.astype(np.float64)
    rounds_twice = name == "fma" or (name in ("rsqrt", "ldexp") and d.bits == 16)
    tolerance = d.epsilon if rounds_twice else 0
    np.testing.assert_allclose(wide, wanted, rtol=tolerance, atol=0, err_msg=name)
    # NumPy does not say which of two zeros is the larger, and ml_dtypes gives zeros of both signs as a sign.
    if name not in ("minimum", "maximum") and (name, d.name) != ("sign", "bf16"):
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(wide[numbers]), np.signbit(wanted[numbers]), err_msg=name)


@pytest.mark.parametrize("d, width", [(F64, 24), (F64, 40), (F32, 48)], ids=str)
def test_scaling_in_vectors_of_several_registers(d: DType, width: int) -> None:
    """Three or five registers, where halves of the vector are not whole registers."""
    values: dict[str, Expr] = {"y": Apply("ldexp", (argument("x", d), argument("n", d)))}
    arrays = {"x": samples(d, 0), "n": np.random.default_rng(6).integers(-99, 99, COUNT).astype(d.numpy)}
    for _, ours, reference in results(elementwise({"x": d, "n": d}, values, "lane", width), arrays):
        done = COUNT // width * width
        check_floats("ldexp", d, ours[:done], reference[:done])


@pytest.mark.parametrize("kind", ["seq", "lane"])
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_casts(source: DType, kind: LoopKind) -> None:
    values: dict[str, Expr] = {f"y_{t}": Cast(t, argument("x", source)) for t in DTYPES}
    for name, ours, reference in results(elementwise({"x": source}, values, kind), {"x": samples(source, 1)}):
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, reference, err_msg=name)
        else:
            np.testing.assert_array_equal(ours.astype(np.float64), reference.astype(np.float64), err_msg=name)


@pytest.mark.parametrize("kind", ["seq", "lane"])
def test_bitcasts(kind: LoopKind) -> None:
    pairs = [(s, t) for s, t in itertools.permutations(DTYPES, 2) if s.bits == t.bits and BOOL not in (s, t)]
    dtypes = {f"x_{s}": s for s, _ in pairs}
    arrays = {n: samples(I64, 3).astype(f"i{s.bytes}").view(s.numpy) for n, s in dtypes.items()}
    values: dict[str, Expr] = {f"y_{s}_{t}": Bitcast(t, argument(f"x_{s}", s)) for s, t in pairs}
    for name, ours, _ in results(elementwise(dtypes, values, kind), arrays):
        source = arrays[f"x_{name.split('_')[1]}"]
        np.testing.assert_array_equal(ours.view(f"u{ours.itemsize}"), source.view(f"u{ours.itemsize}"))
