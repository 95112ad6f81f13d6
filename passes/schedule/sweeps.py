"""Recognizing sweeps: reductions over one axis, of which some may need the maximum or the sum that another one finds.

Let m be the maximum of x along an axis, and A = sum of exp(c * x - c * m) * g, where g does not depend on m. Over a
part of the axis both are partial. A greater m' makes of A the value A * exp(c * m - c * m'): the *ratio*.

Let v be the mean of x along an axis, and A = sum of p(v), where p is a polynomial. Another v' = v + d makes of A the
value A + A' * d + A'' * d * d, where A' and A'' are the sums of the coefficients of p(v + d): the *shift*. No digits
are lost where A is least at the mean of what was seen, as the sum of (x - v) ** 2 is: then it never falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, For, Kernel
from intarsia.ir.kernel import walk as walk_statements
from intarsia.ir.kernel_access import accesses, trips
from intarsia.ir.scalar import Apply, Const, Expr, Load, apply, constant, loads, walk, where
from intarsia.ir.sizes import Size
from intarsia.passes.schedule.domains import Domain, domain_of, has_conditions
from intarsia.passes.schedule.masks import neutral
from intarsia.passes.schedule.products import Linear, Polynomial, Product
from intarsia.passes.schedule.stages import Stage, correspondence, definitions_in, expand, spread, stages_in
from intarsia.passes.schedule.tree import Body, facts_for


@dataclass(frozen=True)
class Ratio:
    """How a sum A follows the maximum m: its summands are `function(scale * x - scale * m) * rest`.

    With `guarded`, that number stands for m where m is infinite; with `is_finite`, some number does where it is -inf.
    Then summands of nothing but -inf are 0; they are NaN without either. `maximum` is m as the summands read it.
    """

    function: str
    scale: float
    guarded: Const | None
    is_finite: bool
    maximum: Load
    rest: Product

    def between(self, old: Expr, new: Expr) -> Expr:
        """What turns a sum relative to the maximum `old` into one relative to `new`."""
        difference: Expr = apply("sub", self._shift(old), self._shift(new))
        if self.scale != 1.0:
            difference = apply("mul", difference, constant(self.scale, old.dtype))
        return apply(self.function, difference)

    def change(self, old: Expr, new: Expr) -> Expr:
        """The same where the sum may be of nothing, or of nothing but -inf, so far: it is 0, whatever it is relative
        to."""
        nothing = apply("eq", old, constant(float("-inf"), old.dtype))
        return where(nothing, constant(1.0, old.dtype), self.between(old, new))

    def of_nothing(self, maximum: Expr, total: Expr) -> Expr:
        """The sum, where there may have been nothing but -inf: every summand is exp(-inf - -inf) then, which is NaN."""
        if self.guarded is not None or self.is_finite:
            return total
        nothing = apply("eq", maximum, constant(float("-inf"), maximum.dtype))
        return where(nothing, constant(float("nan"), total.dtype), total)

    def _shift(self, maximum: Expr) -> Expr:
        if self.guarded is None:
            return maximum
        return where(apply("isinf", maximum), self.guarded, maximum)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for sums that are rescaled by the same number."""
        return (self.function, self.scale, self.guarded)


@dataclass(frozen=True)
class Shift:
    """How a sum A follows the sum s: its summands are the polynomial of `mean`, which is made of s. `state` is s as
    they read it."""

    state: Load
    mean: Expr
    polynomial: Polynomial


@dataclass(frozen=True)
class Sweep:
    """The stages of a block of statements by what a sweep over the axis makes of them.

    `axes`: those that go through it block by block, in order, each with its own name for the axis; `state` is a
    reduction along it. Others that need its result have `ratios` if it is the maximum, `shifts` if it is a sum.
    `before`, `initial` (what sets the neutral elements) and `after` stay whole. `domain`: where on the axis anything
    happens. `masked`: the other factors of what the state sums up, where one of them is 0 outside of the domain.
    `shows_nan`: nothing but rescaled sums needs the maximum. They are NaN where one of its values is, as that
    is in the exponent of a summand, whatever the maximum is then.
    """

    around: tuple[For, ...]
    state: Stage
    axes: Mapping[Stage, str]
    ratios: Mapping[Stage, Ratio]
    shifts: Mapping[Stage, Shift]
    before: tuple[Stage, ...]
    initial: tuple[Stage, ...]
    after: tuple[Stage, ...]
    domain: Domain
    masked: Product | None
    shows_nan: bool

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.before, *self.initial, *self.axes, *self.after)


def find_sweep(kernel: Kernel, name: str, block: Body, around: tuple[For, ...]) -> Sweep:
    """The sweep of which one reduction is `name`, the maximum where others need it. Raises ScheduleError where there is
    none."""
    stages = stages_in(block)
    if not isinstance(stages, tuple):
        raise ScheduleError("a statement beside it is no nest around one write")
    writers = [s for s in stages if s.put.buffer == name and s.put.operator != "="]
    if len(writers) != 1 or not writers[0].reduced:
        raise ScheduleError(f"{name} is not one reduction over a loop")
    state = writers[0]
    temporaries = _temporaries(kernel, block)
    definitions = definitions_in(stages, temporaries)
    value = expand(state, definitions)
    axes = {state: state.reduced[0].axis}
    ratios: dict[Stage, Ratio] = {}
    shifts: dict[Stage, Shift] = {}
    alone: ScheduleError | None = None
    for stage in stages[stages.index(state) + 1 :]:
        whole = expand(stage, definitions)
        if state.put.operator not in ("max=", "+=") or stage.put.operator == "=" or not _reads(whole, name):
            continue
        if any(x.buffer == name and x.symbols & {loop.axis for loop in stage.reduced} for x in loads(whole)):
            continue  # it reduces what the sweep gives for several rows
        if state.put.operator == "max=":
            ratios[stage] = _ratio(whole, stage, state, value)
        else:
            try:
                shifts[stage] = _shift(whole, stage, state, value)
            except ScheduleError as error:  # it may come after the sweep
                alone = alone or error
                continue
        axes[stage] = stage.reduced[0].axis
    spread(stages, axes, temporaries)
    order = {s: axes[s] for s in stages if s in axes}
    if len(order) == 1:
        raise alone or ScheduleError(f"nothing beside {name} runs along its axis")
    base = state.reduced[0]
    for own in (loop for stage, axis in order.items() for loop in stage.loops if loop.axis == axis):
        if (own.lower, own.upper, own.step) != (base.lower, base.upper, base.step):
            raise ScheduleError(f"{own.axis} and {base.axis} have other bounds")
    _require_partial(stages, order, ratios, shifts, state)
    reducing = [s for s in order if order[s] in {loop.axis for loop in s.reduced}]
    if moved := [s for s in order if any(x.buffer == s.put.buffer and x.indices != s.put.indices for x in s.reads)]:
        raise ScheduleError(f"{moved[0].put.buffer} is made of other elements of itself")
    if lost := [s for s in reducing if s.put.operator == "="]:
        raise ScheduleError(f"{lost[0].put.buffer} is written again and again along {order[lost[0]]}")
    before, initial, after = _others(stages, order, reducing)
    masked: Product | None = None
    if len(reducing) == 1 + len(ratios) and not shifts:
        factor, masked = _masked(value, state) if not ratios else (value, None)
        domain = domain_of(factor, state, facts_for(kernel, (*around, *state.kept)))
    else:
        domain = Domain(state.reduced[0].lower, state.reduced[0].upper)
    if inner := sorted((domain.lower.symbols | domain.upper.symbols) & state.axes):
        raise ScheduleError(f"the bounds of {state.reduced[0].axis} change with {inner[0]}")
    shows_nan = bool(ratios) and name in temporaries and not any(_touches(s, name) for s in (*before, *after))
    return Sweep(around, state, order, ratios, shifts, before, initial, after, domain, masked, shows_nan)


def _masked(value: Expr, state: Stage) -> tuple[Expr, Product | None]:
    """The factor of what is summed that a condition makes 0, and the product of the others, which may be infinite or
    NaN where it does. All that is summed, if there is no such factor."""
    product = Product.of(value)
    zero = next((f for f in product.above if has_conditions(f, constant(0, f.dtype))), None)
    rest = product.where(lambda f: f is not zero)
    if zero is None or state.put.operator != "+=" or not rest.factors or product.below:
        return value, None
    if not value.dtype.is_float:
        return zero, None
    along = state.reduced[0].axis
    return (zero, rest) if any(along in f.symbols for f in rest.factors) else (value, None)


def _temporaries(kernel: Kernel, block: Body) -> frozenset[str]:
    """The temporaries that are used in a block only."""
    inside = [a.buffer for a in accesses(block)]
    everywhere = [a.buffer for a in accesses(kernel.body)]
    local = {s.buffer.name for s, _ in walk_statements(kernel.body) if isinstance(s, Alloc)}
    return frozenset(name for name in local & {*inside} if inside.count(name) == everywhere.count(name))


def _touches(stage: Stage, name: str) -> bool:
    return name in stage.touched


def _reads(value: Expr, name: str) -> bool:
    return any(load.buffer == name for load in loads(value))


# ---------------------------------------------------------------------- ratios and shifts


def _use(whole: Expr, stage: Stage, state: Stage) -> tuple[Load, dict[str, Size]]:
    """How a sum that runs over the same axis reads the state, and the axes of the state as its own. `whole` is what it
    adds up, written out. Raises ScheduleError where that is not so."""
    name = state.put.buffer
    if stage.put.operator != "+=":
        raise ScheduleError(f"{stage.put.buffer} {stage.put.operator} … needs {name}, and only sums can be corrected")
    uses = {load.indices: load for load in loads(whole) if load.buffer == name}
    indices, load = next(iter(uses.items()))
    rows = correspondence(state.put.indices, state.kept, indices, stage.kept) if len(uses) == 1 else None
    if rows is None or load.mask or len(stage.reduced) != len(state.reduced):
        raise ScheduleError(f"{stage.put.buffer} does not run over the rows and the axis of {name}")
    pairs = list(zip(state.reduced, stage.reduced))
    names = {**rows, **{mine.axis: Size.of(other.axis) for mine, other in pairs}}
    for mine, other in pairs:
        if (mine.lower.substitute(names), mine.upper.substitute(names), mine.step) != (
            other.lower,
            other.upper,
            other.step,
        ):
            raise ScheduleError(f"{mine.axis} and {other.axis} have other bounds")
    if {m.substitute(names) for m in state.put.mask} != set(stage.put.mask):
        raise ScheduleError(f"{stage.put.buffer} and {name} are reduced under other masks")
    return load, names


def _shift(whole: Expr, stage: Stage, state: Stage, value: Expr) -> Shift:
    """The shift of a sum that needs the state. `whole` and `value` are what the two add up, written out. Raises
    ScheduleError where there is none."""
    name = state.put.buffer
    load, names = _use(whole, stage, state)
    made = dict.fromkeys(_made_of(whole, load, frozenset(loop.axis for loop in stage.reduced)))
    mean = next(iter(made))
    polynomial = Polynomial.of(whole, mean) if len(made) == 1 else None
    points = math.prod(trips(loop).constant or 0 for loop in state.reduced)
    if not Linear.of(mean).is_close(Linear({load: 1.0 / points if points else 0.0})):
        raise ScheduleError(f"{stage.put.buffer} needs {name} otherwise than as a mean")
    if polynomial is None or polynomial.degree != 2:
        raise ScheduleError(f"{whole} is no polynomial of degree 2 in {mean}")
    slope = Linear.of(polynomial.coefficients[1])
    difference = Linear.of(value.substitute(names)).plus(Linear.of(mean), -1.0)
    if not slope.is_close(Linear({}).plus(difference, -points * slope.terms.get(load, 0.0))):
        raise ScheduleError(f"{stage.put.buffer} is not least at the mean, and would lose digits")
    return Shift(load, mean, polynomial)


def _made_of(value: Expr, load: Load, axes: frozenset[str]) -> Iterator[Expr]:
    """The largest parts of a value that are made of what is loaded and are one number along the axes."""
    if load not in walk(value):
        return
    if value.symbols & axes:
        for child in value.children:
            yield from _made_of(child, load, axes)
    else:
        yield value


def _is_finite(coefficient: Expr) -> bool:
    """Is a coefficient a number, or one of several? Then NaN and infinities come from lower coefficients, as they do
    from the whole polynomial."""
    match coefficient:
        case Const(number):
            return math.isfinite(number)
        case Apply("where", (_, a, b)):
            return _is_finite(a) and _is_finite(b)
    return False


def _ratio(whole: Expr, stage: Stage, state: Stage, value: Expr) -> Ratio:
    """The ratio of a sum that needs the state. `whole` and `value` are what the two reduce, written out. Raises
    ScheduleError where there is none."""
    load, names = _use(whole, stage, state)
    name = state.put.buffer
    product = Product.of(whole)
    moving = [f for f in product.factors if _reads(f, name)]
    if len(moving) == 1 and moving[0] in product.above and isinstance(moving[0], Apply):
        found = _exponential(moving[0], load, Linear.of(value.substitute(names)))
        if found is not None:
            function, scale, guarded, is_finite = found
            if guarded is not None and len(product.factors) > 1:
                raise ScheduleError(f"the sum {stage.put.buffer} has another factor, and {name} may be infinite")
            return Ratio(function, scale, guarded, is_finite, load, product.where(lambda f: f != moving[0]))
    raise ScheduleError(
        f"{whole} is not exp(c * x - c * {name}) times what does not need {name}, where {name} is max(x)"
    )


def finite(maximum: Expr) -> Expr:
    """A maximum, or 0 where it is -inf: what summands can be relative to, since exp(-inf - 0) is 0."""
    lowest, zero = (constant(v, maximum.dtype) for v in (float("-inf"), 0.0))
    return where(apply("eq", maximum, lowest), zero, maximum)


def finite_part(value: Expr) -> Expr | None:
    """The maximum of which a value is `finite`, with any number in place of -inf; None if it is not."""
    match value:
        case Apply("where", (Apply("eq", (tested, Const(lowest))), Const(number), other)) if tested == other:
            return other if lowest == float("-inf") and math.isfinite(number) else None
    return None


def _exponential(factor: Apply, load: Load, of: Linear) -> tuple[str, float, Const | None, bool] | None:
    """The function, scale and guards of a factor `exp(c * x - c * m)`, c > 0, where m is loaded and x is `of`."""
    if factor.function not in ("exp", "exp2"):
        return None
    form = Linear.of(factor.arguments[0])
    terms = [t for t in form.terms if _reads(t, load.buffer)]
    if len(terms) != 1 or form.terms[terms[0]] >= 0:
        return None
    scale = -form.terms[terms[0]]
    if not form.without(terms[0]).is_close(Linear({}).plus(of, scale)):
        return None
    match terms[0]:
        case Load():
            return factor.function, scale, None, False
        case Apply("where", (Apply("isinf", (tested,)), Const() as number, other)) if tested == other == load:
            return factor.function, scale, number, False
    return (factor.function, scale, None, True) if finite_part(terms[0]) == load else None


# ---------------------------------------------------------------------- what takes part


def _require_partial(
    stages: Sequence[Stage],
    order: Mapping[Stage, str],
    ratios: Mapping[Stage, Ratio],
    shifts: Mapping[Stage, Shift],
    state: Stage,
) -> None:
    """What is made of unfinished results during the sweep serves the sums with a ratio only. Unfinished are those of
    all reductions along its axis, also of one that others need whole: a maximum, where the sweep is that of a sum."""
    finished = {s.put.buffer for s in order if order[s] in {loop.axis for loop in s.reduced}}
    partial = set(finished)
    for stage in (s for s in order if s is not state):
        read = {load.buffer for load in stage.reads} & partial - {stage.put.buffer}
        if stage in ratios:
            read = {load.buffer for f in ratios[stage].rest.factors for load in loads(f)} & partial
            if read:
                raise ScheduleError(f"{stage.put.buffer} needs the finished {', '.join(sorted(read))}")
        elif stage in shifts:
            read = {x.buffer for c in shifts[stage].polynomial.coefficients for x in loads(c)} & partial
            if others := read - {state.put.buffer}:
                raise ScheduleError(f"{stage.put.buffer} needs the finished {', '.join(sorted(others))}")
        elif read and (shifts or stage.put.operator != "=" or read & finished - {state.put.buffer}):
            raise ScheduleError(f"{stage.put.buffer} needs the finished {', '.join(sorted(read))}")
        elif read:
            partial.add(stage.put.buffer)
            outside = [s for s in stages if s not in order and stage.put.buffer in s.touched]
            if outside or all(stage.put.buffer != load.buffer for s in order for load in s.reads):
                raise ScheduleError(f"{stage.put.buffer} needs the finished {state.put.buffer}")


def _others(
    stages: Sequence[Stage], order: Mapping[Stage, str], reducing: Sequence[Stage]
) -> tuple[tuple[Stage, ...], tuple[Stage, ...], tuple[Stage, ...]]:
    """The stages that are not in the sweep: what comes before, initial values of what it reduces, what comes after."""
    targets = {s.put.buffer: s for s in reducing}
    before: list[Stage] = []
    initial: list[Stage] = []
    after: list[Stage] = []
    changed = {s.put.buffer for s in order}
    for stage in (s for s in stages if s not in order):
        user = targets.get(stage.put.buffer)
        if user is not None and stage is next(s for s in stages if user.put.buffer in s.touched):
            if stage.put.operator != "=" or stage.put.value != neutral(user.put.operator, user.put.value):
                raise ScheduleError(f"{stage.put.buffer} does not start from the neutral element")
            initial.append(stage)
        elif changed & stage.touched:
            changed.add(stage.put.buffer)
            after.append(stage)
        else:
            before.append(stage)
    missing = targets.keys() - {s.put.buffer for s in initial}
    if missing:
        raise ScheduleError(f"no statement beside it sets {', '.join(sorted(missing))}")
    return tuple(before), tuple(initial), tuple(after)
