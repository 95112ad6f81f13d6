"""Comparing results with the reference, and what to send where they differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from intarsia.commands.binding import Bound
from intarsia.commands.options import WRONG, option_words
from intarsia.deep_stack import with_deep_stack
from intarsia.files import write_results
from intarsia.ir.dtypes import Array
from intarsia.ir.perturbation import uncertain
from intarsia.ir.tolerance import Expected, expected
from intarsia.passes.pipeline import Pipeline

ARGUMENTS, PROGRAM = "intarsia-reproducer.npz", "intarsia-reproducer.ita"
"""Files of a reproducer, in the current folder."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one result compares. problem: what is wrong with it, or None. uncertain: the elements that are not as in the
    reference but hang on a rounding, which the reference takes in other places."""

    name: str
    result: Array
    expected: Expected
    problem: str | None
    uncertain: int

    @property
    def text(self) -> str:
        """What the user is told."""
        if self.problem is not None:
            return f"{self.name}: WRONG: {self.problem}"
        if not self.uncertain:
            return f"{self.name}: equal to the reference{_largest_error(self.result, self.expected.value)}"
        return (
            f"{self.name}: equal to the reference but for {self.uncertain} of {self.result.size} elements that hang on "
            "a rounding: the reference too has others there when its roundings are moved within the tolerance"
        )

    @property
    def coarse_text(self) -> str:
        """The same where devices send less than the program says, so that results may be others."""
        if self.problem is None:
            return self.text
        return (
            f"{self.name}: near the reference, for devices send codes{_largest_error(self.result, self.expected.value)}"
        )


def compare(bound: Bound, results: Sequence[Array]) -> list[Outcome]:
    """Each result beside the reference in f64 with its error bounds."""
    compilation = with_deep_stack(bound.compilation)
    module, inputs, sizes = compilation.source_module, bound.inputs(compilation), compilation.sizes
    wanted = with_deep_stack(lambda: expected(module, inputs, sizes))
    for reference, result in zip(wanted, results):
        assert reference.value.shape == result.shape
    suspects = [reference.wrong(result) for reference, result in zip(wanted, results)]
    decided = with_deep_stack(lambda: uncertain(module, inputs, sizes, wanted, suspects))
    outcomes = []
    names = module.graph.result_names
    for name, reference, result, suspect, hanging in zip(names, wanted, results, suspects, decided):
        wrong = suspect & ~hanging
        problem = reference.describe(result, wrong) if wrong.any() else None
        outcomes.append(Outcome(name, result, reference, problem, int(hanging.sum())))
    return outcomes


def first_mismatch(bound: Bound, results: Sequence[Array]) -> str | None:
    """What is wrong with the first wrong result, or None."""
    return next((f"{o.name}: {o.problem}" for o in compare(bound, results) if o.problem is not None), None)


def report_comparison(
    bound: Bound, results: Sequence[Array], settings: Mapping[str, Any], statics: Sequence[str]
) -> int:
    """Compare with the reference. Returns WRONG where a result is wrong, after writing a reproducer; else 0.

    settings: the options of the command; statics: its `--arg` words of static parameters.
    """
    outcomes = compare(bound, results)
    coarse = any(p.lossy for p in Pipeline.parse(bound.function.program.options.device_passes or "").passes)
    for outcome in outcomes:
        click.echo(outcome.coarse_text if coarse else outcome.text, err=True)
    if coarse or all(o.problem is None for o in outcomes):
        return 0
    command = write_reproducer(bound, settings, statics)
    click.echo(f"This is a bug in Intarsia. To see it again: {command}", err=True)
    return WRONG


def write_reproducer(bound: Bound, settings: Mapping[str, Any], statics: Sequence[str]) -> str:
    """Write the arguments, and the program where it is in no file, to the current folder; gives the command to run."""
    source, function = bound.function.program.source, bound.function.form.function
    arrays: dict[str, Array] = {}
    for label in bound.tensors:
        value = bound.whole(label)
        if isinstance(value, tuple):
            arrays |= {f"{label}.{i}": item for i, item in enumerate(value)}
        else:
            arrays[label] = value
    name = source.name
    if not Path(name).is_file():
        name = PROGRAM
        Path(name).write_text(source.text, encoding="utf-8")
    words = ["intarsia", "run", f"{name}:{function}"]
    words += [w for text in statics for w in ("--arg", text)]
    if arrays:
        write_results(ARGUMENTS, arrays)
        words += ["--weights", ARGUMENTS]
    return shlex.join([*words, *option_words(settings), "--compare"])


def _largest_error(result: Array, reference: Array) -> str:
    """The largest error, and the largest value to compare it with."""
    if result.size == 0 or result.dtype.kind in "iub":
        return ""
    with np.errstate(all="ignore"):
        error = np.abs(result.astype(np.float64) - reference)
        scale = np.max(np.abs(reference), where=np.isfinite(reference), initial=0.0)
        largest = float(np.max(error, where=np.isfinite(error), initial=0.0))
    return f" (largest error {largest:.1e}, largest value {float(scale):.3g})"
