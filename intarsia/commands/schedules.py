"""Of `explain --about schedule`: the schedule of a kernel beside the default one and the next best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from intarsia.driver import Compilation
from intarsia.ir.kernel import Kernel
from intarsia.measurement import duration_text
from intarsia.passes.schedule.candidates import Candidate, Space
from intarsia.passes.schedule.choosing import best_schedule
from intarsia.passes.schedule.scheduling import called_in_loops
from intarsia.tuning.known import known_rows

FASTEST = 3
"""Schedules that were measured of which the decisions are found out."""


def comparisons(compilation: Compilation) -> dict[str, list[str]]:
    """Lines about each kernel of a compilation, by its name."""
    scheduled = {k.name: k for k in compilation.scheduled.kernels}
    kernels = [k for k in compilation.kernels.kernels if k.name in scheduled]
    return {k.name: list(_Comparison(k, scheduled[k.name], compilation).lines()) for k in kernels}


class _Comparison:
    """What there is to say of one kernel, naive and scheduled, of a compilation."""

    def __init__(self, kernel: Kernel, scheduled: Kernel, compilation: Compilation) -> None:
        self._compilation = compilation
        repeated = kernel.name in called_in_loops(compilation.kernels.graph.body)
        self._space = Space(kernel, compilation.target, repeated, compilation.context.writable)
        rows = known_rows(kernel, compilation.target)
        self._measured = {row.schedule: row.timing.seconds for row in rows}
        self._looked = self._looked_at(kernel, repeated)
        measured = [self._space.candidate(row.choices) for row in rows[:FASTEST]]
        known = [self._space.default, *self._looked, *(c for c in measured if str(c.schedule) in self._measured)]
        self._known = {str(c.schedule): c for c in reversed(known)}
        self._kernels = {text: c.kernel for text, c in self._known.items()}
        self._chosen = compilation.schedules.get(kernel.name, "")
        self._kernels.setdefault(self._chosen, scheduled)

    def _looked_at(self, kernel: Kernel, repeated: bool) -> Sequence[Candidate]:
        """What the compilation has looked at, as it does so again; for a GPU, where it looks at none, what differs from
        the default schedule in one decision."""
        context, looked = self._compilation.context, list[Candidate]()
        if context.target.kind == "gpu":
            return list(self._space.neighbours())
        if (tried := context.tried.get(replace(kernel, name=""))) is not None:
            looked.append(Candidate.of(tried))
        elif context.predict is not None:
            best_schedule(kernel, context.target, context.predict, repeated, lambda b: looked.append(Candidate.of(b)))
        return looked

    def lines(self) -> Iterator[str]:
        """How many schedules there are; the default one, the chosen one, and the fastest of the others (of those that
        were measured, if any were): their times, and by which decisions they differ."""
        default = self._space.default
        if not default.decisions:
            yield "the only schedule that there is"
            return
        looked = "predicted" if self._compilation.target.kind == "gpu" else "looked at"
        counts = ((self._looked, looked), (self._measured, "measured"))
        yield f"about {self._space.size} schedules" + "".join(f", {len(n)} {what}" for n, what in counts if n)
        text, chosen = str(default.schedule), self._known.get(self._chosen)
        yield f"{'chosen is the default one' if text == self._chosen else 'default'}: {self._times(text)}"
        if text != self._chosen:
            yield f"chosen: {self._times(self._chosen)}; other than in the default one"
            yield from differences(chosen, default) if chosen else ["  steps that no decision leads to"]
        others = sorted((other for other in self._known if other != self._chosen), key=self._rank)
        if others and others[0] == text:
            yield "runner-up is the default one"
        elif others:
            yield f"runner-up: {self._times(others[0])}; other than in the {'chosen' if chosen else 'default'} one"
            yield from differences(self._known[others[0]], chosen or default)

    def _rank(self, text: str) -> tuple[bool, float]:
        """What was measured comes first, then what is predicted."""
        measured = self._measured.get(text)
        return (False, measured) if measured is not None else (True, self._predicted(text) or 0.0)

    def _predicted(self, text: str) -> float | None:
        predict, default = self._compilation.context.predict, self._space.default
        if predict is None:
            return None
        others = [] if text == str(default.schedule) else [self._kernels[text]]
        return predict([default.kernel, *others])[-1]

    def _times(self, text: str) -> str:
        times = (("predicted", self._predicted(text)), ("measured", self._measured.get(text)))
        return ", ".join(f"{word} {duration_text(seconds)}" for word, seconds in times if seconds is not None)


def differences(one: Candidate, other: Candidate) -> Iterator[str]:
    """A line for each decision that a candidate made otherwise than another one, with the options that both took. What
    an option is called may depend on other decisions, so they are compared by their places."""
    for name in one.decisions:
        if one.choices.get(name, 0) != other.choices.get(name, 0):
            yield f"  {name}: {one.taken(name)}{f', not {other.taken(name)}' if name in other.decisions else ''}"
