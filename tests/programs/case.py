"""What each program of this folder is run on, and what it must give, written in NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import intarsia
from intarsia.driver import Compilation
from intarsia.function import Function
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import F64, of_numpy
from intarsia.options import Options

Array = NDArray[Any]
Tree = Any
"""An argument: an array, a number, or a dictionary for a struct, with a list for a list of structs."""


class Random:
    """Arrays of random numbers, the same in every run."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def f64(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)

    def f32(self, *shape: int) -> Array:
        return self.f64(*shape).astype(np.float32)

    def f16(self, *shape: int) -> Array:
        return self.f64(*shape).astype(np.float16)

    def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: Any = np.int64) -> Array:
        return self.rng.integers(low, high, shape, dtype)

    def flags(self, *shape: int) -> Array:
        return self.rng.random(shape) < 0.5


@dataclass(frozen=True)
class Case:
    """Arguments in the order of the parameters, and the results that they must give."""

    arguments: Sequence[Tree]
    wanted: Sequence[Tree]


Maker = Callable[..., Case]


@dataclass(frozen=True)
class Entry:
    """A program: `make(random, **sizes)` gives its case. The first of `sizes` are those of the quick run."""

    name: str
    make: Callable[..., Case]
    sizes: Sequence[dict[str, int]]
    tolerance: float | None = None


CATALOGUE: dict[str, Entry] = {}
"""The programs by name; the modules beside this one fill it."""


def program(tolerance: float | None = None, **sizes: Sequence[int]) -> Callable[[Callable[..., Case]], None]:
    """Put a function that makes a case into the catalogue under its name. Each size is a sequence, one for each run.

    `tolerance`, relative to the largest element, is for the comparison with NumPy where a program is more sensitive
    than its dtype.
    """

    def register(make: Callable[..., Case]) -> None:
        assert make.__name__ not in CATALOGUE
        runs = [dict(zip(sizes, values)) for values in zip(*sizes.values())] if sizes else [{}]
        CATALOGUE[make.__name__] = Entry(make.__name__, make, runs, tolerance)

    return register


def prepare(
    entry: Entry, sizes: Mapping[str, int], options: Options | None = None
) -> tuple[Case, Compilation, list[Any]]:
    """The case of a program, its compilation and its inputs in the order of the graph."""
    case = entry.make(Random(), **sizes)
    path = Path(__file__).parent / f"{entry.name}.ita"
    return case, *compilation_of(intarsia.load(path, options, use_cache=False).entry("main"), case.arguments)


def compilation_of(function: Function, arguments: Sequence[Tree]) -> tuple[Compilation, list[Any]]:
    """The compilation of a function for arguments, and these in the order of the graph."""
    given, dims = function.arrange(arguments, {})
    statics, tensors = function.split(given)
    compilation = function.compilation(tensors, statics, dims)
    inputs = [tensors[p.label] for p in compilation.source_module.graph.parameters]
    return compilation, [list(i) if isinstance(i, tuple) else i for i in inputs]


def check_results(results: Any, wanted: Any, tolerance: float | None = None, label: str = "") -> None:
    """The results are those of NumPy, one or several, up to `tolerance` of the largest element; a None is skipped.

    The tolerance is 100 units in the last place unless it is given. Integers and booleans must be the same.
    """
    results, wanted = (list(r) if isinstance(r, (tuple, list)) else [r] for r in (results, wanted))
    assert len(results) == len(wanted), label
    for index, (result, expected) in enumerate(zip(results, wanted)):
        if expected is None:
            continue
        place = f"{label} result {index}".strip()
        expected, result = np.asarray(expected), np.asarray(result)
        assert result.shape == expected.shape, place
        dtype = of_numpy(result.dtype)
        assert dtype is not None
        if not dtype.is_float:
            assert result.dtype == expected.dtype, place
            np.testing.assert_array_equal(result, expected, place)
            continue
        found, wide = convert(result, dtype, F64), expected.astype(np.float64)
        scale = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
        allowed = tolerance or 100 * dtype.epsilon
        np.testing.assert_allclose(found, wide, allowed, allowed * scale, err_msg=place)
