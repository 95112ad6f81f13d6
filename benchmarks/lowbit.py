"""Matrix products of bf16 and of 8-bit integers beside PyTorch and the peak of the machine's dot instructions.

    venv-intarsia/bin/python lowbit.py [--torch venv-torch/bin/python] [--threads 1,2] [--out results/lowbit.json]

Ours, PyTorch (in a process of its own) and the peak loop take turns; results are checked first, bf16 against f64 within
the tolerance of the language, integers exactly. Medians of 15 turns. report.py makes a table of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TURNS = 15

PROGRAM = """
fn bf16_bf16(x: bf16[M, K], w: bf16[K, N]) -> bf16[M, N] { return x @ w }
fn bf16_f32(x: bf16[M, K], w: bf16[K, N]) -> f32[M, N] { return f32(x) @ f32(w) }
fn i8_i8(x: i8[M, K], w: i8[K, N]) -> i32[M, N] { return x @ w }
fn u8_i8(x: u8[M, K], w: i8[K, N]) -> i32[M, N] { return i32(x) @ i32(w) }
fn u8_u8(x: u8[M, K], w: u8[K, N]) -> u32[M, N] { return x @ w }
"""

SIZES = {
    "1024": (1024, 1024, 1024),
    "512": (512, 512, 512),
    "128x768 @ 768x3072": (128, 768, 3072),
    "1023x1021 @ 1021x1025": (1023, 1021, 1025),
}
CASES = [
    ("bf16_bf16", "1024"), ("bf16_f32", "1024"), ("i8_i8", "1024"), ("u8_i8", "1024"), ("u8_u8", "1024"),
    ("bf16_bf16", "512"), ("i8_i8", "512"), ("bf16_bf16", "128x768 @ 768x3072"), ("i8_i8", "128x768 @ 768x3072"),
    ("bf16_bf16", "1023x1021 @ 1021x1025"), ("i8_i8", "1023x1021 @ 1021x1025"),
]  # fmt: skip


def raw(name, sizes):
    """The operands of a case as bits that every process reads alike, and the types that they stand for."""
    random = np.random.default_rng(1)
    m, k, n = sizes
    left, right = name.split("_")[0], "i8" if name == "u8_i8" else name.split("_")[0]
    made = []
    for kind, shape in ((left, (m, k)), (right, (k, n))):
        if kind == "bf16":
            values = random.standard_normal(shape).astype(np.float32)
            made.append((values.view(np.uint32) >> 16).astype(np.uint16))
        else:
            limits = np.iinfo(np.int8 if kind == "i8" else np.uint8)
            made.append(random.integers(limits.min, limits.max + 1, shape).astype(limits.dtype))
    return made


def torch_worker(threads):
    """Answers `CASE SIZE` with the seconds of one run, or with nothing where PyTorch has no such product."""
    import torch

    torch.set_num_threads(threads)
    ready = {}
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        name, size = line.rstrip("\n").split(" ", 1)
        if (name, size) not in ready:
            arrays = [torch.from_numpy(a.copy()) for a in raw(name, SIZES[size])]
            if name == "bf16_bf16":
                x, w = (a.view(torch.bfloat16) for a in arrays)
                ready[name, size] = lambda x=x, w=w: x @ w
            elif name == "i8_i8":
                ready[name, size] = lambda x=arrays[0], w=arrays[1]: torch._int_mm(x, w)
            else:
                ready[name, size] = None
            if ready[name, size]:
                for _ in range(5):
                    ready[name, size]()
        call = ready[name, size]
        if call is None:
            print("nan", flush=True)
            continue
        start = time.perf_counter()
        call()
        print(time.perf_counter() - start, flush=True)


class Torch:
    """PyTorch in a process of its own."""

    def __init__(self, python, threads):
        command = [python, str(Path(__file__).resolve()), "--worker", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.process.stdout.readline().strip()

    def seconds(self, name, size):
        print(name, size, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def checked(name, arrays, result):
    """Is a result right?"""
    if name.startswith("bf16"):
        wide = [(a.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for a in arrays]
        exact, magnitude = wide[0] @ wide[1], abs(wide[0]) @ abs(wide[1])
        rounding = 2.0**-7 * abs(exact) if name == "bf16_bf16" else 0.0
        return bool((abs(np.asarray(result, np.float64) - exact) <= 8 * 2.0**-23 * magnitude + rounding).all())
    exact = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64)
    return bool((np.asarray(result).astype(np.int64) == exact).all())


def measure(threads, python):
    """Rows of results for so many threads."""
    import ml_dtypes

    import intarsia
    from intarsia.dot_limits import DotLoop
    from intarsia.ir.dots import dots_of
    from intarsia.options import host_target
    from intarsia.runtime.threads import THREADS

    THREADS.set(threads)
    program, torch, target = intarsia.compile(PROGRAM), Torch(python, threads), host_target()
    dots = {d.left.name: DotLoop(target, d) for d in reversed(tuple(dots_of(target)))}
    rows = []
    for name, size in CASES:
        sizes = SIZES[size]
        bits = raw(name, sizes)
        arrays = [a.view(ml_dtypes.bfloat16) if a.dtype == np.uint16 else a for a in bits]
        call = program[name]
        assert checked(name, bits, call(*arrays)), f"{name} {size} is wrong"
        for _ in range(4):
            call(*arrays)
        dot = dots[name.split("_")[0]]
        taken = {"ours": [], "torch": [], "peak": []}
        for _ in range(TURNS):
            start = time.perf_counter()
            call(*arrays)
            taken["ours"].append(time.perf_counter() - start)
            taken["torch"].append(torch.seconds(name, size))
            work = 2 * sizes[0] * sizes[1] * sizes[2]
            taken["peak"].append(work / dot.operations(threads, 1 << 17, 3))
        row = {"case": name, "size": size, "threads": threads, "operations": work}
        row |= {who: statistics.median(seconds) for who, seconds in taken.items()}
        rows.append(row)
        ratio = row["torch"] / row["ours"]
        print(f"{name:10} {size:24} {threads}: {row['ours'] * 1e3:8.3f} ms, {row['peak'] / row['ours']:.2f} of the peak, "
              f"torch / ours {ratio:.2f}", flush=True)  # fmt: skip
    return rows, torch.version


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=str(HERE / "venv-torch/bin/python"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lowbit.json")
    parser.add_argument("--worker", type=int)
    options = parser.parse_args()
    if options.worker:
        torch_worker(options.worker)
        return
    rows, version = [], ""
    for threads in map(int, options.threads.split(",")):
        found, version = measure(threads, options.torch)
        rows += found
    from intarsia.options import host_target

    about = {"cpu": host_target().cpu, "cores": os.cpu_count(), "turns": TURNS, "torch": version}
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
