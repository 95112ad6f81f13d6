"""What was measured, in one SQLite file: a row for each problem, schedule, machine and compiler.

Rows are only added or made better, so new candidates or another version of the compiler leave what is known as it is.
Several processes may write at once: SQLite locks the file, and each row is a transaction of its own.
"""

from __future__ import annotations

import json
import math
import platform
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import intarsia
from intarsia.backends.cpu.counting import Counts
from intarsia.ir.errors import CompileError
from intarsia.ir.target import Target
from intarsia.tuning.measuring import Timing

WORTH = 0.98
"""A schedule is taken in place of the default one if it takes at most this part of its time."""

PATIENCE = 30.0
"""Seconds that a write waits for those of other processes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS problems (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, source TEXT NOT NULL, kernel TEXT NOT NULL, cores INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS measurements (
    problem TEXT NOT NULL, schedule TEXT NOT NULL, machine TEXT NOT NULL, compiler TEXT NOT NULL,
    choices TEXT NOT NULL, seconds REAL NOT NULL, spread REAL NOT NULL, runs INTEGER NOT NULL,
    PRIMARY KEY (problem, schedule, machine, compiler)
);
CREATE TABLE IF NOT EXISTS finished (
    problem TEXT NOT NULL, machine TEXT NOT NULL, compiler TEXT NOT NULL, whole INTEGER NOT NULL,
    PRIMARY KEY (problem, machine, compiler)
);
CREATE TABLE IF NOT EXISTS defaults (
    problem TEXT NOT NULL, machine TEXT NOT NULL, compiler TEXT NOT NULL, PRIMARY KEY (problem, machine, compiler)
);
CREATE TABLE IF NOT EXISTS counts (
    problem TEXT NOT NULL, schedule TEXT NOT NULL, machine TEXT NOT NULL, compiler TEXT NOT NULL,
    instructions INTEGER NOT NULL, spills INTEGER NOT NULL, live INTEGER NOT NULL,
    PRIMARY KEY (problem, schedule, machine, compiler)
);
"""


@dataclass(frozen=True)
class Row:
    """One measurement. choices: the decisions that lead to the schedule, by name."""

    problem: str
    schedule: str
    choices: Mapping[str, int]
    timing: Timing


@dataclass(frozen=True)
class ProblemRow:
    """A problem: the text of the naive kernel, and the program that it comes from. whole: was every candidate timed?"""

    key: str
    kind: str
    source: str
    kernel: str
    cores: int
    whole: bool = False


@dataclass(frozen=True)
class Found:
    """The fastest schedule of a problem that was measured; gain: the time of the default one over its time."""

    schedule: str
    gain: float


@dataclass(frozen=True)
class Known:
    """What is known of a schedule that one compiler made for one machine: a measurement, what was counted, or both."""

    machine: str
    compiler: str
    schedule: str
    choices: Mapping[str, int]
    timing: Timing | None
    counts: Counts | None


@dataclass(frozen=True)
class Entry:
    """All that is known of a problem. finished: by machine and compiler, was every candidate timed? defaults: machines
    and compilers for which the default schedule was the better one in a program."""

    problem: ProblemRow
    known: tuple[Known, ...]
    finished: Mapping[tuple[str, str], bool]
    defaults: frozenset[tuple[str, str]] = frozenset()


def machine_name(target: Target) -> str:
    """This kind of machine: its processor as LLVM knows it, vectors and caches; a GPU by its name and architecture.
    Cores belong to the problem."""
    if target.kind == "gpu":
        return f"{target.model} {target.cpu}".strip()
    caches = "/".join(str(size >> 10) for size in target.caches)
    return f"{target.cpu} {target.vector_bits} bits, caches {caches} KiB"


@cache
def compiler_name(kind: str = "cpu") -> str:
    """What makes the code: this compiler and LLVM, or Triton for a GPU."""
    tool = "triton" if kind == "gpu" else "llvmlite"
    return f"intarsia {intarsia.__version__}, {tool} {version(tool)}, Python {platform.python_version()}"


class Database:
    """Measurements in a file, which is made when something is written. Raises CompileError E0709 where it is damaged,
    is no database, or cannot be reached. What is written was made for a `kind` of target."""

    def __init__(self, path: Path, kind: str = "cpu") -> None:
        self.path = path
        self._kind = kind

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection, connection:
                connection.executescript(_TABLES)
                yield connection
        except (OSError, sqlite3.Error) as error:
            hint = "if it is damaged, delete it: what was measured is lost then, and nothing else"
            raise CompileError("E0709", f"cannot use the database {self.path}: {error}", hint=hint) from None

    def add(self, problem: ProblemRow, machine: str, rows: Iterable[Row]) -> None:
        """Keep a problem and measurements of it; of two for one schedule, the better one."""
        with self._open() as db:
            values = (problem.key, problem.kind, problem.source, problem.kernel, problem.cores)
            db.execute("INSERT OR IGNORE INTO problems VALUES (?, ?, ?, ?, ?)", values)
            db.executemany(
                "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " seconds = excluded.seconds, spread = excluded.spread, runs = runs + excluded.runs"
                " WHERE excluded.seconds < seconds",
                [
                    (
                        *_identity(r, machine, compiler_name(self._kind)),
                        json.dumps(dict(r.choices)),
                        *_numbers(r.timing),
                    )
                    for r in rows
                ],
            )

    def finish(self, key: str, machine: str, whole: bool) -> None:
        """Note that a problem is done; `whole`: every candidate was timed."""
        with self._open() as db:
            values = (key, machine, compiler_name(self._kind), int(whole))
            db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?)", values)

    def finished(self, machine: str) -> dict[str, bool]:
        """The problems that are done on a machine, and whether every candidate of them was timed."""
        if not self.path.exists():
            return {}
        with self._open() as db:
            found = db.execute("SELECT problem, whole FROM finished WHERE machine = ?", (machine,))
            return {key: bool(whole) for key, whole in found}

    def problems(self) -> list[ProblemRow]:
        """All problems, in the order in which they came."""
        if not self.path.exists():
            return []
        with self._open() as db:
            query = (
                "SELECT key, kind, source, kernel, cores,"
                " EXISTS (SELECT 1 FROM finished f WHERE f.problem = key AND whole) FROM problems ORDER BY rowid"
            )
            found = db.execute(query)
            return [ProblemRow(key, kind, text, code, cores, bool(w)) for key, kind, text, code, cores, w in found]

    def rows(self, problem: str, machine: str) -> list[Row]:
        """What is known of a problem on a machine, the fastest first; of several compilers, the newest measurement."""
        if not self.path.exists():
            return []
        with self._open() as db:
            found = db.execute(
                "SELECT schedule, choices, seconds, spread, runs FROM measurements"
                " WHERE problem = ? AND machine = ? ORDER BY rowid",
                (problem, machine),
            )
            latest = {s: Row(problem, s, json.loads(c), Timing(*timing)) for s, c, *timing in found}
        return sorted(latest.values(), key=lambda row: row.timing.seconds)

    def best(self, machine: str) -> dict[str, str]:
        """The schedule to take on a machine for each problem: the fastest one by itself, unless the default one was
        better in a program."""
        found = self.fastest(machine)
        kept = self._defaults(machine) if found else ()
        return {problem: own.schedule for problem, own in found.items() if problem not in kept}

    def keep_default(self, machine: str, problems: Mapping[str, bool]) -> None:
        """Note of some problems whether the default schedule was the better one in a program."""
        with self._open() as db:
            for problem, kept in problems.items():
                db.execute("DELETE FROM defaults WHERE problem = ? AND machine = ?", (problem, machine))
                if kept:
                    db.execute("INSERT INTO defaults VALUES (?, ?, ?)", (problem, machine, compiler_name(self._kind)))

    def _defaults(self, machine: str) -> frozenset[str]:
        with self._open() as db:
            found = db.execute("SELECT problem FROM defaults WHERE machine = ?", (machine,))
            return frozenset(problem for (problem,) in found)

    def fastest(self, machine: str) -> dict[str, Found]:
        """The schedule that was fastest by itself on a machine for each problem of which something is known; none where
        that is hardly faster than the default one. As in `rows`, of several compilers the newest measurement of a
        schedule counts."""
        if not self.path.exists():
            return {}
        fastest: dict[str, tuple[float, str]] = {}
        default: dict[str, float] = {}
        with self._open() as db:  # beside max(), SQLite gives the columns of the row that has it
            query = (
                "SELECT problem, schedule, seconds, choices, max(rowid) FROM measurements WHERE machine = ?"
                " GROUP BY problem, schedule"
            )
            for problem, schedule, seconds, choices, _ in db.execute(query, (machine,)):
                fastest[problem] = min(fastest.get(problem, (math.inf, "")), (seconds, schedule))
                if not json.loads(choices):
                    default[problem] = min(default.get(problem, math.inf), seconds)
        gains = {p: default.get(p, math.inf) / seconds for p, (seconds, _) in fastest.items()}
        return {p: Found(schedule, gains[p]) for p, (_, schedule) in fastest.items() if WORTH * gains[p] > 1}

    def add_counts(self, problem: str, machine: str, counts: Mapping[str, Counts]) -> None:
        """Keep what was counted in the code of some schedules of a problem."""
        with self._open() as db:
            db.executemany(
                "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (problem, s, machine, compiler_name(self._kind), c.instructions, c.spills, c.live)
                    for s, c in counts.items()
                ],
            )

    def counts(self, problem: str, machine: str) -> dict[str, Counts]:
        """What was counted of a problem's schedules for a machine; of several compilers, the last one that counted."""
        if not self.path.exists():
            return {}
        with self._open() as db:
            query = (
                "SELECT schedule, instructions, spills, live FROM counts"
                " WHERE problem = ? AND machine = ? ORDER BY rowid"
            )
            return {schedule: Counts(*numbers) for schedule, *numbers in db.execute(query, (problem, machine))}

    def uncounted(self, problem: str, machine: str) -> list[str]:
        """The schedules of a problem that were measured on a machine, and not counted as this compiler makes them."""
        if not self.path.exists():
            return []
        with self._open() as db:
            query = (
                "SELECT DISTINCT m.schedule FROM measurements m WHERE m.problem = ? AND m.machine = ? AND NOT EXISTS"
                " (SELECT 1 FROM counts c WHERE c.problem = m.problem AND c.machine = m.machine"
                " AND c.schedule = m.schedule AND c.compiler = ?)"
            )
            return [schedule for (schedule,) in db.execute(query, (problem, machine, compiler_name(self._kind)))]

    def entries(self) -> list[Entry]:
        """Everything in the database, in the order in which it came."""
        problems = self.problems()
        if not problems:
            return []
        with self._open() as db:
            return [Entry(p, tuple(_known(db, p.key)), _finished(db, p.key), _kept(db, p.key)) for p in problems]

    def merge(self, entries: Iterable[Entry]) -> int:
        """Add what is known elsewhere, all of it or, after an error, nothing; of two measurements the better one stays.
        Databases can be merged in any order, and more than once. Returns how many measurements were new or better."""
        changed = 0
        with self._open() as db:
            for entry in entries:
                changed += _merge(db, entry)
        return changed

    def machines(self) -> list[str]:
        """The machines that something was measured on."""
        if not self.path.exists():
            return []
        with self._open() as db:
            return [name for (name,) in db.execute("SELECT DISTINCT machine FROM measurements ORDER BY machine")]


def _identity(row: Row, machine: str, compiler: str) -> tuple[str, str, str, str]:
    return row.problem, row.schedule, machine, compiler


def _numbers(timing: Timing) -> tuple[float, float, int]:
    return timing.seconds, timing.spread, timing.runs


def _known(db: sqlite3.Connection, key: str) -> Iterator[Known]:
    """What is known of the schedules of a problem, in the order in which it came; what was only counted comes last."""
    same = "c.problem = m.problem AND c.schedule = m.schedule AND c.machine = m.machine AND c.compiler = m.compiler"
    query = (
        "SELECT m.machine, m.compiler, m.schedule, choices, seconds, spread, runs, instructions, spills, live"
        f" FROM measurements m LEFT JOIN counts c ON {same} WHERE m.problem = ? ORDER BY m.rowid"
    )
    for machine, compiler, schedule, choices, *numbers in db.execute(query, (key,)):
        counts = None if numbers[3] is None else Counts(*numbers[3:])
        yield Known(machine, compiler, schedule, json.loads(choices), Timing(*numbers[:3]), counts)
    query = (
        "SELECT machine, compiler, schedule, instructions, spills, live FROM counts c WHERE problem = ?"
        f" AND NOT EXISTS (SELECT 1 FROM measurements m WHERE {same}) ORDER BY rowid"
    )
    for machine, compiler, schedule, *numbers in db.execute(query, (key,)):
        yield Known(machine, compiler, schedule, {}, None, Counts(*numbers))


def _finished(db: sqlite3.Connection, key: str) -> dict[tuple[str, str], bool]:
    query = "SELECT machine, compiler, whole FROM finished WHERE problem = ? ORDER BY rowid"
    return {(machine, compiler): bool(whole) for machine, compiler, whole in db.execute(query, (key,))}


def _kept(db: sqlite3.Connection, key: str) -> frozenset[tuple[str, str]]:
    return frozenset(db.execute("SELECT machine, compiler FROM defaults WHERE problem = ?", (key,)))


def _merge(db: sqlite3.Connection, entry: Entry) -> int:
    """Add one entry; how many of its measurements were new or better."""
    p, key = entry.problem, entry.problem.key
    db.execute("INSERT OR IGNORE INTO problems VALUES (?, ?, ?, ?, ?)", (key, p.kind, p.source, p.kernel, p.cores))
    changed = db.executemany(
        "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET choices = excluded.choices,"
        " seconds = excluded.seconds, spread = excluded.spread, runs = excluded.runs WHERE (excluded.seconds,"
        " excluded.spread, excluded.runs, excluded.choices) < (seconds, spread, runs, choices)",
        [
            (key, k.schedule, k.machine, k.compiler, json.dumps(dict(k.choices)), *_numbers(k.timing))
            for k in entry.known
            if k.timing is not None
        ],
    ).rowcount
    db.executemany(
        "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " instructions = excluded.instructions, spills = excluded.spills, live = excluded.live"
        " WHERE (excluded.instructions, excluded.spills, excluded.live) < (instructions, spills, live)",
        [
            (key, k.schedule, k.machine, k.compiler, c.instructions, c.spills, c.live)
            for k in entry.known
            if (c := k.counts) is not None
        ],
    )
    db.executemany(
        "INSERT INTO finished VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET whole = max(whole, excluded.whole)",
        [(key, machine, compiler, int(whole)) for (machine, compiler), whole in entry.finished.items()],
    )
    db.executemany(
        "INSERT OR IGNORE INTO defaults VALUES (?, ?, ?)", [(key, *maker) for maker in sorted(entry.defaults)]
    )
    return max(0, changed)
