"""The gradient of attention beside PyTorch: time, share of the multiply-add peak, and memory.

    python attention_gradient.py [--threads 1,2]

Each peer runs in a process of its own, pinned where there is one thread, and they take turns for a few rounds. `both` is
the value with all three gradients: 7 products of S x S x D for each head, 2 of the value and 5 of the gradient. `gradient`
is the gradient alone, of what a forward run left: in PyTorch its own backward of scaled_dot_product_attention, here a
function that takes the value and the log-sum-exp of each row. Causal ones are counted as half. Writes
results/attention-gradient.json, where measurements with other numbers of threads stay, and ATTENTION_GRADIENT.md.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

from peers import ask, start

HERE = Path(__file__).resolve().parent
VENVS = {"intarsia": "intarsia", "torch": "torch"}
ROUNDS = 4
PRODUCTS = {"both": 7, "gradient": 5}
CASES = [(kind, causal, (16, 1024, 64)) for kind in PRODUCTS for causal in (False, True)] + [
    ("both", False, (8, 1000, 72)),
    ("both", False, (4, 4096, 64)),
]
PROGRAM = """
fn score(q: f32[H, S, D], k: f32[H, S, D], causal: bool) -> f32[H, S, S] {
    s[h, i, j] = sum[d](q[h, i, d] * k[h, j, d]) / sqrt(f32(D))
    return tensor[h, i, j](where(not causal or j <= i, s[h, i, j], -inf))
}
fn value(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D]) -> f32[H, S, D] { return attention(q, k, v, causal=CAUSAL) }
fn loss(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D], g: f32[H, S, D]) -> f32 { return sum(value(q, k, v) * g) }
fn both(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D], g: f32[H, S, D]) {
    dq, dk, dv = grad(loss, wrt=(q, k, v))(q, k, v, g)
    return value(q, k, v), dq, dk, dv
}
fn rows(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D]) {
    return value(q, k, v), logsumexp(score(q, k, CAUSAL), axis=2)
}
fn gradient(
    q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D], g: f32[H, S, D], y: f32[H, S, D], l: f32[H, S]
) {
    s = score(q, k, CAUSAL)
    p[h, i, j] = exp(s[h, i, j] - l[h, i])
    inner[h, i] = sum[d](g[h, i, d] * y[h, i, d])
    dp[h, i, j] = sum[d](g[h, i, d] * v[h, j, d])
    ds[h, i, j] = where(not CAUSAL or j <= i, p[h, i, j] * (dp[h, i, j] - inner[h, i]) / sqrt(f32(D)), 0.0)
    dq[h, i, d] = sum[j](ds[h, i, j] * k[h, j, d])
    dk[h, j, d] = sum[i](ds[h, i, j] * q[h, i, d])
    dv[h, j, d] = sum[i](p[h, i, j] * g[h, i, d])
    return dq, dk, dv
}
"""


def prepared(peer, threads, kind, causal, shape):
    """A call without arguments, and the arrays that it gives."""
    import numpy as np

    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal(shape).astype(np.float32) for _ in range(4)]
    if peer == "intarsia":
        import intarsia

        program = intarsia.compile(PROGRAM.replace("CAUSAL", str(causal).lower()))
        if kind == "gradient":
            arrays += program.rows(*arrays[:3])
        function = program[kind]
        return lambda: function(*arrays)
    import torch

    torch.set_num_threads(threads)
    *inputs, g = (torch.from_numpy(x)[None] for x in arrays)
    inputs = [x.requires_grad_() for x in inputs]

    def value():
        return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal)

    y = value()

    def gradient(y, keep=False):
        found = torch.autograd.grad(y, inputs, g, retain_graph=keep)
        return [x[0].numpy() for x in found]

    if kind == "gradient":
        return lambda: gradient(y, keep=True)

    def both():
        y = value()
        return [y[0].detach().numpy(), *gradient(y)]

    return both


def work(peer, threads):
    """One peer: answers lines of `[kind, causal, shape, seconds]` with samples, checksums and the growth of memory."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready, call, checks, grown = None, None, None, 0
    for line in sys.stdin:
        *case, seconds = json.loads(line)
        if case != ready:
            ready, call = case, prepared(peer, threads, *case)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            checks = [float(abs(x).sum()) for x in call()]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        samples, end = [], time.perf_counter() + seconds
        while len(samples) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        print(json.dumps({"samples": samples, "checks": checks, "grown": grown}), file=out, flush=True)


def measure(threads):
    rows = []
    for kind, causal, shape in CASES:
        for p in VENVS:  # ours compiles once, for all processes
            with start(__file__, VENVS[p], p, threads) as process:
                ask(process, kind, causal, shape, 0.0)
                process.stdin.close()
        # A process of its own for each case: what another one has allocated would hide its memory.
        processes = {p: start(__file__, VENVS[p], p, threads) for p in VENVS}
        found = {p: [] for p in VENVS}
        answers = {}
        for _ in range(ROUNDS):
            for p, process in processes.items():
                answers[p] = ask(process, kind, causal, shape, 0.1)
                found[p] += answers[p]["samples"]
        for ours, theirs in zip(answers["intarsia"]["checks"], answers["torch"]["checks"], strict=True):
            assert abs(ours - theirs) <= 1e-4 * theirs, f"other results for {kind} {shape}"
        for process in processes.values():
            process.stdin.close()
            process.wait()
        row = {"kind": kind, "causal": causal, "shape": shape, "threads": threads}
        for p in VENVS:
            row[p] = {"median": statistics.median(found[p]), "least": min(found[p]), "grown_kib": answers[p]["grown"]}
        rows.append(row)
        print(row, flush=True)
    return rows


def rate(row, peer):
    """Multiply-adds per second that the algorithm needs, times two."""
    h, s, d = row["shape"]
    return 2 * PRODUCTS[row["kind"]] * h * s * s * d / (1 + row["causal"]) / row[peer]["median"]


def write(rows):
    limits = json.loads((HERE / "hw/limits.json").read_text())
    peak = {n: n * 1e9 * limits["f32_avx512.1"] for n in {row["threads"] for row in rows}}
    lines = [
        "# The gradient of attention",
        "",
        "Medians in ms, by turns, each peer in a process of its own; rates count 7 products of S x S x D for each head where",
        "the value and its three gradients are computed, 5 for the gradients alone, half of that if causal; the share is that",
        "of the multiply-add peak, that of one core times the threads. Memory is what the largest size of a process grew by in its first call, results included.",
        "PyTorch's gradient is its own backward of `scaled_dot_product_attention`. `attention_gradient.py` has the programs.",
        "",
        "| | heads, positions, width | threads | ours | PyTorch | ours, GFLOP/s | share | PyTorch's | ours, MiB | PyTorch, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = ("value and gradients" if row["kind"] == "both" else "gradients alone") + (", causal" * row["causal"])
        ours, theirs = (1e3 * row[p]["median"] for p in ("intarsia", "torch"))
        shares = [rate(row, p) / peak[row["threads"]] for p in ("intarsia", "torch")]
        memory = [row[p]["grown_kib"] / 1024 for p in ("intarsia", "torch")]
        lines.append(
            f"| {name} | {' x '.join(map(str, row['shape']))} | {row['threads']} | {ours:.1f} | {theirs:.1f} "
            f"| {rate(row, 'intarsia') / 1e9:.0f} | {shares[0]:.2f} | {shares[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |"
        )
    (HERE / "ATTENTION_GRADIENT.md").write_text("\n".join(lines) + "\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--threads", default="1,2")
    arguments.add_argument("--work", choices=VENVS)
    arguments.add_argument("--draw", action="store_true", help="only write the page again")
    given = arguments.parse_args()
    threads = [int(n) for n in given.threads.split(",")]
    if given.work:
        work(given.work, threads[0])
        return
    results = HERE / "results/attention-gradient.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    for n in () if given.draw else threads:
        rows = [row for row in rows if row["threads"] != n] + measure(n)
    results.write_text(json.dumps(rows, indent=1) + "\n")
    write(rows)


if __name__ == "__main__":
    main()
