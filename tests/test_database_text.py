"""Measurements as text: it says everything, reads back exactly, and merges databases."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from intarsia.backends.cpu.counting import Counts
from intarsia.cli import main
from intarsia.ir.errors import CompileError, Source
from intarsia.tuning.database import Database, Entry, Known, ProblemRow
from intarsia.tuning.database_text import FIRST, print_entries, read_entries
from intarsia.tuning.measuring import Timing

ZEN, NEW = ("zen", "intarsia 1"), ("zen", "intarsia 2")


def known(schedule: str, seconds: float, maker: tuple[str, str] = ZEN, counted: bool = False) -> Known:
    counts = Counts(12, 0, 3) if counted else None
    return Known(*maker, schedule, {"tile of ÿ": 2} if schedule else {}, Timing(seconds, 1 / 3, 15), counts)


def entry(
    key: str,
    *rows: Known,
    finished: dict[tuple[str, str], bool] | None = None,
    defaults: frozenset[tuple[str, str]] = frozenset(),
) -> Entry:
    problem = ProblemRow(key, "matmul", f"fn {key}\n\n  | y \r\n", "kernel {\n}\n", 2)
    return Entry(problem, rows, finished or {}, defaults)


ONE = [
    entry("p", known("", 1e-6), known("split i 8; unroll i.1", 0.1 + 0.2), finished={ZEN: False, NEW: True}),
    entry("q", known("a", 3e-6, NEW), known("b", 1e-6), Known(*NEW, "b", {}, None, Counts(1, 2, 3))),
]
OTHER = [
    entry("q", known("a", 2e-6, NEW, counted=True), known("b", 2e-6), known("a", 5e-6)),
    entry("p", known("", 1e-6, NEW), finished={ZEN: True}, defaults=frozenset((ZEN, NEW))),
    entry("r", finished={ZEN: True}),
]


def content(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, in any order."""
    tables = ("problems", "measurements", "finished", "counts", "defaults")
    with sqlite3.connect(database.path) as db:
        return {t: sorted(db.execute(f"SELECT * FROM {t}"), key=repr) for t in tables}


def made(path: Path, *parts: list[Entry]) -> Database:
    """A database of several texts, one after the other."""
    database = Database(path)
    for entries in parts:
        database.merge(read_entries(Source("t", print_entries(entries))))
    return database


def test_everything_reads_back(tmp_path: Path) -> None:
    for n, entries in enumerate((ONE, OTHER, [])):
        text = print_entries(entries)
        assert read_entries(Source("t", text)) == entries
        database = made(tmp_path / str(n), entries)
        assert print_entries(database.entries()) == text or not entries


def test_merging_loses_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    both, reverse = made(tmp_path / "a", ONE, OTHER), made(tmp_path / "b", OTHER, ONE)
    assert content(both) == content(reverse)
    again = made(tmp_path / "c", ONE, OTHER, ONE, OTHER, both.entries())
    assert content(again) == content(both) and again.entries() == both.entries()
    assert both.best("zen") == {"q": "b"} and [r.timing.seconds for r in both.rows("q", "zen")] == [1e-6, 5e-6]
    assert both.finished("zen") == {"p": True, "r": True} and [p.key for p in both.problems()] == ["p", "q", "r"]
    assert both.counts("q", "zen") == {"a": Counts(12, 0, 3), "b": Counts(1, 2, 3)}


HEAD = f"""{FIRST}

# what a person adds
problem p
  kind k
  cores 2
  source
    |
  kernel
    | x
  machine m
"""
BEGUN = HEAD + "  compiler c\n  schedule a\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "expected the first line 'intarsia measurements 1', found the end"),
        ("intarsia measurements 2\n", 1, "expected the first line"),
        (HEAD.replace("cores 2", "cores none"), 6, "expected a number of cores"),
        (HEAD.replace("    | x\n", ""), 10, "expected '|' and a line of text"),
        (HEAD.replace("  kind k\n", ""), 5, "expected 'kind'"),
        (HEAD + "  schedule a\n", 12, "expected 'machine' and 'compiler' before it"),
        (BEGUN, None, "expected 'timed' or 'counted', found the end"),
        (HEAD + "  compiler c\n  finished perhaps\n", 13, "'finished some', 'default kept' or 'problem'"),
        (BEGUN + "    timed -1 s, spread 0, 3 runs, choices {}\n", 14, "expected 'timed SECONDS"),
        (BEGUN + "    timed 1 s, spread 0, 3 runs, choices {\"a\": 1.5}\n", 14, "expected 'timed SECONDS"),
        (BEGUN + "    counted 1, 2 and 3\n", 14, "expected 'counted N instructions"),
    ],
)  # fmt: skip
def test_mistakes_are_shown_in_their_line(text: str, line: int | None, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        read_entries(Source("t", text))
    span = caught.value.diagnostics[0].span
    assert caught.value.code == "E1804" and message in str(caught.value) and (span.line if span else None) == line


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, other, text = made(tmp_path / "d", ONE), tmp_path / "e", tmp_path / "m.txt"
    assert main(["tune", "--export", str(text), "--db", str(database.path)]) == 0
    assert capsys.readouterr().out == f"{text}: 4 measurements of 2 kernels\n"
    for changed in (4, 0):
        assert main(["tune", "--import", str(text), "--db", str(other)]) == 0
        assert capsys.readouterr().out == f"{other}: {changed} of 4 measurements of 2 kernels new or faster\n"
    assert content(Database(other)) == content(database)
    text.write_text(text.read_text().replace("finished all", "finished"))
    assert main(["tune", "--import", str(text), "--db", str(tmp_path / "f")]) == 1
    assert "error[E1804]" in capsys.readouterr().err and not (tmp_path / "f").exists(), "all of it or nothing"
    assert main(["tune", "program.ita", "--export", str(text)]) == 2
