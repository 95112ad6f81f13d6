"""What this machine can do at most, measured once and kept: arithmetic from registers, bytes from caches and memory.

`machine_limits` is what all threads of this process reach together, in the manner of peak.c and stream.c of
`benchmarks/hw`: fused multiply-adds on independent accumulators, and a copy between arrays beyond every cache.
`measure_rates` is what one core does in a cycle, for the cost model.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from intarsia.cache import Cache
from intarsia.dot_limits import DotLoop
from intarsia.ir.dots import dots_of
from intarsia.ir.target import Rates, Target
from intarsia.options import host_target, known_rates, remember_rates
from intarsia.runtime.team import team_entry
from intarsia.runtime.threads import thread_count

_ACCUMULATORS = 12  # enough for two units of latency 5, and they fit 16 registers
_STEPS = 1 << 20
_REPEATS = 8
_COPY_BYTES = 64 << 20
_READ_BYTES = 128 << 20
_FORKS = 2000
_PROBES = 5
_PAUSE = 0.15  # seconds between probes
_ALIKE = 1.05  # a rate that is so much greater is another one

_NOTHING_SOURCE = "define void @nothing(ptr %data) { ret void }"


@dataclass(frozen=True)
class Limits:
    """operations: f32 additions and multiplications a second. bytes: of main memory, read or written, a second.
    threads: with how many threads. agreed: were the limits reached more than once, at different times?"""

    operations: float
    bytes: float
    threads: int
    agreed: bool = True

    def beyond(self, other: Limits, margin: float) -> bool:
        """Is one of these rates more than `margin` times that of another measurement?"""
        return self.operations > margin * other.operations or self.bytes > margin * other.bytes

    def join(self, other: Limits, agreed: bool) -> Limits:
        """The better of both rates."""
        best = max(self.operations, other.operations), max(self.bytes, other.bytes)
        return Limits(*best, self.threads, agreed)


def machine_limits(cache: Cache, reached: float = 0.0) -> Limits:
    """The limits for the number of threads in use: the best that was ever seen, since other programs slow a machine
    down and nothing makes it faster.

    Each call takes a probe of less than a tenth of a second. Probes at several times, in about a second, follow where
    none were taken before, where those did not agree, and where they were too low: where this probe gives more, or
    `reached` operations a second were.
    """
    target, threads = replace(host_target(), rates=Rates()), thread_count()
    key = f"{target} {threads}"
    stored = cache.get("limits", key)
    known = Limits(**json.loads(stored)) if stored is not None else Limits(0.0, 0.0, threads, False)
    probe = _probe(target, threads)
    found = probe.join(known, known.agreed)
    if not known.agreed or probe.beyond(known, _ALIKE) or reached > known.operations:
        probes = [probe]
        for _ in range(_PROBES - 1):
            time.sleep(_PAUSE)
            probes.append(_probe(target, threads))
        found = _best(probes, known)
    if found != known:
        cache.put("limits", key, json.dumps(asdict(found)).encode())
    return found


def _probe(target: Target, threads: int) -> Limits:
    return Limits(_operations(target, threads), _copied(threads), threads)


def _best(probes: Sequence[Limits], known: Limits) -> Limits:
    """The best of several probes and of what was known; agreed if two of them come near it in each rate."""
    operations = sorted(p.operations for p in (*probes, known))
    carried = sorted(p.bytes for p in (*probes, known))
    second = Limits(operations[-2], carried[-2], known.threads)
    best = Limits(operations[-1], carried[-1], known.threads)
    was_known = known.agreed and not best.beyond(known, 1.0)
    return replace(best, agreed=was_known or not best.beyond(second, _ALIKE))


def measure_rates(cache: Cache) -> Rates:
    """What one core of this machine does in a cycle, measured now and kept for every compilation after it.

    Takes a few seconds. How many units there are is taken from the defaults of `Rates`, so that the clock follows from
    the rate of multiply-adds. Of what was measured before, the better is kept, since other programs slow a machine
    down and nothing makes it faster.
    """
    target, default = host_target(), Rates()
    clock = _operations(target, 1) / (2 * target.lanes(32) * default.arithmetic)
    beyond = [(near + far) // 4 for near, far in zip(target.caches, target.caches[1:])]
    found = Rates(
        clock=clock,
        dots=_dots(target, clock),
        cache_bytes=tuple(_read(target, size, 1) / clock for size in beyond),
        memory_of_one=_read(target, _READ_BYTES, 1),
        memory=_read(target, _READ_BYTES, target.cores),
        fork=_fork_seconds(target, target.cores) or default.fork,
    )
    if (before := known_rates(cache, target)) is not None:
        found = Rates(
            clock=max(found.clock, before.clock),
            dots=max(found.dots, before.dots),
            cache_bytes=tuple(map(max, found.cache_bytes, before.cache_bytes)),
            memory_of_one=max(found.memory_of_one, before.memory_of_one),
            memory=max(found.memory, before.memory),
            fork=min(found.fork, before.fork),
        )
    found = replace(found, memory=max(found.memory, found.memory_of_one))
    remember_rates(cache, target, found)
    return found


# ---------------------------------------------------------------------- measuring


def _operations(target: Target, threads: int) -> float:
    """f32 operations a second, from registers."""
    run, owner = _compiled(_peak_source(target), "peak", target, ctypes.c_float, ctypes.c_int64)
    best = _best_seconds(lambda thread: run(_STEPS), threads)
    del owner
    return threads * _STEPS * _ACCUMULATORS * target.lanes(32) * 2 / best


def _dots(target: Target, clock: float) -> float:
    """Dot instructions that a core begins in a cycle: of those that it has, the one with most products."""
    dot = next(iter(dots_of(target)), None)
    if dot is None:
        return Rates().dots
    products = DotLoop(target, dot).operations(1, _STEPS >> 4, _REPEATS) / 2
    return products / (dot.width * target.lanes(32) * clock)


def _copied(threads: int) -> float:
    """Bytes a second, read and written, of a copy beyond every cache."""
    source = np.ones((threads, _COPY_BYTES // 4 // threads), np.float32)
    result = np.zeros_like(source)
    return 2 * source.nbytes / _best_seconds(lambda thread: np.copyto(result[thread], source[thread]), threads)


def _read(target: Target, size: int, threads: int) -> float:
    """Bytes a second that threads read over and over, each from an array of its own, all of them `size` long."""
    own = size // threads // _chunk(target) * _chunk(target)
    arrays = np.ones((threads, own // 4), np.float32)
    times = max(1, _READ_BYTES // size)
    run, owner = _compiled(
        _read_source(target), "read", target, ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )
    best = _best_seconds(lambda thread: run(arrays[thread].ctypes.data, own, times), threads)
    del owner
    return threads * own * times / best


def _fork_seconds(target: Target, threads: int) -> float | None:
    """Seconds to start threads and join them, or None for one thread."""
    if threads == 1:
        return None
    nothing, owner = _compiled(_NOTHING_SOURCE, "nothing", target, None, ctypes.c_void_p)
    fork = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(team_entry())
    address = ctypes.cast(nothing, ctypes.c_void_p)  # type: ignore[arg-type]

    def run(thread: int) -> None:
        for _ in range(_FORKS):
            fork(address, None, threads, 0)

    best = _best_seconds(run, 1) / _FORKS
    del owner
    return best


def _best_seconds(work: Callable[[int], object], threads: int) -> float:
    """The shortest of a few runs of `work` on every thread at once; it is told which thread it is."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_REPEATS):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


# ---------------------------------------------------------------------- code


def _compiled(source: str, name: str, target: Target, *types: Any) -> tuple[Callable[..., object], object]:
    """A function of LLVM IR, the type of its result and those of its arguments given, and what keeps it alive."""
    from intarsia.backends.cpu.compile import verified
    from intarsia.backends.cpu.machine import load, machine

    loaded = load(machine(target).emit_object(verified(source)), name, {})
    return ctypes.CFUNCTYPE(*types)(loaded.address), loaded


def _chunk(target: Target) -> int:
    """Bytes that `read` takes in one step."""
    return _ACCUMULATORS * target.vector_bits // 8


def _peak_source(target: Target) -> str:
    """LLVM IR of `float peak(int64_t steps)`: a fused multiply-add for each accumulator in each step."""
    kind = f"<{target.lanes(32)} x float>"
    fma = f"@llvm.fma.v{target.lanes(32)}f32"
    steps = [f"  %b{n} = call {kind} {fma}({kind} %a{n}, {kind} %v, {kind} %v)" for n in range(_ACCUMULATORS)]
    return _loop_source(
        target,
        f"declare {kind} {fma}({kind}, {kind}, {kind})",
        "define float @peak(i64 %count)",
        [
            "  %f = sitofp i64 %count to float",
            "  %g = fdiv float 1.0, %f",
            f"  %w = insertelement {kind} poison, float %g, i32 0",
            f"  %v = shufflevector {kind} %w, {kind} poison, <{target.lanes(32)} x i32> zeroinitializer",
        ],
        steps,
    )


def _read_source(target: Target) -> str:
    """LLVM IR of `float read(float *array, int64_t bytes, int64_t times)`: an addition for each vector that is read."""
    kind, width = f"<{target.lanes(32)} x float>", target.vector_bits // 8
    steps = ["  %o = mul i64 %i, " + str(_chunk(target)), "  %r = urem i64 %o, %bytes"]
    for n in range(_ACCUMULATORS):
        steps += [
            f"  %q{n} = add i64 %r, {n * width}",
            f"  %p{n} = getelementptr i8, ptr %array, i64 %q{n}",
            f"  %x{n} = load {kind}, ptr %p{n}, align 4",
            f"  %b{n} = fadd {kind} %a{n}, %x{n}",
        ]
    prologue = ["  %all = mul i64 %bytes, %times", f"  %count = udiv i64 %all, {_chunk(target)}"]
    return _loop_source(target, "", "define float @read(ptr %array, i64 %bytes, i64 %times)", prologue, steps)


def _loop_source(target: Target, declaration: str, head: str, prologue: list[str], steps: list[str]) -> str:
    """A function that repeats `steps` for `%i` below `%count`, from accumulators `%a0`, … to `%b0`, …."""
    lanes, width = target.lanes(32), target.vector_bits
    kind = f"<{lanes} x float>"
    initial = ", ".join(["float 1.0"] * lanes)
    return "\n".join(
        [
            f'target triple = "{target.triple}"',
            declaration,
            f"{head} #0 {{",
            "entry:",
            *prologue,
            "  br label %step",
            "step:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %step ]",
            *(f"  %a{n} = phi {kind} [ <{initial}>, %entry ], [ %b{n}, %step ]" for n in range(_ACCUMULATORS)),
            *steps,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %count",
            "  br i1 %more, label %step, label %done",
            "done:",
            *(f"  %s{n + 1} = fadd {kind} {f'%s{n}' if n else 'zeroinitializer'}, %b{n}" for n in range(_ACCUMULATORS)),
            f"  %result = extractelement {kind} %s{_ACCUMULATORS}, i32 0",
            "  ret float %result",
            "}",
            f'attributes #0 = {{ "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}" }}',
            "",
        ]
    )
