"""What is measured of this machine, and that compilations get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia import limits
from intarsia.cache import Cache
from intarsia.cli import main
from intarsia.ir.target import Rates, Target
from intarsia.options import host_target, known_rates


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(limits, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "_STEPS", 1 << 12)
    monkeypatch.setattr(limits, "_REPEATS", 2)
    monkeypatch.setattr(limits, "_FORKS", 10)
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    host_target.cache_clear()
    return tmp_path


def test_measured_rates_reach_the_target_of_this_machine(briefly: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert host_target().rates == Rates()
        assert main(["list", "targets", "--measure"]) == 0
        shown = capsys.readouterr().out
        assert "GFLOP/s a core" in shown and "cpu:host" in shown
        found = known_rates(Cache(), host_target())
        assert found is not None and host_target().rates == found
        assert found.clock > 0 and len(found.cache_bytes) == len(host_target().caches) - 1
        assert found.memory >= found.memory_of_one > 0
        again = limits.measure_rates(Cache())
        assert again.clock >= found.clock and again.fork <= found.fork
    finally:
        host_target.cache_clear()


def probed(monkeypatch: pytest.MonkeyPatch, *rates: float) -> list[float]:
    """Probes that find these rates in turn, the last one from then on; gives those that were taken."""
    taken: list[float] = []
    waiting = list(rates)

    def probe(target: Target, threads: int) -> limits.Limits:
        taken.append(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        return limits.Limits(taken[-1], taken[-1], threads)

    monkeypatch.setattr(limits, "_probe", probe)
    monkeypatch.setattr(limits, "_PAUSE", 0.0)
    return taken


def test_limits_are_the_best_of_several_probes(briefly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = probed(monkeypatch, 70.0, 99.0, 80.0, 100.0)
    found = limits.machine_limits(Cache())
    assert (found.operations, found.bytes, found.agreed, len(taken)) == (100.0, 100.0, True, limits._PROBES)
    probed(monkeypatch, 60.0)
    assert limits.machine_limits(Cache()) == found


def test_known_limits_cost_one_probe(briefly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, 100.0)
    limits.machine_limits(Cache())
    taken = probed(monkeypatch, 101.0)
    assert limits.machine_limits(Cache()).operations == 101.0 and len(taken) == 1


def test_limits_of_a_busy_machine_are_measured_again(briefly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, 50.0, 60.0, 52.0, 51.0)
    assert not limits.machine_limits(Cache()).agreed
    taken = probed(monkeypatch, 55.0, 58.0)
    found = limits.machine_limits(Cache())
    assert found.operations == 60.0 and found.agreed and len(taken) == limits._PROBES


@pytest.mark.parametrize("first, reached", [(120.0, 0.0), (100.0, 110.0)])
def test_limits_that_are_exceeded_are_measured_again(
    briefly: Path, monkeypatch: pytest.MonkeyPatch, first: float, reached: float
) -> None:
    """By a later probe, or by a program."""
    probed(monkeypatch, 100.0)
    limits.machine_limits(Cache())
    taken = probed(monkeypatch, first, 130.0)
    found = limits.machine_limits(Cache(), reached)
    assert found.operations == 130.0 and found.agreed and len(taken) == limits._PROBES


def test_measuring_is_for_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "ops", "--measure"]) == 2
    assert "--measure goes with targets" in capsys.readouterr().err


def test_reading_is_counted_right(briefly: Path) -> None:
    """The code that reads gives the sum, so it has read everything, and only so often."""
    import ctypes

    import numpy as np

    target = host_target()
    run, owner = limits._compiled(
        limits._read_source(target), "read", target, ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )
    array = np.ones(limits._chunk(target), np.float32)  # four steps
    assert run(array.ctypes.data, array.nbytes, 3) == limits._ACCUMULATORS * (1 + 3 * 4)
    del owner
