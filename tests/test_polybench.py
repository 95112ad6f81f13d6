"""The thirty kernels of PolyBench: ours and the C of the benchmark, against NumPy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polybench_reference import REFERENCES

import intarsia
from intarsia.cli import main

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "polybench"))

from kernels import EXAMPLES, KERNELS, Kernel, Random  # noqa: E402
from peers import PEERS, c_arguments  # noqa: E402

EVERY = [pytest.param(kernel, id=name) for name, kernel in KERNELS.items()]
TOLERANCE = 1e-11
"""Relative to the largest element, in double precision: sums have up to 260 terms, recurrences up to 400 steps."""


def check(kernel: Kernel, results: Any, given: dict[str, Any]) -> None:
    wanted = REFERENCES[kernel.name](**given)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    assert len(results) == len(wanted)
    for result, expected in zip(results, wanted):
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def check_ours(kernel: Kernel, dataset: str) -> None:
    given = kernel.make(Random(), **kernel.at(dataset))
    function = intarsia.load(kernel.source)[kernel.name]
    before = {name: np.array(value) for name, value in given.items()}
    check(kernel, function(**given), given)
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)


def test_all_thirty_are_there() -> None:
    assert len(KERNELS) == 30 and set(KERNELS) == set(REFERENCES)
    assert {k.source for k in KERNELS.values()} == set(EXAMPLES.glob("*.ita"))
    assert all(k.c_source.exists() for k in KERNELS.values())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ita")), ids=lambda p: p.stem)
def test_sources_are_formatted(path: Path) -> None:
    assert main(["fmt", "--check", str(path)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kernel", EVERY)
def test_small(kernel: Kernel) -> None:
    check_ours(kernel, "MINI")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", EVERY)
def test_medium(kernel: Kernel) -> None:
    check_ours(kernel, "MEDIUM")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the C versions need gcc")
@pytest.mark.slow
@pytest.mark.parametrize("kernel", EVERY)
def test_c(kernel: Kernel, tmp_path: Path) -> None:
    sizes = kernel.at("MINI")
    given = kernel.make(Random(), **sizes)
    arguments = c_arguments(kernel, sizes, given)
    PEERS["gcc"].compile(kernel, sizes, tmp_path)(arguments)
    check(kernel, [arguments[name] for name in kernel.results], given)
    assert np.array([1e-310]) * 1 > 0, "what was loaded takes subnormals as zero, for all that comes after it"
