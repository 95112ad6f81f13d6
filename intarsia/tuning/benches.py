"""Where schedules of one kernel are run: this machine's processor, or a GPU; and what measuring asks of either."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Protocol

import numpy as np

from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.ir.kernel import Kernel
from intarsia.ir.target import Target
from intarsia.runtime.native import address_of
from intarsia.runtime.threads import THREADS
from intarsia.tuning.calls import Runs
from intarsia.tuning.calm import CALM
from intarsia.tuning.isolation import compile_alone, random_inputs
from intarsia.tuning.placing import place, placed
from intarsia.workers import map_in_workers

SAMPLES = 5
"""Samples of a schedule in each round."""

SAMPLE = 300e-6
"""Seconds of a sample at least: shorter runs are repeated."""


class Runnable(Protocol):
    """A schedule that is compiled, with what it reads. Its arguments are the same in every run."""

    def results(self) -> Sequence[Array]:
        """What it computes."""

    def samples(self) -> list[float]:
        """Seconds of a run, measured a few times."""


class Bench(Protocol):
    """A machine with the arguments of one kernel. It is an interface with two implementations: `CpuBench` here,
    `GpuBench` in `gpu_bench.py`."""

    def compiled(self, kernels: Sequence[Kernel]) -> list[Runnable | None]:
        """Schedules of the kernel, ready to be run; None for one that the tools refuse."""

    def undisturbed(self, patience: float) -> AbstractContextManager[None]:
        """While this is open, schedules are timed. patience: seconds, in all, to wait until nobody else uses it."""


def bench_of(kernel: Kernel, target: Target, runs: Runs, seed: int = 0) -> Bench:
    """The machine that a target is, with random arguments of a naive kernel for its `runs`. Raises CompileError E1703
    or E1716 where it is a GPU, and there is none."""
    inputs = random_inputs(kernel, seed)
    if target.kind == "cpu":
        return CpuBench(kernel, target, runs, inputs)
    from intarsia.gpu_program import GpuPlace
    from intarsia.tuning.gpu_bench import GpuBench

    return GpuBench(target, runs, inputs, GpuPlace.current(target))


class CpuBench:
    """This machine's processor, by its clock. Arrays lie at the same places for all schedules."""

    def __init__(self, kernel: Kernel, target: Target, runs: Runs, given: Sequence[Array]) -> None:
        self._target = target
        self._runs = runs
        results = [np.zeros(tuple(map(int, b.shape)), b.dtype.numpy) for b in kernel.parameters if b.role != "in"]
        arrays = placed([*given, *results])
        self.inputs, self.results = arrays[: len(given)], arrays[len(given) :]
        self.patience = 0.0

    def compiled(self, kernels: Sequence[Kernel]) -> list[Runnable | None]:
        work = partial(compile_alone, target=self._target, runs=self._runs)
        return [_CpuRun(executable, self) for executable in map_in_workers(work, kernels)]

    @contextmanager
    def undisturbed(self, patience: float) -> Iterator[None]:
        self.patience = patience
        with _threads_of(self._target), on_one_core(self._target):
            yield


class _CpuRun:
    """Machine code in this process, on the arrays of a bench."""

    def __init__(self, executable: Executable, bench: CpuBench) -> None:
        self._bench = bench
        self._call, fixed = executable.prepare({}), len(bench.inputs) + len(bench.results)
        prepared = executable.prepared(bench.inputs, {})
        prepared = placed(prepared, fixed) if prepared else []
        workspace = place([self._call.workspace], fixed + len(prepared)) if self._call.workspace else []
        self._owners = (executable, prepared, workspace)
        self._given = [address_of(a) for a in (*bench.inputs, *prepared)]
        self._made = [address_of(a) for a in bench.results]
        self._room = address_of(workspace[0]) if workspace else 0

    def results(self) -> Sequence[Array]:
        for result in self._bench.results:
            result.view(np.uint8).fill(255)  # what the last candidate left would hide what this one does not write
        self._run()
        return self._bench.results

    def samples(self) -> list[float]:
        found, self._bench.patience = _calm_samples(self._run, self._bench.patience)
        return found

    def _run(self) -> None:
        self._call.into(self._given, self._made, self._room)


def _calm_samples(run: Callable[[], object], patience: float) -> tuple[list[float], float]:
    """Samples of a round during which nobody else used the core, as far as so many seconds of waiting allow, and what
    is left of these."""
    found: list[float] = []
    while True:
        patience = CALM.wait(patience)
        start = time.perf_counter()
        more = _samples(run)
        found = min(found or more, more, key=statistics.median)
        if not patience or CALM.is_calm():
            return found, patience
        patience = max(0.0, patience - (time.perf_counter() - start))


def _samples(run: Callable[[], object]) -> list[float]:
    """Seconds of a run, each the mean over as many as make up a sample."""
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    repeats = max(1, int(SAMPLE / max(once, 1e-7)))
    found: list[float] = []
    for _ in range(SAMPLES if once < 0.1 else 2):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        found.append((time.perf_counter() - start) / repeats)
    return found


@contextmanager
def _threads_of(target: Target) -> Iterator[None]:
    """Run on as many threads as the target has cores, whatever the process uses otherwise."""
    before = THREADS.get()
    THREADS.set(target.cores)
    try:
        yield
    finally:
        THREADS.set(before)


@contextmanager
def on_one_core(target: Target) -> Iterator[None]:
    """Stay on one core while single-threaded code is timed, where the system can do that."""
    if target.cores > 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)
