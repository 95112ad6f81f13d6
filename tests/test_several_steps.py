"""Several steps of a loop over a large grid become one kernel, whose blocks overlap: the results are the same bits."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.schedule import Overlap
from intarsia.ir.target import Rates, Target
from intarsia.options import Options, host_target
from intarsia.passes.pipeline import default_pipeline
from intarsia.passes.schedule.candidates import Space

RATES = Rates(cache_bytes=(48.0, 1.0), memory_of_one=1e8, memory=1e8)
TARGET = replace(host_target(), caches=(2 << 10, 16 << 10, 400 << 10), cores=1, rates=RATES)
"""A machine with caches so small, and memory so slow, that blocks of small grids pay."""

STENCIL = """
fn f(a: f64[{n}, {m}]) -> f64[{n}, {m}] {{
    return loop (x = a) for t in 3..{end} {{
        yield update x[i in {r}..{n}-{r}, j in {r}..{m}-{r}] =
            0.3 * x[i, j] + 0.2 * (x[i - {r}, j + {r}] - x[i + {r}, j - {r}]) + x[i, j + {r}] * f64(t)
    }}
}}
"""

WAVE = """
fn f(a: f64[61, 47], b: f64[61, 47], source: f64[{end}]) -> (f64[61, 47], f64[61, 47]) {{
    return loop (old = a, u = b) for t < {end} {{
        new = update old[i in 1..60, j in 1..46] =
            2.0 * u[i, j] - old[i, j] + 0.1 * (u[i - 1, j] + u[i + 1, j] + u[i, j - 1] + u[i, j + 1] - 4.0 * u[i, j])
        yield u, update new[30, 20] += source[t]
    }}
}}
"""

FIELDS = """
fn f(ex: f64[53, 40], ey: f64[53, 40], hz: f64[53, 40], source: f64[{end}]) -> (
    f64[53, 40], f64[53, 40], f64[53, 40]
) {{
    return loop (ex = ex, ey = ey, hz = hz) for t < {end} {{
        ey = update ey[0, j in 0..40] = source[t]
        ey = update ey[i in 1..53, j in 0..40] -= 0.5 * (hz[i, j] - hz[i - 1, j])
        ex = update ex[i in 0..53, j in 1..40] -= 0.5 * (hz[i, j] - hz[i, j - 1])
        hz = update hz[i in 0..52, j in 0..39] -= 0.7 * (ex[i, j + 1] - ex[i, j] + ey[i + 1, j] - ey[i, j])
        yield ex, ey, hz
    }}
}}
"""

LINE = """
fn f(a: f32[9001]) -> f32[9001] {{
    return loop (x = a) for t < {end} {{ yield update x[i in 1..8999] = 0.25 * (x[i - 1] + x[i + 2]) + 0.5 * x[i] }}
}}
"""

HEAT = """
fn f(a: f64[40, 22, 18]) -> f64[40, 22, 18] {{
    return loop (x = a) for t < {end} {{
        yield update x[i in 1..39, j in 1..21, k in 1..17] =
            x[i, j, k] + 0.1 * (x[i + 1, j, k] + x[i - 1, j, k] + x[i, j + 1, k] + x[i, j - 1, k] - 4.0 * x[i, j, k])
    }}
}}
"""

SEIDEL = """
fn f(a: f64[61, 47]) -> f64[61, 47] {{
    return loop (a = a) for t < {end} {{
        yield loop (a = a) for i in 1..60 {{
            yield loop (a = a) for j in 1..46 {{ yield update a[i, j] = 0.5 * (a[i - 1, j] + a[i, j - 1]) }}
        }}
    }}
}}
"""


def compiled(text: str, steps: int, target: Target = TARGET) -> Compilation:
    pipeline = str(default_pipeline({})).replace("lower", f"lower{{steps-at-once={steps}}}")
    made = Compilation(load(Source("p", text)).build("f"), {}, Options(passes=pipeline))
    made.target = target
    return made


def inputs_of(compilation: Compilation) -> list[Array]:
    random = np.random.default_rng(0)
    tensors = [p.type for p in compilation.source_module.graph.parameters]
    return [random.standard_normal(tuple(map(int, t.shape))).astype(t.dtype.numpy) for t in tensors]  # type: ignore[union-attr]


def blocked(compilation: Compilation) -> list[Overlap]:
    return [s for schedule in compilation.context.schedules.values() for s in schedule if isinstance(s, Overlap)]


CASES = [
    *((STENCIL, {"n": 61, "m": 47, "r": 1, "end": 3 + steps}, 2) for steps in (0, 1, 2, 5)),
    (STENCIL, {"n": 61, "m": 47, "r": 1, "end": 19}, 8),
    (STENCIL, {"n": 90, "m": 33, "r": 2, "end": 20}, 4),
    (WAVE, {"end": 17}, 4),
    (FIELDS, {"end": 9}, 4),
    (LINE, {"end": 21}, 8),
    (HEAT, {"end": 13}, 4),
]


@pytest.mark.parametrize(
    "text, sizes, steps", [pytest.param(*case, marks=[pytest.mark.slow] if case[2] > 2 else []) for case in CASES]
)
def test_blocks_of_several_steps_give_the_same_bits(text: str, sizes: dict[str, int], steps: int) -> None:
    plain, several = (compiled(text.format(**sizes), n) for n in (1, steps))
    inputs = inputs_of(plain)
    wanted = plain.executable().run(inputs, {})
    for got, expected in zip(several.executable().run(inputs, {}), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert not blocked(plain) and (blocked(several) or sizes["end"] < 3 + steps)


def test_what_no_blocks_can_do_stays_a_loop() -> None:
    for text, target in (
        (SEIDEL, TARGET),  # a row needs the one before it, of the same step
        (STENCIL, replace(TARGET, caches=(2 << 10, 1 << 20, 4 << 20))),  # a cache holds it anyway
    ):
        found = compiled(text.format(n=61, m=47, r=1, end=40), 8, target)
        assert not blocked(found) and all("steps_t" not in k.name for k in found.kernels.kernels)


def test_no_step_is_done_where_a_loop_has_none() -> None:
    text = "fn f(a: f64[61, 47], n: i64) -> f64[61, 47] {{ {} }}".format(
        "return loop (x = a) for t < n { yield update x[i in 1..60, j in 0..47] = x[i - 1, j] + 2.0 * x[i + 1, j] }"
    )
    program = compiled(text, 4).executable()
    plain = compiled(text, 1).executable()
    a = np.random.default_rng(0).standard_normal((61, 47))
    for steps in (-9, -1, 0, 3, 4, 5, 11):
        (got,), (wanted,) = (e.run([a, np.array(steps)], {}) for e in (program, plain))
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_every_choice_gives_the_same_bits(cores: int) -> None:
    found = compiled(WAVE.format(end=17), 4, replace(TARGET, cores=cores))
    kernel = next(k for k in found.kernels.kernels if "steps" in k.name)
    plain = compiled(WAVE.format(end=17), 1).executable().run(inputs_of(found), {})
    space = Space(kernel, found.target, repeated=True)
    assert {"passes over the grid", "rows of blocks"} <= space.default.decisions.keys()
    for candidate in space.sample(8, Random(0)):
        own = compiled(WAVE.format(end=17), 4, replace(TARGET, cores=cores))
        own.measured = lambda k, s=str(candidate.schedule): s if k.name == kernel.name else None  # type: ignore[misc]
        for got, wanted in zip(own.executable().run(inputs_of(found), {}), plain, strict=True):
            np.testing.assert_array_equal(got, wanted)
