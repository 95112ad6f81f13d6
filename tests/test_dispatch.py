"""Repeated calls through native code: the same results and errors as the general way, no leaks, several threads."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia import executable
from intarsia.effort import effort_of
from intarsia.runtime import dispatch
from intarsia.runtime.buffers import POOL, BufferPool
from intarsia.runtime.dispatch import MOST_CALLS, Dispatcher, nothing_fits
from intarsia.runtime.native import address_of, native_symbols

pytestmark = pytest.mark.skipif(POOL.extension is None, reason="no native calls with this interpreter")

ADD = "fn f(x: f32[N], y: f32[N]) -> f32[N] { return x + y }"
TWO = "fn f(x: f32[N, M]) -> (f32[M], f32[N, M]) { return sum(x, axis=0), exp(x) @ transpose(x) @ x }"
CHECKED = "fn f(x: f32[N], i: i64[M]) -> f32[M] { return tensor[k](x[i[k]]) }"
WITH_CHECKS = intarsia.Options(checks=True)


def repeated(text: str, *arguments: Any, options: intarsia.Options | None = None) -> intarsia.Function:
    """A function that was called twice with these arguments: the third call is a native one."""
    function = intarsia.jit(text, options)
    for _ in range(2):
        function(*arguments)
    return function


def is_native(function: intarsia.Function, *arguments: Any) -> bool:
    return function._dispatcher.function(*arguments) is not NotImplemented


def vector(size: int = 16, value: float = 1.0, dtype: Any = np.float32) -> Any:
    return np.full(size, value, dtype)


# ---------------------------------------------------------------------- what is made natively


def test_the_third_call_is_native() -> None:
    f, x = intarsia.jit(ADD), vector()
    for expected in (False, False, True, True):
        assert is_native(f, x, x) == expected
        np.testing.assert_array_equal(f(x, x), x + x)


@pytest.mark.parametrize("size", [1, 16, 5000, 300_000])
def test_results_are_like_those_of_the_general_way(size: int) -> None:
    x = np.arange(size, dtype=np.float32)
    f = intarsia.jit(ADD)
    first, _, native, other = (f(x, x) for _ in range(4))
    for result in (native, other):
        np.testing.assert_array_equal(result, first)
        assert result.dtype is first.dtype and result.shape == first.shape and result.strides == first.strides
        for name in ("C_CONTIGUOUS", "F_CONTIGUOUS", "ALIGNED", "WRITEABLE"):
            assert result.flags[name] == first.flags[name], name
    assert address_of(native) != address_of(other)
    kept = native[size // 2 :]
    del native, other
    expected = kept.copy()
    f(x + 1, x)
    np.testing.assert_array_equal(kept, expected)


def test_several_results_workspaces_and_shapes() -> None:
    x = np.linspace(-1, 1, 300 * 200, dtype=np.float32).reshape(300, 200)
    f = repeated(TWO, x)
    assert is_native(f, x)
    expected, made = intarsia.jit(TWO)(x), f(x)
    assert isinstance(made, tuple) and len(made) == 2
    for a, b in zip(expected, made):
        np.testing.assert_array_equal(a, b)
    for rows in (3, 5):
        part = x[:rows]
        for _ in range(3):
            np.testing.assert_allclose(f(part)[0], part.sum(0), rtol=1e-5, atol=1e-5)
        assert is_native(f, part) and is_native(f, x)


def test_empty_arrays_and_results_without_dimensions() -> None:
    f = repeated("fn f(x: f32[N, M]) -> f32 { return sum(x) }", np.ones((2, 3), np.float32))
    result = f(np.ones((2, 3), np.float32))
    assert result.shape == () and result == 6
    none = np.ones((0, 3), np.float32)
    f = repeated("fn f(x: f32[N, M]) -> f32[N, M] { return x + 1.0 }", none)
    assert is_native(f, none) and f(none).shape == (0, 3)


def test_elements_that_numpy_has_no_name_for() -> None:
    x = np.arange(64).astype(ml_dtypes.bfloat16)
    f = repeated("fn f(x: bf16[N]) -> bf16[N] { return x + x }", x)
    assert is_native(f, x)
    assert f(x).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(f(x), x + x)


@pytest.mark.parametrize(
    ("element", "good", "bad"),
    [
        ("f64", (0.1, -0.0, float("inf"), float("nan"), 1e300, 7, -(2**24)), ("x", 1j)),
        ("f32", (0.1, -0.0, float("inf"), float("nan"), 1e-50, 3.4028235e38, 7), (1e39, -3.5e38)),
        ("i64", (0, -5, 2**63 - 1, -(2**63)), (2**63, 1.0, True)),
        ("i32", (0, -5, 2**31 - 1, -(2**31)), (2**31, -(2**31) - 1, 2**70)),
    ],
)
def test_numbers(element: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    text = f"fn f(a: {element}, x: {element}[N]) -> ({element}, {element}[N]) {{ return a, x + a }}"
    x = np.array([0, 1, -1], {"f": "float", "i": "int"}[element[0]] + element[1:])
    f = intarsia.jit(text)
    for first in {type(value): value for value in good}.values():
        for _ in range(2):
            f(first, x)
    for value in good:
        assert is_native(f, value, x)
        general = intarsia.jit(text)(value, x)
        for ours, expected in zip(f(value, x), general):
            assert ours.tobytes() == expected.tobytes() and ours.dtype == expected.dtype, value
    for value in bad:
        assert not is_native(f, value, x)
        with pytest.raises(intarsia.CompileError) as caught:
            f(value, x)
        with pytest.raises(intarsia.CompileError) as expected_error:
            intarsia.jit(text)(value, x)
        assert str(caught.value) == str(expected_error.value)


def test_numbers_that_are_rounded_go_the_general_way() -> None:
    f = repeated("fn f(a: f32, x: f32[N]) -> f32[N] { return x + a }", 3, vector())
    assert is_native(f, 2**24, vector()) and not is_native(f, 2**24 + 1, vector())
    assert not is_native(f, np.float64(3), vector()) and not is_native(f, True, vector())
    np.testing.assert_array_equal(f(2**24 + 1, vector()), vector(value=2.0**24))


def test_bound_arguments_stay_alive() -> None:
    f = intarsia.jit(ADD).bind(y=vector(300, 2.0))
    for _ in range(4):
        gc.collect()
        np.testing.assert_array_equal(f(vector(300)), vector(300, 3.0))
    assert is_native(f, vector(300))


def test_arguments_by_keyword() -> None:
    f = repeated(
        "fn f(x: f32[N], y: f32[N], z: f32 = 1.0) -> f32[N] { return x - y * z }", vector(), vector(value=3.0), 1.0
    )
    x, y = vector(), vector(value=3.0)
    calls = []
    original = f._dispatcher.function
    f._dispatcher.function = lambda *given: calls.append(original(*given)) or calls[-1]
    for given, named in (((x,), {"y": y, "z": 1.0}), ((), {"z": 1.0, "y": y, "x": x}), ((x, y), {"z": 1.0})):
        np.testing.assert_array_equal(f(*given, **named), x - y)
        assert calls.pop() is not NotImplemented
    np.testing.assert_array_equal(f(x, z=2.0, y=y), x - 2 * y)
    np.testing.assert_array_equal(f(y=x, x=y), y - x)  # the default
    for named, code in (({"x": x}, "E0615"), ({"w": x}, "E0610"), ({"z": 1.0}, "E0613"), ({"y": y, "x": x}, "E0615")):
        for _ in range(2):
            with pytest.raises(intarsia.CompileError) as caught:
                f(x, **named)
            assert caught.value.code == code


def test_no_arguments() -> None:
    f = repeated("fn f() -> f32[3] { return tensor[i < 3](f32(i)) }")
    assert is_native(f)
    np.testing.assert_array_equal(f(), [0, 1, 2])


def test_sizes_that_stayed_open() -> None:
    f = intarsia.jit(ADD, intarsia.Options(dynamic=("N",)))
    for size in (5, 9, 5000):
        for _ in range(3):
            np.testing.assert_array_equal(f(vector(size), vector(size)), vector(size, 2.0))
        assert is_native(f, vector(size), vector(size))


# ---------------------------------------------------------------------- what is not


def test_anything_else_goes_the_general_way() -> None:
    f = repeated(ADD, vector(), vector())
    x = vector()
    misaligned = np.frombuffer(bytearray(65), np.uint8)[1:].view(np.float32)
    misaligned[:] = 1
    same = (
        (x, np.ones(32, np.float32)[::2]),
        (x, misaligned),
        (x, x.astype(">f4")),
        (x, x.view(type("Own", (np.ndarray,), {}))),
        (x, memoryview(x)),
        (x, [1.0] * 16),
    )
    for arguments in same:
        assert not is_native(f, *arguments)
        for _ in range(3):
            np.testing.assert_array_equal(f(*arguments), vector(value=2.0))
    np.testing.assert_array_equal(f(x, y=x), x + x)
    wrong = {
        "E0615": (x, x, x),
        "E0613": (x,),
        "E0603": (x, object()),
    }
    for code, arguments in wrong.items():
        assert not is_native(f, *arguments)
        with pytest.raises(intarsia.CompileError) as caught:
            f(*arguments)
        assert caught.value.code == code
    for arguments in ((x, vector(15)), (x, x.astype(np.float64)), (x, x.reshape(4, 4)), (x, x.view(np.int32))):
        assert not is_native(f, *arguments)
        with pytest.raises(intarsia.CompileError):
            f(*arguments)
    assert is_native(f, x, x)


def test_a_failed_check_is_raised_as_ever() -> None:
    x, i = vector(5), np.array([0, 4, 2])
    f = repeated(CHECKED, x, i, options=WITH_CHECKS)
    assert is_native(f, x, i)
    bad = np.array([0, 7, 2])
    messages = []
    for function in (f, intarsia.jit(CHECKED, WITH_CHECKS)):
        with pytest.raises(intarsia.CompileError) as caught:
            function(x, bad)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "7" in messages[0]
    np.testing.assert_array_equal(f(x, i), x[i])


def test_programs_that_may_run_long_can_be_interrupted() -> None:
    f = repeated("fn f(x: f64[8, 8], n: i64) -> f64[8, 8] { return loop (y = x) for t < n { yield y @ x } }",
                 np.eye(8), np.array(3))  # fmt: skip
    assert not is_native(f, np.eye(8), np.array(3))
    np.testing.assert_array_equal(f(np.eye(8), np.array(3)), np.eye(8))


def test_effort_is_known_where_sizes_are() -> None:
    def effort(text: str, *arguments: Any) -> int | None:
        return effort_of(intarsia.jit(text).lower(*arguments).compilation.plan)

    small, large = (effort(ADD, vector(n), vector(n)) for n in (16, 1_000_000))
    assert small is not None and large is not None and small < 100 < 20_000 < large < 10_000_000
    steps = "fn f(x: f32[N]) -> f32[N] {{ return loop (y = x) for t < {} {{ yield sin(y) * cumsum(x, axis=0) }} }}"
    ten, hundred = (effort(steps.format(n), vector()) for n in (10, 100))
    assert ten is not None and hundred is not None and hundred > 5 * ten
    assert effort("fn f(x: f32[N], n: i64) -> f32[N] { return loop (y = x) for t < n { yield y + x } }",
                  vector(), np.array(3)) is None  # fmt: skip


def test_more_shapes_than_are_looked_through() -> None:
    f = intarsia.jit(ADD, intarsia.Options(dynamic=("N",)))
    for size in range(1, MOST_CALLS + 4):
        for _ in range(3):
            np.testing.assert_array_equal(f(vector(size), vector(size)), vector(size, 2.0))
    assert is_native(f, vector(MOST_CALLS), vector(MOST_CALLS))
    assert not is_native(f, vector(MOST_CALLS + 1), vector(MOST_CALLS + 1))
    f._dispatcher.clear()
    assert not is_native(f, vector(1), vector(1))


def test_without_native_code_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.POOL, "extension", None)
    f = repeated(ADD, vector(), vector())
    assert f._dispatcher.function is nothing_fits
    np.testing.assert_array_equal(f(vector(), vector()), vector(value=2.0))


# ---------------------------------------------------------------------- references and memory


def references(*objects: object) -> list[int]:
    return [sys.getrefcount(o) for o in objects]


@pytest.mark.parametrize("size", [16, 5000])
def test_references_are_counted_right(size: int) -> None:
    x, y = vector(size), vector(size)
    f = repeated(ADD, x, y)
    f(x, y)
    objects = (x, y, x.dtype, np.ndarray, NotImplemented, f._dispatcher.function)
    before = references(*objects)
    for _ in range(1000):
        result = f(x, y)
        assert not is_native(f, x)
    count, base_count = sys.getrefcount(result), sys.getrefcount(result.base)  # outside of what pytest rewrites
    assert count == 2
    assert base_count == 2 or result.base is None
    assert (result.base is None) == (size == 16)
    del result
    after = references(*objects)
    assert after == before


def grown(call: Callable[[], object], times: int = 300) -> int:
    """Bytes of Python's and NumPy's that so many calls leave behind."""
    for _ in range(10):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(times):
            call()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def test_nothing_leaks() -> None:
    x, matrix, i = vector(5000), np.ones((60, 60), np.float32), np.array([0, 9_999_999])
    f, g = repeated(ADD, x, x), repeated(TWO, matrix)
    h = repeated(CHECKED, x, np.array([0, 1]), options=WITH_CHECKS)

    def failing() -> None:
        with pytest.raises(intarsia.CompileError):
            h(x, i)

    assert grown(lambda: f(x, x)) < 2000
    assert grown(lambda: g(matrix)) < 2000
    assert grown(lambda: h(x, np.array([0, 1]))) < 2000
    assert grown(failing, 100) < 4000


def test_functions_that_are_gone_leave_nothing() -> None:
    program = intarsia.compile(ADD)
    x = vector()

    def make_and_drop() -> None:
        f = program.f.bind()
        for _ in range(3):
            f(x, x)

    assert grown(make_and_drop, 20) < 20 * 200


def test_a_result_that_finds_no_memory_is_an_error() -> None:
    def refuse(size: int) -> Any:
        raise MemoryError

    pool = BufferPool(limit=1 << 20)
    pool._new_block = refuse  # type: ignore[method-assign]
    x = vector(5000)
    f = intarsia.jit("fn f(x: f32[N]) -> (f32[N], f32[N]) { return x + 1.0, x * 2.0 }")
    f._dispatcher = Dispatcher(pool)
    for _ in range(2):
        f(x)

    def failing() -> None:
        with pytest.raises(MemoryError):
            f(x)

    assert grown(failing, 50) < 4000


# ---------------------------------------------------------------------- threads


def test_threads_call_at_once() -> None:
    large = 1_000_000  # long enough that the lock of the interpreter is given away
    f = repeated(ADD, vector(), vector())
    repeated_large = repeated(ADD, vector(large), vector(large))
    wrong: list[float] = []
    start = threading.Barrier(6)

    def work(value: float) -> None:
        start.wait()
        for _ in range(30):
            for function, size, times in ((f, 16, 30), (f, 17, 3), (repeated_large, large, 1)):
                x = vector(size, value)
                for _ in range(times):
                    if (function(x, x) != 2 * value).any():
                        wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(v),)) for v in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert is_native(f, vector(17), vector(17))


def counting_teams(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for the OpenMP runtime, for two threads: notes the threads of each team."""
    teams: list[int] = []
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    def fork(body: Callable[[int | None], None], data: int | None, threads: int, flags: int) -> None:
        teams.append(threads)
        body(data)

    entry = ctypes.CFUNCTYPE(None, body_type, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(fork)
    count = ctypes.c_int32(2)
    own = {
        "GOMP_parallel": ctypes.cast(entry, ctypes.c_void_p).value,
        "intarsia_thread_count": ctypes.addressof(count),
    }
    monkeypatch.setattr(executable, "native_symbols", lambda **chosen: {**native_symbols(**chosen), **own})
    monkeypatch.setattr(counting_teams, "kept", (entry, count), raising=False)
    return teams


@pytest.mark.parametrize("dynamic", [(), ("N",)])
def test_only_enough_work_wakes_threads(monkeypatch: pytest.MonkeyPatch, dynamic: tuple[str, ...]) -> None:
    teams = counting_teams(monkeypatch)
    f = intarsia.jit(
        "fn f(x: f32[N, 64]) -> f32[N, 64] { return softmax(x, axis=1) }", intarsia.Options(dynamic=dynamic)
    )
    f(np.ones((4, 64), np.float32))
    f(np.ones((100, 64), np.float32))
    assert not teams
    f(np.ones((20_000, 64), np.float32))
    assert teams == [2]


EXIT = """
import atexit, builtins, threading
import numpy as np, intarsia
f = intarsia.jit("fn f(x: f32[N], y: f32[N]) -> f32[N] { return x + y }")
x = np.ones(1_000_000, np.float32)
cycle = [f(x, x) for _ in range(4)]
cycle.append(cycle)
builtins.kept = f(x, x)
atexit.register(lambda: f(x, x))
def work():
    while True:
        f(x, x)
threading.Thread(target=work, daemon=True).start()
f(x, x)
"""


def test_results_outlive_everything_and_calls_may_run_at_exit() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def seconds(call: Callable[[], object], times: int = 500) -> float:
    """The shortest mean time of a call."""
    found = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(times):
            call()
        found.append((time.perf_counter() - start) / times)
    return min(found)


def test_a_call_takes_less_than_a_microsecond() -> None:
    x = vector()
    f = repeated(ADD, x, x)
    assert seconds(lambda: f(x, x)) < 1e-6  # 0.22 us on an idle machine
    names = [f"x{i}" for i in range(10)]
    parameters = ", ".join(f"{n}: f32[N]" for n in names)
    ten = repeated(f"fn f({parameters}) -> f32[N] {{ return {' + '.join(names)} }}", *[x] * 10)
    arguments = [x] * 10
    assert is_native(ten, *arguments)
    assert seconds(lambda: ten(*arguments)) < 2e-6  # 0.4 us
