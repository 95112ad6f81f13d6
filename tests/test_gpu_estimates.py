"""The analytic model for GPUs: what it says of launches, and that it tells candidates apart as their blocks suggest."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from intarsia.cli import main
from intarsia.costmodel import predictor
from intarsia.costmodel.estimating import estimate
from intarsia.costmodel.extents import Extents
from intarsia.costmodel.features import NAMES_BY_KIND, features
from intarsia.costmodel.forest import Forest
from intarsia.costmodel.launch_features import LAUNCH_FEATURES
from intarsia.costmodel.launches import occupancy
from intarsia.costmodel.learned import LearnedModel
from intarsia.driver import Compilation, writable
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_launch import launches_of
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.candidates import Space

TARGET = TARGETS["gpu:sm_90"]

MATMUL = "fn f(a: bf16[4096, 4096], b: bf16[4096, 4096]) -> bf16[4096, 4096] { return a @ b }"
FEW_ROWS = "fn f(a: bf16[128, 8192], b: bf16[8192, 512]) -> bf16[128, 512] { return a @ b }"
SOFTMAX = "fn f(x: bf16[65536, 4096]) -> bf16[65536, 4096] { return softmax(x) }"


def space_of(text: str) -> Space:
    compilation = Compilation(load(Source("p", text)).build("f"), {}, Options(target=TARGET.name))
    (kernel,) = compilation.kernels.kernels
    return Space(kernel, TARGET, writable=writable)


def seconds(kernel: Kernel) -> float:
    return estimate(kernel, TARGET).seconds


def with_option(space: Space, decision: str, option: str) -> float:
    """Seconds of the default schedule with another option of one decision."""
    name = next(n for n in space.default.decisions if n.startswith(decision))
    return seconds(space.candidate({name: space.default.decisions[name].index(option)}).kernel)


def test_rows_are_bound_by_memory() -> None:
    space = space_of(SOFTMAX)
    found = estimate(space.default.kernel, TARGET)
    least = 2 * 65536 * 4096 * 2 / TARGET.rates.memory
    assert found.limit == "memory" and least <= found.resources["memory"] <= 1.05 * least
    assert least < found.seconds < 1.4 * least
    assert with_option(space, "stages", "apart") > 2 * found.seconds, "what passes between stages lies in memory then"


def test_products_want_large_blocks_and_steps_under_way() -> None:
    space = space_of(MATMUL)
    found = estimate(space.default.kernel, TARGET)
    least = 2 * 4096**3 / (2 * 2048 * TARGET.cores * TARGET.rates.clock)
    assert least < found.seconds < 2 * least
    assert with_option(space, "block along i0", "32") > 1.5 * found.seconds
    assert with_option(space, "block along i1", "64") > 1.3 * found.seconds
    assert with_option(space, "steps under way", "2") > found.seconds


def test_few_blocks_want_parts() -> None:
    space = space_of(FEW_ROWS)
    times = [with_option(space, "parts of k", n) for n in ("1", "2", "4")]
    assert times == sorted(times, reverse=True) and seconds(space.default.kernel) < times[0] / 2


@pytest.mark.parametrize("target, rates", [("gpu:sm_90", [2048, 2048]), ("gpu:sm_100", [16384, 8192])])
def test_codes_are_multiplied_at_the_rate_of_what_is_multiplied(target: str, rates: list[int]) -> None:
    """Codes of 4 bits with scales of groups, where matrix units take them; else numbers of 16 bits. A scale is loaded
    once for its group."""
    chip = TARGETS[target]
    for name, rate in zip(("mxfp4", "mxfp8"), rates):
        text = f"""format a = {name}(axis=1)
        format b = {name}(axis=0)
        fn f(x: a[4096, 4096], w: b[4096, 4096]) -> f32[4096, 4096] {{ return dequantize(x) @ dequantize(w) }}"""
        made = Compilation(load(Source("p", text)).build("f"), {}, Options(target=target))
        (kernel,) = made.plan.kernels
        found = estimate(kernel, chip)
        least = 4096**3 / (rate * chip.cores * chip.rates.clock)
        assert least <= found.resources["matrix units"] < 1.2 * least
        assert found.resources["cache 2"] < 200e-6


@pytest.mark.parametrize("warps", ["2", "8", "16"])
def test_what_a_core_has_room_for(warps: str) -> None:
    """As many programs as there are registers and threads for."""
    space = space_of("fn f(x: f32[4096, 4096]) -> f32[4096] { return max(x, axis=1) }")
    kernel = space.candidate({"warps": space.default.decisions["warps"].index(warps)}).kernel
    (launch,) = launches_of(kernel)
    found = occupancy(launch, Extents.of(kernel), kernel, TARGET)
    assert found.cores == 132 and found.rounds == -(-found.programs // 132)
    threads = [room * 32 * int(warps) for room in (found.room, found.room + 1)]
    fits = [t <= TARGET.chip.threads and t * launch.registers <= TARGET.chip.registers for t in threads]
    assert fits == [True, False] or found.room == TARGET.chip.programs


# ---------------------------------------------------------------------- features, rankings


def test_features_tell_candidates_apart() -> None:
    space = space_of(MATMUL)
    names = NAMES_BY_KIND["gpu"]
    found = dict(zip(names, features(space.default.kernel, TARGET).tolist()))
    assert list(found) == list(LAUNCH_FEATURES) and all(math.isfinite(x) for x in found.values())
    assert 2 ** found["estimate"] == pytest.approx(seconds(space.default.kernel), rel=1e-3)
    assert (found["rows"], found["columns"], found["depth"], found["warps"]) == (7, 8, 6, 3)
    assert (found["programs"], found["walks"], found["described"], found["wide product"]) == (9, 1, 1, 1)
    others = {str(features(c.kernel, TARGET).tolist()) for c in space.neighbours()}
    assert len(others) > 10


def test_a_machine_without_a_model_is_left_to_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one with a model for it, which is told by its architecture, to that."""
    space = space_of(FEW_ROWS)
    kernels = [space.default.kernel, *(c.kernel for c, _ in zip(space.neighbours(), range(2)))]
    assert predictor.predict(kernels, TARGET) == [seconds(k) for k in kernels]
    rows = np.stack([features(k, TARGET) for k in kernels])
    node, nothing = np.zeros(1, np.int32), np.zeros(1, np.float32)
    twice = Forest(1.0, node, node - 1, nothing, node, node, nothing, 0)
    model = LearnedModel(*(twice,) * 4, rows.min(0), rows.max(0), NAMES_BY_KIND["gpu"], "NVIDIA H200 sm_90")
    monkeypatch.setattr(predictor, "shipped_model", lambda kind: model)
    assert predictor.predict(kernels, TARGET)[0] == pytest.approx(2 * seconds(kernels[0]), rel=1e-3)
    other = TARGETS["gpu:sm_80"]
    assert predictor.predict(kernels, other) == [estimate(k, other).seconds for k in kernels]


@pytest.mark.slow
def test_rankings_need_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "-e", FEW_ROWS, "--target", TARGET.name, "--predict-only", "--seconds", "5", "--trials", "8"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"kernel f_matmul: about \d+ schedules, \d predicted\n  default: predicted .*, no spills", printed)
    assert re.search(r"\n  1\. predicted .* registers, .*\n    \S+.*, not ", printed), printed
