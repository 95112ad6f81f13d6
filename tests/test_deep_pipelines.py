"""Pipelines of training steps that go through their layers in a loop, which is cut between layers."""

from __future__ import annotations

from collections import Counter

import pytest
from sharded import run_passes
from test_deep_presets import SMALL, STACKED, deep, stacked
from test_pipelines import check

from intarsia.ir.graph import Module
from intarsia.ir.ops import Loop
from intarsia.passes.stages.layers import with_layers_written_out
from intarsia.passes.stages.schedules import GPipe, Interleaved, OneForwardOneBackward, Schedule, ZeroBubble

LISTS = """import "examples/optim.ita"
struct Layer(D, F) {
    up: f32[D, F]
    bias: f32[F]
    down: f32[F, D]
}
fn loss(x: f32[B, D], y: f32[B, D], p: Layer(D, F)[L], head: f32[D, D]) -> f32 {
    h = loop (h = x) for i < L { yield h + tanh(h @ p[i].up + p[i].bias) @ p[i].down }
    e = h @ head - y
    return mean(e * e)
}
fn step(x: f32[B, D], y: f32[B, D], p: Layer(D, F)[L], head: f32[D, D], m: Layer(D, F)[L], n: f32[D, D], rate: f32) {
    value, g, d = value_and_grad(loss, wrt=(p, head))(x, y, p, head)
    factor = clipping(fold(squares)(sum(d * d), g), 0.01)
    p1, m1 = map(sgd)(p, map(scaled)(g, factor), m, rate)
    head1, n1 = sgd(head, d * factor, n, rate)
    return value, p1, head1, m1, n1
}
"""

RECURRENT = """import "examples/optim.ita"
fn loss(x: f32[T, B, D], y: f32[B, D], w: f32[D, D], u: f32[D, D]) -> f32 {
    h = loop (h = zeros(f32[B, D])) for t < T { yield tanh(h @ w + x[t]) }
    e = tanh(h @ u) - y
    return mean(e * e)
}
fn step(x: f32[T, B, D], y: f32[B, D], w: f32[D, D], u: f32[D, D], mw: f32[D, D], mu: f32[D, D], rate: f32) {
    value, gw, gu = value_and_grad(loss, wrt=(w, u))(x, y, w, u)
    w1, m1 = sgd(w, gw, mw, rate)
    u1, n1 = sgd(u, gu, mu, rate)
    return value, w1, u1, m1, n1
}
"""


def simple(module: Module) -> Module:
    return run_passes(module, "canonicalize,cse,dce")[0]


def lists(layers: int = 4) -> Module:
    return simple(stacked(LISTS, B=8, D=4, F=6, L=layers))


SLOWER = (OneForwardOneBackward(4, 4), Interleaved(2, 4, 2), ZeroBubble(2, 4))


@pytest.mark.parametrize("schedule", [GPipe(2, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in SLOWER)])
def test_lists_of_layers(schedule: Schedule) -> None:
    """With the norm of all gradients, which is summed over the devices. A stage has the weights of its layers only."""
    program, _ = check(lists(), schedule)
    weights = [str(v.type) for s in range(program.cut.stages) for v in program.cut.weights(s)]
    assert Counter(weights) == {"f32[4, 6]": 4, "f32[6]": 4, "f32[6, 4]": 4, "f32[4, 4]": 1}


@pytest.mark.parametrize("schedule", [GPipe(2, 2), pytest.param(ZeroBubble(2, 2), marks=pytest.mark.slow)])
def test_stacked_layers(schedule: Schedule) -> None:
    check(simple(stacked(STACKED, B=8, D=4, F=6, L=2)), schedule)


@pytest.mark.slow
def test_a_loop_over_time_is_one_op() -> None:
    """Its weights are those of all steps, which are not cut."""
    module = simple(stacked(RECURRENT, T=3, B=8, D=4))
    assert with_layers_written_out(module) is module
    check(module, GPipe(2, 2))


@pytest.mark.slow
def test_a_deep_transformer_with_adam() -> None:
    check(simple(deep(SMALL, 2)), OneForwardOneBackward(2, 2))


def test_the_program_is_as_long_as_there_are_layers() -> None:
    written = [with_layers_written_out(lists(n)).graph.body for n in (4, 8, 12)]
    assert not any(isinstance(node, Loop) for body in written for node in body.walk())
    few, more, most = (len(body.nodes) for body in written)
    assert most - more == more - few
