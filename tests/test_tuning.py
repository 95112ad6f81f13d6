"""Searching schedules: what is measured is kept, and what is kept is used."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import intarsia
from intarsia.cli import intarsia as command_line
from intarsia.cli import main
from intarsia.commands.progress import ProgressLine
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.schedule import Schedule
from intarsia.options import Options, host_target
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.tuning import known
from intarsia.tuning.calls import calls_of
from intarsia.tuning.database import Database, Found, ProblemRow, Row, machine_name
from intarsia.tuning.isolation import compile_alone, is_measurable, problem_key, program_of, random_inputs
from intarsia.tuning.measuring import Stopwatch, Timing, WrongResult
from intarsia.tuning.search import Budget, search
from intarsia.tuning.whole import SLOW_ROUNDS, check_program

TRANSPOSE = "fn f(x: f32[96, 160]) -> f32[160, 96] { return transpose(x) }"
TARGET = host_target()


def kernel_of(text: str) -> Kernel:
    compilation = Compilation(load(Source("p", text)).build("f"), {}, Options())
    (kernel,) = compilation.kernels.kernels
    return kernel


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path))
    return tmp_path


def flat(kernels: Sequence[Kernel]) -> list[float]:
    return [0.0] * len(kernels)


def test_a_kernel_by_itself_is_a_program() -> None:
    kernel = kernel_of("fn f(x: f32[20], i: i64[7]) -> f32[7] { return tensor[n](x[i[n]] * 2.0) }")
    assert is_measurable(kernel) and program_of(kernel).kernels == (kernel,)

    inputs = random_inputs(kernel)
    (result,) = compile_alone(Space(kernel, TARGET).default.kernel, TARGET).run(inputs, {})
    given = {b.name: a for b, a in zip(kernel.inputs, inputs)}
    np.testing.assert_array_equal(result, given["x"][given["i"]] * np.float32(2.0))


SUBSTITUTION = """
fn f(l: f64[40, 40], b: f64[40]) -> f64[40] {
    return loop (x = b) for i < 40 { yield update x[i] = (x[i] - sum[j < i](l[i, j] * x[j])) / l[i, i] }
}
"""


def test_kernels_in_loops_are_measured_all_over_the_range_of_their_sizes() -> None:
    module = Compilation(load(Source("p", SUBSTITUTION)).build("f"), {}, Options()).kernels
    (kernel,) = module.kernels
    calls = calls_of(module)[kernel.name]
    sizes = [i for (i,) in calls.runs]
    assert calls.count == 40 and calls.is_read_again and sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (0, 39)
    assert is_measurable(kernel, calls.runs) and not is_measurable(kernel)

    low, b = random_inputs(kernel)
    (result,) = compile_alone(Space(kernel, TARGET).default.kernel, TARGET, calls.runs).run([low, b], {})
    wanted = b.copy()
    for i in sizes:
        wanted[i] = (wanted[i] - low[i, :i] @ wanted[:i]) / low[i, i]
    np.testing.assert_allclose(result, wanted, rtol=1e-6)


def test_the_best_schedule_is_found_kept_and_used(empty_cache: Path) -> None:
    kernel = kernel_of(TRANSPOSE)
    database = Database(known.database_path())
    before = known.state_of_knowledge()
    result = search(kernel, TARGET, flat, Budget(seconds=60, trials=5), database)
    assert 2 <= len(result.trials) <= 5 and str(result.default.candidate) == "default"
    times = [seconds for _, seconds in result.best_so_far()]
    assert times == sorted(times, reverse=True) and result.gain >= 1.0
    assert before == 0 != known.state_of_knowledge()
    rows = database.rows(problem_key(kernel, TARGET), machine_name(TARGET))
    assert [r.timing.seconds for r in rows] == sorted(t.timing.seconds for t in result.trials)
    compilation = Compilation(load(Source("p", TRANSPOSE)).build("f"), {}, Options())
    best = database.best(machine_name(TARGET)).get(problem_key(kernel, TARGET))
    assert best in (None, rows[0].schedule) and (best is not None or result.gain < 1.05)
    wanted = best or str(result.default.candidate.schedule)
    assert compilation.schedules == {compilation.kernels.kernels[0].name: wanted}
    taken = any("fastest schedule that was measured" in r.message for r in compilation.remarks.items)
    assert taken == (best is not None)


def test_another_search_goes_on_from_what_is_known(empty_cache: Path) -> None:
    kernel, key, machine = kernel_of(TRANSPOSE), "key", "machine"
    database = Database(empty_cache / "db" / "file.sqlite")
    assert database.best(machine) == {} and database.problems() == [] and database.machines() == []
    problem = ProblemRow(key, "tuned", TRANSPOSE, "text", 1)

    def add(schedule: str, seconds: float) -> None:
        database.add(problem, machine, [Row(key, schedule, {"a": 1}, Timing(seconds, 0.0, 3))])

    add("split i 2", 3.0)
    add("split i 4", 2.0)
    add("split i 4", 5.0)
    add("split i 2", 2.5)
    found = database.rows(key, machine)
    assert [(r.schedule, r.timing.seconds, r.choices) for r in found] == [
        ("split i 4", 2.0, {"a": 1}),
        ("split i 2", 2.5, {"a": 1}),
    ]
    assert database.best(machine) == {key: "split i 4"} and database.best("another") == {}
    database.finish(key, machine, whole=True)
    assert database.finished(machine) == {key: True} and database.problems() == [
        ProblemRow(key, "tuned", TRANSPOSE, "text", 1, whole=True)
    ]
    database.add(problem, machine, [Row(key, "split i 8", {}, Timing(2.01, 0.0, 3))])  # the default one
    assert database.best(machine) == {}  # hardly slower than the best
    assert kernel.name not in problem_key(kernel, TARGET)


def test_a_default_schedule_that_was_better_in_a_program_is_kept(empty_cache: Path) -> None:
    database = Database(empty_cache / "file.sqlite")
    assert database.fastest("machine") == {}
    for key in ("p", "q"):
        rows = [Row(key, "", {}, Timing(3.0, 0.0, 3)), Row(key, "split i 2", {"a": 1}, Timing(2.0, 0.0, 3))]
        database.add(ProblemRow(key, "tuned", "", "text", 1), "machine", rows)
    database.keep_default("machine", {"p": True, "q": False})
    assert database.best("machine") == {"q": "split i 2"}
    assert database.fastest("machine")["p"] == Found("split i 2", 1.5)  # another program may decide otherwise
    database.keep_default("machine", {"p": False, "q": True})
    assert database.best("machine") == {"p": "split i 2"} and len(database.rows("q", "machine")) == 2


class Clock:
    """Time that passes when a program runs: a second, and so much more by the kernels that have what tuning found.
    Every seventh run is disturbed."""

    def __init__(self, **more: float) -> None:
        self.now, self.more, self.runs = 0.0, more, 0

    def __call__(self) -> float:
        return self.now

    def version(self, way: frozenset[str]) -> Callable[[], object]:
        return partial(self.run, 1.0 + sum(self.more[name] for name in way))

    def run(self, seconds: float) -> None:
        self.runs += 1
        self.now += seconds * (1.3 if self.runs % 7 == 0 else 1.0)


@pytest.mark.parametrize(
    "more, kept, after",
    [
        ({"a": -0.1}, "", 0.9),
        ({"a": 0.1}, "a", 1.0),
        ({"a": 0.0}, "a", 1.0),
        ({"a": -0.3, "b": 0.1}, "b", 0.7),
        ({"a": -0.1, "b": 0.3}, "b", 0.9),
        ({"a": 0.2, "b": 0.1, "c": -0.02}, "ab", 0.98),
        ({"a": 0.2, "b": 0.1}, "ab", 1.0),
        ({"a": -0.2, "b": -0.1}, "", 0.7),
        ({"a": -0.2, "b": 0.0}, "", 0.8),
    ],
)
def test_what_makes_the_whole_program_slower_is_not_taken(more: dict[str, float], kept: str, after: float) -> None:
    clock = Clock(**more)
    verdict = check_program(list(more), clock.version, 1000.0, clock=clock)
    assert verdict.kept == frozenset(kept)
    assert (verdict.before, verdict.after) == (pytest.approx(1.0), pytest.approx(after))


def test_a_check_of_a_slow_program_ends() -> None:
    clock = Clock(a=0.0, b=0.0)
    check_program("ab", clock.version, 10.0, clock=clock)
    assert clock.runs == (3 + 2) * (1 + SLOW_ROUNDS)


def test_schedules_that_do_not_fit_are_left_alone(empty_cache: Path) -> None:
    kernel = kernel_of(TRANSPOSE)
    key = problem_key(kernel, TARGET)
    database = Database(known.database_path())
    for text in ("split nothing 4", "conjure i 4"):
        database.add(ProblemRow(key, "k", "", "", 1), machine_name(TARGET), [Row(key, text, {}, Timing(1e-9, 0.0, 1))])
        compilation = Compilation(load(Source("p", TRANSPOSE)).build("f"), {}, Options())
        assert text not in compilation.schedules.values() and compilation.schedules


def test_a_damaged_database_stops_no_compilation(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known.database_path().write_text("this is no database")
    x = np.ones((96, 160), np.float32)
    with pytest.warns(RuntimeWarning, match="cannot use the database"):
        np.testing.assert_array_equal(intarsia.jit(TRANSPOSE)(x), x.T)
    several = "fn f(x: f32[96, 160]) -> (f32[160, 96], f32[96], f32[96, 160]) { return transpose(x), x[:, 0], sort(x) }"
    assert main(["explain", "-e", several, "--about", "schedule"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("cannot use the database") == 1 and printed.out.count("\nkernel ") >= 2
    assert main(["tune", "-e", TRANSPOSE, "--db", str(known.database_path()), "--trials", "1"]) == 1
    assert "error[E0709]: cannot use the database" in capsys.readouterr().err


def test_the_cache_knows_that_something_was_measured(empty_cache: Path) -> None:
    x = np.arange(96 * 160, dtype=np.float32).reshape(96, 160)
    np.testing.assert_array_equal(intarsia.jit(TRANSPOSE)(x), x.T)
    kernel = kernel_of(TRANSPOSE)
    key = problem_key(kernel, TARGET)
    slow = "reorder i1 i0"
    assert apply(kernel, Schedule.parse(slow))
    row = Row(key, slow, {"a": 1}, Timing(1e-9, 0.0, 1))
    Database(known.database_path()).add(ProblemRow(key, "k", "", "", 1), machine_name(TARGET), [row])
    for use_cache in (True, False):  # what is made does not depend on it
        function = intarsia.jit(TRANSPOSE, use_cache=use_cache)
        np.testing.assert_array_equal(function(x), x.T)
        assert slow in function.lower(x).schedule.values()


def test_a_wrong_schedule_is_noticed() -> None:
    kernel = kernel_of(TRANSPOSE)
    default = Space(kernel, TARGET).default
    other = kernel_of("fn f(x: f32[96, 160]) -> f32[160, 96] { return transpose(x) * 1.01 }")
    wrong = Candidate(Schedule(), Space(other, TARGET).default.kernel, {"what": ("a", "b")}, {"what": 1})
    with pytest.raises(WrongResult, match="what: b"):
        Stopwatch.of(kernel, TARGET).time([default, wrong])


@pytest.mark.slow
def test_the_command_line(empty_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.svg"
    words = ["tune", "-e", TRANSPOSE, "--seconds", "30", "--trials", "3", "--plot", str(plot)]
    found = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "\nthe program: " in found.output
    assert "kernel f_transpose, for 30 s:" in found.output and "times as fast as before, 3 of about" in found.output
    assert "<svg" in plot.read_text()
    with sqlite3.connect(known.database_path()) as database:
        assert database.execute("SELECT count(*) FROM measurements").fetchone()[0] <= 3


def test_pictures_need_matplotlib(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["tune", "-e", TRANSPOSE, "--plot", "p.svg"]) == 1
    assert "error[E1801]: matplotlib draws plots, and is not installed" in capsys.readouterr().err


def test_progress_is_a_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for is_terminal, wanted in ((True, "\r\r10 of 20\r        \r9 of 20\r       \r"), (False, "")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        line = ProgressLine()
        for text in ("10 of 20", "9 of 20", ""):
            line.show(text)
        assert capsys.readouterr().err == wanted


def test_a_fault_of_the_compiler_has_a_status(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise WrongResult("tile: 8x2\nsplit i 8")

    monkeypatch.setattr(Stopwatch, "time", fail)
    assert main(["tune", "-e", TRANSPOSE]) == 3
    assert "computes something else; please report it:\ntile: 8x2" in capsys.readouterr().err
