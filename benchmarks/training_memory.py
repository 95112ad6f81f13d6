"""Peak memory of a training step of a transformer block (4 x 128, 768 wide, 12 heads, AdamW), beside PyTorch's.

    python training_memory.py [--peers intarsia,torch] [--json results/training-memory.json]

Each side runs in a process of its own, from random parameters through some steps. Two numbers each: how much the resident
memory of the process grew, parameters and the optimiser's state included (the high-water mark of Linux, reset before
these are made); and what was allocated: for PyTorch the largest sum of its allocator's records, for Intarsia inputs, results
and workspace of the plan.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BATCH, LENGTH, WIDTH, HEADS, INNER = 4, 128, 768, 12, 3072
STEPS = 4
HERE = Path(__file__).parent

SHAPES = {
    "g1": (WIDTH,), "c1": (WIDTH,), "wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH),
    "wo": (WIDTH, WIDTH), "bo": (WIDTH,), "g2": (WIDTH,), "c2": (WIDTH,), "w1": (WIDTH, INNER), "b1": (INNER,),
    "w2": (INNER, WIDTH), "b2": (WIDTH,),
}  # fmt: skip


def resident() -> tuple[int, int]:
    """Resident bytes of this process now, and at most since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def reset_mark() -> int:
    """Start the high-water mark anew, with what `malloc` holds without using it given back; resident bytes now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident()[0]


def run_torch() -> dict[str, Any]:
    import torch
    from torch.nn import functional
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)

    def parameters() -> dict[str, Any]:
        made = {n: torch.randn(s) * 0.02 for n, s in SHAPES.items()}
        return {n: p.requires_grad_() for n, p in made.items()}

    def block(x: Any, p: dict[str, Any]) -> Any:
        def heads(y: Any) -> Any:
            return y.view(BATCH, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)

        n = functional.layer_norm(x, (WIDTH,), p["g1"], p["c1"])
        q, k, v = (heads(n @ p[w]) for w in ("wq", "wk", "wv"))
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = x + a.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH) @ p["wo"] + p["bo"]
        n = functional.layer_norm(y, (WIDTH,), p["g2"], p["c2"])
        return y + functional.gelu(n @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def step(x: Any, target: Any, p: dict[str, Any], optimiser: Any) -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.mse_loss(block(x, p), target).backward()
        optimiser.step()

    x, target = torch.randn(2, BATCH, LENGTH, WIDTH)
    warm = parameters()
    step(x, target, warm, torch.optim.AdamW(warm.values(), lr=1e-3))  # threads, libraries, code
    del warm
    before = reset_mark()
    own = parameters()
    optimiser = torch.optim.AdamW(own.values(), lr=1e-3)
    for _ in range(STEPS):
        step(x, target, own, optimiser)
    grown = resident()[1] - before
    del own, optimiser
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        own = parameters()
        optimiser = torch.optim.AdamW(own.values(), lr=1e-3)
        for _ in range(STEPS):
            step(x, target, own, optimiser)
    records = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(records, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return {"version": torch.__version__, "resident": grown, "allocated": peak}


def run_intarsia() -> dict[str, Any]:
    import numpy as np

    import intarsia
    from intarsia.ir.plan_liveness import plan_report

    names = tuple(SHAPES)
    state = (*names, *(f"m_{n}" for n in names), *(f"v_{n}" for n in names))
    program = intarsia.load(HERE / "training_memory.ita", intarsia.Options(donated=state))
    random = np.random.default_rng(0)

    def parameters() -> list[Any]:
        made = [random.standard_normal(s, np.float32) * np.float32(0.02) for s in SHAPES.values()]
        return made + [np.zeros(s, np.float32) for s in (*SHAPES.values(), *SHAPES.values())]

    x, target = random.standard_normal((2, BATCH, LENGTH, WIDTH), np.float32)
    rate = np.float32(1e-3)
    program.step(x, target, *parameters(), 0, rate)  # compiled, threads started
    intarsia.release_memory()
    before = reset_mark()
    own = parameters()
    for number in range(STEPS):
        _, *own = program.step(x, target, *own, number, rate)
    grown = resident()[1] - before
    report = plan_report(program.step.lower(x, target, *own, STEPS, rate).compilation.plan)
    inputs = int(report.inputs) - x.nbytes - target.nbytes
    workspace = int(report.workspace)
    return {"resident": grown, "allocated": inputs + int(report.outputs) + workspace, "workspace": workspace}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="intarsia,torch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"intarsia": run_intarsia, "torch": run_torch}[arguments.one]()))
        return
    found = {}
    for peer in arguments.peers.split(","):
        command = [sys.executable, __file__, "--one", peer]
        found[peer] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(peer, {k: f"{v / 1e6:.1f} MB" if isinstance(v, int) else v for k, v in found[peer].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
