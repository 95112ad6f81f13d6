"""Programs that people split over devices, and exactly what they send: counts and bytes, and equal results."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from sharded import run_passes

from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import AllSlice, Collective, Loop
from intarsia.ir.spmd import Placement, simulate
from intarsia.passes.specialize import specialize
from intarsia.passes.verify.inputs import random_inputs

LOCAL = "canonicalize,cse,dce,propagate-sharding,split-scans,reshard,partition"


def built(text: str, **dims: int) -> Module:
    return specialize(load(Source("test.ita", text)).build(dims=dims), dims)


def collectives(module: Module) -> list[Collective]:
    """What is sent, in order."""
    return [n for n in module.graph.body.walk() if isinstance(n, Collective) and not isinstance(n, AllSlice)]


def bytes_of(node: Collective) -> int:
    """What one device puts in."""
    return math.prod(node.x.tensor.static_shape) * node.x.dtype.bits // 8


def check(text: str, sent: dict[str, int], **dims: int) -> Module:
    """The program of a device sends this, and all devices together compute what one does."""
    module = built(text, **dims)
    local, _ = run_passes(module, LOCAL)
    assert Counter(n.name for n in collectives(local)) == sent
    inputs = random_inputs(module, {}, 0)
    for found, wanted in zip(simulate(local, inputs), evaluate(module, inputs)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    return local


def test_megatron_attention_is_one_all_reduce() -> None:
    text = """mesh m(data=2, model=2)
fn f(x: f32[B@data, S, D], wq: f32[D, H@model, K], wk: f32[D, H@model, K], 
     wv: f32[D, H@model, K], wo: f32[H@model, K, D]) -> f32[B@data, S, D] {
    q = einsum("bsd,dhk->bhsk", x, wq)
    k = einsum("bsd,dhk->bhsk", x, wk)
    v = einsum("bsd,dhk->bhsk", x, wv)
    o = attention(q, k, v, causal=true)
    return einsum("bhsk,hkd->bsd", o, wo)
}"""
    check(text, {"all_reduce": 1}, B=4, S=8, D=16, H=4, K=4)


def test_weights_of_zero3_are_gathered() -> None:
    text = """mesh m(data=4)
fn f(x: f32[B@data, D], w1: f32[D@data, F], w2: f32[F@data, D]) -> f32[B@data, D] { return gelu(x @ w1) @ w2 }"""
    check(text, {"all_gather": 2}, B=64, D=16, F=32)


def test_what_no_step_changes_is_gathered_once() -> None:
    text = """mesh m(d=4)
fn f(x: f32[B@d, K], w: f32[K@d, K]) -> f32[B@d, K] { return loop (h = x) for t < 3 { yield tanh(h @ w) } }"""
    local = check(text, {"all_gather": 1}, B=64, K=8)
    (loop,) = (n for n in local.graph.body.nodes if isinstance(n, Loop))
    assert not any(isinstance(n, Collective) for n in loop.body.nodes)


def test_experts_take_two_all_to_alls() -> None:
    text = """mesh m(expert=4)
fn f(x: f32[G@expert, T, D], gate: f32[G@expert, T, E, C], 
     w1: f32[E@expert, D, F], w2: f32[E@expert, F, D]) -> f32[G@expert, T, D] {
  sent = einsum("gtec,gtd->gecd", gate, x)
  s2: f32[G, E@expert, C, D] = sent
  h = gelu(einsum("gecd,edf->gecf", s2, w1))
  o = einsum("gecf,efd->gecd", h, w2)
  o2: f32[G@expert, E, C, D] = o
  return einsum("gtec,gecd->gtd", gate, o2)
}"""
    check(text, {"all_to_all": 2}, G=4, T=8, D=8, E=4, C=4, F=16)


def test_ulysses_attention_is_all_to_alls_only() -> None:
    text = """mesh m(seq=4)
fn f(q: f32[H, S@seq, D], k: f32[H, S@seq, D], v: f32[H, S@seq, D]) -> f32[H, S@seq, D] {
  q2: f32[H@seq, S, D] = q
  k2: f32[H@seq, S, D] = k
  v2: f32[H@seq, S, D] = v
  o: f32[H@seq, S, D] = attention(q2, k2, v2)
  return o
}"""
    check(text, {"all_to_all": 4}, H=4, S=16, D=8)


def test_an_embedding_split_over_the_vocabulary_is_summed() -> None:
    text = """mesh m(model=4)
fn f(table: f32[V@model, D], ids: i64[T]) -> f32[T, D] { return take(table, ids, axis=0) }"""
    check(text, {"all_reduce": 1}, V=20, D=4, T=6)


def test_the_gradient_of_an_embedding_is_added_up_where_the_tokens_are() -> None:
    text = """mesh m(data=3)
fn loss(table: f32[V, D], ids: i64[N@data], y: f32[N@data, D]) -> f32 {
    e = take(table, ids, axis=0) - y
    return sum(e * e)
}
fn f(table: f32[V, D], ids: i64[N@data], y: f32[N@data, D]) -> f32[V, D] {
    return grad(loss, wrt=table)(table, ids, y)
}"""
    local = check(text, {"all_reduce": 1}, V=11, D=4, N=1000)
    (summed,) = collectives(local)
    assert str(summed.x.type) == "f32[11, 4]"


@pytest.mark.parametrize("operator", ["+=", "*=", "max=", "min="])
def test_writes_that_are_merged_are_left_to_the_device_that_has_what_is_written(operator: str) -> None:
    text = f"""mesh m(data=3)
fn f(x: f32[5, 4], to: i64[N@data], u: f32[N@data, 4]) -> f32[5, 4] {{
    return update x[to[n], j] {operator} u[n, j]
}}"""
    check(text, {"all_reduce": 1}, N=100)


def test_a_loss_over_a_split_vocabulary_sends_numbers_for_each_row() -> None:
    text = """mesh m(model=4)
fn f(h: f32[T, D], w: f32[D, V@model], ids: i64[T]) -> f32 {
  logits = h @ w
  l = log_softmax(logits)
  p[t] = l[t, ids[t]]
  return -mean(p) }"""
    check(text, {"all_reduce": 3}, V=20, D=4, T=6)


def test_a_stencil_takes_halos_from_neighbours() -> None:
    text = """mesh m(x=4)
fn f(u: f32[N@x, M]) -> f32[N@x, M] {
  v[i, j] = where(i > 0 and i < N - 1, 0.25 * (u[i - 1, j] + u[i + 1, j] + 2.0 * u[i, j]), u[i, j])
  return v }"""
    check(text, {"collective_permute": 2}, N=16, M=4)


def test_linear_attention_over_a_split_sequence_sends_its_state() -> None:
    text = """mesh m(seq=4)
fn f(q: f32[S@seq, D], k: f32[S@seq, D], v: f32[S@seq, E]) -> f32[S@seq, E] {
  kv = transpose(k) @ v
  return q @ kv }"""
    check(text, {"all_reduce": 1}, S=64, D=4, E=4)


def test_data_parallel_gradients_are_summed_once() -> None:
    text = """mesh m(data=4)
fn loss(x: f32[B, D], w: f32[D, F], y: f32[B, F]) -> f32 { e = tanh(x @ w) - y
 return mean(e * e) }
fn f(x: f32[B@data, D], w: f32[D, F], y: f32[B@data, F]) -> f32[D, F] { return w - 0.1 * grad(loss, wrt=w)(x, w, y) }"""
    check(text, {"all_reduce": 1}, B=64, D=4, F=4)


def test_megatron_mlp_is_one_all_reduce_of_the_activations() -> None:
    text = """mesh m(data=2, model=2)
fn f(x: f32[B@data, D], w1: f32[D, F@model], w2: f32[F@model, D]) -> f32[B@data, D] { return x + gelu(x @ w1) @ w2 }"""
    local = check(text, {"all_reduce": 1}, B=8, D=6, F=12)
    (node,) = collectives(local)
    assert node.axes == ("model",) and bytes_of(node) == 8 // 2 * 6 * 4


def test_a_norm_over_a_split_sequence_is_between_an_all_gather_and_a_reduce_scatter() -> None:
    text = """mesh m(model=4)
fn f(x: f32[S@model, D], g: f32[D], w1: f32[D, F@model], w2: f32[F@model, D]) -> f32[S@model, D] {
    h: f32[S@_, D] = rms_norm(x, g)
    a: f32[S@_, F@model] = gelu(h @ w1)
    return x + a @ w2
}"""
    check(text, {"all_gather": 1, "reduce_scatter": 1}, S=16, D=8, F=16)


def test_a_convolution_split_along_its_height_takes_halos() -> None:
    text = """mesh m(x=2)
fn f(x: f32[B, C, H@x, W], w: f32[O, C, 3, 3]) -> f32[B, O, H@x, W] { return conv2d(x, w, padding=1) }"""
    check(text, {"collective_permute": 2}, B=1, C=2, H=8, W=6, O=3)


def test_sizes_that_devices_do_not_divide_are_padded_and_masked() -> None:
    text = """mesh m(data=2, model=3)
fn f(x: f32[B@data, D], w1: f32[D, F@model], w2: f32[F@model, D]) -> (f32[B@data, D], f32) {
    y = gelu(x @ w1) @ w2
    return y, mean(y)
}"""
    local = check(text, {"all_reduce": 2}, B=7, D=5, F=11)
    assert str(Placement.of(local).results[0]) == "f32[7@data, 5]"


def test_a_layer_in_a_loop_over_lists() -> None:
    text = """mesh m(model=2)
struct Layer(D, F) {
    up: f32[D, F@model]
    down: f32[F@model, D]
}
fn f(x: f32[B, D], layers: Layer(D, F)[L]) -> f32[B, D] {
    return loop (h = x) for l in 0..L { yield h + gelu(h @ layers[l].up) @ layers[l].down }
}"""
    check(text, {"all_reduce": 1}, B=4, D=6, F=8, L=3)


def test_strict_asks_where_more_than_one_sharding_would_do() -> None:
    text = """mesh m(a=2, b=2)
fn f(x: f32[N@a, M], y: f32[N@b, M]) -> f32[N, M] { return x + y }"""
    with pytest.raises(CompileError) as error:
        run_passes(built(text, N=4, M=4), "propagate-sharding{strict}")
    (found,) = error.value.diagnostics
    assert found.code == "E1902" and "a as `x` or b as `y`" in found.message and found.span is not None


def test_choices_are_remarks_with_their_rule() -> None:
    text = """mesh m(model=2)
fn f(x: f32[N, D], w: f32[D, F@model]) -> f32[N, F] { return tanh(x @ w) }"""
    _, context = run_passes(built(text, N=4, D=4, F=4), "propagate-sharding")
    messages = [r.message for r in context.remarks.items]
    assert messages[0].startswith("dimension 1 of the matmul") and "as `w` (basic, factors that pass)" in messages[0]


def test_open_sizes_that_are_split_are_refused() -> None:
    text = """mesh m(data=2)
fn f(x: f32[N@data, D]) -> f32[N, D] { return tanh(x) }"""
    module = load(Source("test.ita", text)).build()
    with pytest.raises(CompileError) as error:
        run_passes(module, LOCAL)
    assert error.value.code == "E1904"


@pytest.mark.parametrize(
    ("weights", "scales", "sent"),
    [("128@model, 64", "f16[128@model, 2]", {}), ("128, 64@model", "f16[128, 2@model]", {"all_reduce": 1})],
)
def test_codes_of_a_format_lie_as_its_type_says_and_scales_with_them(
    weights: str, scales: str, sent: dict[str, int]
) -> None:
    text = f"""mesh m(model=2)
format w4 = quant(i4, scale=f16, group=32)
fn product(x: f32[8, 64], w: w4[{weights}]) -> f32[8, 128] {{ return x @ transpose(dequantize(w)) }}"""
    local = check(text, sent)
    assert str(Placement.of(local).parameters[2]) == scales
    caller = "\nfn f(x: f32[8, 64], w: w4[128, 64]) -> f32[8, 128] { return product(x, w) }"
    assert Placement.of(check(text + caller, sent)).parameters == Placement.of(local).parameters
