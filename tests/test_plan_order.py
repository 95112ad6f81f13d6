"""The order of calls: the least memory of all orders of small programs, and the results of what was written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from intarsia.ir.errors import Source
from intarsia.ir.graph import Module, Node
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_liveness import verify_plan
from intarsia.ir.target import TARGETS
from intarsia.ir.text import read_module
from intarsia.passes.fuse.groups import estimated_bytes
from intarsia.passes.lower import Lower
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan
from intarsia.passes.plan_memory.order import in_order_of_memory

CALLS = 6


def random_module(rng: np.random.Generator) -> Module:
    """Calls that each read one or two vectors of any length as a whole; the last one, perhaps more, are results."""
    lengths = [16]
    lines = []
    for n in range(CALLS):
        a, b = rng.integers(0, len(lengths), 2)
        lengths.append(int(rng.integers(1, 100)))
        read = [f"%v{one}[r{k}]" for k, one in enumerate((a, b))]
        body = f"sum[r0 < {lengths[a]}, r1 < {lengths[b]}]({read[0]} * {read[1]} * 0.0001)"
        lines.append(f"%v{n + 1} = compute [i < {lengths[-1]}] {body} : f32[{lengths[-1]}]")
    results = ", ".join(f"%v{n + 1}" for n in range(CALLS) if n == CALLS - 1 or rng.random() < 0.3)
    text = "\n".join(["func @f(%v0: f32[16]) {", *lines, f"return {results}", "}"])
    return Lower().run(read_module(Source("f.ir", text)), Context(TARGETS["cpu:x86-avx2"]))


def needed(module: Module, order: tuple[Node, ...]) -> int:
    """The most bytes that are needed at one time, without parameters and results."""
    results = {v.node for v in module.graph.results}
    last = {v.node: n for n, node in enumerate(order) for v in node.inputs}
    live = [
        sum(estimated_bytes(m.value) for m in order[: n + 1] if m not in results and last.get(m, -1) >= n)
        for n in range(len(order))
    ]
    return max(live)


def is_order(order: tuple[Node, ...]) -> bool:
    place = {node: n for n, node in enumerate(order)}
    return all(place.get(v.node, -1) < n for n, node in enumerate(order) for v in node.inputs)


@pytest.mark.parametrize("seed", range(12))
def test_no_order_needs_less(seed: int) -> None:
    module = random_module(np.random.default_rng(seed))
    nodes = module.graph.body.nodes
    kernels = {k.name: k for k in module.kernels}
    found = in_order_of_memory(module, kernels, (), overwriting=False)
    order = found.graph.body.nodes
    assert is_order(order) and set(order) == set(nodes)
    least = min(needed(module, other) for other in itertools.permutations(nodes) if is_order(other))
    assert needed(module, order) == least
    x = np.linspace(0, 1, 16, dtype=np.float32)
    made = plan(found)
    verify_plan(made)
    for one, other in zip(run_plan(made, [x]), evaluate(module, [x]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_result_takes_what_is_given_away_if_others_have_read_it() -> None:
    """The sum of the old `w` is formed before the new one takes its place."""
    text = """
func @f(%w: f32[64, 64], %x: f32[64, 64]) {
  %0 = compute [i < 64, j < 64] (%w[i, j] - 0.5 * %x[i, j]) : f32[64, 64]
  %1 = reduce %w combiner=sum axes=(0, 1) : f32
  return %0, %1
}
"""
    module = Lower().run(read_module(Source("f.ir", text)), Context(TARGETS["cpu:x86-avx2"]))
    made = plan(module, donated=("w",))
    assert [slot.takes for slot in made.slots if slot.place == "output"] == ["w", ""]
    w, x = np.ones((64, 64), np.float32), np.full((64, 64), 4, np.float32)
    new, total = run_plan(made, [w.copy(), x])
    assert (new == -1).all() and total == 4096
