"""What a call from Python costs beside its work: tiny arrays, a new one as the result.

    python dispatch.py [--out results/dispatch.json]

Each peer runs in its own process, pinned to one core, in interleaved rounds; report.py makes a table of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "dispatch.json"
ROUNDS, BATCHES, SECONDS = 4, 40, 0.004
NAMES = [f"x{i}" for i in range(10)]
TEN = " + ".join(NAMES)


def intarsia_calls():
    import intarsia

    def function(names, body):
        return intarsia.jit(f"fn f({', '.join(f'{n}: f32[N]' for n in names)}) -> f32[N] {{ return {body} }}")

    return {"intarsia": (lambda x: x, function("xy", "x + y"), function(NAMES, TEN))}


def numpy_calls():
    import numpy

    return {"numpy": (lambda x: x, numpy.add, eval(f"lambda {', '.join(NAMES)}: {TEN}"))}


def torch_calls():
    import torch

    torch.set_num_threads(1)
    ten = eval(f"lambda {', '.join(NAMES)}: {TEN}")
    return {
        "torch": (torch.from_numpy, torch.add, ten),
        "torch.compile": (torch.from_numpy, torch.compile(lambda x, y: x + y), torch.compile(ten)),
    }


def jax_calls():
    import jax

    ten = jax.jit(eval(f"lambda {', '.join(NAMES)}: {TEN}"))
    return {"jax.jit": (jax.numpy.asarray, jax.jit(lambda x, y: x + y), ten)}


# process: (virtual environment, calls: two arguments and ten)
PEERS = {
    "intarsia": ("intarsia", intarsia_calls),
    "numpy": ("misc", numpy_calls),
    "torch": ("torch", torch_calls),
    "jax": ("jax", jax_calls),
}


def seconds(call, arguments):
    """Means of batches of calls."""
    call(*arguments), call(*arguments), call(*arguments)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        call(*arguments)
        count += 1
    found = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for _ in range(count):
            call(*arguments)
        found.append((time.perf_counter() - start) / count)
    return found


def measure(peer):
    """One round of one peer: rows with samples in nanoseconds."""
    import numpy

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for name, (convert, two, ten) in PEERS[peer][1]().items():
        x = convert(numpy.ones(16, numpy.float32))
        for workload, call, arguments in (("two", two, [x, x]), ("ten", ten, [x] * 10)):
            assert (numpy.asarray(call(*arguments)) == len(arguments)).all()
            samples = [round(s * 1e9, 1) for s in seconds(call, arguments)]
            rows.append({"peer": name, "workload": workload, "samples": samples})
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", choices=PEERS, help="one round of one peer, as JSON")
    parser.add_argument("--out", default=str(OUT))
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    rows = {}
    for _ in range(ROUNDS):
        for peer, (environment, _) in PEERS.items():
            python = HERE / f"venv-{environment}" / "bin" / "python"
            if not python.exists():
                continue
            run = [str(python), __file__, "--measure", peer]
            own = {**os.environ, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, env=own)
            for row in json.loads(done.stdout.splitlines()[-1]):
                rows.setdefault((row["peer"], row["workload"]), []).extend(row["samples"])
    results = [
        {"peer": p, "workload": w, "median_ns": statistics.median(s), "min_ns": min(s), "samples": s}
        for (p, w), s in rows.items()
    ]
    Path(arguments.out).write_text(json.dumps({"python": sys.version.split()[0], "results": results}, indent=0) + "\n")
    for r in results:
        print(f"{r['workload']:4} {r['peer']:14} median {r['median_ns']:8.0f} ns   min {r['min_ns']:8.0f} ns")


def table(path=OUT):
    """Lines of a table for RESULTS.md."""
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    found = {(r["workload"], r["peer"]): r for r in rows}
    peers = list(dict.fromkeys(r["peer"] for r in rows))
    lines = ["| arguments | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for workload in ("two", "ten"):
        cells = [f"{r['median_ns'] / 1e3:.2f} ({r['min_ns'] / 1e3:.2f})" for p in peers if (r := found[workload, p])]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
