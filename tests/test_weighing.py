"""Where a rule of fusion has a threshold, the predictor of times is asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Structured
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Fused
from intarsia.ir.target import TARGETS
from intarsia.passes.pipeline import Context, default_pipeline


def fused(text: str, scratch: float | None) -> tuple[int, list[str]]:
    """How many kernels a program becomes, and what the remarks say of times, where the predictor says that a kernel
    takes `scratch` microseconds if its products stay inside and 1 if it writes them."""

    def predict(kernels: Sequence[Kernel]) -> list[float]:
        assert scratch is not None
        return [1e-6 * (scratch if len(k.parameters) == 4 else 1.0) for k in kernels]

    context = Context(TARGETS["cpu:x86-avx512"], predict=None if scratch is None else predict)
    module = default_pipeline().before("lower").run(load(Source("f.ita", text)).build("f"), context)
    groups = [n for n in module.graph.body.nodes if isinstance(n, Fused) or (isinstance(n, Structured) and n.operands)]
    return len(groups), [r.message for r in context.remarks.items if "predicted" in r.message]


def chain(depth: int) -> str:
    """Two products of 512 columns, the first over `depth` elements."""
    types = f"a: f32[512, {depth}], b: f32[512, {depth}], v: f32[512, 80]"
    return f"fn f({types}) -> f32[512, 80] {{ return relu(a @ transpose(b)) @ v }}"


def test_a_chain_near_the_threshold_is_weighed() -> None:
    one, told = fused(chain(96), scratch=1.5)
    assert one == 1 and len(told) == 1
    assert "are one kernel: predicted 1.5 us against 2 us" in told[0]
    several, told = fused(chain(96), scratch=9.0)
    assert several == 2 and "are several kernels: predicted 2 us against 9 us" in told[0]


@pytest.mark.parametrize(("depth", "kernels"), [(32, 1), (160, 2)])
def test_the_rule_decides_far_from_it_and_without_a_predictor(depth: int, kernels: int) -> None:
    assert fused(chain(depth), scratch=9.0) == (kernels, [])
    assert fused(chain(96), scratch=None) == (1, [])
