"""Instruments that show what a pipeline does: dumps, diffs and times."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from intarsia.ir.graph import Module
from intarsia.ir.text import print_module
from intarsia.passes.pipeline import Context, Instrument, Pass

Write = Callable[[str], None]
ALL = "all"


@dataclass
class PrintIR(Instrument):
    """Prints the module before and after passes: those named, or `all`; with `only_changes`, where it changed.

    A dump is valid input of `intarsia opt`; the line above it is a comment.
    """

    write: Write
    before_passes: frozenset[str] = frozenset()
    after_passes: frozenset[str] = frozenset()
    only_changes: bool = False
    debug_info: bool = False

    def before(self, pass_: Pass, index: int, module: Module, context: Context) -> None:
        if self.before_passes & {pass_.name, ALL}:
            self.write(f"# ----- before {pass_}\n{print_module(module, self.debug_info)}")

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        if not self.after_passes & {pass_.name, ALL}:
            return
        text = print_module(new, self.debug_info)
        if not self.only_changes or text != print_module(old, self.debug_info):
            self.write(f"# ----- after {pass_}\n{text}")


@dataclass
class Diff(Instrument):
    """Prints what each pass changed, as a unified diff."""

    write: Write

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        if new is not old and (text := module_diff(old, new)):
            self.write(f"# ----- {pass_}\n{text}")


@dataclass
class Timing(Instrument):
    """Wall-clock seconds of every pass, without those of other instruments where it is the last of them."""

    clock: Callable[[], float] = time.perf_counter
    seconds: list[tuple[str, float]] = field(default_factory=list)
    _start: float = 0.0

    def before(self, pass_: Pass, index: int, module: Module, context: Context) -> None:
        self._start = self.clock()

    def after(self, pass_: Pass, index: int, old: Module, new: Module, context: Context) -> None:
        self.seconds.append((str(pass_), self.clock() - self._start))

    def table(self) -> str:
        """A line for each pass: milliseconds, share, text of the pass; then the total."""
        total = sum(s for _, s in self.seconds)
        lines = [f"{s * 1e3:9.2f} ms {s / (total or 1):6.1%}  {name}" for name, s in self.seconds]
        return "\n".join([*lines, f"{total * 1e3:9.2f} ms 100.0%  total", ""])


def module_diff(old: Module, new: Module, context_lines: int = 3) -> str:
    """A unified diff of the texts of two modules; empty where they are equal."""
    before, after = (print_module(m).splitlines(keepends=True) for m in (old, new))
    return "".join(difflib.unified_diff(before, after, "before", "after", n=context_lines))
