"""Functions as operators of PyTorch."""

from __future__ import annotations

import pytest

import intarsia
from intarsia.ir.errors import CompileError

torch = pytest.importorskip("torch")

TEXT = """
fn scaled(x: f32[N, K], w: f32[K]) -> (f32[N, K], f32[N]) { return x * w, sum(x * w, axis=1) }
fn joined(x: bf16[N, K], y: bf16[M, K]) -> bf16[N + M, K] { return concat((x, y), axis=0) }
fn weighted(const w: f32[4, 4], x: f32[N, 4]) -> f32[N, 4] { return x @ w }
fn generic[T: float](x: T[N]) -> T[N] { return x + x }
struct Pair(N) {
    a: f32[N]
    b: f32[N]
}
fn of_struct(p: Pair(N)) -> f32[N] { return p.a + p.b }
fn to_struct(x: f32[N]) -> Pair(N) { return Pair(a=x, b=x) }
fn grid[M: dim](x: f32[N]) -> f32[M, N] { return broadcast_to(x, (M, N)) }
"""
PROGRAM = intarsia.compile(TEXT, use_cache=False)


def test_an_operator_computes_and_is_sound() -> None:
    op = intarsia.torch_op(PROGRAM.scaled, "test_scaled")
    x, w = torch.randn(5, 7), torch.randn(7)
    scaled, total = op(x, w)
    torch.testing.assert_close(scaled, x * w)
    torch.testing.assert_close(total, (x * w).sum(1))
    torch.library.opcheck(op, (x, w))


def test_the_arguments_decide_where_it_runs() -> None:
    program = intarsia.compile(TEXT, intarsia.Options(target="gpu:sm_90"), use_cache=False)
    op = intarsia.torch_op(program.scaled, "test_place")
    x, w = torch.randn(5, 7), torch.randn(7)
    torch.testing.assert_close(op(x, w)[0], x * w)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_keep_it(dynamic: bool) -> None:
    op = intarsia.torch_op(PROGRAM.joined, f"test_joined_{dynamic}")

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=dynamic)
    def whole(x: object, y: object) -> object:
        return op(x, y) * 2

    for rows in (3, 5):
        x, y = torch.randn(rows, 6, dtype=torch.bfloat16), torch.randn(2, 6, dtype=torch.bfloat16)
        torch.testing.assert_close(whole(x, y), torch.cat((x, y)) * 2)


def test_bound_parameters_are_no_arguments() -> None:
    w = torch.randn(4, 4)
    op = intarsia.torch_op(PROGRAM.weighted.bind(w=w), "test_weighted")
    x = torch.randn(3, 4)
    torch.testing.assert_close(op(x), x @ w)
    torch.library.opcheck(op, (x,))


def test_tensors_of_any_layout_are_taken() -> None:
    op = intarsia.torch_op(PROGRAM.scaled, "test_layout")
    x, w = torch.randn(7, 5).T, torch.randn(14)[::2]
    torch.testing.assert_close(op(x, w)[0], x * w)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generic", "the type of x depends on the call"),
        ("of_struct", "p is not one tensor"),
        ("to_struct", "it gives a struct"),
        ("grid", "no argument decides M"),
    ],
)
def test_other_signatures_are_refused(name: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        intarsia.torch_op(PROGRAM[name])
    assert caught.value.code == "E1715"
