"""What is measured of this machine, and that compilations get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia import limits
from intarsia.cache import Cache
from intarsia.cli import main
from intarsia.ir.target import Rates
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
