"""How long a program takes on a GPU, by the GPU's own clock: as a whole, and launch by launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from intarsia.commands.interruption import interruptible
from intarsia.commands.timing import argument_bytes, operations_done
from intarsia.deep_stack import with_deep_stack
from intarsia.gpu_calls import PlacedCall
from intarsia.measurement import duration_text, elapsed, median_and_spread, samples, size_text
from intarsia.runtime.gpu import Work


def report_time(call: PlacedCall, compile_seconds: float) -> None:
    """Compile time, median and spread of run time, and the rates that they come to."""
    found = interruptible(lambda: samples(call.seconds))
    median, spread = median_and_spread(found)
    compilation = call.compilation
    done = with_deep_stack(lambda: operations_done(compilation)) / median
    carried = argument_bytes(compilation) / median
    click.echo(f"ready after {duration_text(compile_seconds)}", err=True)
    apart = f"quartiles {duration_text(spread)} apart, {len(found)} runs"
    click.echo(f"run: median {duration_text(median)} on the GPU, {apart}", err=True)
    bandwidth = call.place.device.bandwidth()
    share = f" ({carried / bandwidth:.0%} of its memory's)" if bandwidth else ""
    click.echo(f"     {done / 1e9:.1f} GFLOP/s, {carried / 1e9:.1f} GB/s{share}", err=True)


@dataclass
class _Row:
    """The launches of one function, or the copies."""

    work: Work
    seconds: list[float] = field(default_factory=list)


def report_profile(call: PlacedCall) -> None:
    """Each launch on the program's own data: how often it runs, its time, what its programs move, and the user's
    line. A round is a run of the whole program; the first one does not count."""
    rows: dict[str, _Row] = {}
    rounds = interruptible(lambda: _repeat(call, rows))
    total = sum(sum(r.seconds) for r in rows.values()) or 1.0
    bandwidth = call.place.device.bandwidth()
    click.echo(
        f"{'share':>6} {'times':>6} {'each':>9} {'moved':>9} {'memory':>9} {'GB/s':>7} {'limit':>6}  launch", err=True
    )
    for row in sorted(rows.values(), key=lambda r: -sum(r.seconds)):
        click.echo(_line(row, rounds, total, bandwidth), err=True)


def _repeat(call: PlacedCall, rows: dict[str, _Row]) -> int:
    """Run for up to half a second; gives the number of runs."""
    _round(call)
    rounds, spent = 0, 0.0
    while not rounds or (rounds < 20 and spent < 0.5):
        found: list[tuple[Work, float]] = []
        spent += elapsed(lambda found=found: found.extend(_round(call)))  # type: ignore[misc]
        for work, seconds in found:
            rows.setdefault(work.name, _Row(work)).seconds.append(seconds)
        rounds += 1
    return rounds


def _round(call: PlacedCall) -> list[tuple[Work, float]]:
    """The time of each launch and copy of one run. The host waits for them at the end only, so that they follow each
    other as they do otherwise."""
    device, stream = call.place.device, call.place.stream()
    found: list[tuple[Work, Any, Any]] = []

    def watch(work: Work, do: Callable[[], None]) -> None:
        before = device.moment(stream)
        do()
        found.append((work, before, device.moment(stream)))

    call.watched(watch)
    return [(work, device.seconds(before, after)) for work, before, after in found]


def _line(row: _Row, rounds: int, total: float, bandwidth: float | None) -> str:
    """`memory` is what the memory has to give and take, `limit` how much of the time it needs for that at least."""
    work, each = row.work, float(np.median(row.seconds)) or 1e-9
    rate = work.touched / each
    limit = f"{rate / bandwidth:.0%}" if bandwidth else "-"
    sizes = f"{size_text(work.moved):>9} {size_text(work.touched):>9}"
    place = f"  {work.span}" if work.span else ""
    launches = f"{len(row.seconds) // rounds:6} {duration_text(each):>9}"
    return f"{sum(row.seconds) / total:6.1%} {launches} {sizes} {rate / 1e9:7.1f} {limit:>6}  {work.name}{place}"
