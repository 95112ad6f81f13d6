"""`--verify-each`: each pass leaves well-formed IR (`types`), that reads back (`text`), and computes the same (`exec`).

`exec` runs the reference interpreter on the module before and after each pass, on the same inputs: ordinary ones, and
ones with equal numbers, NaN, infinities and zeros of both signs mixed in, and at sizes 1 and 0 where sizes stay open.
Passes that say they are exact must keep every bit; the others must stay within the tolerance of the language of the
program in f64. On a difference it names the pass, shows the element and what the pass changed, and reduces the module
to a small one that still shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np

from intarsia.ir.conversion import codes, convert
from intarsia.ir.dtypes import F64, Array, DType
from intarsia.ir.errors import CompileError, Remarks, ScheduleError, Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Kernel, Put, walk
from intarsia.ir.ops import Call
from intarsia.ir.spmd import is_partitioned, mesh_of, simulate
from intarsia.ir.text import print_module, read_module
from intarsia.ir.tolerance import Expected, expected
from intarsia.ir.verifier import verify_module
from intarsia.passes.instruments import module_diff
from intarsia.passes.pipeline import Context, Instrument, Pass, PassError
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.scheduling import ScheduleKernels
from intarsia.passes.shard.meshes import check_shardings, fits
from intarsia.passes.specialize import Specialize, specialize
from intarsia.passes.verify.inputs import Operand, check_sizes, edge_sizes, random_inputs, work
from intarsia.passes.verify.reduce import reduced

Level = Literal["types", "text", "exec"]

LIMIT = 10_000_000
"""Points beyond which a module runs at check sizes instead of its own."""

SEVERAL = 100_000
"""Points below which special values are tried several times."""

BROKEN = (AssertionError, AttributeError, CompileError, IndexError, KeyError, TypeError, ValueError)
"""What the verifier, the printer and the interpreter may raise on a module that is not well formed."""


def verification(level: Level) -> list[Instrument]:
    """The instruments of a level; each level includes those before it."""
    found: list[Instrument] = [VerifyTypes(), VerifyText(), VerifyExec()]
    return found[: ("types", "text", "exec").index(level) + 1]


class VerifyTypes(Instrument):
    """The module after each pass is well formed."""

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        if new is old:
            return
        try:
            verify_module(new)
            if (mesh := mesh_of(new)) is not None and fits(old, mesh):
                check_shardings(new, mesh)
        except AssertionError as error:
            raise PassError(pass_, str(error), module_diff(old, new)) from None
        except BROKEN as error:
            raise PassError(pass_, f"what it left is no module: {error!r}") from error


class VerifyText(Instrument):
    """The module after each pass prints and reads back to the same text."""

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        if new is old:
            return
        try:
            text = print_module(new)
        except BROKEN as error:
            raise PassError(pass_, f"what it left does not print: {error!r}") from error
        try:
            again = print_module(read_module(Source(f"after {pass_}", text)))
        except CompileError as error:
            raise PassError(pass_, f"its text does not read back: {error}") from None
        if again != text:
            raise PassError(pass_, "its text reads back to another module")


@dataclass(frozen=True, eq=False)
class Run:
    """One set of inputs of a module."""

    module: Module
    sizes: Mapping[str, int]
    inputs: list[Operand]

    @cached_property
    def expected(self) -> tuple[Expected, ...] | None:
        """What a module of graph ops for one device should give; not known of others."""
        if is_partitioned(self.module) or any(isinstance(n, Call) for n in self.module.graph.body.walk()):
            return None
        return expected(self.module, self.inputs, self.sizes)

    def allowed(self, position: int) -> Expected | None:
        """What a result may be."""
        return self.expected[position] if self.expected else None


@dataclass
class VerifyExec(Instrument):
    """The module after each pass computes what it did before.

    A module of more than `limit` points runs at check sizes: the one before `specialize` gets small numbers and goes
    through the same passes. One that has no dimension names left is not run, and a remark says so. `reduce` makes
    reproducers small. `real` is the module as it is now; `current` is what runs in its place, the same or what it is at
    check sizes; `runs` are the inputs, and `results` what it last gave for each.
    """

    limit: int = LIMIT
    seed: int = 0
    reduce: bool = True
    current: Module | None = field(default=None, repr=False)
    real: Module | None = field(default=None, repr=False)
    runs: list[Run] = field(default_factory=list, repr=False)
    results: list[tuple[Array, ...]] = field(default_factory=list, repr=False)
    _small: bool = False

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        if old is not self.real:
            self.start(pass_, old, context)
        self.real = new
        if self.current is None:
            return
        before = self.current
        self.current = self._after(pass_, before, context) if self._small else new
        if self.current is not before and pass_.lossy:
            self.results = [_evaluate(self.current, run) for run in self.runs]
        elif self.current is not before:
            self._compare(pass_, before, self.current, context)

    # ------------------------------------------------------------------ what runs

    def start(self, pass_: Pass, module: Module, context: Context) -> None:
        """Choose sizes and inputs, and run the module before the first pass."""
        given = dict(pass_.sizes) if isinstance(pass_, Specialize) else {}
        small = check_sizes(module)
        sizes = {**(small or {}), **{n: v for n, v in given.items() if n in module.graph.dimensions}}
        self._small = work(module, sizes) > self.limit
        if self._small:
            if not given or small is None:
                self.current = None
                reason = "it is large and has no dimension names to make it small"
                pass_.remark(context, "verification", f"@{module.graph.name} was not run: {reason}", None, done=False)
                return
            sizes = small
        self.current = module
        self.runs = _runs(module, sizes, self.seed)
        self.results = [_evaluate(module, run) for run in self.runs]
        for edge in [] if self._small else edge_sizes(module, given):
            try:
                run = _run(module, edge, self.seed, special=False)
                self.results.append(_evaluate(module, run))
            except BROKEN:
                continue  # the program means nothing at these sizes
            self.runs.append(run)

    def _after(self, pass_: Pass, module: Module, context: Context) -> Module:
        """What a pass makes of the module at check sizes."""
        if isinstance(pass_, Specialize):
            sizes = self.runs[0].sizes
            return specialize(module, {n: sizes[n] for n, _ in pass_.sizes if n not in context.dynamic})
        quiet = replace(context, remarks=Remarks(), schedules=dict(context.schedules))
        if not isinstance(pass_, ScheduleKernels):
            return pass_.run(module, quiet)
        # Small kernels would be left alone: they get the schedules of the large ones where these fit.
        new = pass_.run(module, quiet)
        kernels = (_scheduled(old, context) or own for old, own in zip(module.kernels, new.kernels))
        return replace(new, kernels=tuple(kernels))

    # ------------------------------------------------------------------ comparing

    def _compare(self, pass_: Pass, old: Module, new: Module, context: Context) -> None:
        if isinstance(pass_, Specialize) and not self._small:  # other sizes than those that it fixes are no test
            given = dict(pass_.sizes)
            kept = [n for n, run in enumerate(self.runs) if all(given.get(d, k) == k for d, k in run.sizes.items())]
            self.runs, self.results = [self.runs[n] for n in kept], [self.results[n] for n in kept]
        results: list[tuple[Array, ...]] = []
        for run, before in zip(self.runs, self.results):
            try:
                after = _evaluate(new, run)
            except BROKEN as error:
                self._fail(pass_, old, new, f"what it left does not run: {error!r}", context)
            if problem := _problem(pass_, old, new, run, before, after):
                self._fail(pass_, old, new, problem, context)
            results.append(after)
        self.results = results

    def _fail(self, pass_: Pass, old: Module, new: Module, message: str, context: Context) -> None:
        quiet, sizes = replace(context, remarks=Remarks()), self.runs[0].sizes
        small = reduced(old, lambda m: breaks(pass_, m, quiet, sizes, self.seed)) if self.reduce else old
        text = f"# intarsia opt %s --passes {pass_} --verify-each=exec\n{print_module(small)}"
        raise PassError(pass_, message, module_diff(old, new), text)


def _scheduled(kernel: Kernel, context: Context) -> Kernel | None:
    """A small kernel under the schedule of its large likeness, or None where a step does not fit."""
    schedule = context.schedules.get(kernel.name)
    try:
        return apply(kernel, schedule) if schedule else None
    except ScheduleError:
        return None


def breaks(pass_: Pass, module: Module, context: Context, sizes: Mapping[str, int], seed: int) -> bool:
    """Does a pass change what a module computes?"""
    given = {n: sizes[n] for n in module.graph.dimensions}
    try:
        runs = [(run, _evaluate(module, run)) for run in _runs(module, given, seed)]
    except BROKEN:
        return False  # no fair example
    for run, before in runs:
        try:
            new = pass_.run(module, context)
            after = _evaluate(new, run)
        except BROKEN:
            return True
        if _problem(pass_, module, new, run, before, after):
            return True
    return False


def _problem(
    pass_: Pass, old: Module, new: Module, run: Run, before: Sequence[Array], after: Sequence[Array]
) -> str | None:
    """What is wrong with the results after a pass, or None."""
    for position, (value, a, b) in enumerate(zip(old.graph.results, before, after)):
        b = _without_moved(a, b, value.dtype) if pass_.moves_factors else b
        allowed = partial(run.allowed, position)
        if problem := difference(a, b, value.dtype, allowed, pass_.exact, _keeps_zeros(new)):
            return f"result {position} of @{old.graph.name}: {problem}"
    return None


def _keeps_zeros(module: Module) -> bool:
    """Do kernels say which of two zeros they give? A maximum or minimum of both is either one, by its order."""
    statements = (s for kernel in module.kernels for s, _ in walk(kernel.body))
    return not any(isinstance(s, Put) and s.operator in ("max=", "min=") for s in statements)


def _without_moved(before: Array, after: Array, dtype: DType) -> Array:
    """A result after a pass with what it was where it is an infinity in place of NaN, or the reverse."""
    if not dtype.is_float or before.shape != after.shape or before.dtype != after.dtype:
        return after
    a, b = convert(before, dtype, F64), convert(after, dtype, F64)
    moved = (np.isnan(a) & np.isinf(b)) | (np.isinf(a) & np.isnan(b))
    return np.where(moved, before, after) if moved.any() else after


def difference(
    before: Array,
    after: Array,
    dtype: DType,
    allowed: Callable[[], Expected | None],
    exact: bool,
    keeps_zeros: bool = True,
) -> str | None:
    """What is wrong with a result after a pass, or None.

    The same bits are right (NaNs are alike). An exact pass gives no others. Else the result must fit the reference, as
    the one before did: where that did not, because the program decides on last digits, this is no test of the pass.
    `allowed` gives the reference once a bit has changed. Without one, a float may be off by 64 units in the last place
    of the largest magnitude.
    """
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"{after.dtype}{list(after.shape)} instead of {before.dtype}{list(before.shape)}"
    changed = _changed_bits(before, after, dtype)
    if changed is None or exact:
        return changed
    if keeps_zeros and dtype.is_float and (flipped := _flipped_zeros(before, after, dtype)):
        return flipped
    if (reference := allowed()) is not None:
        return None if reference.mismatch(before) else reference.mismatch(after)
    if not dtype.is_float:
        return changed
    value = convert(before, dtype, F64)
    finite = np.abs(value[np.isfinite(value)])
    bound = 64 * dtype.epsilon * float(finite.max(initial=0.0))
    return Expected(value, np.full(value.shape, bound), dtype).mismatch(after)


def _flipped_zeros(before: Array, after: Array, dtype: DType) -> str | None:
    """Zeros whose sign changed: language.md, Numerics, keeps it also where last digits may change."""
    a, b = convert(before, dtype, F64), convert(after, dtype, F64)
    wrong = (a == 0) & (b == 0) & (np.signbit(a) != np.signbit(b))
    if not wrong.any():
        return None
    place = tuple(int(k) for k in np.argwhere(wrong)[0])
    return f"{int(wrong.sum())} of {wrong.size} elements have another sign of zero; first at {list(place)}"


def _changed_bits(before: Array, after: Array, dtype: DType) -> str | None:
    wrong = codes(before, dtype) != codes(after, dtype)
    if dtype.is_float:
        wrong &= ~(np.isnan(convert(before, dtype, F64)) & np.isnan(convert(after, dtype, F64)))
    if not wrong.any():
        return None
    place = tuple(int(k) for k in np.argwhere(wrong)[0])
    count = f"{int(wrong.sum())} of {wrong.size} elements changed"
    return f"{count}; first at {list(place)}: {after[place]} instead of {before[place]}"


def _runs(module: Module, sizes: Mapping[str, int], seed: int) -> list[Run]:
    """Ordinary inputs, and special ones: several where the module is small, so that each value comes to each place."""
    count = 3 if work(module, sizes) < SEVERAL else 1
    return [_run(module, sizes, seed + n, special=n > 0) for n in range(1 + count)]


def _run(module: Module, sizes: Mapping[str, int], seed: int, special: bool) -> Run:
    """One set of inputs."""
    return Run(module, sizes, random_inputs(module, sizes, seed, special))


def _evaluate(module: Module, run: Run) -> tuple[Array, ...]:
    if is_partitioned(module):
        return simulate(module, run.inputs)
    return evaluate(module, run.inputs, {n: run.sizes[n] for n in module.graph.dimensions})
