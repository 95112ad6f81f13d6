"""When the devices of a mesh compute and send, by the model of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run

from intarsia.ir.cluster import Cluster, Level
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.text import read_module
from intarsia.passes.collectives.timeline import timeline

FILES = {"product.ita": "fn f(x: f32[N, K@model], w: f32[K@model, N]) -> f32[N, N] { return x @ w }"}

CLUSTER = Cluster(
    "round", (Level(8, 1.0, 10.0),), operations_per_second=100.0, memory_bytes_per_second=1e9, memory_bytes=1e9
)
"""An all-reduce of 20 bytes over two devices takes 1 + 2 s; a product of 10 x 5 by 5 x 10 takes 10 s."""

HEADER = "mesh pod(data=2)\nparameter f32[5]\nparameter f32[10, 5]\nresult f32[5]\n"
SIGNATURE = "func @f(%x: f32[5], %w: f32[10, 5]) {\n"
PRODUCT = "compute [i < 10, j < 10] sum[k < 5](%w[i, k] * %w[j, k]) : f32[10, 10]"


def module(body: str) -> Module:
    return read_module(Source("timeline.ir", f"{HEADER}\n{SIGNATURE}{body}\n}}\n"))


def test_a_collective_makes_a_device_wait_unless_it_is_started() -> None:
    text = """ %0 = all_reduce %x axes=(data,) devices=2{} : f32[5]
 %1 = PRODUCT
 {}
 return {}, %1""".replace("PRODUCT", PRODUCT)
    waits = timeline(module(text.format("", "", "%0")), CLUSTER)
    assert (waits.seconds, waits.computing, waits.sending, waits.hidden) == pytest.approx((13, 10, 3, 0))
    hides = timeline(module(text.format(" started=true", "%2 = done %0 : f32[5]", "%2")), CLUSTER)
    assert (hides.seconds, hides.sending, hides.hidden, hides.exposed) == pytest.approx((10, 3, 3, 0))
    assert hides.links == ("data",)


def test_a_loop_takes_its_steps_however_many_are_shown() -> None:
    text = """ %0 = loop t in 0..{} (%h = %x) {{
  %1 = all_reduce %h axes=(data,) devices=2 : f32[5]
  yield %1
 }} : f32[5]
 return %0"""
    for steps in (0, 3, 250):
        assert timeline(module(text.format(steps)), CLUSTER).seconds == pytest.approx(3 * steps)


def test_the_command_line(ita: Run, tmp_path: Path) -> None:
    words = ("--dim", "N=8", "--dim", "K=8", "--about", "timeline", "--cluster", "nvlink-node")
    status, _, report = ita("explain", "product.ita", *words)
    assert status == 1 and "E1901" in report
    status, shown, _ = ita("explain", "product.ita", *words, "--mesh", "model=2")
    assert status == 0 and "nvlink-node" in shown
    assert "0 us (0%) while it computes" in shown and "all_reduce" in shown
    pytest.importorskip("matplotlib")
    picture = tmp_path / "timeline.svg"
    assert ita("explain", "product.ita", *words, "--mesh", "model=2", "--plot", str(picture))[0] == 0
    assert picture.read_text("utf-8").count("<path") > 5
