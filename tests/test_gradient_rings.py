"""Gradients in rings: blocks go round more than once, and sums over the devices with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sharded import check_results, compiled
from test_rings import partitioned, rings
from test_sharding import built, bytes_of

from intarsia.ir.ops import AllGather, CollectivePermute, Loop, ReduceScatter
from intarsia.ir.spmd import simulate
from intarsia.passes.verify.inputs import random_inputs

PASSES = "exchange,rings"


def gradient(body: str, parameters: str, wrt: str, of: str) -> str:
    """A loss and its gradient. of: the types of what it is taken of."""
    names = ", ".join(p.split(":")[0] for p in parameters.split("; "))
    changes = ", ".join(f"d{n}" for n in wrt.split(", "))
    dtype = of.split("[")[0]
    listed = parameters.replace("; ", ", ")
    return f"""fn loss({listed}) -> {dtype} {{
{body}
}}
fn f({listed}) -> ({dtype}, {of}) {{
    value, {changes} = value_and_grad(loss, wrt=({wrt}))({names})
    return value, {changes}
}}"""


QKV = "q: f32[H, S@d, K]; k: f32[H, S@d, K]; v: f32[H, S@d, E]"
OF_QKV = "f32[H, S@d, K], f32[H, S@d, K], f32[H, S@d, E]"
ROWS = "q: f32[S@d, K]; k: f32[S@d, K]; v: f32[S@d, E]"
OF_ROWS = "f32[S@d, K], f32[S@d, K], f32[S@d, E]"
CAUSAL = """    y: f32[H, S@d, E] = attention(q, k, v, causal=true)
    return sum(y * y)"""

PROGRAMS: dict[str, tuple[str, dict[str, int]]] = {
    "causal": (gradient(CAUSAL, QKV, "q, k, v", OF_QKV), {"H": 2, "S": 9, "K": 4, "E": 3}),
    "in half": (
        gradient(*(text.replace("f32", "f16") for text in (CAUSAL, QKV, "q, k, v", OF_QKV))),
        {"H": 2, "S": 8, "K": 4, "E": 3},
    ),
    "of what is given": (
        gradient("    return sum(attention(q, k, v, causal=true) * g)", f"{QKV}; g: f32[H, S@d, E]", "q, k, v", OF_QKV),
        {"H": 2, "S": 8, "K": 4, "E": 3},
    ),
    "a batch": (
        gradient(
            "    y: f32[B, H, S@d, E] = attention(q, k, v)\n    return sum(y * y)",
            QKV.replace("[H", "[B, H"),
            "q, k, v",
            OF_QKV.replace("[H", "[B, H"),
        ),
        {"B": 2, "H": 2, "S": 8, "K": 4, "E": 3},
    ),
    "a mask": (
        gradient(
            "    y: f32[S@d, E] = attention(q, k, v, mask=m)\n    return sum(y * y)",
            f"{ROWS}; m: bool[S@d, S]",
            "q, k, v",
            OF_ROWS,
        ),
        {"S": 10, "K": 4, "E": 3},
    ),
    "by hand": (
        gradient(
            """    s = q @ transpose(k)
    m[i] = max[j](s[i, j])
    e[i, j] = exp(s[i, j] - m[i])
    total[i] = sum[j](e[i, j])
    made[i, c] = sum[j](e[i, j] * v[j, c])
    y: f32[S@d, E] = tensor[i, c](made[i, c] / total[i])
    return sum(y * y)""",
            ROWS,
            "q, k, v",
            OF_ROWS,
        ),
        {"S": 10, "K": 4, "E": 3},
    ),
    "groups of heads": (
        gradient(
            """    s = einsum("grik,gjk->grij", q, k) * 0.3
    y: f32[G, R, S@d, E] = einsum("grij,gje->grie", softmax(s), v)
    return sum(y * y)""",
            "q: f32[G, R, S@d, K]; k: f32[G, S@d, K]; v: f32[G, S@d, E]",
            "q, k, v",
            "f32[G, R, S@d, K], f32[G, S@d, K], f32[G, S@d, E]",
        ),
        {"G": 2, "R": 3, "S": 10, "K": 4, "E": 3},
    ),
    "a contrastive loss": (
        gradient(
            """    p[i] = sum[k](a[i, k] * b[i, k])
    return mean(logsumexp(a @ transpose(b), axis=1) - p)""",
            "a: f32[N@d, K]; b: f32[N@d, K]",
            "a, b",
            "f32[N@d, K], f32[N@d, K]",
        ),
        {"N": 9, "K": 4},
    ),
    "a perceptron": (
        gradient(
            "    e = tanh(x @ up) @ down - y\n    return sum(e * e)",
            "x: f32[B@d, D]; y: f32[B@d, D]; up: f32[D, F@d]; down: f32[F@d, D]",
            "up, down",
            "f32[D, F@d], f32[F@d, D]",
        ),
        {"B": 8, "D": 3, "F": 10},
    ),
}


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param(n, d, marks=() if (n, d) in (("causal", 4), ("a contrastive loss", 3)) else pytest.mark.slow)
        for n in PROGRAMS
        for d in (2, 3, 4)
    ],
)
def test_a_ring_gives_the_gradient_of_one_device(name: str, devices: int) -> None:
    text, dims = PROGRAMS[name]
    module, local = partitioned(text, devices, dims, PASSES)
    assert not any(isinstance(n, AllGather | ReduceScatter) for n in local.graph.body.walk())
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, simulate(local, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_arguments_that_are_no_numbers(special: float) -> None:
    text, dims = PROGRAMS["by hand"]
    module, local = partitioned(text, 4, dims, PASSES)
    q, k, v = random_inputs(module, {}, 0)
    k[3, 1] = special
    with np.errstate(invalid="ignore"):
        check_results(module, [q, k, v], simulate(local, [q, k, v]))


def test_attention_and_its_gradient_take_two_rounds() -> None:
    """Keys and values go round for the result, and home again in a second round, with their gradients. No device has
    more scores than those of its rows and one block."""
    text, dims = PROGRAMS["causal"][0], {"H": 1, "S": 64, "K": 8, "E": 8}
    _, local = partitioned(text, 4, dims, PASSES)
    block = 16 * 8 * 4
    loops = [n for n in local.graph.body.nodes if isinstance(n, Loop)]
    steps = [int(n.upper - n.lower) for n in loops]
    sent = [[bytes_of(x) for x in n.body.nodes if isinstance(x, CollectivePermute)] for n in loops]
    assert steps == [3, 1, 1, 2, 1]
    assert sent == [[block] * 2, [], [block] * 2, [block] * 4, [block] * 2]
    assert [bytes_of(n) for n in local.graph.body.nodes if isinstance(n, CollectivePermute)] == [block] * 2
    sizes = [math.prod(v.tensor.static_shape) for n in local.graph.body.walk() for v in n.values]
    assert max(sizes) == 16 * 16


def test_a_gradient_goes_round_while_a_block_is_computed() -> None:
    text, dims = PROGRAMS["causal"]
    _, local = partitioned(text, 4, dims, PASSES)
    assert len(rings(local)) == 4
    for ring in rings(local):
        own = {p.value for p in ring.states}
        assert all(n.x in own for n in ring.body.nodes if isinstance(n, CollectivePermute))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_gradients(name: str) -> None:
    text, dims = PROGRAMS[name]
    module = built(f"mesh m(d=3)\n{text}", **dims)
    program, _ = compiled(module, collectives="ring", checks=True)
    inputs = random_inputs(module, {}, 0)
    check_results(module, inputs, program.simulate(inputs))
