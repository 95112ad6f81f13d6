"""Passes that are broken on purpose are found by `--verify-each=exec`, and the broken one is blamed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from intarsia.deep_stack import with_deep_stack

sys.path.insert(0, str(Path(__file__).parent / "mutants"))

from corpus import ROOT, corpus
from mutate import Mutant, mutants
from trial import Prepared, outcome_of, prepare

EXAMPLES = ("canonicalize/views.ir 1", "lower/ordered.ir 2", "dce/states.ir 0", "random graph 7", "cse/regions.ir 1",
            "lower/windows.ir 0", "random graph 14", "schedule-wavefront/cases.ir 0", "schedule-vectorize/cases.ir 6",
            "a negative size")  # fmt: skip

MUTANTS = (
    (
        "canonicalize/views.py",
        "if extents[axis].constant != 0 and all(g.constant is not None and g.constant >= 0 for g in gaps):",
        "condition negated",
    ),
    ("legalize_dtype/__init__.py", "case ArgReduce(x) if x.dtype == BOOL:", "Eq becomes NotEq"),
    ("dce.py", "if needed == states:", "Eq becomes NotEq"),
    (
        "skip_rounding.py",
        "case Cast(Value(Cast(x, _, True) as rounding), dtype) if rounding in group.nodes and x.dtype == dtype:",
        "Eq becomes NotEq",
    ),
    ("schedule/wavefront.py", "return (part(diagonals.lower, first), *full, *end)", "first two arguments swapped"),
    ("lower/access.py", "unknown = tuple(c for c in holds if not known.proves(c - 1))", "not dropped"),
)
"""Below passes/: a file, a line of it and a change (see mutants/mutate.py)."""

NAMES = {"legalize_dtype": "legalize-dtype", "skip_rounding": "skip-rounding"}


@pytest.fixture(scope="module")
def prepared() -> Sequence[Prepared]:
    return with_deep_stack(lambda: prepare([e for e in corpus(random_programs=0) if e.name in EXAMPLES]))


@pytest.mark.slow
@pytest.mark.parametrize("path, line, change", [pytest.param(*m, id=m[0]) for m in MUTANTS])
def test_a_broken_pass_is_found_and_blamed(path: str, line: str, change: str, prepared: Sequence[Prepared]) -> None:
    mutant = _mutant(path, line, change)
    outcome = with_deep_stack(lambda: outcome_of(mutant, prepared))
    part = path.split("/")[0].removesuffix(".py")
    assert (outcome.kind, outcome.pass_) == ("found", NAMES.get(part, part)), outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "path, line, change",
    [
        (
            "specialize.py",
            "_check_type(new.type, parameter.type, parameter.span, names)",
            "first two arguments swapped",
        ),
        (
            "schedule/dependence.py",
            "return first.writes and second.writes and first.operator == second.operator and first.operator not in "
            '("=", None)',
            "condition 4 of 4 dropped",
        ),
    ],
)
def test_what_is_to_be_refused_and_is_not(path: str, line: str, change: str, prepared: Sequence[Prepared]) -> None:
    mutant = _mutant(path, line, change)
    outcome = with_deep_stack(lambda: outcome_of(mutant, prepared))
    assert (outcome.kind, outcome.pass_) == ("accepted", path.split("/")[0].removesuffix(".py")), outcome


def test_a_dropped_call_and_a_long_condition_are_reached_by_their_own_lines() -> None:
    text = "def f(x):\n    if x:\n        g(x)\n    if (\n        x\n        or not x\n    ):\n        pass\n"
    places = {m.change: [line for _, line in m.places] for m in mutants("f.py", text) if m.line in (3, 6)}
    assert places == {"call dropped": [3], "not dropped": [4, 5, 6]}


def _mutant(path: str, line: str, change: str) -> Mutant:
    every = mutants(f"passes/{path}", (ROOT / "passes" / path).read_text("utf-8"))
    found = [m for m in every if m.text == line and m.change == change]
    assert found, f"passes/{path} has no line {line!r} to break: choose another"
    return found[0]
