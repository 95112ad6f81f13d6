"""Gradients beside those of PyTorch's autograd, in f64: the same function written in both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from differences import gradient_module

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate

torch = pytest.importorskip("torch")
functional = torch.nn.functional

X, Y, V, W = (4, 6), (4, 6), (6,), (6, 5)
IMAGE, FILTERS = (2, 3, 6, 7), (4, 3, 3, 2)
HEADS = (2, 3, 5, 4)
BODIES = {
    "x * y + y / (x * x + 1.0)": ((X, Y), lambda x, y: x * y + y / (x * x + 1)),
    "x @ y": ((X, W), lambda x, y: x @ y),
    "transpose(x) @ y": ((X, Y), lambda x, y: x.T @ y),
    "maximum(x, y) - minimum(x, 2.0 * y)": ((X, Y), lambda x, y: torch.maximum(x, y) - torch.minimum(x, 2 * y)),
    "relu(x) + gelu(x) + silu(x) + softplus(x)": (
        (X,),
        lambda x: functional.relu(x) + functional.gelu(x) + functional.silu(x) + functional.softplus(x),
    ),
    "gelu_tanh(x) + elu(x) + leaky_relu(x)": (
        (X,),
        lambda x: functional.gelu(x, approximate="tanh") + functional.elu(x) + functional.leaky_relu(x),
    ),
    "exp(x) + log(abs(x)) + sqrt(abs(x)) + sin(x) * cos(x) + tanh(x) + erf(x)": (
        (X,),
        lambda x: x.exp() + x.abs().log() + x.abs().sqrt() + x.sin() * x.cos() + x.tanh() + x.erf(),
    ),
    "atan2(x, y) + abs(x) ** y": ((X, Y), lambda x, y: torch.atan2(x, y) + x.abs() ** y),
    "softmax(x) * y": ((X, Y), lambda x, y: x.softmax(-1) * y),
    "log_softmax(x, axis=0)": ((X,), lambda x: x.log_softmax(0)),
    "logsumexp(x, axis=1)": ((X,), lambda x: x.logsumexp(1)),
    "layer_norm(x, v, w)": ((X, V, V), lambda x, v, w: functional.layer_norm(x, (6,), v, w)),
    "rms_norm(x, v)": ((X, V), lambda x, v: functional.rms_norm(x, (6,), v, eps=1e-6)),
    "max(x, axis=1)": ((X,), lambda x: x.amax(1)),
    "prod(x, axis=0)": ((X,), lambda x: x.prod(0)),
    "var(x, axis=1)": ((X,), lambda x: x.var(1, correction=0)),
    "cumsum(x, axis=0) * y": ((X, Y), lambda x, y: x.cumsum(0) * y),
    "cumprod(x, axis=1)": ((X,), lambda x: x.cumprod(1)),
    "sort(x, axis=1) * y": ((X, Y), lambda x, y: x.sort(1).values * y),
    "clip(x, -0.5, 0.5) * y": ((X, Y), lambda x, y: x.clip(-0.5, 0.5) * y),
    "where(x > y, x * x, sin(y))": ((X, Y), lambda x, y: torch.where(x > y, x * x, y.sin())),
    "concat((x, y[1:]), axis=0)": ((X, Y), lambda x, y: torch.cat((x, y[1:]))),
    "pad(x, ((1, 0), (2, 1)))": ((X,), lambda x: functional.pad(x, (2, 1, 1, 0))),
    "flip(x, axis=1)[:, ::2] * y[:, 1::2]": ((X, Y), lambda x, y: x.flip(1)[:, ::2] * y[:, 1::2]),
    "repeat(x, 2, axis=0)": ((X,), lambda x: x.repeat_interleave(2, 0)),
    'einsum("ij,ik->jk", x, y)': ((X, Y), lambda x, y: torch.einsum("ij,ik->jk", x, y)),
    "conv2d(x, w, stride=(2, 1), padding=1)": (
        (IMAGE, FILTERS),
        lambda x, w: functional.conv2d(x, w, stride=(2, 1), padding=1),
    ),
    "max_pool2d(x, size=2)": ((IMAGE,), lambda x: functional.max_pool2d(x, 2)),
    "avg_pool2d(x, size=3, stride=2, padding=1)": (
        (IMAGE,),
        lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "attention(x, y, w)": ((HEADS, HEADS, HEADS), functional.scaled_dot_product_attention),
    "attention(x, y, w, causal=true)": (
        (HEADS, HEADS, HEADS),
        lambda x, y, w: functional.scaled_dot_product_attention(x, y, w, is_causal=True),
    ),
    "(loop (h = v) for t < 4 { yield tanh(w @ h + x[t]) })": (
        (X, V, (6, 6)),
        lambda x, v, w: [v := (w @ v + x[t]).tanh() for t in range(4)][-1],
    ),
}
"""The body of a function of its parameters, their shapes, and the same for PyTorch."""


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_gradients_are_those_of_autograd(body: str) -> None:
    shapes, theirs = BODIES[body]
    names: Any = theirs.__code__.co_varnames if hasattr(theirs, "__code__") else "xyw"
    parameters = ", ".join(f"{n}: f64[{', '.join(map(str, shape))}]" for n, shape in zip(names, shapes))
    graph = load(Source("f", f"fn f({parameters}) {{ return {body} }}")).build("f").graph
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    result = theirs(*tensors)
    weight = rng.normal(size=tuple(result.shape))
    result.backward(torch.from_numpy(weight))
    module = gradient_module(graph, [p.value for p in graph.parameters])
    for found, tensor in zip(evaluate(module, [*arrays, weight]), tensors):
        assert np.allclose(found, tensor.grad.numpy(), rtol=1e-9, atol=1e-11)
