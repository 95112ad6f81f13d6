"""Collectives that send codes: how far off results are, and how much less is sent."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Run
from sharded import compiled, run_passes

from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.ops import AllSlice, Collective
from intarsia.ir.spmd import simulate
from intarsia.ir.text import read_module
from intarsia.passes.shard.memory import bytes_of

FILES = {"product.ita": "fn f(x: f32[N, K@d], w: f32[K@d, N]) -> f32[N, N] { return x @ w }"}

PASS = "quantize-collectives{least=0 block=32}"

KINDS = {
    "all_gather": ("[16@d, 5]", "all_gather %x axes=(d,) devices=4 : f32[16, 5]", "[4, 5]", "[16, 5]"),
    "reduce_scatter": ("[16@d, 12]", "reduce_scatter %x axes=(d,) devices=4 dim=1 : f32[4, 3]", "[4, 12]", "[16@d, 3]"),
    "all_reduce": ("[16@d, 12]", "all_reduce %x axes=(d,) devices=4 : f32[4, 12]", "[4, 12]", "[4, 12]"),
    "collective_permute": (
        "[16@d, 12]",
        "collective_permute %x axes=(d,) devices=4 sources=(-1, 0, 1, 2) : f32[4, 12]",
        "[4, 12]",
        "[16@d, 12]",
    ),
}


def program(kind: str) -> Module:
    whole, text, local, result = KINDS[kind]
    header = f"mesh pod(d=4)\nparameter f32{whole}\nresult f32{result}\n"
    body = f"func @f(%x: f32{local}) {{\n  %0 = {text}\n  return %0\n}}\n"
    return read_module(Source("sent.ir", f"{header}\n{body}"))


def sent(module: Module) -> int:
    nodes = [n for n in module.graph.body.walk() if isinstance(n, Collective) and not isinstance(n, AllSlice)]
    return sum(bytes_of(n.x.type) for n in nodes)


def data(kind: str) -> Array:
    shape = (16, 5) if kind == "all_gather" else (16, 12)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_as_near_as_the_page_says(kind: str) -> None:
    """Each element is off by half a step for each device that sends it, and again where the sum is sent."""
    module = program(kind)
    coded, _ = run_passes(module, PASS)
    x = data(kind)
    (wanted,), (found,) = simulate(module, [x]), simulate(coded, [x])
    terms = 4 if "reduce" in kind else 1
    again = np.abs(wanted).max() * 1.01 if kind == "all_reduce" else 0.0
    bound = (terms * np.abs(x).max() + again) / 254 * (1 + 1e-5)
    error = np.abs(found - wanted).max()
    assert 0 < error <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none(kind: str) -> None:
    coded, _ = run_passes(program(kind), PASS)
    for special in (np.nan, np.inf):
        x = data(kind)
        x[3, 1] = special
        assert np.isnan(simulate(coded, [x])[0]).any()
    assert not simulate(coded, [np.zeros_like(x)])[0].any()


def test_a_quarter_of_the_bytes_of_f32_is_sent() -> None:
    text = "mesh pod(d=4)\nparameter f32[4096]\nresult f32[16384]\n\nfunc @f(%x: f32[4096]) {\n"
    text += "  %0 = all_gather %x axes=(d,) devices=4 : f32[16384]\n  return %0\n}\n"
    module = read_module(Source("sent.ir", text))
    assert sent(run_passes(module, "quantize-collectives{least=0}")[0]) == sent(module) // 4 * (1 + 4 / 128)
    assert sent(run_passes(module, "quantize-collectives")[0]) == sent(module)  # too few to be worth it


def test_the_command_line_tells_the_error(ita: Run) -> None:
    words = ("run", "product.ita", "--random", "--dim", "N=8", "--dim", "K=8", "--mesh", "d=2", "--compare")
    status, _, report = ita(*words, "--device-passes", PASS)
    assert status == 0 and "near the reference, for devices send codes (largest error" in report


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_compiled_code_sends_the_same(kind: str) -> None:
    coded, _ = run_passes(program(kind), PASS)
    x = data(kind)
    code, _ = compiled(coded, device_passes="overlap")
    np.testing.assert_allclose(code.simulate([x])[0], simulate(coded, [x])[0], rtol=1e-5, atol=1e-5)
