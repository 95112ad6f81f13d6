"""What odd sizes cost: time for each unit of work, against a round neighbour, on one thread.

    venv-intarsia/bin/python odd_sizes.py [--seconds 8] [--out results/odd-sizes.json]

Sizes of one kind take turns; what counts is the least processor time of many runs, which other programs on the machine
lengthen least. report.py makes a table of it.
"""

import argparse
import json
import os
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "odd-sizes.json"

MATMUL = "fn f(a: f32[M, K], b: f32[K, N]) -> f32[M, N] { return a @ b }"
SOFTMAX = "fn f(x: f32[M, N]) -> f32[M, N] { return softmax(x, axis=-1) }"
ATTENTION = """fn f(q: f32[H, S, D], k: f32[H, S, D], v: f32[H, S, D]) -> f32[H, S, D] {
    score[h, i, j] = sum[d](q[h, i, d] * k[h, j, d]) / sqrt(f32(D))
    p = softmax(score, axis=-1)
    return tensor[h, i, d](sum[j](p[h, i, j] * v[h, j, d]))
}"""
CONV = "fn f(x: f32[1, C, H, W], w: f32[O, C, 3, 3]) -> f32[1, O, H, W] { return conv2d(x, w, padding=1) }"


def matmul(m, k, n):
    return MATMUL, [(m, k), (k, n)], 2 * m * k * n


def softmax(m, n):
    return SOFTMAX, [(m, n)], m * n


def attention(h, s, d):
    return ATTENTION, [(h, s, d)] * 3, 4 * h * s * s * d


def conv(c, h, w, o):
    return CONV, [(1, c, h, w), (o, c, 3, 3)], 18 * c * h * w * o


KINDS = {
    "matmul": [matmul(1024, 1024, 1024), matmul(1023, 1025, 1021)],
    "softmax": [softmax(4096, 4096), softmax(4095, 4097)],
    "attention, 64": [attention(8, 1024, 64), attention(8, 1023, 64), attention(8, 1000, 64)],
    "attention, 72": [attention(8, 1024, 72), attention(8, 1023, 72)],
    "attention, 80": [attention(8, 1024, 80), attention(8, 1023, 80), attention(8, 1000, 80)],
    "conv 3x3, 56": [conv(64, 56, 56, 64), conv(64, 55, 55, 64), conv(64, 57, 57, 64), conv(63, 53, 59, 61)],
    "conv 3x3, 28": [conv(128, 28, 28, 128), conv(128, 27, 29, 128), conv(127, 27, 27, 125)],
}


def measure(sizes, seconds):
    """Least processor time of each size."""
    import numpy

    import intarsia

    random = numpy.random.default_rng(0)
    calls = []
    for text, shapes, _ in sizes:
        arguments = [random.standard_normal(shape, dtype=numpy.float32) for shape in shapes]
        function = intarsia.jit(text)
        function(*arguments)
        calls.append((function, arguments))
    best = [float("inf")] * len(calls)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for n, (function, arguments) in enumerate(calls):
            for _ in range(3):
                start = time.thread_time()
                function(*arguments)
                best[n] = min(best[n], time.thread_time() - start)
    return best


def table():
    rows = ["| kind | size | ms | for each unit of work, against the round size |", "|---|---|---|---|"]
    for kind, found in json.loads(OUT.read_text()).items():
        unit = found[0]["ms"] / found[0]["work"]
        for row in found:
            size = ", ".join("x".join(map(str, s)) for s in dict.fromkeys(map(tuple, row["shapes"])))
            rows.append(f"| {kind} | {size} | {row['ms']:.3g} | {row['ms'] / row['work'] / unit:.2f} |")
    return rows


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--out", type=Path, default=OUT)
    a = p.parse_args()
    os.environ["INTARSIA_NUM_THREADS"] = "1"
    found = {}
    for kind, sizes in KINDS.items():
        times = measure(sizes, a.seconds)
        found[kind] = [
            {"shapes": shapes, "work": work, "ms": 1e3 * best} for (_, shapes, work), best in zip(sizes, times)
        ]
        print(
            kind, *(f"{r['ms'] / r['work'] / (found[kind][0]['ms'] / found[kind][0]['work']):.3f}" for r in found[kind])
        )
    a.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table()))


if __name__ == "__main__":
    main()
