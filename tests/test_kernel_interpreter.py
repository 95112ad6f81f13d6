"""The kernel interpreter: what kernels mean, what is caught, and how accesses are counted."""

from __future__ import annotations

import numpy as np
import pytest
from schedule_samples import SAMPLES, results, sample

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_counts import AccessCount, count_accesses
from intarsia.ir.kernel_interpreter import CheckFailed, run
from intarsia.ir.kernel_text import read_kernel


def kernel(text: str) -> Kernel:
    return read_kernel(Source("t.ir", text))


def outcome(text: str, sizes: dict[str, int] | None = None, **arrays: Array | list[Array]) -> dict[str, Array]:
    """Run a kernel on given arguments; results are made here."""
    k = kernel(text)
    made = {b.name: np.zeros([e.evaluate(sizes or {}) for e in b.shape], b.dtype.numpy) for b in k.outputs}
    run(k, {**made, **arrays}, sizes or {})
    return {name: arrays.get(name, array) for name, array in made.items()}  # type: ignore[misc]


def test_rows_are_softmax() -> None:
    k, sizes = sample("rows")
    x = np.random.default_rng(0).standard_normal((7, 19)).astype(np.float32)
    (y,) = results(k, k, sizes).values()
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-6)


def test_products_of_any_size_agree_with_numpy() -> None:
    k, _ = sample("product_unknown")
    random = np.random.default_rng(0)
    a, b, bias = (random.standard_normal(s).astype(np.float32) for s in ((65, 33), (33, 70), (70,)))
    y = np.empty((65, 70), np.float32)
    run(k, {"a": a, "b": b, "bias": bias, "y": y}, {"M": 65, "N": 70, "K": 33})
    np.testing.assert_allclose(y, a @ b + bias, rtol=1e-4, atol=1e-4)


def test_a_nest_larger_than_a_block_is_cut() -> None:
    text = """kernel f(x: f32[600, 700], out s: f32[600], out t: f32[700, 600]) {
      for i in 0..600 { s[i] = 0.0 }
      for i.1 in 0..600 { for j in 0..700 { s[i.1] += x[i.1, j] } }
      for j.1 in 0..700 { for i.2 in 0..600 { t[j.1, i.2] = x[i.2, j.1] } }
    }"""
    x = np.random.default_rng(0).standard_normal((600, 700)).astype(np.float32)
    found = outcome(text, x=x)
    np.testing.assert_allclose(found["s"], x.sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["t"], x.T)


def test_iterations_that_depend_on_each_other_run_in_order() -> None:
    text = "kernel f(inout x: f32[6]) { for i in 1..6 { x[i] = x[i] + x[i - 1] } }"
    np.testing.assert_array_equal(outcome(text, x=np.ones(6, np.float32))["x"], [1, 2, 3, 4, 5, 6])


def test_statements_of_one_loop_alternate() -> None:
    text = """kernel f(inout x: f32[5], out y: f32[5]) {
      for i in 0..4 { x[i + 1] = x[i] * 2.0
                      y[i] = x[i + 1] }
    }"""
    found = outcome(text, x=np.ones(5, np.float32))
    np.testing.assert_array_equal(found["x"], [1, 2, 4, 8, 16])
    np.testing.assert_array_equal(found["y"][:4], [2, 4, 8, 16])


def test_targets_that_repeat_accumulate() -> None:
    text = "kernel f(bin: i64[6], inout h: f32[4]) { for i in 0..6 { h[bin[i]] += 1.0 where bin[i] < 4 } }"
    found = outcome(text, bin=np.array([0, 1, 1, 7, 3, 1]), h=np.zeros(4, np.float32))
    np.testing.assert_array_equal(found["h"], [1, 3, 0, 1])


def test_of_several_values_for_one_element_the_last_stays() -> None:
    text = "kernel f(at: i64[4], out y: f32[2], out z: f32) { for i in 0..4 { y[at[i]] = f32(index(i)) z[] = y[0] } }"
    found = outcome(text.replace(" z[]", "\nz[]"), at=np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(found["y"], [2, 3])
    assert found["z"] == 2


@pytest.mark.parametrize("axis", ["f32", "i32", "bool"])
def test_fresh_memory_and_results_hold_garbage(axis: str) -> None:
    text = f"kernel f(out y: {axis}[2]) {{ alloc t: {axis}[2]\n y[0] = t[1] }}"
    y = outcome(text)["y"]
    garbage = {"f32": np.isnan(y), "i32": y == 0x7F, "bool": y}[axis]
    assert garbage.all()


def test_masked_loads_touch_no_memory() -> None:
    text = "kernel f(x: f32[3], out y: f32[5]) { for i in 0..5 { y[i] = (x[i - 1] if 0 < i and i < 4 else 7.0) } }"
    np.testing.assert_array_equal(outcome(text, x=np.arange(3, dtype=np.float32))["y"], [7, 0, 1, 2, 7])


def test_an_access_outside_a_buffer_is_named() -> None:
    text = "kernel f(x: f32[6], out y: f32[6]) { for i in 0..6 { y[i] = x[i + 1] } }"
    with pytest.raises(AssertionError, match=r"x\[i \+ 1\] is outside \(6,\) at i = 5"):
        outcome(text, x=np.zeros(6, np.float32))


def test_an_access_inside_a_larger_loop_is_named_with_all_axes() -> None:
    text = "kernel f(out y: f32[2, 3]) { for i in 0..2 { for j in 0..3 { y[j, i] = 0.0 } } }"
    with pytest.raises(AssertionError, match=r"y\[j, i\] is outside \(2, 3\) at i = 0, j = 2"):
        outcome(text)


def test_a_check_that_fails_tells_its_values() -> None:
    text = "kernel f(x: i64[4], out y: i64[4]) { for i in 0..4 { check 7: x[i] < 3 (index(i), x[i])\n y[i] = x[i] } }"
    with pytest.raises(CheckFailed) as caught:
        outcome(text, x=np.array([0, 5, 1, 9]))
    assert (caught.value.number, caught.value.values) == (7, (1, 5))


def test_integers_wrap_and_sums_keep_their_type() -> None:
    text = """kernel f(x: i8[3], out s: i8, out t: i32) {
      s[] = i8:0
      t[] = i32:0
      for i in 0..3 { s[] += x[i] }
      for j in 0..3 { t[] += i32(x[j]) }
    }"""
    found = outcome(text, x=np.array([100, 100, 100], np.int8))
    assert (found["s"], found["t"]) == (44, 300)


def test_f32_arithmetic_rounds_to_f32() -> None:
    text = "kernel f(x: f32[1], out y: f32[1]) { y[0] = (x[0] + 1.0) - x[0] }"
    assert outcome(text, x=np.array([2.0**24], np.float32))["y"][0] == 0


def test_rows_are_sorted_with_nan_last() -> None:
    text = """kernel f(x: f32[2, 3], out y: f32[2, 3], out at: i64[2, 3]) {
      for i in 0..2 { call sort(x[i]) -> y[i] length 3
                      call argsort(x[i]) -> at[i] length 3 }
    }"""
    found = outcome(text, x=np.array([[3, np.nan, 1], [2, 2, 0]], np.float32))
    np.testing.assert_array_equal(found["y"], [[1, 3, np.nan], [0, 2, 2]])
    np.testing.assert_array_equal(found["at"], [[2, 0, 1], [2, 0, 1]])


def test_lists_are_read_by_a_leading_subscript() -> None:
    text = "kernel f(w: list[3] f32[2], out y: f32[2])[sizes t] { for i in 0..2 { y[i] = w[t, i] } }"
    w = [np.full(2, n, np.float32) for n in range(3)]
    np.testing.assert_array_equal(outcome(text, {"t": 2}, w=w)["y"], [2, 2])


def test_sizes_of_zero_are_ordinary() -> None:
    k, _ = sample("product_unknown")
    arrays = {"a": np.zeros((3, 0)), "b": np.zeros((0, 4)), "bias": np.ones(4), "y": np.zeros((3, 4))}
    arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
    run(k, arrays, {"M": 3, "N": 4, "K": 0})
    np.testing.assert_array_equal(arrays["y"], np.ones((3, 4)))


# ---------------------------------------------------------------------- counting


def test_accesses_of_a_naive_softmax() -> None:
    k, sizes = sample("rows")
    counts = count_accesses(k, sizes)
    assert counts["x"] == AccessCount(loads=2 * 7 * 19)
    assert counts["y"] == AccessCount(stores=7 * 19)
    assert counts["l"] == AccessCount(loads=2 * 7 * 19, stores=7 + 7 * 19)
    assert counts["y"].total == 7 * 19


def test_masked_accesses_do_not_count() -> None:
    k, sizes = sample("masked")
    assert count_accesses(k, sizes)["x"].loads == 12 + 12 * 12


def test_triangles_are_counted_exactly() -> None:
    k, sizes = sample("triangle")
    assert count_accesses(k, sizes)["l"].loads == 9 * 8 // 2


def test_what_depends_on_data_cannot_be_counted() -> None:
    k, sizes = sample("ragged")
    with pytest.raises(ValueError, match="depends on data"):
        count_accesses(k, sizes)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples_run_twice_alike(name: str) -> None:
    k, sizes = sample(name)
    first, second = results(k, k, sizes), results(k, k, sizes)
    for array in first:
        np.testing.assert_array_equal(first[array], second[array])
