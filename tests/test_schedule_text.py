"""Schedules are text: they print, parse, compare and hash."""

from __future__ import annotations

import pytest
from schedule_samples import sample

from intarsia.ir.errors import CompileError, ScheduleError
from intarsia.ir.schedule import STEPS, Accumulate, Pack, Schedule, Split, parse_step
from intarsia.passes.schedule.apply import _APPLY, apply

EVERY_STEP = (
    "split m 64; split k 4 peel -> ko ku; collapse i j -> f; partition n; peel m.0; align j to y; skew j i 2; "
    "wavefront i j 2; reorder m.0 k m.1; merge a b c; move x before y; sink i into j; distribute i at k; "
    "overlap y z 16 128 -> b c; overlap y 8; "
    "squeeze wp at k in u8 -> wq; dot k; multiply y as u8 i8 -> z; "
    "stage y -> t; warps 8; stages 3; programs 132; "
    "describe x w; "
    "localize t at i register; pack b at root -> bp[jn, k, jv, j] cache; "
    "accumulate c at k -> acc register set; accumulate c at kk -> acc register first pc; "
    "accumulate c at k -> acc cache keep u l; group y at k 128 -> t; group y at k 64 as i32 -> t; "
    "factor y; online m 512; online m 16 -> b; "
    "parts m 512; parts m 16 -> p; scan k; restart h at p -> c; "
    "inline t; reuse s for e; vectorize j; unroll i jv; parallel ic; grid a b; "
    "version jn; version jn keep k; unmask t; tighten k; skip r; widen k; restrict m; "
    "prefetch x in t i +1 L2; fetch x for i in j L1; fetch x for i +2 in j L2; nontemporal y"
)


def test_every_step_prints_and_parses() -> None:
    schedule = Schedule.parse(EVERY_STEP)
    assert str(schedule) == EVERY_STEP
    assert Schedule.parse(str(schedule)) == schedule
    assert {type(step).word() for step in schedule} == set(STEPS) == {c.word() for c in _APPLY}


def test_schedules_are_values() -> None:
    first, second = Schedule.parse("split i 16; vectorize i.1"), Schedule((Split("i", 16),))
    assert first != second and hash(first) == hash(Schedule.parse(str(first)))
    assert second + Schedule.parse("vectorize i.1") == first
    assert len(first) == 2


def test_lines_and_comments() -> None:
    text = "# rows first\nsplit i 16  # sixteen lanes\n\nvectorize i.1; ; parallel i.0\n"
    assert str(Schedule.parse(text)) == "split i 16; vectorize i.1; parallel i.0"


def test_fields() -> None:
    assert parse_step("pack b at pc -> bp[jn, k] cache") == Pack("b", "pc", "bp", ("jn", "k"), "cache")
    assert parse_step("accumulate c at k -> a register first p") == Accumulate(
        "c", "k", "a", "register", "first", outer="p"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tile i 16", "no schedule step is named 'tile'"),
        ("split i", "expected a number, found the end"),
        ("split 16 i", "expected a name, found '16'"),
        ("split i 16 sideways", "expected the end, found 'sideways'"),
        ("pack b at x", "expected '->'"),
        ("localize t at i somewhere", "expected one of global, cache, register, shared"),
        ("vectorize", "expected a name, found the end"),
    ],
)
def test_mistakes_in_the_text(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        Schedule.parse(text)
    assert caught.value.code == "E1601"


def test_an_illegal_step_is_named() -> None:
    kernel, _ = sample("pointwise")
    with pytest.raises(ScheduleError, match=r"^parallel nothing: no axis nothing; there are i.0, i.1$"):
        apply(kernel, Schedule.parse("split i 16; parallel nothing"))


def test_steps_say_what_they_do() -> None:
    for word, step in STEPS.items():
        assert step.__doc__ and word in step.__doc__.lower(), word
