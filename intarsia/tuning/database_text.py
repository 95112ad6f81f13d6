"""Measurements as text: a line for each fact, in the order of the database, to be read, compared and merged.

    problem 3f0c5a1be2d94c07
      kind tuned
      cores 2
      source
        | fn f(x: f32[96, 160]) -> f32[160, 96] { return transpose(x) }
      kernel
        | kernel f_transpose(…
      machine znver5 512 bits, caches 48/1024/32768 KiB
      compiler intarsia 0.1.0, llvmlite 0.50.0, Python 3.11.7
      schedule split i0 16; vectorize i0.1
        timed 7.38e-05 s, spread 0.012, 15 runs, choices {"vectors": 1}
        counted 210 instructions, 0 spills, 9 live
      finished some
      default kept

A machine or a compiler is that of all that follows, until the next one. Floats are written so that they read back
exactly. `#` begins a comment where a line may stand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator

from intarsia.backends.cpu.counting import Counts
from intarsia.ir.errors import CompileError, Source, Span
from intarsia.tuning.database import Entry, Known, ProblemRow
from intarsia.tuning.measuring import Timing

FIRST = "intarsia measurements 1"
"""The first line: what it is, and the version of the format."""

_TIMED = re.compile(r"(\S+) s, spread (\S+), (\d+) runs, choices (\{.*\})")
_COUNTED = re.compile(r"(\d+) instructions, (\d+) spills, (\d+) live")
_WHOLE = {"all": True, "some": False}


def print_entries(entries: Iterable[Entry]) -> str:
    """What `read_entries` reads."""
    return "\n".join([FIRST, *(line for entry in entries for line in ("", *_lines(entry)))]) + "\n"


def _lines(entry: Entry) -> Iterator[str]:
    problem = entry.problem
    yield f"problem {problem.key}"
    yield _line("  kind", problem.kind)
    yield f"  cores {problem.cores}"
    for word, text in (("source", problem.source), ("kernel", problem.kernel)):
        yield f"  {word}"
        yield from (_line("    |", line) for line in text.split("\n"))
    maker = ("", "")
    for known in entry.known:
        yield from _changes(maker, maker := (known.machine, known.compiler))
        yield _line("  schedule", known.schedule)
        if (timing := known.timing) is not None:
            choices = json.dumps(dict(known.choices), ensure_ascii=False)
            yield f"    timed {timing.seconds!r} s, spread {timing.spread!r}, {timing.runs} runs, choices {choices}"
        if (counts := known.counts) is not None:
            yield f"    counted {counts.instructions} instructions, {counts.spills} spills, {counts.live} live"
    for other, whole in entry.finished.items():
        yield from _changes(maker, maker := other)
        yield f"  finished {'all' if whole else 'some'}"
    for other in sorted(entry.defaults):
        yield from _changes(maker, maker := other)
        yield "  default kept"


def _line(word: str, rest: str) -> str:
    return f"{word} {rest}" if rest else word


def _changes(before: tuple[str, str], after: tuple[str, str]) -> Iterator[str]:
    """Lines that name a machine or a compiler where it is not that of the lines before."""
    for word, old, new in zip(("machine", "compiler"), before, after):
        if old != new:
            yield f"  {word} {new}"


def read_entries(source: Source) -> list[Entry]:
    """The entries of a text. Raises CompileError E1804 with the line that cannot be read."""
    reader = _Reader(source)
    reader.first()
    found = []
    while not reader.at_end:
        found.append(reader.entry())
    return found


class _Reader:
    """Takes one line after the other. The next one is at `self.place`, split at its first word."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.place = -1
        self.word = self.rest = ""
        self.advance()

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.source.line_starts)

    def advance(self) -> None:
        """Go to the next line that says something."""
        self.place += 1
        while not self.at_end:
            start, end = self._bounds()
            line = self.source.text[start:end]
            self.word, _, self.rest = line.partition(" ")
            if self.word and not self.word.startswith("#"):
                return
            self.place += 1
        self.word = self.rest = ""

    def _bounds(self) -> tuple[int, int]:
        """Where the line begins and ends, without its indentation."""
        starts = self.source.line_starts
        start, end = starts[self.place], (*starts, len(self.source.text) + 1)[self.place + 1] - 1
        while start < end and self.source.text[start] == " ":
            start += 1
        return start, end

    def error(self, message: str) -> CompileError:
        if self.at_end:
            return CompileError("E1804", f"{self.source.name}: {message}, found the end")
        return CompileError("E1804", message, Span(self.source, *self._bounds()))

    def first(self) -> None:
        if self.at_end or f"{self.word} {self.rest}" != FIRST:
            raise self.error(f"expected the first line '{FIRST}'")
        self.advance()

    def take(self, word: str) -> str:
        """What follows a word that has to come now."""
        if self.word != word:
            raise self.error(f"expected '{word}'")
        rest = self.rest
        self.advance()
        return rest

    def block(self, word: str) -> str:
        """The lines after a word, each behind `|`."""
        self.take(word)
        lines = []
        while self.word == "|":
            lines.append(self.take("|"))
        if not lines:
            raise self.error("expected '|' and a line of text")
        return "\n".join(lines)

    def entry(self) -> Entry:
        key, kind = self.take("problem"), self.take("kind")
        if self.word == "cores" and not re.fullmatch(r"[1-9]\d*", self.rest):
            raise self.error("expected a number of cores")
        cores = int(self.take("cores"))
        problem = ProblemRow(key, kind, self.block("source"), self.block("kernel"), cores)
        known: list[Known] = []
        finished: dict[tuple[str, str], bool] = {}
        defaults: set[tuple[str, str]] = set()
        machine = compiler = ""
        while not self.at_end and self.word != "problem":
            match self.word:
                case "machine":
                    machine = self.take("machine")
                case "compiler":
                    compiler = self.take("compiler")
                case "schedule" | "finished" | "default" if not (machine and compiler):
                    raise self.error("expected 'machine' and 'compiler' before it")
                case "schedule":
                    known.append(self.known(machine, compiler))
                case "finished" if self.rest in _WHOLE:
                    finished[machine, compiler] = _WHOLE[self.take("finished")]
                case "default" if self.rest == "kept":
                    self.advance()
                    defaults.add((machine, compiler))
                case _:
                    words = "'machine', 'compiler', 'schedule', 'finished all', 'finished some', 'default kept'"
                    wanted = f"{words} or 'problem'"
                    raise self.error(f"expected {wanted}")
        return Entry(problem, tuple(known), finished, frozenset(defaults))

    def known(self, machine: str, compiler: str) -> Known:
        schedule = self.take("schedule")
        timing, counts = None, None
        choices: dict[str, int] = {}
        if self.word == "timed":
            timing, choices = self.timed()
        if self.word == "counted":
            found = _COUNTED.fullmatch(self.rest)
            if found is None:
                raise self.error("expected 'counted N instructions, N spills, N live'")
            counts = Counts(*map(int, found.groups()))
            self.advance()
        if timing is None and counts is None:
            raise self.error("expected 'timed' or 'counted'")
        return Known(machine, compiler, schedule, choices, timing, counts)

    def timed(self) -> tuple[Timing, dict[str, int]]:
        found = _TIMED.fullmatch(self.rest)
        try:
            if found is None:
                raise ValueError
            seconds, spread, runs, choices = float(found[1]), float(found[2]), int(found[3]), json.loads(found[4])
            if not (math.isfinite(seconds) and seconds > 0 and math.isfinite(spread)):
                raise ValueError
            if not all(type(option) is int for option in choices.values()):
                raise ValueError
        except ValueError:
            message = "expected 'timed SECONDS s, spread PART, N runs, choices {\"DECISION\": N, …}'"
            raise self.error(message) from None
        self.advance()
        return Timing(seconds, spread, runs), choices
