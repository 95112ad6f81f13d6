"""Which parameters of kernels may not begin at a multiple of 16 bytes."""

from __future__ import annotations

from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.plan_alignment import unaligned_parameters
from intarsia.options import Options
from intarsia.passes.pipeline import DEFAULT

ROWS = """fn f(w: f32[8, 8], x: f32[5, {width}]) -> f32[5, {width}] {{
    _, rows = scan (h = zeros(f32[{width}])) for t < 5 {{
        n = tanh(x[t] + sum(h))
        yield n
        emit n * sum(n)
    }}
    return rows
}}"""


def loose(width: int) -> set[str]:
    step_by_step = DEFAULT.replace("lower", "lower{whole-loops=never}")
    options = Options(target="gpu:sm_90", passes=step_by_step)
    compilation = Compilation(load(Source("p.ita", ROWS.format(width=width))).build("f"), {}, options)
    return {p for found in unaligned_parameters(compilation.plan, 16).values() for p in found}


def test_rows_of_a_stacked_result_begin_at_multiples_of_their_length() -> None:
    assert loose(8) == set()
    assert loose(6) != set()
