"""Parallel loops: the body becomes a function, and the threads of a team take chunks of iterations from a counter.

`@kernel.NAME.chunkN(captures…, i64 from, i64 to)` runs some iterations; `@kernel.NAME.workerN(ptr frame)` is what every
thread of the team runs: it takes chunks until none is left. The team is opened by `GOMP_parallel` (in Python that of
this package, in a C library that of OpenMP) with as many threads as `@intarsia_thread_count` says at that moment (in a
C library: as many as the OpenMP runtime says); for one thread the worker is called directly. Chunks are taken in any
order and by any thread, so a slow core holds nobody up; as iterations of a parallel loop are independent, no result
depends on it. Temporaries of the body that do not fit the stack are allocated once per thread.

How many threads there are is bounded by the work: each has `NANOSECONDS_PER_THREAD` of it at least. A loop whose length
is told by the run alone is one thread's if it is short (`SHORT`); for one whose length is known the schedule decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from intarsia.backends.cpu.analysis import allocations, statements, uses
from intarsia.backends.cpu.llvm import Function, Operand
from intarsia.ir.kernel import Check, For
from intarsia.ir.kernel_effort import loop_effort

if TYPE_CHECKING:
    from intarsia.backends.cpu.emit import Emitter

CHUNKS_PER_THREAD = 8
"""Enough to even out threads of unequal speed, few enough that taking a chunk costs nothing."""

NANOSECONDS_PER_THREAD = 2_000
"""Work that is worth taking a thread for, by the estimate of `loop_effort`."""

SHORT = 20_000
"""Nanoseconds of a loop that no other thread is woken for."""

THREAD_COUNT = "intarsia_thread_count"
"""The external `i32` that holds the number of threads to use."""

MANY = 1 << 31
"""More threads than there are."""

_FRAME_HEAD = 3
"""A frame begins with the counter, the bound and the size of a chunk; the captured values follow."""


def emit(emitter: Emitter, loop: For) -> None:
    """Write a parallel loop into the function of `emitter`, and its body as functions of their own."""
    function = emitter.function
    lower, upper = emitter.number(loop.lower), emitter.number(loop.upper)
    captures = _captures(emitter, loop)
    number = sum(n.startswith(f"{emitter.function.name}.chunk") for n in function.module.functions)
    chunk, worker = (f"{function.name}.{kind}{number}" for kind in ("chunk", "worker"))
    heap = _write_chunk(emitter, loop, chunk, captures)
    _write_worker(emitter, worker, chunk, captures, heap, loop.step)
    frame = function.alloca(f"[{_FRAME_HEAD + len(captures)} x i64], align 64")
    count = _iterations(function, lower, upper, loop.step)

    def run() -> None:
        wanted = function.op(f"zext i32 {_thread_count(function)} to i64")
        threads = function.minimum(function.minimum(wanted, _most_threads(emitter, loop)), count)
        chunks = function.minimum(function.multiply(threads, CHUNKS_PER_THREAD), count)
        single = function.compare("sle", threads, 1)
        chunks = function.op(f"select i1 {single}, i64 1, i64 {chunks}")
        rounded = function.add(count, function.subtract(chunks, 1))
        size = function.op(f"udiv i64 {rounded}, {chunks}")
        head = (lower, upper, function.multiply(size, loop.step))
        for position, (kind, value) in enumerate([*(("i64", str(h)) for h in head), *captures]):
            function.do(f"store {kind} {value}, ptr {function.offset(frame, 'i64', position)}, align 8")
        team = function.op(f"trunc i64 {threads} to i32")
        function.fork(
            single,
            lambda: function.do(f"call void @{worker}(ptr {frame})"),
            lambda: _open_team(function, worker, frame, team),
        )

    emitter.branch(function.compare("sgt", count, 0) if isinstance(count, str) else str(count > 0).lower(), (), run)
    emitter.forget(a.buffer for a in uses(loop.body) if a.is_write)


def _most_threads(emitter: Emitter, loop: For) -> Operand:
    """How many threads the work is enough for."""
    effort, function = loop_effort(loop), emitter.function
    if effort is None:
        return MANY
    if effort.constant is not None:
        return max(2, effort.constant // NANOSECONDS_PER_THREAD)
    work = emitter.number(effort)
    enough = function.op(f"sdiv i64 {work}, {NANOSECONDS_PER_THREAD}")
    return function.op(f"select i1 {function.compare('slt', work, SHORT)}, i64 1, i64 {enough}")


def _thread_count(function: Function) -> str:
    """How many threads to use now, an i32."""
    if function.module.openmp:
        return function.call("i32", "omp_get_max_threads", [], pure=False)
    function.module.declare(THREAD_COUNT, f"@{THREAD_COUNT} = external global i32")
    return function.emit(f"load i32, ptr @{THREAD_COUNT}, align 4")


def _open_team(function: Function, worker: str, frame: str, team: str) -> None:
    function.call("void", "GOMP_parallel", [("ptr", f"@{worker}"), ("ptr", frame), ("i32", team), ("i32", "0")])


def _iterations(function: Function, lower: Operand, upper: Operand, step: int) -> Operand:
    length = function.add(function.subtract(upper, lower), step - 1)
    if isinstance(length, int):
        return length // step
    return length if step == 1 else function.op(f"sdiv i64 {length}, {step}")


def _captures(emitter: Emitter, loop: For) -> list[tuple[str, str]]:
    """Type and name of every run-time value of the surrounding function that the body may use, in a fixed order."""
    own = {b.name for b, _ in allocations(loop.body)}
    used = {a.buffer for a in uses(loop.body)} - own
    pointers = [("ptr", emitter.pointers[n]) for n in emitter.buffers if n in used and n in emitter.pointers]
    if any(isinstance(s, Check) for s in statements(loop.body)):
        pointers.append(("ptr", "%record"))
    axes = [("i64", o) for n, o in emitter.axes.items() if isinstance(o, str)]
    return list(dict.fromkeys([*pointers, *axes]))


def _parameters(captures: Sequence[tuple[str, str]], aliasing: bool) -> list[tuple[str, str]]:
    pointer = "ptr" if aliasing else "ptr noalias"
    return [(pointer if t == "ptr" and n != "%record" else t, f"c{i}" if n != "%record" else "record")
            for i, (t, n) in enumerate(captures)]  # fmt: skip


def _write_chunk(emitter: Emitter, loop: For, name: str, captures: Sequence[tuple[str, str]]) -> list[str]:
    """The function that runs iterations from..to; returns the buffers that its callers must allocate."""
    parameters = _parameters(captures, emitter.aliasing)
    renamed = {old: f"%{new}" for (_, old), (_, new) in zip(captures, parameters)}
    inner = emitter.child(Function(emitter.function.module, name, [], linkage="internal"))
    for axis, operand in emitter.axes.items():
        inner.axes[axis] = renamed.get(operand, operand) if isinstance(operand, str) else operand
    inner.size_operands = {renamed[o] for o in emitter.size_operands if o in renamed}
    inner.operand_multiples = {renamed[o]: m for o, m in emitter.operand_multiples.items() if o in renamed}
    inner.multiples, inner.open_loops = dict(emitter.multiples), emitter.open_loops
    inner.pointers = {n: renamed[p] for n, p in emitter.pointers.items() if p in renamed}
    heap = [b.name for b in inner.large_temporaries(loop.body)]
    pointer = "ptr" if emitter.aliasing else "ptr noalias"
    scratch = [(pointer, f"t{i}") for i in range(len(heap))]
    inner.pointers.update((n, f"%t{i}") for i, n in enumerate(heap))
    inner.function.set_parameters([*parameters, *scratch, ("i64", "from"), ("i64", "to")])
    inner.allocate(loop.body)
    inner.read_numbers()
    inner.sequential(loop, "%from", "%to")
    inner.leave()
    return heap


def _write_worker(
    emitter: Emitter, name: str, chunk: str, captures: Sequence[tuple[str, str]], heap: Sequence[str], step: int
) -> None:
    """The function that each thread of a team runs."""
    parameters = _parameters(captures, emitter.aliasing)
    inner = emitter.child(Function(emitter.function.module, name, [("ptr", "frame")], linkage="internal"))
    function = inner.function

    def field(position: int, kind: str) -> str:
        return function.emit(f"load {kind}, ptr {function.offset('%frame', 'i64', position)}, align 8")

    upper, size = field(1, "i64"), field(2, "i64")
    values = [field(_FRAME_HEAD + i, t) for i, (t, _) in enumerate(captures)]
    renamed = {old: v for (_, old), v in zip(captures, values)}
    for axis, operand in emitter.axes.items():
        inner.axes[axis] = renamed.get(operand, operand) if isinstance(operand, str) else operand
    memory = [inner.new_memory(inner.size_of(n)) for n in heap]
    take, run, end = (function.new_label(n) for n in ("take", "run", "end"))
    function.terminate(f"br label %{take}")
    function.start_block(take)
    first = function.emit(f"atomicrmw add ptr %frame, i64 {size} monotonic")
    more = function.emit(f"icmp slt i64 {first}, {upper}")
    function.terminate(f"br i1 {more}, label %{run}, label %{end}")
    function.start_block(run)
    last = function.minimum(function.emit(f"add i64 {first}, {size}"), upper)
    pairs = [(t.split()[0], v) for (t, _), v in zip(parameters, values)] + [("ptr", m) for m in memory]
    pairs += [("i64", first), ("i64", str(last))]
    function.do(f"call void @{chunk}({', '.join(f'{t} {v}' for t, v in pairs)})")
    function.terminate(f"br label %{take}")
    function.start_block(end)
    inner.heap = memory
    inner.leave()
