"""Comparing results with the reference, and what to send where they differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from intarsia.commands.binding import Bound
from intarsia.commands.options import option_words
from intarsia.deep_stack import with_deep_stack
from intarsia.files import write_results
from intarsia.ir.dtypes import Array
from intarsia.ir.tolerance import Expected, expected

ARGUMENTS, PROGRAM = "intarsia-reproducer.npz", "intarsia-reproducer.ita"
"""Files of a reproducer, in the current folder."""


def reference_of(bound: Bound) -> tuple[Expected, ...]:
    """The reference in f64 with its error bounds, for each result."""
    compilation = with_deep_stack(bound.compilation)
    inputs = bound.inputs(compilation)
    return with_deep_stack(lambda: expected(compilation.source_module, inputs, compilation.sizes))


def first_mismatch(wanted: Sequence[Expected], results: Sequence[Array]) -> str | None:
    """What is wrong with the first wrong result, or None."""
    for index, (reference, result) in enumerate(zip(wanted, results)):
        if (wrong := reference.mismatch(result)) is not None:
            return f"{result_name(index, len(results))}: {wrong}"
    return None


def result_name(index: int, count: int) -> str:
    """`result`, or `result0`, `result1`, … where there are several."""
    return "result" if count == 1 else f"result{index}"


def report_comparison(
    bound: Bound, results: Sequence[Array], settings: Mapping[str, Any], statics: Sequence[str]
) -> int:
    """Compare with the reference. Returns 3 where a result is wrong, after writing a reproducer; else 0.

    settings: the options of the command; statics: its `--arg` words of static parameters.
    """
    wanted = reference_of(bound)
    wrong = 0
    for index, (result, reference) in enumerate(zip(results, wanted)):
        name, problem = result_name(index, len(results)), reference.mismatch(result)
        if problem is not None:
            click.echo(f"{name}: WRONG: {problem}", err=True)
            wrong += 1
        else:
            click.echo(f"{name}: equal to the reference{_largest_error(result, reference.value)}", err=True)
    if not wrong:
        return 0
    command = write_reproducer(bound, settings, statics)
    click.echo(f"This is a bug in Intarsia. To see it again: {command}", err=True)
    return 3


def write_reproducer(bound: Bound, settings: Mapping[str, Any], statics: Sequence[str]) -> str:
    """Write the arguments, and the program where it is in no file, to the current folder; gives the command to run."""
    source, function = bound.function.program.source, bound.function.form.function
    arrays: dict[str, Array] = {}
    for label, value in bound.tensors.items():
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
