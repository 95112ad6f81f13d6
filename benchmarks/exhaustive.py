"""What a search finds beside the best of all schedules, for kernels of which every schedule was measured.

    venv-intarsia/bin/python exhaustive.py mine.sqlite [--seconds 30] [--least 60] [--count 16] [--out results/...json]

`intarsia costmodel collect mine.sqlite --exhaustive 300` makes the database. The search knows nothing of it. At the end
the schedule that was found and the best ones of the database take turns. A kernel that the file of results has already
is left out, so that this may be ended and goes on where it was.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from intarsia.costmodel.predictor import predict
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import read_kernel
from intarsia.options import host_target
from intarsia.tuning.database import WORTH, Database, machine_name
from intarsia.tuning.measuring import Rounds, Stopwatch
from intarsia.tuning.search import Budget, search
from intarsia.tuning.spaces import space_of

OUT = Path(__file__).resolve().parent / "results" / "exhaustive.json"

BEST = 3
"""Of the database, so many of the fastest schedules are timed again: the first of them was lucky as well as fast."""

ROUNDS = Rounds(9, 15, patience=3.0)


def kernels(database, target, least):
    """Problems of which every schedule was measured, with their rows, the fastest first; kinds in turn."""
    machine = machine_name(target)
    finished = database.finished(machine)
    kinds = {}
    for problem in database.problems():
        rows = database.rows(problem.key, machine)
        if finished.get(problem.key) and problem.cores == 1 and len(rows) >= least:
            kinds.setdefault(problem.kind, []).append((problem, sorted(rows, key=lambda r: r.timing.seconds)))
    while kinds:
        for kind in sorted(kinds):
            yield kinds[kind].pop(0)
        kinds = {kind: left for kind, left in kinds.items() if left}


def measure(problem, rows, target, seconds):
    """Search one kernel, then time what was found by turns with the default schedule and the best of the database."""
    kernel = read_kernel(Source("kernel", problem.kernel))
    result = search(kernel, target, lambda kernels: predict(kernels, target), Budget(seconds=seconds))
    space = space_of(kernel, target)
    taken = result.best if result.gain > 1 / WORTH else result.default  # as `intarsia tune` does
    best = [space.candidate(r.choices) for r in rows[:BEST]]
    timings = Stopwatch.of(kernel, target, rounds=ROUNDS).time([space.default, taken.candidate, *best])
    default, found, *others = (t.seconds for t in timings)
    return {
        "kind": problem.kind,
        "source": problem.source,
        "schedules": len(rows),
        "measured by the search": len(result.trials),
        "default_us": 1e6 * default,
        "tuned_us": 1e6 * found,
        "best_us": 1e6 * min(others),
        "tuned over best": found / min(others),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--least", type=int, default=60, help="schedules of a kernel")
    parser.add_argument("--count", type=int, default=16, help="kernels in all")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    target = replace(host_target(), cores=1)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for problem, rows in kernels(Database(options.database), target, options.least):
        if len(found) >= options.count:
            break
        if problem.key not in found:
            found[problem.key] = measure(problem, rows, target, options.seconds)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            print(problem.kind, {k: v for k, v in found[problem.key].items() if k != "source"}, flush=True)
    ratios = sorted(own["tuned over best"] for own in found.values())
    print(f"{len(ratios)} kernels: tuned over best, median {ratios[len(ratios) // 2]:.3f}, worst {ratios[-1]:.3f}")


if __name__ == "__main__":
    main()
