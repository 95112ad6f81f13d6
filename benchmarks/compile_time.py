"""What compiling costs: whole processes from text to results, with an empty cache and with a full one.

    venv-intarsia/bin/python compile_time.py [--rounds 3] [--out results/compile-time.json]

Each workload runs in a process of its own that starts Python, compiles and runs once, on zeros; each example is run on
random data from the command line. report.py makes a table of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "compile-time.json"
EXAMPLES = {
    "attention.ita": ["attention.ita:causal", "--dim", "H=8", "--dim", "S=512", "--dim", "D=64"],
    "minilm.ita": ["minilm.ita", "--dim=B=2", "--dim=T=32", "--dim=V=30522", "--dim=P=512", "--dim=D=384"]
    + ["--dim=F=1536", "--dim=L=6"],
}


def build(name, shapes):
    """The work of one process."""
    import numpy
    from adapters import intarsia_

    intarsia_.setup(1, None)
    intarsia_.BUILD[name](**{k: numpy.zeros(shape, dtype) for k, (shape, dtype) in shapes.items()})()


def processes():
    """By name: the arguments of the process."""
    from adapters import intarsia_
    from workloads import WORKLOADS

    found = {
        name: ["-m", "intarsia", "run", f"{HERE.parent}/examples/{program}", *dims, "--random"]
        for name, (program, *dims) in EXAMPLES.items()
    }
    for name in intarsia_.BUILD:
        shapes = {k: (v.shape, str(v.dtype)) for k, v in WORKLOADS[name].data()[0].items()}
        found[name] = [__file__, "--build", name, json.dumps(shapes)]
    return found


def seconds(arguments, cache, bytecode):
    """How long one process takes: on the clock, and of the processor. `bytecode` holds what Python makes of our source,
    as an installed package does."""
    own = {**os.environ, "INTARSIA_CACHE_DIR": cache, "PYTHONPYCACHEPREFIX": bytecode}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=HERE, env=own)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return round(time.perf_counter() - start, 3), round(spent, 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", nargs=2, help="one workload, in this process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=str(OUT))
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build[0], json.loads(arguments.build[1]))
        return
    samples = {}
    bytecode = tempfile.TemporaryDirectory()
    for name, process in processes().items():
        with tempfile.TemporaryDirectory() as cache:
            seconds(process, cache, bytecode.name)
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    samples.setdefault((name, state), []).append(seconds(process, cache, bytecode.name))
        both = [statistics.median(t for t, _ in samples[name, state]) for state in ("cold", "warm")]
        print(f"{name:20} cold {both[0]:.2f} s   warm {both[1]:.2f} s", flush=True)
    results = [
        {"program": n, "cache": s, "median_s": statistics.median(t for t, _ in v), "samples": v}
        for (n, s), v in samples.items()
    ]
    Path(arguments.out).write_text(json.dumps({"python": sys.version.split()[0], "results": results}, indent=0) + "\n")


def table(path=OUT):
    """Lines of a table for RESULTS.md."""
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    found = {(r["program"], r["cache"]): r["median_s"] for r in rows}
    lines = ["| program | cold cache, s | warm cache, s |", "|---|---|---|"]
    programs = list(dict.fromkeys(r["program"] for r in rows))
    lines += [f"| {p} | {found[p, 'cold']:.2f} | {found[p, 'warm']:.2f} |" for p in programs]
    for state in ("cold", "warm"):
        times = [found[p, state] for p in programs if p not in EXAMPLES]
        if times:
            worst = max(times)
            lines += ["", f"Workloads, {state}: median {statistics.median(times):.2f} s, longest {worst:.2f} s."]
    return lines


if __name__ == "__main__":
    main()
