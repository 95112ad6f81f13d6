"""The Python interface: loading, calling, binding, lowering; caches, threads, forks, sizes that stay open."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia.function import Function
from intarsia.ir.target import TARGETS

DOUBLE = "fn f(x: f32[N]) -> f32[N] { return 2.0 * x }"
AXPY = "fn axpy(a: f64, x: f64[N], y: f64[N]) -> f64[N] { return a * x + y }"


def data(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(intarsia.CompileError) as caught:
        call()
    return caught.value.code


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Notes every call of a method of Function."""
    calls: list[object] = []
    original = getattr(Function, name)

    def counted(self: Function, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return original(self, *arguments, **named)

    monkeypatch.setattr(Function, name, counted)
    return calls


# ---------------------------------------------------------------------- functions


def test_functions_are_attributes_and_items(tmp_path: Path) -> None:
    path = tmp_path / "two.ita"
    path.write_text(f"{DOUBLE}\nfn g(x: f32[N]) -> f32[N] {{ return x + 1.0 }}\n")
    program = intarsia.load(path)
    x = data(5)
    np.testing.assert_array_equal(program.f(x), 2 * x)
    np.testing.assert_array_equal(program["g"](x), x + 1)
    assert program.functions == ("f", "g")
    assert {"f", "g"} <= set(dir(program))
    with pytest.raises(AttributeError, match="is named `h`"):
        _ = program.h
    assert code_of(lambda: program["h"]) == "E0316"
    assert not hasattr(program, "__array__")


def test_a_mistake_shows_when_a_function_is_used() -> None:
    program = intarsia.compile("fn f(x: f32[N]) -> f32[N] { return y }")
    assert code_of(lambda: program.f(data(3))) == "E0301"
    assert code_of(lambda: intarsia.compile("fn f(").entry().form) == "E0105"


def test_every_way_to_pass_arguments() -> None:
    f = intarsia.jit("fn f(x: f32[N], y: f32[N], scale: f32 = 10.0) -> f32[N] { return (x - y) * scale }")
    x, y = data(3), data(3, seed=1)
    wanted = (x - y) * 10
    for _ in range(2):  # compiled, then known
        np.testing.assert_allclose(f(x, y), wanted, rtol=1e-6)
        np.testing.assert_allclose(f(x, y=y), wanted, rtol=1e-6)
        np.testing.assert_allclose(f(y=y, x=x, scale=10), wanted, rtol=1e-6)
        np.testing.assert_allclose(f(x, y, 5), wanted / 2, rtol=1e-6)
        np.testing.assert_allclose(f(x, y, np.float32(5)), wanted / 2, rtol=1e-6)
        np.testing.assert_allclose(f(list(map(float, x)), y), wanted, rtol=1e-6)
    assert code_of(lambda: f(x)) == "E0613"
    assert code_of(lambda: f(x, y, 1.0, 2.0)) == "E0615"
    assert code_of(lambda: f(x, y, x=x)) == "E0615"
    assert code_of(lambda: f(x, y, z=x)) == "E0610"
    assert code_of(lambda: f(x, "y")) == "E0603"
    assert code_of(lambda: f(x, y.astype(np.float64))) == "E0304"
    assert code_of(lambda: f(x, y[:2])) == "E0307"
    assert code_of(lambda: f(x, y, 1e300)) == "E0606"


def test_memory_of_any_layout() -> None:
    f = intarsia.jit("fn f(x: f32[N, M]) -> f32[N, M] { return x + 0.0 }")
    x = data(6, 8)
    f(x)  # from here on the short way
    for view in (x, x[::2], x[:, ::-1], x.T, x[1:4, 2:5], np.asfortranarray(x)):
        np.testing.assert_array_equal(f(view), view)
        np.testing.assert_array_equal(f(view), view)
    swapped = x.astype(">f4")
    for _ in range(2):
        np.testing.assert_array_equal(f(swapped), x)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1, count=x.size).reshape(x.shape)
    for _ in range(2):
        np.testing.assert_array_equal(f(unaligned), x)


def test_results_are_new_arrays() -> None:
    f = intarsia.jit("fn f(x: f32[N]) -> (f32[N], f32[N]) { return x, x + 1.0 }")
    x = data(50_000)
    a, b = f(x)
    c, _ = f(x)
    assert a is not x and not np.shares_memory(a, x) and not np.shares_memory(a, c) and not np.shares_memory(a, b)
    a[:] = 0
    np.testing.assert_array_equal(c, x)


def test_scalars_and_their_range() -> None:
    f = intarsia.jit("fn f(n: i64, k: i8) -> i64 { return n + i64(k) }")
    for n, k in ((1, 2), (-5, 127), (2**62, -128)):
        assert f(n, k) == n + k
    for wrong in ((1, 128), (2**63, 1), (1, -129)):
        assert code_of(lambda wrong=wrong: f(*wrong)) == "E0606"  # type: ignore[misc]
    assert code_of(lambda: f(1.5, 1)) == "E0601"


def test_static_arguments() -> None:
    f = intarsia.jit("fn f(x: f32[N, M], axis = -1, mask = none) -> f32[N, M] { return softmax(x, axis=axis) }")
    x = data(3, 4)

    def softmax(axis: int) -> Any:
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    for axis in (0, 1, np.int64(0)):
        np.testing.assert_allclose(f(x, axis), softmax(int(axis)), rtol=1e-5)
        np.testing.assert_allclose(f(x, axis=axis), softmax(int(axis)), rtol=1e-5)
    np.testing.assert_allclose(f(x), softmax(1), rtol=1e-5)


def test_a_static_parameter_may_be_a_tensor() -> None:
    f = intarsia.jit("""
fn f(x: f32[N], mask = none) -> f32[N] {
    if mask == none { y = x } else { y = x * mask }
    return y
}
""")
    x, mask = data(4), np.array([1, 0, 1, 0], np.float32)
    np.testing.assert_array_equal(f(x), x)
    np.testing.assert_array_equal(f(x, mask), x * mask)
    np.testing.assert_array_equal(f(x, None), x)


def test_one_and_true_are_different_static_values() -> None:
    f = intarsia.jit("fn f(x: i64[N], flag = true) -> i64[N] { if flag == true { y = x } else { y = -x }\n return y }")
    x = np.arange(3)
    np.testing.assert_array_equal(f(x, True), x)
    np.testing.assert_array_equal(f(x, False), -x)


def test_generic_functions() -> None:
    f = intarsia.jit("fn f[T: float](x: T[..S], a: T) -> T[..S] { return x * a }")
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        for shape in ((), (3,), (2, 3)):
            x = np.ones(shape, dtype)
            result = f(x, 3)
            assert result.dtype == dtype and result.shape == shape and (result == 3).all()


def test_sizes_as_keywords() -> None:
    grid = intarsia.jit("fn grid[N: dim, M: dim](a: i64) -> i64[N, M] { return tensor[i < N, j < M](i * M + j + a) }")
    np.testing.assert_array_equal(grid(1, N=2, M=3), np.arange(6).reshape(2, 3) + 1)
    np.testing.assert_array_equal(grid(1, N=np.int64(1), M=0), np.zeros((1, 0)))
    for wrong in (-1, 1.5, "2", True):
        assert code_of(lambda wrong=wrong: grid(1, N=wrong, M=3)) == "E0611"  # type: ignore[misc]


def test_narrow_elements() -> None:
    f = intarsia.jit("fn f(x: bf16[N]) -> bf16[N] { return x + x }")
    x = np.array([1, 2.5], ml_dtypes.bfloat16)
    result = f(x)
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result, x + x)


# ---------------------------------------------------------------------- structs and constants

NET = """
struct Linear(N, K) {
    weight: f32[N, K]
    bias: f32[N]
}
struct Net(D, L) {
    first: Linear(D, D)
    layer: Linear(D, D)[L]
}
fn linear(x: f32[B, K], p: Linear(N, K)) -> f32[B, N] { return x @ transpose(p.weight) + p.bias }
fn main(x: f32[B, D], const p: Net(D, L)) -> f32[B, D] {
    return loop (h = linear(x, p.first)) for i < L { yield linear(relu(h), p.layer[i]) }
}
"""


def weights(layers: int = 2) -> dict[str, Any]:
    def linear(seed: int) -> dict[str, Any]:
        return {"weight": data(4, 4, seed=seed), "bias": data(4, seed=seed + 50)}

    return {"first": linear(0), "layer": [linear(i) for i in range(1, layers + 1)]}


def forward(x: Any, p: dict[str, Any]) -> Any:
    h = x @ p["first"]["weight"].T + p["first"]["bias"]
    for layer in p["layer"]:
        h = np.maximum(h, 0) @ layer["weight"].T + layer["bias"]
    return h


def test_structs_are_mappings_nested_or_dotted() -> None:
    program, x, p = intarsia.compile(NET), data(3, 4), weights()
    dotted = {f"first.{n}": a for n, a in p["first"].items()}
    dotted |= {f"layer.{i}.{n}": a for i, layer in enumerate(p["layer"]) for n, a in layer.items()}
    for given in (p, dotted, {f"p.{n}": a for n, a in dotted.items()}, {"first": p["first"], "layer": p["layer"]}):
        np.testing.assert_allclose(program.main(x, given), forward(x, p), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(program.main.bind(p=given)(x), forward(x, p), rtol=1e-4, atol=1e-5)
    assert code_of(lambda: program.main(x, {"first": p["first"]})) == "E0609"
    assert program.main.constants == ("p",)


def test_binding() -> None:
    program, x, p = intarsia.compile(NET), data(3, 4), weights()
    wanted = forward(x, p)
    bound = program.main.bind(p=p)
    p["first"]["weight"][:] = 0
    p["layer"][0]["bias"][:] = 0
    for _ in range(2):
        np.testing.assert_allclose(bound(x), wanted, rtol=1e-4, atol=1e-5)  # later changes are not seen
    np.testing.assert_allclose(bound(x, p=p), forward(x, p), rtol=1e-4, atol=1e-5)  # and another is as good
    np.testing.assert_allclose(bound(x[:1]), wanted[:1], rtol=1e-4, atol=1e-5)
    assert code_of(lambda: program.main.bind(q=p)) == "E0610"
    axpy = intarsia.jit(AXPY).bind(a=2)
    np.testing.assert_array_equal(axpy(np.ones(3), np.zeros(3)), [2, 2, 2])
    np.testing.assert_array_equal(axpy.bind(y=np.ones(3))(np.ones(3)), [3, 3, 3])


def test_weights_of_a_file(tmp_path: Path) -> None:
    p, x = weights(), data(3, 4)
    flat = {f"first.{n}": a for n, a in p["first"].items()}
    flat |= {f"layer.{i}.{n}": a for i, layer in enumerate(p["layer"]) for n, a in layer.items()}
    np.savez(tmp_path / "p.npz", **flat)
    bound = intarsia.compile(NET).main.bind(p=intarsia.read_weights(tmp_path / "p.npz"))
    np.testing.assert_allclose(bound(x), forward(x, p), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- lowering


def test_lowering_shows_every_stage() -> None:
    lowered = intarsia.jit(AXPY).lower(2.0, np.ones(100), np.ones(100))
    assert list(lowered.asm) == ["graph", "fused", "kernels", "scheduled", "plan", "llvm", "llvm-opt", "asm"]
    assert "func @axpy" in lowered.asm["graph"] and "define" in lowered.asm["llvm"]
    with pytest.raises(KeyError, match="the stages are graph"):
        _ = lowered.asm["ptx"]
    assert [r.about for r in lowered.remarks if r.about == "fusion"]
    assert list(lowered.schedule) == [n for n in lowered.schedule if f"kernel {n}" in lowered.asm["scheduled"]]
    assert "vectorize" in "".join(lowered.schedule.values())
    assert set(lowered.timing) == {"graph", "fused", "kernels", "scheduled", "plan", "llvm", "code"}
    assert all(seconds >= 0 for seconds in lowered.timing.values())


def test_options() -> None:
    x = data(64)
    f = intarsia.jit(DOUBLE, intarsia.Options(schedule="split i0 16"))
    np.testing.assert_array_equal(f(x), 2 * x)
    assert "in 0..4" in f.lower(x).asm["scheduled"]
    assert code_of(lambda: intarsia.jit(DOUBLE, intarsia.Options(schedule="split nosuch 4"))(x)) == "E1602"
    assert code_of(lambda: intarsia.jit(DOUBLE, intarsia.Options(target="cpu:neon"))(x)) == "E1702"
    assert code_of(lambda: intarsia.jit(DOUBLE, intarsia.Options(passes="nosuch"))(x)) == "E1401"
    gather = "fn f(t: f32[V], ids: i64[N]) -> f32[N] { return tensor[i](t[ids[i]]) }"
    ids = np.array([0, 70])
    assert intarsia.jit(gather)(x, ids)[1] == x[63]
    assert code_of(lambda: intarsia.jit(gather, intarsia.Options(checks=True))(x, ids)) == "E0801"


def test_a_layer_that_is_not_there_is_noticed_under_checks() -> None:
    text = """struct P(N) { w: f32[N, N] }
    fn one(l: P(4)[3], x: f32[2, 4], k: i32) -> f32[2, 4] { return x @ l[k - 1].w }
    fn steps(l: P(4)[3], x: f32[2, 4], k: i32[2]) -> f32[2, 4] {
        return loop (y = x) for t < 2 { yield y @ l[k[t]].w }
    }"""
    layers = [{"w": np.full((4, 4), n, np.float32)} for n in range(3)]
    x = np.ones((2, 4), np.float32)
    plain, checked = (intarsia.compile(text, intarsia.Options(checks=c)) for c in (False, True))
    assert plain.one(layers, x, np.int32(9))[0, 0] == checked.one(layers, x, np.int32(3))[0, 0] == 8.0
    assert checked.steps(layers, x, np.array([1, 2], np.int32))[0, 0] == 32.0
    for k in (0, 4):
        assert code_of(lambda k=k: checked.one(layers, x, np.int32(k))) == "E0801"
    assert code_of(lambda: checked.steps(layers, x, np.array([1, 3], np.int32))) == "E0801"


@pytest.mark.parametrize("name", [n for n, t in TARGETS.items() if t.kind == "cpu"])
def test_code_for_other_machines_can_be_looked_at(name: str) -> None:
    f = intarsia.jit(DOUBLE, intarsia.Options(target=name))
    assert TARGETS[name].triple in f.lower(data(64)).asm["llvm"]


# ---------------------------------------------------------------------- sizes that stay open

OPEN = {
    "elementwise": "fn f(x: f32[B, D]) -> f32[B, D] { return gelu(x) * 2.0 }",
    "columns": "fn f(x: f32[B, D]) -> f32[D] { return max(x, axis=0) }",
    "stencil": "fn f(x: f32[B, D]) -> f32[B - 1, D] { return tensor[i < B - 1, j](x[i, j] + x[i + 1, j]) }",
    "scan": "fn f(x: f32[B, D]) -> f32[B, D] {\n _, y = scan (h = zeros(f32[D])) for t < B {\n"
    " n = 0.5 * h + x[t]\n yield n\n emit n }\n return y }",
}


@pytest.mark.parametrize("name", OPEN)
def test_one_compilation_serves_every_size(name: str, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    compilations = counting(monkeypatch, "_from_cache")
    dynamic = intarsia.jit(OPEN[name], intarsia.Options(dynamic=("B",)))
    sizes = (1, 2, 3, 16, 17, 40)
    results = [dynamic(data(n, 6)) for n in sizes]
    assert len(compilations) == 1
    for n, result in zip(sizes, results):
        wanted = run(OPEN[name], data(n, 6))
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


def test_what_open_code_rests_on_is_checked_for_every_size() -> None:
    f = intarsia.jit("fn f(x: f32[B]) -> f32[4] { return tensor[i < 4](x[i]) }", intarsia.Options(dynamic=("B",)))
    x = data(9)
    np.testing.assert_array_equal(f(x), x[:4])
    np.testing.assert_array_equal(f(x[:4]), x[:4])
    for n in (3, 0):
        assert code_of(lambda n=n: f(x[:n])) == "E0403"  # type: ignore[misc]
    assert code_of(lambda: intarsia.jit(DOUBLE, intarsia.Options(dynamic=("Q",)))(x)) == "E0611"


def test_open_lists_and_packs() -> None:
    program, x, p = intarsia.compile(NET, intarsia.Options(dynamic=("B", "L"))), data(3, 4), weights()
    for layers in (1, 2, 3):
        p = weights(layers)
        np.testing.assert_allclose(program.main(x, p), forward(x, p), rtol=1e-4, atol=1e-5)
    assert len({id(e) for e, _ in program.main._compiled.values()}) == 1
    f = intarsia.jit("fn f(x: f32[..S, D]) -> f32[..S, D] { return x * 2.0 }", intarsia.Options(dynamic=("S_0",)))
    for shape in ((2, 3, 4), (5, 3, 4)):
        np.testing.assert_array_equal(f(data(*shape)), 2 * data(*shape))
    assert len({id(e) for e, _ in f._compiled.values()}) == 1


# ---------------------------------------------------------------------- threads and forks


def test_threads_call_one_function_at_once_the_first_time_too() -> None:
    f = intarsia.jit("fn f(x: f32[N, M]) -> f32[N] { return sum(exp(x), axis=1) }")
    inputs = [data(40 + i % 3, 50, seed=i) for i in range(8)]
    results: list[Any] = [None] * len(inputs)
    start = threading.Barrier(len(inputs))

    def work(i: int) -> None:
        start.wait()
        for _ in range(20):
            results[i] = f(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    limit = sys.getrecursionlimit()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.getrecursionlimit() == limit
    for x, result in zip(inputs, results):
        np.testing.assert_allclose(result, np.exp(x).sum(1), rtol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_calls_and_compiles() -> None:
    f = intarsia.jit("fn f(x: f32[N, M]) -> f32[N] { return sum(x, axis=1) }")
    x = data(64, 64)
    f(x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for part in pool.map(f, [x, x[:3], x[:, :5]]):
            assert part.shape[0] in (64, 3)
    np.testing.assert_allclose(f(x), x.sum(1), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- size of programs, time of calls


@pytest.mark.parametrize("count", [200, pytest.param(3_000, marks=pytest.mark.slow)])
def test_many_statements(count: int) -> None:
    lines = "\n".join(f"    x{i} = x{i - 1} + 1.0" for i in range(1, count + 1))
    f = intarsia.jit(f"fn f(x0: f32[N]) -> f32[N] {{\n{lines}\n    return x{count}\n}}")
    np.testing.assert_array_equal(f(np.zeros(3, np.float32)), [count] * 3)


def test_deep_expressions() -> None:
    def value(expression: str) -> Any:
        return intarsia.jit(f"fn f(x: f32[N]) -> f32[N] {{ return {expression} }}")(np.ones(2, np.float32))

    np.testing.assert_array_equal(value("(1.0 + " * 90 + "x" + ")" * 90), [91, 91])
    np.testing.assert_array_equal(value(" + ".join(["x"] * 190)), [190, 190])
    np.testing.assert_array_equal(value("-" * 150 + "x"), [1, 1])
    np.testing.assert_array_equal(value("relu(" * 150 + "x" + ")" * 150), [1, 1])
    assert code_of(lambda: value("(" * 300 + "x" + ")" * 300)) == "E0110"
    assert code_of(lambda: value("[" * 300)) == "E0110"


def test_a_call_takes_microseconds() -> None:
    f = intarsia.jit("fn f(x: f32[N], y: f32[N]) -> f32[N] { return x + y }")
    x, y = data(64), data(64, seed=1)
    f(x, y)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(500):
            f(x, y)
        return (time.perf_counter() - start) / 500

    assert min(seconds() for _ in range(10)) < 12e-6  # about 3 us on an idle machine


@pytest.mark.slow
def test_programs_in_cycles_of_references_are_collected() -> None:
    """LLVM's modules must go before their contexts, and the garbage collector finalises in any order."""
    x = np.ones((2, 3), np.float32)
    for n in range(4):
        function = intarsia.compile(f"fn f(x: f32[N, M]) -> f32[N, M] {{ return x * {n}.5 }}", use_cache=False)["f"]
        lowered = function.lower(x)
        assert "fmul" in lowered.asm["llvm-opt"] and "vmul" in lowered.asm["asm"]
        cycle: list[object] = [function, lowered, function(x)]
        cycle.append(cycle)
        del function, lowered, cycle
        gc.collect()


def test_a_compilation_goes_with_its_last_user() -> None:
    lowered = intarsia.jit("fn f(x: f32[N]) -> f32[N] { return x + 1.0 }").lower(np.ones(3, np.float32))
    assert "lane" in lowered.asm["scheduled"]
    compilation = weakref.ref(lowered.compilation)
    gc.disable()
    try:
        del lowered
        assert compilation() is None, "it is in a cycle of references"
    finally:
        gc.enable()
