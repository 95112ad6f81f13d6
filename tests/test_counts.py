"""Operations of kernels and programs, counted on what runs: loops that masks have cut, launches that loops repeat."""

from __future__ import annotations

from intarsia.commands.timing import operations_done
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_counts import count_operations, depends_on_data
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.plan_counts import count_plan_operations
from intarsia.ir.work import region_work

CAUSAL = """fn f(q: f32[S, D], k: f32[S, D], v: f32[S, D]) -> f32[S, D] {
    score[i, j] = sum[d](q[i, d] * k[j, d])
    p = softmax(tensor[i, j](where(j <= i, score[i, j], -inf)), axis=-1)
    return p @ v
}"""


def kernel(body: str, sizes: str = "") -> Kernel:
    text = f"kernel f(x: f32[9, 9], n: i64[9], out y: f32[9]){sizes} {{ {body} }}"
    return read_kernel(Source("t.ir", text))


def compilation(text: str, **dims: int) -> Compilation:
    module = load(Source("t.ita", text)).build("f", dims=dims)
    return Compilation(module, dims, Options(target="cpu:x86-avx512"))


def written(done: Compilation) -> int:
    return region_work(done.graph.graph.body, done.sizes).operations


def test_operations_of_one_statement_count_for_each_iteration_and_equal_ones_once() -> None:
    assert count_operations(kernel("for i in 0..9 { y[i] = x[i, 0] * x[i, 0] + x[i, 0] * x[i, 0] }"), {}) == 2 * 9
    assert count_operations(kernel("for i in 0..9 { for j in 0..9 step 2 { y[i] += x[i, j] * 2.0 } }"), {}) == 2 * 9 * 5


def test_triangles_and_masks_are_counted_exactly() -> None:
    assert count_operations(kernel("for i in 0..9 { for j in 0..i { y[i] += x[i, j] } }"), {}) == 9 * 8 // 2
    assert count_operations(kernel("for i in 0..9 { for j in 0..9 { y[i] += x[i, j] where j < i } }"), {}) == 9 * 8 // 2
    split = "for i in 0..3 { for j in 0..3 { for k in 0..9 { y[3 * i + j] += x[j, k] where 3 * i + j < N } } }"
    assert count_operations(kernel(split, "[sizes N]"), {"N": 7}) == 7 * 9
    assert count_operations(kernel("for i in 0..9 { if 5 < i { y[i] += 1.0 } else { y[i] = 0.0 } }"), {}) == 3


def test_many_iterations_are_counted_a_block_at_a_time() -> None:
    text = "for i in 0..9 { for j in 0..50000 * i { for k in 0..j // 40000 { y[i] += 1.0 } } }"
    assert count_operations(kernel(text), {}) == sum(j // 40000 for i in range(9) for j in range(50000 * i))


def test_what_data_decides_is_left_out() -> None:
    ragged = kernel("for i in 0..9 { for j in 0..min(9, max(0, n[i])) { y[i] += x[i, j] } y[i] += 1.0 }")
    assert depends_on_data(ragged) and count_operations(ragged, {}) == 9
    assert not depends_on_data(kernel("y[0] = x[0, 0]"))


def test_operations_of_causal_attention_are_those_of_the_loops_that_its_mask_has_cut() -> None:
    done = compilation(CAUSAL, S=512, D=64)
    products = 2 * 2 * 512 * 512 * 64
    assert written(done) > products
    assert 0.5 * products < operations_done(done) < 0.62 * products


def test_what_a_schedule_computes_twice_does_not_count_twice() -> None:
    done = compilation("fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }", M=64, N=96, K=128)
    assert operations_done(done) == written(done) == 2 * 64 * 96 * 128


def test_kernels_count_as_often_as_they_run() -> None:
    text = "fn f(x: f64[N, N]) -> f64[N, N] { return loop (y = x) for t < 5 { yield y @ x } }"
    done = compilation(text, N=8)
    assert operations_done(done) == 5 * 2 * 8**3
    growing = """fn f(x: f32[N]) -> f32[N] {
        return loop (y = x) for t in 0..N { yield tensor[i < N](y[i] + sum[j < t](x[j] * y[i])) }
    }"""
    done = compilation(growing, N=6)
    counted = count_plan_operations(done.plan, {})
    assert counted is not None and counted >= sum(2 * t + 1 for t in range(6)) * 6


def test_programs_whose_loops_depend_on_data_count_as_written() -> None:
    text = """fn f(start: i64[R + 1], x: f32[N]) -> f32[R] {
        return tensor[r < R](sum[p in start[r]..start[r + 1]](x[p] * x[p]))
    }"""
    done = compilation(text, R=5, N=30)
    assert operations_done(done) == written(done) > 0
    doubling = "fn f(x: f32[N]) -> f32[N] { return loop (y = x) for t < 50 while max(y) < 100.0 { yield y * 2.0 } }"
    done = compilation(doubling, N=8)
    assert count_plan_operations(done.plan, {}) is None
