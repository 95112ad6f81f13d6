"""Real programs, at every level, against NumPy and SciPy.

Each file of programs/ has a case in one of the modules beside it. At its first sizes a program runs in the graph
interpreter and as machine code; in the slow run also at its other sizes, as kernels and as a plan.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from intarsia.deep_stack import with_deep_stack
from intarsia.ir.interpreter import evaluate
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.tolerance import expected

FOLDER = Path(__file__).parent / "programs"
sys.path.insert(0, str(FOLDER))

import data  # noqa: E402, F401
import networks  # noqa: E402, F401
import numerics  # noqa: E402, F401
import polybench  # noqa: E402, F401
from case import CATALOGUE, Entry, check_results, prepare  # noqa: E402

LARGE = ("factored", "transformer")
"""Programs that are left to the slow run."""

QUICK = [pytest.param(entry, entry.sizes[0], id=name) for name, entry in CATALOGUE.items() if name not in LARGE]
SLOW = [
    pytest.param(entry, sizes, id="-".join((name, *(f"{k}{v}" for k, v in sizes.items()))))
    for name, entry in CATALOGUE.items()
    for sizes in entry.sizes
]


def check_levels(entry: Entry, sizes: dict[str, int], levels: tuple[str, ...]) -> None:
    """Every level is as near to the reference in f64 as a correct one is."""
    case, compilation, inputs = prepare(entry, sizes)
    module, names = compilation.source_module, compilation.sizes
    reference = with_deep_stack(lambda: evaluate(module, inputs, names))
    check_results(reference, case.wanted, entry.tolerance)
    bounds = with_deep_stack(lambda: expected(module, inputs, names))
    for level in levels:
        if level == "cpu":
            results = with_deep_stack(compilation.executable).run(inputs, {})
            check_results(results, case.wanted, entry.tolerance)
        elif level == "plan":
            results = with_deep_stack(lambda: run_plan(compilation.plan, inputs, {}))
        else:
            results = with_deep_stack(lambda level=level: evaluate(getattr(compilation, level), inputs, {}))  # type: ignore[misc]
        for index, (bound, before, result) in enumerate(zip(bounds, reference, results)):
            if bound.mismatch(np.asarray(before)) is None:  # else the program itself decides on last digits
                assert bound.mismatch(np.asarray(result)) is None, f"{level}, result {index}: {bound.mismatch(result)}"


def test_every_file_has_a_case() -> None:
    assert {p.stem for p in FOLDER.glob("*.ita")} == set(CATALOGUE)


@pytest.mark.parametrize("entry, sizes", QUICK)
def test_program(entry: Entry, sizes: dict[str, int]) -> None:
    case, compilation, inputs = prepare(entry, sizes)
    reference = with_deep_stack(lambda: evaluate(compilation.source_module, inputs, compilation.sizes))
    for results in (reference, with_deep_stack(compilation.executable).run(inputs, {})):
        check_results(results, case.wanted, entry.tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("entry, sizes", SLOW)
def test_program_at_every_level(entry: Entry, sizes: dict[str, int]) -> None:
    check_levels(entry, sizes, ("fused", "kernels", "plan", "cpu"))
