"""What a compiled program needs while it runs: threads, memory, native calls and their interruption."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from intarsia.ir.errors import CompileError
from intarsia.runtime import team, threads
from intarsia.runtime.interrupts import complete, interrupt_flag
from intarsia.runtime.native import CheckFailure, ErrorRecord, NativeFunction, address_of, native_symbols
from intarsia.runtime.team import team_entry
from intarsia.runtime.threads import THREADS, ThreadCount, default_thread_count

PARALLEL = """
declare void @GOMP_parallel(ptr, ptr, i32, i32)
@intarsia_thread_count = external global i32
define internal void @body(ptr %counter) {
  %old = atomicrmw add ptr %counter, i64 1 monotonic
  ret void
}
define i32 @entry(ptr %inputs, ptr %outputs, ptr %sizes, ptr %workspace, ptr %record, ptr %interrupt) {
entry:
  %threads = load i32, ptr @intarsia_thread_count
  %n = load i64, ptr %sizes
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  call void @GOMP_parallel(ptr @body, ptr %workspace, i32 %threads, i32 0)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret i32 0
}
"""

ADD_ONE = """
define i32 @entry(ptr %inputs, ptr %outputs, ptr %sizes, ptr %workspace, ptr %record, ptr %interrupt) {
entry:
  %x = load ptr, ptr %inputs
  %y = load ptr, ptr %outputs
  %n = load i64, ptr %sizes
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %from = getelementptr float, ptr %x, i64 %i
  %to = getelementptr float, ptr %y, i64 %i
  %value = load float, ptr %from
  %sum = fadd float %value, 1.0
  store float %sum, ptr %to
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret i32 0
}
"""

FAIL = """
define i32 @entry(ptr %inputs, ptr %outputs, ptr %sizes, ptr %workspace, ptr %record, ptr %interrupt) {
  %claimed = cmpxchg ptr %record, i64 0, i64 3 monotonic monotonic
  %count = getelementptr i64, ptr %record, i64 1
  store i64 2, ptr %count
  %first = getelementptr i64, ptr %record, i64 2
  store i64 -5, ptr %first
  %second = getelementptr i64, ptr %record, i64 3
  store i64 40, ptr %second
  ret i32 3
}
"""

# Counts up to sizes[0] and polls the flag on each turn; the first output holds how often it was entered.
POLL = """
define i32 @entry(ptr %inputs, ptr %outputs, ptr %sizes, ptr %workspace, ptr %record, ptr %interrupt) {
entry:
  %calls = load ptr, ptr %outputs
  %old = load i64, ptr %calls
  %new = add i64 %old, 1
  store i64 %new, ptr %calls
  %n = load i64, ptr %sizes
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %go]
  %flag = load atomic i32, ptr %interrupt monotonic, align 4
  %raised = icmp ne i32 %flag, 0
  br i1 %raised, label %stop, label %go
go:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %exit
stop:
  ret i32 -1
exit:
  ret i32 0
}
"""


def native(source: str, inputs: int = 0, outputs: int = 0, sizes: int = 0) -> NativeFunction:
    """The entry function of LLVM IR text, linked as the CPU back end links its own."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name, address in native_symbols().items():
        llvm.add_symbol(name, address)
    module = llvm.parse_assembly(source, llvm.create_context())
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine(opt=2))
    engine.finalize_object()
    return NativeFunction(engine.get_function_address("entry"), inputs, outputs, sizes, owner=engine)


def wait_for_child(child: int, seconds: float = 10.0) -> int | None:
    """Exit status of a forked child, or None (and the child is killed) when it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def in_child(body: Callable[[], bool]) -> int | None:
    """Exit status of a forked child that runs `body`: 0 where it gave True."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is what is tested
        child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = body()
        finally:
            os._exit(0 if passed else 1)
    return wait_for_child(child)


@pytest.fixture
def two_threads() -> Iterator[None]:
    if not team.CAN_SHARE:
        pytest.skip("no threads on this system")
    before = THREADS.get()
    THREADS.set(2)
    yield
    THREADS.set(before)


# ----- threads


def share(body: Callable[[], object], threads: int) -> None:
    """Have a team run a body of Python's."""
    team._PARALLEL(team_entry())(team._BODY(lambda data: body() and None), None, threads, 0)


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("threads", [2, 4])
def test_every_thread_of_the_team_takes_part(two_threads: None, threads: int) -> None:
    members: set[int] = set()

    def body() -> None:
        members.add(threading.get_native_id())
        wait_until(lambda: len(members) == threads)

    for pause in (0.0, 0.0, 0.05):  # helpers that are new, that look for work, that sleep
        time.sleep(pause)
        members.clear()
        share(body, threads)
        assert len(members) == threads


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at the threads as Linux shows them")
def test_helpers_leave_signals_to_python(two_threads: None) -> None:
    blocked: dict[int, int] = {}

    def body() -> None:
        status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
        blocked[threading.get_native_id()] = int(status.partition("SigBlk:")[2].split()[0], 16)
        wait_until(lambda: len(blocked) == 2)

    share(body, 2)
    own = blocked.pop(threading.get_native_id())
    (helper,) = blocked.values()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        assert helper >> number - 1 & 1 and not own >> number - 1 & 1
    assert not helper >> signal.SIGSEGV - 1 & 1


@pytest.mark.skipif(sys.platform != "linux", reason="helpers are placed on Linux")
def test_helpers_keep_away_from_the_core_of_the_thread_that_they_help(two_threads: None) -> None:
    own = os.sched_getaffinity(0)
    if len(own) < 2:
        pytest.skip("needs two cores")
    members: set[int] = set()

    def body() -> None:
        members.add(threading.get_native_id())
        wait_until(lambda: len(members) == 2)

    try:
        for core in sorted(own)[:2] * 2:
            os.sched_setaffinity(0, {core})
            share(lambda: None, 2)  # with no core left for it, a helper stays where it was
            os.sched_setaffinity(0, own)
            members.clear()
            share(body, 2)
            assert os.sched_getaffinity(0) == own
            (helper,) = members - {threading.get_native_id()}
            assert len(os.sched_getaffinity(helper)) in (len(own) - 1, len(own))
    finally:
        os.sched_setaffinity(0, own)


def test_nobody_waits_for_a_helper_that_comes_late(two_threads: None) -> None:
    calls: list[int] = []
    for count in range(1, 200):
        share(lambda: calls.append(0), 3)
        assert count <= len(calls) <= 3 * count
    before = len(calls)
    time.sleep(0.05)
    assert len(calls) == before  # who has not joined by the end never does


def test_two_threads_of_python_share_one_team(two_threads: None) -> None:
    inside, others = threading.Event(), []

    def second() -> None:
        inside.wait(10)
        share(lambda: others.append(threading.get_ident()), 2)  # finds the team at work, and does it alone
        others.append(-1)

    worker = threading.Thread(target=second)
    worker.start()
    share(lambda: inside.set() or wait_until(lambda: len(others) == 2), 2)
    worker.join()
    assert others == [worker.ident, -1]


def test_jobs_of_many_threads_are_all_done(two_threads: None) -> None:
    function, counters = native(PARALLEL, sizes=1), [np.zeros(8, np.int64) for _ in range(4)]
    workers = [
        threading.Thread(target=lambda c=c: function.call([], [], [2000], workspace=address_of(c))) for c in counters
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(2000 <= c[0] <= 4000 for c in counters)


def test_fork_and_join_take_less_than_ten_microseconds(two_threads: None) -> None:
    counters, repeats = np.zeros(8, np.int64), 500
    function = native(PARALLEL, sizes=1)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        function.call([], [], [repeats], workspace=address_of(counters))
        times.append((time.perf_counter() - start) / repeats)
    assert min(times) < 10e-6  # 0.1 us on an idle machine


def test_a_forked_child_runs_on_one_thread_and_does_not_hang(two_threads: None) -> None:
    function, counters = native(PARALLEL, sizes=1), np.zeros(8, np.int64)
    function.call([], [], [10], workspace=address_of(counters))
    before = counters[0]

    def child() -> bool:
        function.call([], [], [5], workspace=address_of(counters))
        return bool(THREADS.set(8) == 1 and counters[0] == before + 5)

    assert in_child(child) == 0
    assert THREADS.get() == 2


def test_number_of_threads_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_NUM_THREADS", "3")
    assert default_thread_count() == 3
    monkeypatch.delenv("INTARSIA_NUM_THREADS")
    assert 1 <= default_thread_count() <= len(os.sched_getaffinity(0))
    for text in ("many", "0", "-1", "1.5"):
        monkeypatch.setenv("INTARSIA_NUM_THREADS", text)
        with pytest.raises(CompileError) as error:
            default_thread_count()
        assert error.value.code == "E0612"
        assert text in str(error.value)
    with pytest.raises(CompileError):
        THREADS.set(0)


def test_cpu_quota_of_the_control_group_limits_the_threads(tmp_path: Path) -> None:
    (tmp_path / "slice" / "job").mkdir(parents=True)
    (tmp_path / "slice" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "self").write_text("0::/slice/job\n")
    assert threads._quota(tmp_path, tmp_path / "self") == 1.5
    assert threads._quota(tmp_path, tmp_path / "missing") == float("inf")


def test_a_system_without_threads_runs_programs_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "CAN_SHARE", False)
    monkeypatch.setattr(threads, "CAN_SHARE", False)
    assert ThreadCount().set(4) == 1
    calls: list[int] = []
    entry = team_entry.__wrapped__()
    team._PARALLEL(entry)(team._BODY(lambda data: calls.append(data or 0)), 77, 4, 0)
    assert calls == [77]


def test_only_parallel_loops_make_a_team() -> None:
    assert native_symbols(parallel=False).keys() == {"intarsia_thread_count"}
    assert native_symbols()["GOMP_parallel"] == team_entry()


# ----- native calls


def test_run_passes_arrays_and_sizes() -> None:
    x = np.arange(10, dtype=np.float32)
    y = np.empty(10, np.float32)
    assert native(ADD_ONE, 1, 1, 1).run([x], [y], [10]) is None
    np.testing.assert_array_equal(y, x + 1)


def test_a_failed_check_is_reported_with_its_values() -> None:
    assert ctypes.sizeof(ErrorRecord) == 128
    assert native(FAIL).run([], []) == CheckFailure(3, (-5, 40))


def test_concurrent_calls_of_one_function_do_not_share_arguments() -> None:
    function = native(ADD_ONE, 1, 1, 1)
    wrong: list[int] = []

    def work(value: int) -> None:
        x, y = np.full(500, value, np.float32), np.empty(500, np.float32)
        for _ in range(200):
            y[:] = 0
            function.run([x], [y], [500])
            if (y != value + 1).any():
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(v,)) for v in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_call_costs_few_microseconds() -> None:
    function, x, y = native(ADD_ONE, 1, 1, 1), np.zeros(1, np.float32), np.zeros(1, np.float32)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        function.run([x], [y], [1], interruptible=False)
        times.append(time.perf_counter() - start)
    assert min(times) < 20e-6


def test_address_is_that_of_the_first_element() -> None:
    array = np.zeros((6, 7), np.int16)
    for view in (array, array[2:, 3:], array.T, np.zeros(()), array[:0]):
        assert address_of(view) == view.__array_interface__["data"][0]


# ----- interruption


def long_run() -> NativeFunction:
    return native(POLL, outputs=1, sizes=1)


@contextmanager
def signal_after(seconds: float, number: int) -> Iterator[None]:
    """Send this process a signal after a while, unless the block ends before that."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def test_ctrl_c_stops_a_native_call() -> None:
    function, calls = long_run(), np.zeros(1, np.int64)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signal_after(0.1, signal.SIGINT):
        function.run([], [calls], [1 << 50])
    assert time.monotonic() - start < 5
    assert calls[0] == 1
    assert not interrupt_flag().raised
    assert signal.set_wakeup_fd(-1) == -1  # nothing stays installed
    assert function.run([], [calls], [10]) is None  # and the next call runs


def test_any_handler_that_raises_stops_the_call() -> None:
    def handler(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError):
            long_run().run([], [np.zeros(1, np.int64)], [1 << 50])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_does_not_raise_lets_the_call_complete() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)  # as an event loop does
    calls = np.zeros(1, np.int64)
    try:
        with signal_after(0.05, signal.SIGUSR1):
            assert long_run().run([], [calls], [300_000_000]) is None
        assert signal.set_wakeup_fd(-1) == write
        assert os.read(read, 10) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        os.close(read)
        os.close(write)
    assert seen == [signal.SIGUSR1]
    assert calls[0] == 2


def test_a_call_on_another_thread_is_not_interrupted() -> None:
    function, calls, results = long_run(), np.zeros(1, np.int64), []
    worker = threading.Thread(target=lambda: results.append(function.run([], [calls], [200_000_000])))
    worker.start()
    with pytest.raises(KeyboardInterrupt), signal_after(0.02, signal.SIGINT):
        function.run([], [np.zeros(1, np.int64)], [1 << 50])
    worker.join()
    assert results == [None]
    assert calls[0] == 1


def test_a_call_may_ask_not_to_be_interrupted() -> None:
    polled: list[int] = []
    assert complete(lambda flag: polled.append(flag) or 0, interruptible=False) == 0
    assert polled != [interrupt_flag().address]
    assert ctypes.c_int32.from_address(polled[0]).value == 0


def test_the_flag_of_a_forked_child_is_its_own() -> None:
    flag = interrupt_flag()

    def child() -> bool:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with signal_after(0.05, signal.SIGINT):
                long_run().run([], [np.zeros(1, np.int64)], [1 << 50])
        except KeyboardInterrupt:
            return not flag.raised
        return False

    assert in_child(child) == 0
    assert not flag.raised
