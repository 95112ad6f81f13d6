"""Convolutions, pooling and stencils split along what their windows move over: what they send, and equal results."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sharded import SHARD, check_compiled, check_sharded, run_passes
from test_sharding import LOCAL, built, bytes_of, check, collectives

from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Concat, Fused
from intarsia.ir.spmd import simulate
from intarsia.ir.text import read_module
from intarsia.passes.shard.together import MOST
from intarsia.passes.verify.inputs import random_inputs

ONE_WINDOW = {
    "same": ("conv2d(x, w, padding=1)", 8, {"collective_permute": 2}),
    "wide": ("conv2d(x, v, padding=2)", 8, {"collective_permute": 2}),
    "dilated": ("conv2d(x, w, padding=2, dilation=2)", 8, {"collective_permute": 2}),
    "dilated, uneven": ("conv2d(x, w, padding=2, dilation=2)", 11, {"collective_permute": 2}),
    "strided": ("conv2d(x, w, padding=1, stride=2)", 8, {"collective_permute": 1}),
    "strided, uneven": ("conv2d(x, w, padding=1, stride=2)", 9, {"collective_permute": 1}),
    "valid": ("conv2d(x, w)", 8, {"collective_permute": 1}),
    "grouped": ("conv2d(x, g, padding=1, groups=2)", 8, {"collective_permute": 2}),
    "depthwise, uneven": ("conv2d(x, g, padding=1, groups=2)", 7, {"collective_permute": 2}),
    "padded on its own": (
        "conv2d(pad(x, ((0, 0), (0, 0), (2, 0), (1, 1)), value=3.0), w)",
        8,
        {"collective_permute": 1},
    ),
    "pixels": ("conv2d(x, p)", 8, {}),
    "blocks": ("max_pool2d(x, size=2)", 8, {}),
    "maximum": ("max_pool2d(x, size=3, stride=1, padding=1)", 8, {"collective_permute": 2}),
    "average": ("avg_pool2d(x, size=3, stride=2, padding=1)", 8, {"collective_permute": 1}),
    "rows of zeros before": (
        "conv2d(concat((zeros(f32[1, 4, 2, 6]), x), axis=2), w, padding=(0, 1))",
        8,
        {"collective_permute": 1},
    ),
    "slices": ("x[:, :, 2:] + x[:, :, :-2] - 2.0 * x[:, :, 1:-1]", 8, {"collective_permute": 2}),
    "a slice of a pad": (
        "conv2d(pad(x, ((0, 0), (0, 0), (3, 3), (1, 1)))[:, :, 2:-2], w)",
        8,
        {"collective_permute": 2},
    ),
    "parts smaller than the window": ("conv2d(x, v, padding=2)", 4, {"all_gather": 1}),
}


@pytest.mark.parametrize("name", ONE_WINDOW)
def test_a_window_takes_one_halo_from_each_neighbour(name: str) -> None:
    body, height, sent = ONE_WINDOW[name]
    text = f"""mesh m(r=4)
fn f(x: f32[1, 4, H@r, 6], w: f32[3, 4, 3, 3], v: f32[3, 4, 5, 3], g: f32[4, 2, 3, 3], p: f32[2, 4, 1, 1]) {{
    return {body}
}}"""
    check(text, sent, H=height)


NETWORK = """
fn f(x: f32[B, 3, H{rows}, W{columns}], a: f32[C, 3, 3, 3], b: f32[C, C, 5, 5], c: f32[C, C, 3, 3]) {{
    h = relu(conv2d(x, a, padding=1))
    h = h + relu(conv2d(h, b, padding=2))
    return conv2d(h, c, padding=2, dilation=2)
}}"""


def test_a_network_sends_two_halos_for_each_convolution() -> None:
    text = "mesh m(r=4)" + NETWORK.format(rows="@r", columns="")
    local = check(text, {"collective_permute": 6}, B=2, C=4, H=16, W=8)
    rows = [2 * 3 * 8] * 2 + [2 * 4 * 2 * 8] * 4
    assert [bytes_of(n) for n in collectives(local)] == [4 * n for n in rows]


def test_corners_come_with_the_second_of_two_dimensions() -> None:
    text = "mesh m(r=2, c=2)" + NETWORK.format(rows="@r", columns="@c")
    local = check(text, {"collective_permute": 12}, B=1, C=2, H=16, W=12)
    halos = [str(n.x.type) for n in collectives(local)[:4]]
    assert halos == ["f32[1, 3, 1, 6]", "f32[1, 3, 1, 6]", "f32[1, 3, 10, 1]", "f32[1, 3, 10, 1]"]


def test_a_device_pads_what_its_convolution_reads() -> None:
    text = "mesh m(r=4)" + NETWORK.format(rows="@r", columns="")
    local, _ = run_passes(built(text, B=1, C=2, H=16, W=8), LOCAL)
    last = local.graph.body.results[0].node
    assert str(last.operands[0].type) == "f32[1, 2, 8, 12]"  # 4 rows with 2 before and 2 after, not 4 parts of 5
    assert sum(isinstance(n, Concat) for n in local.graph.body.nodes) == 3


def test_readers_of_one_pad_take_one_halo() -> None:
    text = """mesh m(r=2)
fn f(x: f32[1, 2, H@r, 6], a: f32[2, 2, 3, 3], b: f32[2, 2, 3, 3]) {
    p = pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return conv2d(p, a), conv2d(p, b)
}"""
    check(text, {"collective_permute": 2}, H=8)


GRADIENTS = """
fn loss(x: f32[B, 2, H, W], w: f32[3, 2, 3, 3]) -> f32 {{
    y = tanh(conv2d(x, w, padding=1, stride={stride}))
    return sum(y * y)
}}
fn f(x: f32[B, 2, H{rows}, W{columns}], w: f32[3, 2, 3, 3]) -> (f32[B, 2, H{rows}, W{columns}], f32[3, 2, 3, 3]) {{
    return grad(loss, wrt=(x, w))(x, w)
}}"""


@pytest.mark.parametrize(
    ("mesh", "rows", "columns", "stride", "sent"),
    [
        ("r=4", "@r", "", 1, {"collective_permute": 4, "all_reduce": 1}),
        ("r=4", "@r", "", 2, {"collective_permute": 2, "all_reduce": 1}),
        ("r=2, c=2", "@r", "@c", 1, {"collective_permute": 8, "all_reduce": 1}),
    ],
)
def test_gradients_of_a_convolution_take_halos_of_the_input_and_of_the_result(
    mesh: str, rows: str, columns: str, stride: int, sent: dict[str, int]
) -> None:
    # the rows of x that the forward pass took are those that the gradient of w reads
    text = f"mesh m({mesh})" + GRADIENTS.format(rows=rows, columns=columns, stride=stride)
    check(text, sent, B=1, H=16, W=8)


def test_a_group_beside_a_loop_of_which_a_state_is_not_used() -> None:
    text = """mesh m(r=4)
fn f(x: f32[H@r, 6], w: f32[6, 6]) -> (f32[H@r, 6], f32[H@r, 6]) {
    a, b = loop (s = x, t = x) for n < 2 { yield tanh(s @ w), t + 1.0 }
    p = pad(x, ((1, 1), (0, 0)))
    return a, p[2:] - p[:-2]
}"""
    module = built(text, H=8)
    check_sharded(module, random_inputs(module, {}, 0))


def test_a_group_has_few_parts() -> None:
    doubled = "\n    ".join(["y = concat((x, x))"] + ["y = concat((y, y))"] * 20)
    text = f"""mesh m(r=4)
fn f(x: f32[N@r]) -> f32 {{
    {doubled}
    return sum(y[1:] - y[:-1])
}}"""
    module, _ = run_passes(built(text, N=4), "propagate-sharding,reshard")
    groups = [n for n in module.graph.body.nodes if isinstance(n, Fused)]
    assert all(len(n.body.nodes) <= MOST for n in groups)


def test_a_transposed_convolution_takes_one_halo() -> None:
    text = """mesh m(r=2)
fn f(x: f32[C, N@r], w: f32[C, O, 3]) -> f32[O, (2*N)@r] {
    return tensor[o, p < 2 * N](
        sum[c, r](where(p - r >= 0 and (p - r) % 2 == 0, x[c, (p - r) // 2] * w[c, o, r], 0.0)))
}"""
    check(text, {"collective_permute": 1}, C=2, N=8, O=3)


def test_what_is_there_whole_is_read_whole() -> None:
    text = """mesh m(r=3)
fn f(x: f32[N@_], y: f32[N@r]) -> f32[N@r] {
    return tensor[i < N](where(i > 0 and i < N - 1, x[i - 1] - x[i + 1], 0.0)) + y
}"""
    check(text, {}, N=10)


def _network(choose: random.Random) -> tuple[str, dict[str, int]]:
    """A program with convolutions, pooling, slices and pads at random, on a mesh, perhaps with gradients."""
    rows, columns = ("@a", "@b") if choose.random() < 0.4 else ("@a", "")
    mesh = "a=2, b=2" if columns else f"a={choose.choice([2, 3, 4, 5, 8])}"
    if choose.random() < 0.2:
        rows, columns = columns, rows
    lines: list[str] = []
    now = "x"
    sizes = [choose.choice([1, 2, 3, 3, 3, 5]) for _ in range(choose.choice([1, 1, 2, 3]))]
    for n in range(len(sizes)):
        how = f"stride={choose.choice([1, 1, 2, 3])}, padding={choose.choice([0, 1, 1, 2, 3])}"
        lines.append(f"y{n} = relu(conv2d({now}, w{n}, {how}, dilation={choose.choice([1, 1, 1, 2])}))")
        after = choose.choice(
            [
                f"y{n}",
                f"y{n}",
                f"max_pool2d(y{n}, size={choose.choice([2, 3])}, stride={choose.choice([1, 2])}, padding=1)",
                f"avg_pool2d(y{n}, size=2, stride={choose.choice([1, 2])}, padding={choose.choice([0, 1])})",
                f"y{n}[:, :, 1:, :] - y{n}[:, :, :-1, :]",
                f"concat((y{n}, y{n}), axis=2)",
                f"flip(y{n}, 2)",
                f"pad(y{n}, ((0, 0), (0, 0), (2, {choose.choice([0, 1, 3])}), (1, 0)), value=2.0)",
            ]
        )
        now = f"z{n}"
        lines.append(f"{now} = {after}")
    weights = ", ".join(f"w{n}: f32[C, C, {k}, {k}]" for n, k in enumerate(sizes))
    names = ", ".join(f"w{n}" for n in range(len(sizes)))
    body = "\n    ".join(lines)
    x = f"x: f32[B, C, H{rows}, W{columns}]"
    if choose.random() < 0.35:
        text = f"""mesh m({mesh})
fn loss(x: f32[B, C, H, W], {weights}) -> f32 {{
    {body}
    return sum({now} * {now})
}}
fn f({x}, {weights}) {{ return grad(loss, wrt=(x, w0))(x, {names}) }}"""
    else:
        text = f"mesh m({mesh})\nfn f({x}, {weights}) {{\n    {body}\n    return {now}\n}}"
    return text, {
        "B": 1,
        "C": choose.choice([1, 2]),
        "H": choose.choice([6, 7, 8, 9, 12, 16]),
        "W": choose.choice([6, 7, 12]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    text, dims = _network(random.Random(seed))
    try:
        module = built(text, **dims)
    except CompileError as error:
        assert error.code == "E0211"  # a window that does not fit what is left
        pytest.skip(error.code)
    inputs = random_inputs(module, {}, seed)
    for passes in (LOCAL, SHARD):
        local, _ = run_passes(module, passes)
        for found, wanted in zip(simulate(local, inputs), evaluate(module, inputs)):
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    check_compiled(module, inputs)


def test_a_group_whose_parts_lie_elsewhere() -> None:
    """The first 8 of 12 rows over two devices: the second one computes rows of which it lacks two."""
    text = """intarsia.ir 1
mesh m(a=2)

func @f(%x: f32[12@a, 4]) {
  %0 = fused {
    %1 = mul %x, %x : f32[12, 4]
    %2 = slice %1 starts=(0, 0) extents=(8, 4) steps=(1, 1) : f32[8, 4]
    yield %2
  } : f32[8@a, 4]
  return %0
}
"""
    local, _ = run_passes(read_module(Source("test", text)), "partition")
    x = np.arange(48, dtype=np.float32).reshape(12, 4)
    np.testing.assert_array_equal(simulate(local, [x])[0], (x * x)[:8])
