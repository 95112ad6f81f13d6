"""What this machine can do at most, measured once and kept: arithmetic from registers, bytes from main memory.

Both are what all threads of this process reach together, in the manner of peak.c and stream.c of `benchmarks/hw`:
fused multiply-adds on independent accumulators, and a copy between arrays beyond every cache.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from intarsia.cache import Cache
from intarsia.ir.target import Target
from intarsia.options import host_target
from intarsia.runtime.threads import thread_count

_ACCUMULATORS = 12  # enough for two units of latency 5, and they fit 16 registers
_STEPS = 1 << 20
_REPEATS = 8
_COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """operations: f32 additions and multiplications a second. bytes: of main memory, read or written, a second.
    threads: with how many threads."""

    operations: float
    bytes: float
    threads: int


def machine_limits(cache: Cache, *, again: bool = False) -> Limits:
    """The limits for the number of threads in use.

    Measuring takes about a second, the first time or `again`; the best that was seen is kept.
    """
    target, threads = host_target(), thread_count()
    key = f"{target} {threads}"
    known = cache.get("limits", key)
    before = Limits(**json.loads(known)) if known is not None else Limits(0.0, 0.0, threads)
    if known is not None and not again:
        return before
    found = Limits(max(_operations(target, threads), before.operations), max(_bytes(threads), before.bytes), threads)
    cache.put("limits", key, json.dumps(asdict(found)).encode())
    return found


def _operations(target: Target, threads: int) -> float:
    from intarsia.backends.cpu.compile import parse
    from intarsia.backends.cpu.machine import load, machine

    loaded = load(machine(target).emit_object(parse(_peak_source(target))), "peak", {})
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(loaded.address)
    best = _best_seconds(lambda thread: run(_STEPS), threads)
    return threads * _STEPS * _ACCUMULATORS * target.lanes(32) * 2 / best


def _peak_source(target: Target) -> str:
    """LLVM IR of `float peak(int64_t steps)`: a fused multiply-add for each accumulator in each step."""
    width = target.vector_bits
    kind = f"<{target.lanes(32)} x float>"
    fma = f"@llvm.fma.v{target.lanes(32)}f32"
    names = range(_ACCUMULATORS)
    initial = ", ".join(["float 1.0"] * target.lanes(32))
    phis = [f"  %a{n} = phi {kind} [ <{initial}>, %entry ], [ %b{n}, %step ]" for n in names]
    steps = [f"  %b{n} = call {kind} {fma}({kind} %a{n}, {kind} %v, {kind} %v)" for n in names]
    total = [f"  %s{n + 1} = fadd {kind} {f'%s{n}' if n else f'%b{n}'}, %b{n}" for n in names]
    return "\n".join(
        [
            f'target triple = "{target.triple}"',
            f"declare {kind} {fma}({kind}, {kind}, {kind})",
            "define float @peak(i64 %count) #0 {",
            "entry:",
            "  %f = sitofp i64 %count to float",
            "  %g = fdiv float 1.0, %f",
            f"  %w = insertelement {kind} poison, float %g, i32 0",
            f"  %v = shufflevector {kind} %w, {kind} poison, <{target.lanes(32)} x i32> zeroinitializer",
            "  br label %step",
            "step:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %step ]",
            *phis,
            *steps,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %count",
            "  br i1 %more, label %step, label %done",
            "done:",
            *total,
            f"  %r = extractelement {kind} %s{_ACCUMULATORS}, i32 0",
            "  ret float %r",
            "}",
            f'attributes #0 = {{ "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}" }}',
            "",
        ]
    )


def _bytes(threads: int) -> float:
    source = np.ones((threads, _COPY_BYTES // 4 // threads), np.float32)
    result = np.zeros_like(source)
    return 2 * source.nbytes / _best_seconds(lambda thread: np.copyto(result[thread], source[thread]), threads)


def _best_seconds(work: Callable[[int], object], threads: int) -> float:
    """The shortest of a few runs of `work` on every thread at once; it is told which thread it is."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best
