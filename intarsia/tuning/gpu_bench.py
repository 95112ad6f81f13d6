"""A GPU on which schedules of one kernel are timed, by its own clock, with nothing of the arguments in its caches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from intarsia.gpu_calls import as_arrays
from intarsia.gpu_launches import launches_of_plan
from intarsia.gpu_program import GpuPlace, Launched, Scratch
from intarsia.ir.dtypes import Array
from intarsia.ir.kernel import Kernel
from intarsia.ir.plan import Plan
from intarsia.ir.target import Target
from intarsia.runtime.gpu import DevicePlan, PlanCall, addresses
from intarsia.tuning.benches import SAMPLES, Runnable
from intarsia.tuning.calls import Runs
from intarsia.tuning.isolation import plan_alone

FLUSHED = 2
"""Times the size of the last cache: so many bytes are written before each run, so that nothing of the arguments is in
it."""

REPEATS = 10
"""Runs whose mean is a sample: the clock of a GPU has steps of half a microsecond."""

LONG = 10e-3
"""Seconds of a run from which on one is a sample."""


class GpuBench:
    """A GPU. The arguments lie there, and every run has an empty cache before it."""

    def __init__(self, target: Target, runs: Runs, inputs: Sequence[Array], place: GpuPlace) -> None:
        self._target = target
        self._runs = runs
        self._place = place
        self._inputs = [place.of_array(array) for array in inputs]
        self._scratch = Scratch(place)
        self._other = place.torch.empty(FLUSHED * target.caches[-1], dtype=place.torch.uint8, device=place.place)

    def compiled(self, kernels: Sequence[Kernel]) -> list[Runnable | None]:
        plans = [plan_alone(kernel, self._target, self._runs) for kernel in kernels]
        made = [launches_of_plan(plan) for plan in plans]
        every = list(dict.fromkeys(x for launches in made for own in launches.values() for x in own))
        refused = dict(zip(every, self._place.device.prepare(every)))
        found: list[Runnable | None] = []
        for plan, launches in zip(plans, made):
            is_refused = any(refused[x] for own in launches.values() for x in own)
            found.append(None if is_refused else self._run_of(plan, launches))
        return found

    def undisturbed(self, patience: float) -> AbstractContextManager[None]:
        return nullcontext()

    def flush(self) -> None:
        """Fill the last cache with something else."""
        self._other.zero_()

    def _run_of(self, plan: Plan, launches: dict[str, Any]) -> _GpuRun:
        given = [a for tensor in self._inputs for a in addresses(tensor)]
        parts = [PlanCall(DevicePlan(part, launches, self._place.device), {}) for part in plan.whole]
        calls = [Launched(part, self._place, self._scratch) for part in parts]
        prepared: list[Any] = []
        if (once := plan.preparation) is not None:
            prepared = calls[0]([given[n] for n in once.inputs])
        return _GpuRun(self, self._place, calls[-1], [*given, *(a for t in prepared for a in addresses(t))], prepared)


class _GpuRun:
    """Launches on the arguments of a bench. `prepared`: what constants became, which has to stay."""

    def __init__(
        self, bench: GpuBench, place: GpuPlace, call: Launched, given: Sequence[int], prepared: Sequence[Any]
    ) -> None:
        self._bench = bench
        self._place = place
        self._call = call
        self._given = given
        self._prepared = prepared

    def results(self) -> Sequence[Array]:
        found = self._call(self._given)
        self._place.wait()
        return as_arrays(self._call, found)

    def samples(self) -> list[float]:
        """Of a mean over several runs, each between two events; the host is ahead of the GPU while that empties its
        cache, so that it does not wait for launches."""
        (once,) = self._seconds(1)
        repeats = REPEATS if once < LONG else 1
        return [statistics.fmean(self._seconds(repeats)) for _ in range(SAMPLES)]

    def _seconds(self, repeats: int) -> list[float]:
        device, stream = self._place.device, self._place.stream()
        moments = []
        for _ in range(repeats):
            self._bench.flush()
            before = device.moment(stream)
            self._call(self._given)
            moments.append((before, device.moment(stream)))
        return [device.seconds(*both) for both in moments]
