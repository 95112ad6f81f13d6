"""What tuning gains: times PolyBench as compiled by default and as tuned, and writes results/polybench-tuned-LABEL.json.

    python tuned.py [--kernels gemm,lu] [--threads 1,2] [--seconds 30] [--only tune or time] [--folder DIR]
                    [--label NAME] [--rounds 5]

`--only tune` searches and keeps what it finds in a folder, `--only time` compares with what is there: the first may run
beside other work, the second wants a machine at rest. Every kernel has a process of its own for each number of threads.
Both versions get the same inputs, their results are compared, and they take turns; the fastest call counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]

from kernels import KERNELS, Array, Kernel, Random  # noqa: E402
from run import RESULTS, TOLERANCE, WARM_MALLOC, difference  # noqa: E402

TURN_S = 20e-3
"""Calls of one version are repeated for so long before the other one has its turn."""
VERSIONS = ("default", "tuned")


def caller(kernel: Kernel, given: dict[str, Any], cache: Path) -> Callable[[], list[Array]]:
    """A call of a kernel as it is compiled with what a cache knows."""
    import intarsia

    os.environ["INTARSIA_CACHE_DIR"] = str(cache)
    function = intarsia.load(kernel.source)[kernel.name]
    order = [np.asarray(value) for value in given.values()]

    def call() -> list[Array]:
        results = function(*order)
        return list(results) if isinstance(results, tuple) else [results]

    return call


def turn(call: Callable[[], object]) -> list[float]:
    """Seconds of the calls of one turn."""
    found: list[float] = []
    while sum(found) < TURN_S:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def measure(name: str, dataset: str, folder: Path, rounds: int, compile_only: bool) -> dict[str, Any]:
    """The least seconds of both versions, by turns."""
    kernel = KERNELS[name]
    given = kernel.make(Random(), **kernel.at(dataset))
    calls = {version: caller(kernel, given, folder / version) for version in VERSIONS}
    found: dict[str, list[Array]] = {}
    for version in VERSIONS:
        os.environ["INTARSIA_CACHE_DIR"] = str(folder / version)
        found[version] = calls[version]()  # compiles
    error = max(map(difference, found["tuned"], found["default"]))
    assert error <= TOLERANCE, f"{name}: the tuned version is off by {error:.2g}"
    if compile_only:
        return {"error": error}
    found.clear()
    samples: dict[str, list[float]] = {version: [] for version in VERSIONS}
    for n in range(rounds):
        for version in VERSIONS if n % 2 else VERSIONS[::-1]:
            samples[version] += turn(calls[version])
    return {"seconds": {v: min(s) for v, s in samples.items()}, "error": error}


def arguments_text(kernel: Kernel, dataset: str) -> list[str]:
    """The sizes of a kernel, and its arguments that are numbers, as options of the command line."""
    sizes = kernel.at(dataset)
    given = kernel.make(Random(), **sizes)
    used = {n for v in given.values() if isinstance(v, np.ndarray) for n in v.shape}
    dims = [f"--dim={name}={n}" for name, n in sizes.items() if n in used]
    return [*dims, *(f"--arg={name}={v}" for name, v in given.items() if not isinstance(v, np.ndarray))]


def tune(name: str, dataset: str, folder: Path, seconds: float) -> None:
    """Search the schedules of a program's kernels."""
    kernel = KERNELS[name]
    os.environ["INTARSIA_CACHE_DIR"] = str(folder / "tuned")
    program = f"{kernel.source}:{name}"
    command = ["tune", program, *arguments_text(kernel, dataset), "--seconds", str(seconds)]
    from intarsia.cli import main as intarsia_main

    intarsia_main(command)


def child(options: argparse.Namespace, name: str, threads: int, task: str) -> dict[str, Any]:
    """A task in a process of its own, with so many threads on as many cores."""
    folder = Path(options.folder) / f"{threads}" / name
    command = [sys.executable, __file__, "--child", name, "--only", task, "--folder", str(folder)]
    command += ["--seconds", str(options.seconds), "--rounds", str(options.rounds), "--dataset", options.dataset]
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    run = subprocess.run(
        command,
        env={**os.environ, **WARM_MALLOC, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if run.returncode:
        return {"failed": (run.stderr or run.stdout).strip().splitlines()[-3:]}
    lines = run.stdout.strip().splitlines()
    return json.loads(lines[-1]) if task != "tune" else {"log": lines}


def report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Keep rows, beside those of kernels that were not measured."""
    path = RESULTS / f"polybench-tuned-{options.label}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(row["kernel"], row["threads"]) for row in rows}
    rows = rows + [row for row in kept if (row["kernel"], row["threads"]) not in new]
    rows.sort(key=lambda row: (row["threads"], list(KERNELS).index(row["kernel"])))
    content = {"dataset": options.dataset, "seconds of search": options.seconds, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--dataset", default="LARGE", choices=("MINI", "MEDIUM", "LARGE"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("tune", "compile", "time"))
    parser.add_argument("--folder", default="/tmp/polybench-tuned")
    parser.add_argument("--label", default="")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child and options.only == "tune":
        tune(options.child, options.dataset, Path(options.folder), options.seconds)
        return
    if options.child:
        compile_only = options.only == "compile"
        row = measure(options.child, options.dataset, Path(options.folder), options.rounds, compile_only)
        print(json.dumps(row))
        return
    rows = []
    for threads in map(int, options.threads.split(",")):
        for name in options.kernels.split(","):
            for task in (options.only,) if options.only else ("tune", "time"):
                row = child(options, name, threads, task)
                if "log" in row:
                    print(f"{name} x{threads}:", *row["log"], sep="\n", flush=True)
                elif "seconds" not in row:
                    print(f"{name} x{threads}: {row}", flush=True)
                else:
                    default, tuned = (1e3 * row["seconds"][v] for v in VERSIONS)
                    print(f"{name} x{threads}: {default:.4g} ms, {tuned:.4g} ms, {default / tuned:.3f}", flush=True)
                    rows.append({"kernel": name, "threads": threads, **row})
    if rows:
        ratios = [row["seconds"]["default"] / row["seconds"]["tuned"] for row in rows]
        print(f"geometric mean {math.exp(statistics.fmean(map(math.log, ratios))):.3f}")
    if options.label:
        report(options, rows)


if __name__ == "__main__":
    main()
