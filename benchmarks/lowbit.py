"""Matrix products of narrow numbers: of bf16 and of 8-bit integers beside PyTorch and the peak of the machine's dot
instructions, and of one row with weights in few bits (`lowbit_weights.py`).

    venv-intarsia/bin/python lowbit.py [--torch venv-torch/bin/python] [--ort venv-misc/bin/python] [--threads 1,2]
        [--parts dots,weights,curve] [--out results/lowbit.json]

Ours, peers (in processes of their own) and the limit take turns; results are checked first, bf16 against f64 within
the tolerance of the language, integers exactly. Medians of 15 turns; LOWBIT.md shows them. Parts that are not measured
keep the figures that they have.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import lowbit_weights
import numpy as np
from lowbit_weights import Peer

HERE = Path(__file__).resolve().parent
TURNS = 15
PAUSE = 0.01  # seconds in which threads that wait for work go to sleep

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


def second_run(call):
    """Seconds of a run right after another one."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
        print(second_run(call), flush=True)


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
    program, torch, target = intarsia.compile(PROGRAM), Peer(python, "lowbit.py", "--worker", threads), host_target()
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
            taken["ours"].append(second_run(partial(call, *arrays)))
            time.sleep(PAUSE)
            taken["torch"].append(torch.seconds(name, size))
            time.sleep(PAUSE)
            work = 2 * sizes[0] * sizes[1] * sizes[2]
            taken["peak"].append(work / dot.operations(threads, 1 << 20, 2))
        row = {"case": name, "size": size, "threads": threads, "operations": work}
        for who, seconds in taken.items():
            known = not math.isnan(seconds[0])
            row[who] = statistics.median(seconds) if known else None
            row[f"{who}, least"] = min(seconds) if known else None
            ratios = [theirs / ours for theirs, ours in zip(seconds, taken["ours"])]
            row[f"{who} / ours"] = statistics.median(ratios) if known else None
        rows.append(row)
        print(json.dumps(row), flush=True)
    torch.close()
    return rows, torch.version


TABLE = """# Products of narrow numbers

## Dot instructions

One run of `lowbit.py` on {cpu} with {cores} cores, by turns: ours, PyTorch {torch}, a loop of nothing but the dot
instruction that these types have. Of {turns} turns medians, those of the ratios within a turn, and the least times, which
other programs on the machine lengthen least. G operations/s are those of the least time. PyTorch multiplies bf16 with a
bf16 result, and signed bytes (`torch._int_mm`); dashes are products that it does not have.

| | threads | ms | least | G operations/s | of the peak | least | PyTorch, ms | least | PyTorch / ours | least |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}
"""


def table(about, rows):
    """The results as a page."""
    lines = []
    for row in rows:
        left, right = row["case"].split("_")
        types = f"{left} by {right}" if left != "bf16" else f"bf16, {right} result"
        size = row["size"] if "@" in row["size"] else f"{row['size']}³"
        least = row["ours, least"]
        cells = [f"{types}, {size}", row["threads"], f"{row['ours'] * 1e3:.2f}", f"{least * 1e3:.2f}"]
        cells += [f"{row['operations'] / least / 1e9:.0f}", f"{row['peak / ours']:.2f}"]
        cells += [f"{row['peak, least'] / least:.2f}"]
        if row["torch"] is None:
            cells += ["–"] * 4
        else:
            cells += [f"{row['torch'] * 1e3:.2f}", f"{row['torch, least'] * 1e3:.2f}", f"{row['torch / ours']:.2f}"]
            cells += [f"{row['torch, least'] / least:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return TABLE.format(**about, rows="\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default=str(HERE / "venv-torch/bin/python"))
    parser.add_argument("--ort", default=str(HERE / "venv-misc/bin/python"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--parts", default="dots,weights,curve")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lowbit.json")
    parser.add_argument("--worker", type=int)
    options = parser.parse_args()
    if options.worker:
        torch_worker(options.worker)
        return
    from intarsia.options import host_target

    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    about = found.get("about", {}) | {"cpu": host_target().cpu, "cores": os.cpu_count(), "turns": TURNS}
    threads, parts = [int(n) for n in options.threads.split(",")], options.parts.split(",")
    if "dots" in parts:
        found["rows"] = []
        for n in threads:
            rows, about["torch"] = measure(n, options.torch)
            found["rows"] += rows
    if "weights" in parts:
        weights, found["weights"] = lowbit_weights.Weights(), []
        for n in threads:
            rows, versions = lowbit_weights.measure(weights, n, TURNS, options.torch, options.ort)
            found["weights"] += rows
            about |= versions
    if "curve" in parts:
        found["curve"] = lowbit_weights.curve(TURNS)
    found["about"] = about
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    pages = [table(about, found["rows"])]
    if "weights" in found:
        pages.append(lowbit_weights.table(about, found["weights"]))
    if "curve" in found:
        pages.append(lowbit_weights.curve_page(about, found["curve"]))
    (HERE / "LOWBIT.md").write_text("\n".join(pages))


if __name__ == "__main__":
    main()
