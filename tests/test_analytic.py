"""The analytic model against what can be counted, and against what everybody knows of schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intarsia.costmodel.analytic import estimate
from intarsia.costmodel.extents import FILLED, Extents, Footprints, traffic
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_trace import memory_traffic
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.passes.pipeline import Context, default_pipeline
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.default import schedule_kernel

TARGET = TARGETS["cpu:x86-avx512"]

PROGRAMS = (
    "fn f(x: f32[N, M]) -> f32[N, M] { return softmax(x) }",
    "fn f(x: f32[N, M], g: f32[M], b: f32[M]) -> f32[N, M] { return layer_norm(x, g, b) }",
    "fn f(x: f32[N, M]) -> f32[M] { return sum(x, axis=0) }",
    "fn f(x: f32[N, M], y: f32[M, N]) -> f32[N, N] { return x @ y }",
    "fn f(x: f32[N, M]) -> f32[M, N] { return transpose(x) * 2.0 }",
    "fn f(x: f32[N, M]) -> f32[N - 2, M] { y[i < N - 2, j] = x[i, j] + x[i + 1, j] + x[i + 2, j]; return y }",
)


def kernel(text: str) -> Kernel:
    return read_kernel(Source("k", text))


def naive(program: str, **sizes: int) -> Kernel:
    module = load(Source("p", program)).build(None)
    (found,) = default_pipeline(sizes).before("schedule").run(module, Context(TARGET)).kernels
    return found


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("capacity", (64, pytest.param(400, marks=pytest.mark.slow), 4000))
def test_bytes_are_those_of_a_simulated_cache(program: str, capacity: int) -> None:
    """What the model says goes through a cache is what a simulated one sees, within a factor of two."""
    scheduled = naive(program, N=24, M=40)
    footprints = Footprints(Extents.of(scheduled), 4, startup=0)
    predicted = sum(traffic(footprints, capacity * 4 / FILLED, scheduled.body).values()) / 4
    counted = sum(sum(pair) for pair in memory_traffic(scheduled, {}, capacity).values())
    temporaries = {b.name for b in scheduled.buffers().values()} - {b.name for b in scheduled.parameters}
    own = traffic(footprints, capacity * 4 / FILLED, scheduled.body)
    predicted -= sum(own.get(name, 0) for name in temporaries) / 4
    assert 1 / 2 <= predicted / counted <= 2


def test_a_stream_takes_its_bytes_over_the_bandwidth() -> None:
    copy = kernel("kernel f(x: f32[16777216], out y: f32[16777216]) { parallel i in 0..1048576 { "
                  "lane j in 0..16 { y[16 * i + j] = x[16 * i + j] !nt } } }")  # fmt: skip
    target = replace(TARGET, cores=1)
    found = estimate(copy, target)
    assert found.limit == "memory"
    assert found.resources["memory"] == pytest.approx(2 * 4 * 16777216 / target.rates.memory_of_one)
    cached = kernel(print_kernel(copy).replace(" !nt", ""))
    assert estimate(cached, target).resources["memory"] == pytest.approx(1.5 * found.resources["memory"])


def test_a_tile_that_is_too_small_waits_for_its_additions() -> None:
    """One accumulator takes the latency of an addition a step, sixteen keep the units busy."""
    text = """
    kernel f(a: f32[64, {rows}], b: f32[64, 16], out c: f32[{rows}, 16]) {{
      alloc acc: f32[{rows}, 16] register
      for k in 0..64 {{ unroll i in 0..{rows} {{ lane j in 0..16 {{ acc[i, j] += a[k, i] * b[k, j] }} }} }}
      unroll i.0 in 0..{rows} {{ lane j.0 in 0..16 {{ c[i.0, j.0] = acc[i.0, j.0] }} }}
    }}"""
    one = estimate(kernel(text.format(rows=1)), TARGET).resources
    many = estimate(kernel(text.format(rows=16)), TARGET).resources
    assert one["chains"] == 8 * one["arithmetic"] == many["chains"]
    assert many["arithmetic"] == 16 * one["arithmetic"] > many["chains"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_default_schedules_are_predicted_to_be_faster(program: str) -> None:
    plain = naive(program, N=1000, M=1200)
    _, scheduled = schedule_kernel(plain, TARGET)
    assert estimate(scheduled, TARGET).seconds < estimate(plain, TARGET).seconds


def test_threads_share_even_iterations() -> None:
    text = "kernel f(x: f32[{n}, 65536], out y: f32[{n}, 65536]) {{ parallel i in 0..{n} {{ for j in 0..65536 {{ " \
           "y[i, j] = exp(x[i, j]) }} }} }}"  # fmt: skip
    two = replace(TARGET, cores=2)
    even, odd = (estimate(kernel(text.format(n=n)), two).resources["arithmetic"] for n in (2, 3))
    assert odd == pytest.approx(2 * even)


def test_transposing_in_tiles_saves_bytes_through_the_cache() -> None:
    plain = kernel("kernel f(x: f32[4096, 4096], out y: f32[4096, 4096]) { "
                   "for i in 0..4096 { for j in 0..4096 { y[i, j] = x[j, i] } } }")  # fmt: skip
    tiled = apply(plain, Schedule.parse("split i 16; split j 16; reorder i.0 j.0 i.1 j.1"))
    before, after = (estimate(k, TARGET).resources["cache 2"] for k in (plain, tiled))
    assert after < before / 4
