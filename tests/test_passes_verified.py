"""The default passes over every program of programs/, each pass verified by execution, from the emitted graph on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import Source
from intarsia.ir.text import print_module, read_module
from intarsia.passes.pipeline import DEFAULT, Pipeline
from intarsia.passes.verify import verification

FOLDER = Path(__file__).parent / "programs"
sys.path.insert(0, str(FOLDER))

import data  # noqa: E402, F401
import networks  # noqa: E402, F401
import numerics  # noqa: E402, F401
import polybench  # noqa: E402, F401
from case import CATALOGUE, Entry, prepare  # noqa: E402

QUICK = ("conv_transpose", "dtypes", "lu", "segments", "sliding_window", "special", "training", "views")


def verify(entry: Entry) -> None:
    _, compilation, _ = prepare(entry, entry.sizes[0])
    text = with_deep_stack(lambda: compilation.text("graph"))
    module = read_module(Source(f"{entry.name}.ir", text))
    assert print_module(module) == text
    with_deep_stack(lambda: Pipeline.parse(DEFAULT).run(module, compilation.context, verification("exec")))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_pass_keeps_the_meaning(name: str) -> None:
    verify(CATALOGUE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CATALOGUE if n not in QUICK])
def test_every_pass_keeps_the_meaning_of_all_others(name: str) -> None:
    verify(CATALOGUE[name])
