"""Time against size, from tiny to beyond the last cache: matmul, softmax and attention beside NumPy and PyTorch.

    python scaling.py [--peers intarsia,numpy,torch] [--threads 1] [--draw]

Each peer runs in a process of its own, pinned where there is one thread; for one size all take turns for a few rounds.
Writes results/scaling.json and, with a picture of each kind, SCALING.md; `--draw` only writes the page again.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from peers import ask, start

HERE = Path(__file__).resolve().parent
VENVS = {"intarsia": "intarsia", "numpy": "misc", "torch": "torch"}
ROUNDS = 5
SIZES = {
    "matmul": (4, 8, 16, 31, 64, 127, 128, 255, 256, 511, 512, 767, 1024, 1536, 2048),
    "softmax": (16, 64, 256, 1000, 1024, 4095, 4096, 16384, 65536),
    "attention": (16, 32, 64, 128, 255, 256, 512, 1000, 1024, 2048),
}
WHAT = {
    "matmul": ("n x n times n x n, f32", "GFLOP/s", lambda n: 2 * n**3),
    "softmax": ("rows of n, 2^20 / n of them at least 16, f32", "GB/s", lambda n: 8 * n * max(16, (1 << 20) // n)),
    "attention": ("4 heads, n x n, 64 wide, f32", "GFLOP/s", lambda n: 4 * 4 * 64 * n * n),
}
PROGRAMS = """
fn matmul(a: f32[N, N], b: f32[N, N]) -> f32[N, N] { return a @ b }
fn softmax(x: f32[R, N]) -> f32[R, N] {
    e[i, j] = exp(x[i, j] - max[k](x[i, k]))
    return tensor[i, j](e[i, j] / sum[k](e[i, k]))
}
fn attention(q: f32[H, N, D], k: f32[H, N, D], v: f32[H, N, D]) -> f32[H, N, D] {
    s[h, i, j] = sum[d](q[h, i, d] * k[h, j, d]) / sqrt(f32(D))
    e[h, i, j] = exp(s[h, i, j] - max[l](s[h, i, l]))
    p[h, i, j] = e[h, i, j] / sum[l](e[h, i, l])
    return tensor[h, i, d](sum[j](p[h, i, j] * v[h, j, d]))
}
"""


def inputs(kind, n):
    import numpy as np

    shape = {"matmul": (n, n), "softmax": (max(16, (1 << 20) // n), n), "attention": (4, n, 64)}[kind]
    count = {"matmul": 2, "softmax": 1, "attention": 3}[kind]
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for _ in range(count)]


def functions(peer, threads):
    """By kind: from NumPy inputs to a call without arguments that gives a NumPy result."""
    import numpy as np

    if peer == "intarsia":
        import intarsia

        program = intarsia.compile(PROGRAMS)
        return {kind: (lambda *a, f=program[kind]: lambda: f(*a)) for kind in SIZES}
    if peer == "torch":
        import torch

        torch.set_num_threads(threads)
        own = {
            "matmul": torch.matmul,
            "softmax": lambda x: torch.softmax(x, 1),
            "attention": torch.nn.functional.scaled_dot_product_attention,
        }

        def make(f):
            def prepare(*arrays):
                t = [torch.from_numpy(x)[None] if x.ndim == 3 else torch.from_numpy(x) for x in arrays]
                return lambda: f(*t).numpy().reshape(arrays[0].shape)

            return prepare

        return {kind: make(f) for kind, f in own.items()}

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        e /= e.sum(-1, keepdims=True)
        return e

    def attention(q, k, v):
        return softmax(q @ k.transpose(0, 2, 1) / np.float32(8)) @ v

    own = {"matmul": np.matmul, "softmax": softmax, "attention": attention}
    return {kind: (lambda *a, f=f: lambda: f(*a)) for kind, f in own.items()}


def work(peer, threads):
    """One peer: answers lines of `[kind, n, seconds]` with samples and a checksum of the result."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make, ready, calls = functions(peer, threads), {}, {}
    for line in sys.stdin:
        kind, n, seconds = json.loads(line)
        if (kind, n) != ready:
            ready, call = (kind, n), make[kind](*inputs(kind, n))
            result = call()
            calls = {"sum": float(abs(result).sum()), "last": float(result.flat[-1])}
        start = time.perf_counter()
        call()
        inner = max(1, round(1e-3 / max(time.perf_counter() - start, 1e-7)))
        samples, end = [], time.perf_counter() + seconds
        while len(samples) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(inner):
                call()
            samples.append((time.perf_counter() - start) / inner)
        print(json.dumps({"samples": samples, **calls}), file=out, flush=True)


def measure(peers, threads):
    processes = {p: start(__file__, VENVS[p], p, threads) for p in peers}
    rows = []
    for kind, sizes in SIZES.items():
        for n in sizes:
            samples, checks = {p: [] for p in peers}, {}
            for _ in range(ROUNDS):
                for p, process in processes.items():
                    answer = ask(process, kind, n, 0.03)
                    samples[p] += answer["samples"]
                    checks[p] = (answer["sum"], answer["last"])
            reference = checks[peers[-1]]
            for p, (total, last) in checks.items():
                assert abs(total - reference[0]) <= 1e-3 * reference[0], f"{p}: wrong {kind} at {n}"
                assert abs(last - reference[1]) <= 1e-3 * max(1, abs(reference[1])), f"{p}: wrong {kind} at {n}"
            rows += [{"kind": kind, "n": n, "peer": p, "threads": threads, "seconds": statistics.median(s)}
                     for p, s in samples.items()]  # fmt: skip
            print(kind, n, {p: f"{statistics.median(s) * 1e6:.4g} us" for p, s in samples.items()}, flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return rows


def page(rows):
    import plots

    peers = list(dict.fromkeys(r["peer"] for r in rows))
    text = ["# Time against size", "", "Made by `python scaling.py`. One thread unless a title says otherwise.", ""]
    for threads in sorted({r["threads"] for r in rows}):
        for kind, (what, unit, amount) in WHAT.items():
            own = [r for r in rows if r["kind"] == kind and r["threads"] == threads]
            points = {p: [(r["n"], amount(r["n"]) / r["seconds"] / 1e9) for r in own if r["peer"] == p] for p in peers}
            title = f"{kind}: {what}" + (f", {threads} threads" if threads > 1 else "")
            name = plots.curves(points, peers, title, unit, HERE / "results" / f"scaling-{kind}-{threads}.svg")
            text += [f"## {title}", "", f"![{kind}](results/{name})", ""]
            text += [f"| n | {' | '.join(f'{p}, us' for p in peers)} |", "|---" * (len(peers) + 1) + "|"]
            for n in SIZES[kind]:
                found = {r["peer"]: r["seconds"] for r in own if r["n"] == n}
                text.append(
                    f"| {n} | " + " | ".join(f"{found[p] * 1e6:.4g}" if p in found else "" for p in peers) + " |"
                )
            text.append("")
    (HERE / "SCALING.md").write_text("\n".join(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(VENVS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="only write the page from what was measured")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.threads)
        return
    path = HERE / "results" / "scaling.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not options.draw:
        rows = [r for r in rows if r["threads"] != options.threads]
        rows += measure(options.peers.split(","), options.threads)
        path.write_text(json.dumps(rows, indent=0) + "\n")
    page(rows)


if __name__ == "__main__":
    main()
