"""The NumPy evaluation of graphs: language.md, sections 4 and 5, case by case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.conversion import codes, convert, from_codes, reinterpret
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U64, Array, dtype
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.perturbation import uncertain
from intarsia.ir.points import Operand
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.ir.text import read_module
from intarsia.ir.tolerance import expected, tolerance

NAN, INF = float("nan"), float("inf")


def run(text: str, *inputs: Operand, **options: object) -> tuple[Array, ...]:
    """Evaluate the function that a text holds."""
    return evaluate(read_module(Source("test.ir", text)), inputs, **options)  # type: ignore[arg-type]


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def same(actual: Array, wanted: Array) -> bool:
    """Equal in dtype, shape and every element; NaN equals NaN and 0 differs from -0."""
    if actual.dtype != wanted.dtype or actual.shape != wanted.shape:
        return False
    if wanted.dtype.kind != "f":
        return bool((actual == wanted).all())
    return np.array_equal(actual, wanted, equal_nan=True) and bool((np.signbit(actual) == np.signbit(wanted)).all())


# ---------------------------------------------------------------------- sums of products


def test_a_power_of_two_stays_with_the_number_that_it_brings_into_range() -> None:
    """As in a number of few bits that is decoded: times the other factor it would be infinite."""
    text = """intarsia.ir 1
        func @f(%x: f32[2, 3], %y: f32[3, 4]) {
          %0 = compute [i < 2, j < 4] sum[k < 3](%x[i, k] * (%y[k, j] * 8e37)) : f32[2, 4]
          return %0
        }"""
    x, y = np.full((2, 3), 127, np.float32), np.full((3, 4), 2e-38, np.float32)
    (found,) = run(text, x, y)
    assert np.allclose(found, 3 * 127 * 1.6)


# ---------------------------------------------------------------------- conversions


def test_floats_to_integers_truncate_and_saturate() -> None:
    x = np.array([1e30, -1e30, NAN, 3.9, -3.9, INF, -0.5])
    assert same(convert(x, F64, I32), np.array([2**31 - 1, -(2**31), 0, 3, -3, 2**31 - 1, 0], np.int32))
    assert same(convert(x, F64, U8), np.array([255, 0, 0, 3, 0, 255, 0], np.uint8))
    assert convert(x, F64, I64).tolist()[:2] == [2**63 - 1, -(2**63)]
    assert convert(x, F64, dtype("i4")).astype(int).tolist() == [7, -8, 0, 3, -3, 7, 0]  # type: ignore[arg-type]


def test_integers_keep_their_low_bits() -> None:
    x = i64(300, -1, 8, 7)
    assert same(convert(x, I64, U8), np.array([44, 255, 8, 7], np.uint8))
    assert convert(x, I64, dtype("i4")).astype(int).tolist() == [-4, -1, -8, 7]  # type: ignore[arg-type]
    assert convert(x, I64, dtype("u3")).tolist() == [4, 7, 0, 7]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["f8e4m3", "f8e5m2", "f6e2m3", "f6e3m2", "f4e2m1", "f8e8m0"])
def test_narrow_floats_round_as_ml_dtypes_does(name: str) -> None:
    """Every value of f16, and numbers around the ends of the range."""
    t = dtype(name)
    assert t is not None
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.concatenate([x, f32(448, 464, 465, 480, 57344, 61440, 1e9, 2.0**-127, 0.0)])
    with np.errstate(all="ignore"):
        assert same(convert(x, F32, t).astype(np.float32), x.astype(t.numpy).astype(np.float32))
    every = from_codes(np.arange(1 << t.bits, dtype=np.uint8), t)
    assert same(convert(every, t, F32), every.astype(np.float32))
    assert (codes(every, t) == np.arange(1 << t.bits)).all()


def test_a_type_that_ml_dtypes_lacks() -> None:
    t = dtype("f5e3m1")
    assert t is not None
    every = np.arange(32, dtype=np.uint8)
    values = convert(every, t, F32)
    assert values[:8].tolist() == [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.5]
    assert (convert(values, F32, t) == every).all()
    assert convert(f32(1e9, -1e9, 1.25, 1.75), F32, t).tolist() == [15, 31, 6, 8]  # saturates; ties to even


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_round_once_to_bf16(number: int) -> None:
    bits = max(abs(number).bit_length() - 8, 0)
    quotient, rest = divmod(abs(number), 1 << bits)
    half = (1 << bits) >> 1
    rounded = quotient + (bits > 0 and (rest > half or (rest == half and quotient % 2 == 1)))
    wanted = float(rounded << bits) * (-1 if number < 0 else 1)
    assert float(convert(i64(number), I64, BF16)[0]) == wanted
    if number >= 0:
        assert float(convert(np.array([number], np.uint64), U64, BF16)[0]) == wanted


def test_f64_rounds_once_to_bf16() -> None:
    x = np.array([1 + 2**-8 + 2**-30, 1 + 2**-8, -1 - 2**-8 - 2**-30])
    assert convert(x, F64, BF16).astype(float).tolist() == [1 + 2**-7, 1, -1 - 2**-7]


def test_bitcasts() -> None:
    assert reinterpret(f32(1.0), F32, I32).tolist() == [0x3F800000]
    scalar = reinterpret(np.asarray(1.0, np.float32), F32, I32)
    assert scalar.shape == () and scalar == 0x3F800000
    i4, f4 = dtype("i4"), dtype("f4e2m1")
    assert i4 is not None and f4 is not None
    assert reinterpret(convert(i64(-1, 7), I64, i4), i4, f4).astype(float).tolist() == [-6, 6]


# ---------------------------------------------------------------------- arithmetic


def test_integer_arithmetic_wraps_and_division_by_zero_gives_zero() -> None:
    text = """func @f(%x: i8[3], %y: i8[3]) {
      %0 = add %x, %y : i8[3]
      %1 = floordiv %x, %y : i8[3]
      %2 = mod %x, %y : i8[3]
      return %0, %1, %2
    }"""
    x, y = np.array([127, -7, 5], np.int8), np.array([1, 2, 0], np.int8)
    results = run(text, x, y)
    assert [r.tolist() for r in results] == [[-128, -5, 5], [127, -4, 0], [0, 1, 0]]
    with pytest.raises(CompileError) as error:
        run(text, x, y, checks=True)
    assert error.value.code == "E0802" and "i0 = 2" in str(error.value)


def test_nan_wins_and_empty_reductions_give_the_neutral_element() -> None:
    text = """func @f[N](%x: f32[N, 3]) {
      %0 = reduce %x combiner=max axes=(0,) : f32[3]
      %1 = reduce %x combiner=min axes=(0,) : f32[3]
      %2 = reduce %x combiner=sum axes=(0,) : f32[3]
      %3 = reduce %x combiner=prod axes=(0,) : f32[3]
      return %0, %1, %2, %3
    }"""
    x = np.array([[1, NAN, 3], [2, 5, -INF]], np.float32)
    assert same(run(text, x)[0], f32(2, NAN, 3))
    assert same(run(text, x)[1], f32(1, NAN, -INF))
    empty = run(text, x[:0])
    assert [r.tolist() for r in empty] == [[-INF] * 3, [INF] * 3, [0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    "source, result", [(I8, I32), (I16, I32), (U8, dtype("u32")), (F16, F16), (BF16, BF16), (BOOL, I64)]
)
def test_sums_accumulate_in_a_wider_type(source: object, result: object) -> None:
    text = f"func @f[N](%x: {source}[N]) {{ %0 = reduce %x combiner=sum axes=(0,) : {result} return %0 }}"
    ones = np.ones(5000, source.numpy)  # type: ignore[attr-defined]
    (total,) = run(text, ones)
    wanted = np.asarray(5000).astype(result.numpy)  # type: ignore[attr-defined]
    assert total.dtype == wanted.dtype and total == wanted  # 2048 + 1 would be 2048 in f16


def test_matrix_products_of_integers_are_exact() -> None:
    text = "func @f[M, K, N](%x: i8[M, K], %y: i8[K, N]) { %0 = matmul %x, %y : i32[M, N] return %0 }"
    generator = np.random.default_rng(0)
    x, y = (generator.integers(-128, 128, s).astype(np.int8) for s in ((17, 33), (33, 9)))
    assert same(run(text, x, y)[0], x.astype(np.int32) @ y.astype(np.int32))


def test_argmax_ties_and_nan() -> None:
    text = """func @f[N](%x: f32[N]) {
      %0 = arg_reduce %x which=argmax axis=0 : i64
      %1 = arg_reduce %x which=argmin axis=0 : i64
      return %0, %1
    }"""
    assert [int(r) for r in run(text, f32(1, 3, 3, 1))] == [1, 0]
    assert [int(r) for r in run(text, f32(1, NAN, 3, NAN))] == [1, 1]


def test_sorting_is_stable_and_puts_nan_last() -> None:
    text = "func @f[N](%x: f32[N]) { %0 = sort %x : f32[N] %1 = argsort %x : i64[N] return %0, %1 }"
    values, order = run(text, f32(2, NAN, 0.0, -0.0, -INF, 2))
    assert same(values, f32(-INF, 0.0, -0.0, 2, 2, NAN))
    assert order.tolist() == [4, 2, 3, 0, 5, 1]


# ---------------------------------------------------------------------- subscripts


def test_reads_outside_are_clamped_or_reported() -> None:
    text = """func @f(%x: f32[4], %ids: i64[3]) {
      %0 = compute [i < 3] (%x[%ids[i]]) : f32[3]
      return %0
    }"""
    assert same(run(text, f32(10, 11, 12, 13), i64(-5, 2, 9))[0], f32(10, 12, 13))
    with pytest.raises(CompileError) as error:
        run(text, f32(10, 11, 12, 13), i64(0, 2, 9), checks=True)
    assert error.value.code == "E0801" and "subscript 9" in str(error.value) and "i = 2" in str(error.value)


def test_reads_of_nothing_are_zero_or_reported() -> None:
    text = """func @f[N](%x: f32[N], %ids: i64[3]) {
      %0 = compute [i < 3] (%x[%ids[i]]) : f32[3]
      return %0
    }"""
    assert same(run(text, f32(), i64(0, 2, 9))[0], f32(0, 0, 0))
    with pytest.raises(CompileError) as error:
        run(text, f32(), i64(0, 2, 9), checks=True)
    assert error.value.code == "E0801" and "subscript 0 of dimension 0 is outside 0..0" in str(error.value)


def test_checks_look_only_at_the_selected_arm() -> None:
    text = """func @f(%x: f32[4], %ids: i64[3]) {
      %0 = compute [i < 3] (where(i64(%ids[i]) < 4, %x[%ids[i]], 0.0)) : f32[3]
      return %0
    }""".replace("i64(%ids[i])", "%ids[i]")
    assert same(run(text, f32(10, 11, 12, 13), i64(0, 2, 9), checks=True)[0], f32(10, 12, 0))


def test_writes_outside_are_dropped_or_reported() -> None:
    text = """func @f[T](%h: i32[4], %bin: i64[T]) {
      %0 = update %h[%bin[i]] += [i < T] (i32:1) : i32[4]
      return %0
    }"""
    bins = i64(0, 1, 1, -1, 3, 4, 1)
    assert run(text, np.zeros(4, np.int32), bins)[0].tolist() == [1, 3, 0, 1]
    with pytest.raises(CompileError) as error:
        run(text, np.zeros(4, np.int32), bins, checks=True)
    assert error.value.code == "E0801" and "target -1" in str(error.value)


def test_two_writes_to_one_element_are_reported() -> None:
    text = """func @f[T](%h: f32[4], %at: i64[T]) {
      %0 = update %h[%at[i]] = [i < T] (1.0) : f32[4]
      return %0
    }"""
    assert run(text, f32(0, 0, 0, 0), i64(2, 0), checks=True)[0].tolist() == [1, 0, 1, 0]
    with pytest.raises(CompileError) as error:
        run(text, f32(0, 0, 0, 0), i64(2, 0, 2), checks=True)
    assert error.value.code == "E0803"


def test_an_affine_access_outside_is_a_bug_of_the_compiler() -> None:
    text = "func @f(%x: f32[4]) { %0 = compute [i < 4] (%x[i + 1]) : f32[4] return %0 }"
    with pytest.raises(AssertionError, match="outside dimension 0"):
        run(text, f32(1, 2, 3, 4))


def test_a_tensor_without_elements_can_be_read() -> None:
    text = "func @f[N](%x: f32[N], %i: i64) { %0 = compute [j < 2] (%x[%i[]]) : f32[2] return %0 }"
    assert run(text, f32(), np.asarray(3))[0].shape == (2,)


def test_triangles_and_rows_of_sparse_matrices() -> None:
    generator = np.random.default_rng(1)
    x = generator.integers(-9, 9, (40, 40)).astype(np.float32)
    triangle = "func @f[N](%x: f32[N, N]) { %0 = compute [i < N] sum[k < i](%x[i, k]) : f32[N] return %0 }"
    assert same(run(triangle, x)[0], np.tril(x, -1).sum(axis=1))
    counts = generator.integers(0, 5, 3000)
    counts[::7] = 0
    start = np.concatenate([[0], np.cumsum(counts)])
    column, values = generator.integers(0, 900, start[-1]), generator.integers(-9, 9, start[-1]).astype(np.float32)
    vector = generator.integers(-9, 9, 900).astype(np.float32)
    sparse = """func @f[R, P, C](%start: i64[R + 1], %val: f32[P], %col: i64[P], %x: f32[C]) {
      %0 = compute [r < R] sum[p in %start[r]..%start[r + 1]](%val[p] * %x[%col[p]]) : f32[R]
      return %0
    }"""
    wanted = np.bincount(np.repeat(np.arange(3000), counts), values * vector[column], minlength=3000)
    assert same(run(sparse, start, values, column, vector)[0], wanted.astype(np.float32))


def test_large_spaces_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values whether a space is evaluated at once or in pieces, over results and over reductions."""
    monkeypatch.setattr("intarsia.ir.structured._LIMIT", 50)
    monkeypatch.setattr("intarsia.ir.structured._SPARSE_LIMIT", 10)
    for seed in range(40):
        module, sizes = random_module(seed), random_sizes(seed)
        inputs = random_inputs(module, seed, sizes)
        in_pieces = evaluate(module, inputs, sizes)
        with monkeypatch.context() as whole:
            whole.setattr("intarsia.ir.structured._LIMIT", 1 << 24)
            for wanted, actual in zip(expected(module, inputs, sizes), in_pieces):
                assert wanted.mismatch(actual) is None


def test_products_of_three_factors_and_unshared_axes() -> None:
    text = """func @f[I, J, K, L](%a: f32[I, K], %b: f32[K, J], %s: f32[K], %c: f32[L]) {
      %0 = compute [i < I, j < J] sum[k < K, l < L](%a[i, k] * %s[k] * 2.0 * %b[k, j] * %c[l]) : f32[I, J]
      return %0
    }"""
    generator = np.random.default_rng(2)
    a, b, s, c = (generator.integers(-4, 4, n).astype(np.float32) for n in ((3, 5), (5, 2), (5,), (4,)))
    assert same(run(text, a, b, s, c)[0], np.einsum("ik,k,kj,l->ij", a, s, b, c) * 2)


# ---------------------------------------------------------------------- loops


def test_loops_stop_and_scans_stack() -> None:
    text = """func @f[T](%x: f32[T], %limit: f32, %steps: i64) {
      %0 = constant 0.0 : f32
      %1 = loop t in 0..%steps[] (%s = %0) while {
        %2 = lt %s, %limit : bool
        yield %2
      } {
        %3 = compute [] (%s[] + %x[min(T - 1, t)]) : f32
        yield %3
      } : f32
      %4:2 = scan u in 0..T (%h = %0) {
        %5 = compute [] (%h[] + %x[u]) : f32
        yield %5
        emit %h
      } : f32, f32[T]
      return %1, %4#0, %4#1
    }"""
    x = f32(1, 2, 3, 4)
    stopped, total, before = run(text, x, np.asarray(4, np.float32), np.asarray(10))
    assert (float(stopped), float(total), before.tolist()) == (6.0, 10.0, [0, 1, 3, 6])
    none_run, total, before = run(text, x[:0], np.asarray(4, np.float32), np.asarray(-3))
    assert (float(none_run), float(total), before.shape) == (0.0, 0.0, (0,))


def test_lists_are_subscripted_by_data_and_clamped() -> None:
    text = """func @f[L](%w: list[L] f32[2], %i: i64) {
      %0 = list_get %w[%i[]] : f32[2]
      %1 = compute [l < L, j < 2] (%w[l, j]) : f32[L, 2]
      return %0, %1
    }"""
    weights = [f32(1, 2), f32(3, 4)]
    one, every = run(text, weights, np.asarray(7))
    assert one.tolist() == [3, 4] and every.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(CompileError) as error:
        run(text, weights, np.asarray(7), checks=True)
    assert error.value.code == "E0801" and "subscript 7 of a list is outside 0..2" in str(error.value)


# ---------------------------------------------------------------------- precision


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 499))
def test_results_are_within_the_bound_of_the_reference(seed: int) -> None:
    module, sizes = random_module(seed), random_sizes(seed)
    inputs = random_inputs(module, seed, sizes)
    actual = evaluate(module, inputs, sizes)
    in_f64 = evaluate(module, inputs, sizes, precision="f64")
    for wanted, one, precise in zip(expected(module, inputs, sizes), actual, in_f64):
        np.testing.assert_allclose(wanted.value, precise, rtol=1e-11)  # one sums complex numbers, in another order
        assert one.dtype == wanted.dtype.numpy
        if wanted.dtype.is_float:
            assert wanted.mismatch(one) is None


def test_the_bound_is_that_of_the_language() -> None:
    """8 eps of the sum of the magnitudes for a dot product; nothing for a move."""
    text = """func @f[K](%x: f32[K], %y: f32[K]) {
      %0 = matmul %x, %y : f32
      %1 = slice %x starts=(0,) extents=(1,) steps=(1,) : f32[1]
      return %0, %1
    }"""
    x, y = f32(1, -2, 3), f32(4, 5, -6)
    dot, moved = tolerance(read_module(Source("test.ir", text)), (x, y))
    assert float(dot) == pytest.approx(8 * 2.0**-23 * 32)
    assert moved.tolist() == [0.0]
    wanted = expected(read_module(Source("test.ir", text)), (x, y))[0]
    assert wanted.mismatch(np.asarray(-24, np.float32)) is None
    assert "instead of -24" in str(wanted.mismatch(np.asarray(-24.001, np.float32)))


def test_half_precision_is_computed_in_f32_and_rounded_once() -> None:
    x = convert(f32(0.1, 0.7, 3.3), F32, BF16)
    got = Arithmetic().apply("sigmoid", (x,), (BF16,)).astype(np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert same(got, convert(exact, F64, BF16).astype(np.float32))


@pytest.mark.parametrize(
    "text, uncertain_at", [("add %x, %one", []), ("mul %x, %x", []), ("mul %x, %tenth", [2]), ("exp %x", [0, 2])]
)
def test_what_hangs_on_a_rounding(text: str, uncertain_at: list[int]) -> None:
    """A comparison with a neighbouring value is uncertain where a rounding made the value."""
    function = f"""func @f(%x: f32[3], %y: f32[3]) {{
      %one = constant 1.0 : f32
      %tenth = constant 0.1 : f32
      %0 = {text} : f32[3]
      %1 = gt %0, %y : bool[3]
      return %0, %1
    }}"""
    module = read_module(Source("test.ir", function))
    x = f32(-1, 0, 3)
    y, _ = evaluate(module, (x, x))
    wanted = expected(module, (x, y))
    found = uncertain(module, (x, y), {}, wanted, [np.zeros(3, np.bool_), np.ones(3, np.bool_)])
    assert np.flatnonzero(found[1]).tolist() == uncertain_at and not found[0].any()
