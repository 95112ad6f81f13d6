"""Times the kernels of PolyBench beside gcc and Polly, and writes results/polybench-LABEL.json.

    python run.py [--kernels gemm,lu] [--dataset LARGE] [--threads 1,2] [--peers gcc,polly] [--label NAME] [--rounds 5]

Every kernel has a process of its own for each number of threads. All versions get the same inputs, are compared with the
first peer's results, and then take turns; the fastest call counts. What a kernel changes is laid anew before each call,
outside of the time. With a label, kernels that are not measured keep the rows that the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent)]

from kernels import KERNELS, Array, Kernel, Random  # noqa: E402
from peers import PEERS, c_arguments  # noqa: E402

RESULTS = Path(__file__).parent.parent / "results"
WARM_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Freed memory is kept, in huge pages: our results are new arrays, and those of C were made before the calls."""
REST_S = 0.3
"""LLVM's OpenMP lets its threads spin for 200 ms after a loop, on the cores of who is next."""
SHORT_S = 30e-3
"""Calls are repeated within their turn for so long: the first one finds what the others left in the caches."""
LONG_S, VERY_LONG_S = 1.0, 8.0
"""A version whose first call takes longer than this has one turn, or none, besides it."""
TOLERANCE = 1e-9


def difference(found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest element."""
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-300))


def ours(kernel: Kernel, arguments: dict[str, Any]) -> Callable[[], list[Array]]:
    """A call of our version; numbers are arrays already, whose conversion takes longer than a small kernel."""
    import intarsia

    function = intarsia.load(kernel.source)[kernel.name]
    order = [np.asarray(arguments[name]) for name in arguments]

    def call() -> list[Array]:
        results = function(*order)
        return list(results) if isinstance(results, tuple) else [results]

    return call


class Peer:
    """A C version with arrays of its own."""

    def __init__(self, kernel: Kernel, peer: str, sizes: dict[str, int], given: dict[str, Any], folder: Path) -> None:
        self.kernel, self.given = kernel, given
        self.arguments = c_arguments(kernel, sizes, given)
        self.fresh = {name: np.array(v) for name, v in self.arguments.items() if isinstance(v, np.ndarray)}
        self.entry = PEERS[peer].compile(kernel, sizes, folder)

    def lay(self) -> None:
        """All arrays as they were."""
        for name, value in self.fresh.items():
            np.copyto(self.arguments[name], value)

    def __call__(self) -> list[Array]:
        self.entry(self.arguments)
        return [self.arguments[name] for name in self.kernel.results]


def seconds(call: Callable[[], object], lay: Callable[[], None]) -> float:
    """The fastest of the calls of one turn."""
    best, total = float("inf"), 0.0
    while total < SHORT_S:
        lay()
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
        best, total = min(best, taken), total + taken
    return best


def measure(name: str, dataset: str, peers: list[str], rounds: int) -> dict[str, Any]:
    """The seconds of each version of a kernel, and how far each is from the first peer's results."""
    kernel = KERNELS[name]
    sizes = kernel.at(dataset)
    given = kernel.make(Random(), **sizes)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], list[Array]]] = {
            peer: Peer(kernel, peer, sizes, given, Path(folder)) for peer in peers
        }
        lays = {peer: call.lay for peer, call in calls.items() if isinstance(call, Peer)}
        calls["intarsia"], lays["intarsia"] = ours(kernel, given), lambda: None
        first: dict[str, float] = {}
        errors: dict[str, float] = {}
        wanted: list[Array] = []
        for label, call in calls.items():
            start = time.perf_counter()
            found = call()
            first[label] = time.perf_counter() - start
            wanted = wanted or [np.array(w) for w in found]
            errors[label] = max(map(difference, found, wanted))
            assert errors[label] <= TOLERANCE, f"{name}: {label} is off by {errors[label]:.2g}"
        best = dict(first)
        turns = {k: 0 if s > VERY_LONG_S else 1 if s > LONG_S else rounds for k, s in first.items()}
        for n in range(rounds):
            for label, call in calls.items():
                if n >= turns[label]:
                    continue
                time.sleep(REST_S if any("parallel" in peer for peer in peers) else 0.0)
                best[label] = min(best[label], seconds(call, lays[label]))
        return {"kernel": name, "sizes": sizes, "seconds": best, "errors": errors, "first": first}


def child(options: argparse.Namespace, name: str, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own, with so many threads on as many cores."""
    peers = [p for p in options.peers.split(",") if PEERS[p].available]
    peers = [f"{p}-parallel" if threads > 1 and p == "polly" else p for p in peers]
    command = [sys.executable, __file__, "--child", name, "--dataset", options.dataset, "--peers", ",".join(peers)]
    environment = {**os.environ, **WARM_MALLOC, "OMP_NUM_THREADS": str(threads)}
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    run = subprocess.run(
        [*command, "--rounds", str(options.rounds)],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if run.returncode:
        return {"kernel": name, "threads": threads, "failed": run.stderr.strip().splitlines()[-1:]}
    return {**json.loads(run.stdout), "threads": threads}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(KERNELS))
    parser.add_argument("--dataset", default="LARGE", choices=("MINI", "MEDIUM", "LARGE"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--peers", default="gcc,polly")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--label", default="")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.dataset, options.peers.split(","), options.rounds)))
        return
    rows = []
    for name in options.kernels.split(","):
        for threads in map(int, options.threads.split(",")):
            row = child(options, name, threads)
            rows.append(row)
            times = " ".join(f"{k} {v * 1e3:.3f}" for k, v in row.get("seconds", {}).items())
            print(f"{name} x{threads}: {times or row['failed']}", flush=True)
    if options.label:
        path = RESULTS / f"polybench-{options.label}.json"
        kept = json.loads(path.read_text())["rows"] if path.exists() else []
        new = {(row["kernel"], row["threads"]) for row in rows}
        rows += [row for row in kept if (row["kernel"], row["threads"]) not in new]
        rows.sort(key=lambda row: (list(KERNELS).index(row["kernel"]), row["threads"]))
        content = {"machine": platform.processor() or platform.machine(), "dataset": options.dataset, "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
