"""The command line, in process: every verb on real input, and what it says when it is used wrongly."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

import intarsia
from intarsia.cli import main
from intarsia.commands import comparison, reduce, timing
from intarsia.files import open_arrays
from intarsia.ir.errors import Source
from intarsia.ir.text import read_module
from intarsia.ir.tolerance import Expected
from intarsia.limits import Limits
from intarsia.passes.pipeline import PASSES

MLP = """fn mlp(x: f32[B, K], w1: f32[K, F], b1: f32[F], w2: f32[F, N]) -> f32[B, N] {
    h = gelu(x @ w1 + b1)
    return h @ w2
}
"""
FILES = {"mlp.ita": MLP}
SIZES = ("--dim", "B=3", "--dim", "K=5", "--dim", "F=8", "--dim", "N=2")
DOUBLE = "fn f(x: f32[N]) -> f32[N] { return 2.0 * x }"


def let_all_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every element of every result found wrong, and none of them to hang on a rounding."""
    monkeypatch.setattr(Expected, "wrong", lambda self, actual: np.ones(actual.shape, np.bool_))
    monkeypatch.setattr(
        comparison, "uncertain", lambda module, inputs, sizes, wanted, masks: [m & False for m in masks]
    )


def data(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------- run: arguments and results


def test_run_prints_type_and_values(ita: Run) -> None:
    assert ita("run", "-e", DOUBLE, "--arg", "x=arange", "--dim", "N=4") == (0, "result: f32[4]\n[0. 2. 4. 6.]\n", "")
    assert ita("run", "-e", "fn f(a: f64) -> f64 { return a + 1.0 }", "--arg", "a=2")[1] == "result: f64 = 3.0\n"


def test_results_of_types_that_numpy_lacks(ita: Run) -> None:
    """They are shown as numbers, and .safetensors keep the type."""
    text = "fn f(x: f32[3]) -> (f5e2m2[3], i3[3], u8[3]) { return f5e2m2(x), i3(i32(x)), u8(x) }"
    words = ("run", "-e", text, "--arg", "x=arange", "--target", "reference")
    status, out, _ = ita(*words)
    assert status == 0 and out.split("\n")[:6:2] == ["result0: f5e2m2[3]", "result1: i3[3]", "result2: u8[3]"]
    assert out.split("\n")[1:6:2] == ["[0. 1. 2.]", "[0 1 2]", "[0 1 2]"]
    assert ita(*words, "--out", "y.safetensors")[0] == 0
    types = [str(open_arrays("y.safetensors").type_of(f"result{i}").dtype) for i in range(3)]
    assert types == ["f5e2m2", "i3", "u8"]


def test_run_reads_and_writes_files(ita: Run) -> None:
    np.save("x.npy", data(3, 5))
    np.savez("w.npz", w1=data(5, 8, seed=1), b1=data(8, seed=2))
    arguments = ("--arg", "x=x.npy", "--arg", "w1=w.npz:w1", "--arg", "b1=w.npz:b1", "--arg", "w2=ones", "--dim", "N=2")
    for name in ("y.npy", "y.npz", "y.safetensors"):
        status, out, err = ita("run", "mlp.ita", *arguments, "--out", name)
        assert (status, out, err) == (0, "", "")
    wanted = np.load("y.npy")
    assert wanted.shape == (3, 2)
    np.testing.assert_array_equal(np.load("y.npz")["result"], wanted)
    status, out, _ = ita("run", "-e", "fn f(y: f32[A, B]) -> f32[A, B] { return y }", "--weights", "y.safetensors")
    assert status == 1  # the file calls it result, the parameter is y
    status, out, _ = ita("run", "-e", "fn f(result: f32[A, B]) -> f32 { return sum(result) }", "--weights", "y.npz")
    assert status == 0 and out.startswith("result: f32 = ")


def test_several_results_have_numbers(ita: Run) -> None:
    text = "fn f(x: f32[N]) -> (f32, i64) { return max(x), argmax(x) }"
    assert ita("run", "-e", text, "--arg", "x=arange", "--dim", "N=5")[1] == "result0: f32 = 4.0\nresult1: i64 = 4\n"
    assert ita("run", "-e", text, "--arg", "x=arange", "--dim", "N=5", "--out", "r.npz")[0] == 0
    assert sorted(np.load("r.npz")) == ["result0", "result1"]


def test_generators_are_the_same_every_time(ita: Run) -> None:
    for generator in ("randn", "rand(lo=-1, hi=1)", "randn(seed=3)", "zeros", "ones", "arange(lo=2, hi=5)"):
        first, second = (ita("run", "-e", DOUBLE, "--arg", f"x={generator}", "--dim", "N=6") for _ in range(2))
        assert first == second and first[0] == 0


def test_weights_of_structs_and_lists(ita: Run) -> None:
    Path("net.ita").write_text("""
struct Linear(N, K) {
    weight: f32[N, K]
    bias: f32[N]
}
fn main(x: f32[B, D], layer: Linear(D, D)[L]) -> f32[B, D] {
    return loop (h = x) for i < L { yield h @ transpose(layer[i].weight) + layer[i].bias }
}
""")
    weights = {
        f"{i}.{n}": data(4, 4, seed=i) if n == "weight" else data(4) for i in range(3) for n in ("weight", "bias")
    }
    np.savez("w.npz", **weights)
    np.save("x.npy", data(2, 4))
    assert ita("run", "net.ita", "--arg", "x=x.npy", "--weights", "layer=w.npz", "--out", "y.npy")[0] == 0
    h = data(2, 4)
    for i in range(3):
        h = h @ weights[f"{i}.weight"].T + weights[f"{i}.bias"]
    np.testing.assert_allclose(np.load("y.npy"), h, rtol=1e-4, atol=1e-4)
    assert ita("run", "net.ita", "--random", "--dim", "B=1", "--dim", "D=3", "--dim", "L=2", "--compare")[0] == 0


def test_static_arguments_are_literals(ita: Run) -> None:
    text = "fn f(x: f32[N, M], axis = -1, mask = none) -> f32[N, M] { return softmax(x, axis=axis) }"
    sizes = ("--random", "--dim", "N=2", "--dim", "M=3")
    assert ita("run", "-e", text, *sizes, "--arg", "axis=0", "--arg", "mask=none")[0] == 0
    status, _, err = ita("run", "-e", text, *sizes, "--arg", "axis=randn")
    assert status == 1 and "error[E0616]" in err


def test_dtypes_and_tuples_are_literals_too(ita: Run) -> None:
    text = "fn f(x: f32[4], dtype = f32, shape = (2, 2)) -> f64[2, 2] { return f64(reshape(x, shape)) }"
    assert ita("run", "-e", text, "--random", "--arg", "shape=(2, 2)", "--arg", "dtype=f64")[0] == 0


def test_a_literal_takes_the_type_of_the_other_arguments(ita: Run) -> None:
    np.save("x.npy", np.ones(2))
    text = "fn f[T: float](x: T[N], a: T) -> T[N] { return x * a }"
    assert ita("run", "-e", text, "--arg", "x=x.npy", "--arg", "a=3")[1] == "result: f64[2]\n[3. 3.]\n"


def test_defaults_may_be_left_out(ita: Run) -> None:
    text = "fn f(x: f64[N], a: f64 = 2.5) -> f64[N] { return x * a }"
    assert ita("run", "-e", text, "--arg", "x=ones", "--dim", "N=1")[1] == "result: f64[1]\n[2.5]\n"
    assert ita("run", "-e", text, "--arg", "x=ones", "--dim", "N=1", "--arg", "a=4")[1] == "result: f64[1]\n[4.]\n"


def test_sizes_that_no_argument_gives(ita: Run) -> None:
    text = "fn grid[N: dim]() -> i64[N] { return iota(N) }"
    assert ita("run", "-e", text, "--dim", "N=3")[1] == "result: i64[3]\n[0 1 2]\n"
    text = "fn f(x: f32[..S]) -> f32[..S] { return x }"
    assert ita("run", "-e", text, "--random", "--dim", "S_0=2", "--dim", "S_1=1")[1].startswith("result: f32[2, 1]\n")


def test_the_entry_point(ita: Run) -> None:
    Path("two.ita").write_text("fn main(x: f32) -> f32 { return x }\nfn other(x: f32) -> f32 { return x + 1.0 }\n")
    assert ita("run", "two.ita", "--arg", "x=1")[1] == "result: f32 = 1.0\n"
    assert ita("run", "two.ita:other", "--arg", "x=1")[1] == "result: f32 = 2.0\n"
    assert ita("run", ":g", "-e", "fn g(x: f32) -> f32 { return x }\nfn h() -> f32 { return 0.0 }", "--arg", "x=5")[
        1
    ] == ("result: f32 = 5.0\n")


# ---------------------------------------------------------------------- run: targets and inspection


@pytest.mark.parametrize("target", ["cpu", "cpu:host", "reference", "kernels", "plan"])
def test_every_target_gives_the_same(ita: Run, target: str) -> None:
    status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--target", target, "--compare", "--out", "y.npy")
    assert status == 0
    assert "result: equal to the reference" in err


def test_targets_that_cannot_run_here(ita: Run) -> None:
    for target, code in (("cpu:8086", "E1701"), ("cpu:neon", "E1702")):
        status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--target", target)
        assert status == 1 and f"error[{code}]" in err, err


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(ita: Run) -> None:
    for target in ("gpu", "gpu:sm_90"):
        status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--target", target)
        assert status == 1 and ("error[E1703]" in err or "error[E1716]" in err), err
        status, _, err = ita("tune", "mlp.ita", *SIZES, "--target", target)
        assert status == 1 and "tune --target gpu:sm_90 --predict-only` ranks schedules" in err, err
    status, _, err = ita("costmodel", "collect", "d.sqlite", "--target", "gpu")
    assert status == 1 and ("error[E1703]" in err or "error[E1716]" in err), err
    status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--cuda-graph")
    assert status == 2 and "--cuda-graph needs --target gpu" in err


@pytest.mark.slow
def test_time_and_profile(ita: Run) -> None:
    status, _, err = ita(
        "run", "mlp.ita", *SIZES, "--random", "--time", "--profile", "--threads", "1", "--out", "y.npy"
    )
    assert status == 0
    assert re.search(r"run: median [\d.]+ [mu]s, quartiles", err)
    assert re.search(r"GFLOP/s \(\d+% of this machine's peak in f32\)", err)
    assert re.search(r"%  mlp_\w+  mlp.ita:2:9", err), err


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a machine that nobody has to measure."""
    monkeypatch.setattr(timing, "machine_limits", lambda *_: Limits(1e11, 1e10, 1))


@pytest.mark.usefixtures("limits")
def test_profile_counts_the_steps_of_loops(ita: Run) -> None:
    text = "fn f(x: f64[N, N]) -> f64[N, N] { return loop (y = x) for t < 5 { yield y @ x } }"
    _, _, err = ita("run", "-e", text, "--random", "--dim", "N=8", "--profile", "--out", "y.npy")
    assert re.search(r"^ *100.0% +5 ", err, re.MULTILINE), err


@pytest.mark.usefixtures("limits")
def test_profile_of_a_kernel_with_memory_of_its_own(ita: Run) -> None:
    """A factor that is turned is copied before the product."""
    text = "fn f(x: f32[96, 256], y: f32[96, 256]) -> f32[256, 256] { return transpose(x) @ y }"
    status, _, err = ita("run", "-e", text, "--random", "--profile", "--out", "y.npy")
    assert (status == 0 and " f_dot" in err) or " f_matmul" in err, err
    assert ", temp " in ita("emit", "-e", text, "--to", "plan")[1]


def test_trace_shows_a_name_wherever_it_is_assigned(ita: Run) -> None:
    text = "fn f(x: f32[2], n: i64) -> f32[2] { return loop (h = x) for t < n { y = relu(h * 2.0)\n yield y } }"
    status, out, _ = ita("run", "-e", text, "--arg", "x=ones", "--arg", "n=2", "--trace", "y")
    assert status == 0
    assert out == "<command line>:1:69: y: f32[2]\n[2. 2.]\n<command line>:1:69: y: f32[2]\n[4. 4.]\n"
    status, _, err = ita("run", "-e", text, "--arg", "x=ones", "--arg", "n=2", "--trace", "z")
    assert status == 1 and "error[E0617]" in err and "names that are given tensors: y" in err


def test_nan_names_the_first_operation(ita: Run) -> None:
    text = "fn f(x: f32[3]) -> f32[3] {\n    y = x - 1.0\n    return exp(log(y))\n}"
    status, out, _ = ita("run", "-e", text, "--arg", "x=zeros", "--nan")
    assert status == 0 and "log gives f32[3] with a NaN at [0]" in out and "<command line>:3:16" in out
    assert ita("run", "-e", text, "--arg", "x=ones", "--nan")[1] == "no operation makes a NaN\n"
    np.save("x.npy", np.array([1, np.nan, 2], np.float32))
    assert ita("run", "-e", text, "--arg", "x=x.npy", "--nan")[1].startswith("the argument x has a NaN\n")


GATHER = "fn f(table: f32[V], ids: i64[N]) -> f32[N] {\n    return tensor[i](table[ids[i]])\n}"


@pytest.mark.parametrize("target", ["cpu", "reference", "kernels", "plan", "triton-interpret"])
def test_checks_report_the_line_and_the_values(ita: Run, target: str) -> None:
    np.save("ids.npy", np.array([0, 9, 1]))
    arguments = ("--random", "--dim", "V=4", "--arg", "ids=ids.npy", "--target", target)
    for _ in range(2):  # compiled, then from the cache
        status, _, err = ita("run", "-e", GATHER, *arguments, "--checks")
        assert status == 1
        assert err.startswith("error[E0801]: subscript 9 ") and "outside 0..4" in err
        assert "--> <command line>:2:" in err and "table[ids[i]]" in err
    if target == "cpu":
        assert ita("run", "-e", GATHER, *arguments)[0] == 0  # clamped


def test_division_by_zero_is_checked(ita: Run) -> None:
    text = "fn f(a: i64[N], b: i64[N]) -> i64[N] { return a // b }"
    arguments = ("--arg", "a=ones", "--arg", "b=zeros", "--dim", "N=3")
    assert ita("run", "-e", text, *arguments)[1] == "result: i64[3]\n[0 0 0]\n"
    status, _, err = ita("run", "-e", text, *arguments, "--checks")
    assert status == 1 and "error[E0802]: integer division by zero" in err


def test_dynamic_sizes(ita: Run) -> None:
    for n in (3, 4, 17):
        status, _, err = ita("run", "-e", DOUBLE, "--random", "--dim", f"N={n}", "--dynamic", "N", "--compare")
        assert status == 0, err
    status, _, err = ita("run", "-e", DOUBLE, "--random", "--dim", "N=3", "--dynamic", "Q")
    assert status == 1 and "error[E0611]" in err and "its dimensions: N" in err


def test_a_wrong_result_gives_a_reproducer_that_runs(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    let_all_be_wrong(monkeypatch)
    passes = "canonicalize,fuse,lower,schedule"
    status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--passes", passes, "--compare", "--out", "y.npy")
    assert status == 3
    command = re.search(r"To see it again: intarsia (.*)", err)
    assert command is not None
    again = shlex.split(command[1])
    assert ita(*again)[0] == 3
    assert again == [
        "run", "mlp.ita:mlp", "--weights", "intarsia-reproducer.npz", *SIZES, "--passes", passes, "--compare"
    ]  # fmt: skip
    monkeypatch.undo()


def test_a_reproducer_keeps_the_program_and_its_lists(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "struct P(N) { w: f32[N] }\nfn f(p: P(N)[L], axis = 0) -> f32 { return sum(p[1].w, axis=axis) }"
    let_all_be_wrong(monkeypatch)
    _, out, err = ita("run", "-e", text, "--random", "--dim", "N=3", "--dim", "L=2", "--arg", "axis=-1", "--compare")
    command = re.search(r"To see it again: intarsia (.*)", err)
    assert command is not None and "intarsia-reproducer.ita:f --arg axis=-1" in command[1]
    assert ita(*shlex.split(command[1]))[:2] == (3, out)


EDGES = {
    "a comparison": "fn f(x: f32[N]) -> bool[N] { return x * x * 3.0 > x * 3.0 * x }",
    "a conversion": "fn f(x: f32[N]) -> i64[N] { return i64((x * 0.1) * 10.0 - x * x / x + 1.0) }",
    "an order": "fn f(x: f32[N]) -> i64[N] { return argsort(sin(x) * 0.0001 + 1.0) }",
    "a special value": "fn f(x: f32[N]) -> f32[N] { return pow(tanh(exp(x)), log(-1.0 - x * x)) }",
    "f64": "fn f(x: f64[N]) -> bool[N] { return exp(log(x)) > x }",
}


@pytest.mark.parametrize("text", EDGES.values(), ids=EDGES)
def test_results_that_hang_on_a_rounding_are_not_wrong(ita: Run, text: str) -> None:
    status, _, err = ita("run", "-e", text, "--arg", "x=randn(lo=0.1)", "--dim", "N=999", "--compare", "--out", "y.npy")
    assert status == 0, err
    assert re.search(r"result: equal to the reference but for \d+ of 999 elements that hang on a rounding", err), err


@pytest.mark.parametrize("size", [1 << 45, 1 << 61, 1 << 70])
@pytest.mark.parametrize("result", ["f32[N]", "f32"])
def test_memory_that_does_not_suffice(ita: Run, size: int, result: str) -> None:
    """For an argument, or for a result."""
    for text in (
        f"fn f(x: f32[N]) -> {result} {{ return sum(x) + x }}",
        "fn f[N: dim]() -> f32[N] { return ones(f32[N]) }",
    ):
        if result == "f32":
            text = text.replace("sum(x) + x", "sum(x)")
        status, _, err = ita("run", "-e", text, "--random", "--dim", f"N={size}")
        assert status == 1 and "error[E0618]" in err


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "%0 = fused {\n %1 = list_get %x[0] : f32[4]\n %2 = exp %1 : f32[4]\n yield %2\n} : f32[4]",
            "holds a list_get",
        ),
        ("%0 = compute [i < 4] (%x[j, i]) : f32[4]", "j has no value here"),
    ],
)
def test_an_edited_dump_that_is_not_well_formed(ita: Run, text: str, message: str) -> None:
    Path("e.ir").write_text(f"intarsia.ir 1\nfunc @f(%x: list[2] f32[4]) {{\n{text}\nreturn %0\n}}\n")
    status, _, err = ita("opt", "e.ir", "--passes", "lower")
    assert status == 1 and "error[E1509]" in err and message in err and "--> e.ir:3:" in err


@pytest.mark.parametrize("dynamic", [(), ("--dynamic", "N", "--dynamic", "C", "--dynamic", "O")])
def test_kernels_that_flatten_dimensions_of_a_tensor(ita: Run, dynamic: tuple[str, ...]) -> None:
    """A convolution reads its weights as a matrix."""
    text = "fn f(x: f32[N, C, 9, 9], w: f32[O, C, 3, 3]) -> f32[N, O, 7, 7] { return conv2d(x, w) }"
    arguments = ("-e", text, "--dim", "N=2", "--dim", "C=16", "--dim", "O=32", *dynamic)
    for target in ("kernels", "cpu"):
        status, _, err = ita("run", *arguments, "--random", "--target", target, "--compare", "--out", "y.npy")
        assert status == 0, err
    assert ita("emit", *arguments, "--to", "scheduled", "-o", "s.ir")[0] == 0
    status, out, err = ita("opt", "s.ir", "--passes", "dce")
    assert status == 0 and out == Path("s.ir").read_text(), err


@pytest.mark.parametrize("target", ["cpu", "reference", "kernels", "plan"])
def test_a_list_without_items(ita: Run, target: str) -> None:
    text = """struct P(D) { w: f32[D, D] }
fn f(x: f32[B, D], p: P(D)[L]) -> f32[B, D] { return loop (h = x) for i < L { yield h @ p[i].w } }"""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(intarsia.compile(text).f(x, []), x)
    sizes = ("--dim", "B=2", "--dim", "D=3", "--dim", "L=0")
    status, out, err = ita("run", "-e", text, "--arg", "x=arange", "--random", *sizes, "--target", target, "--compare")
    assert status == 0 and out.startswith("result: f32[2, 3]\n[[0. 1. 2.]"), err


def test_a_cache_that_cannot_be_written_is_one_line(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", "/dev/null")
    status, _, err = ita("run", "-e", DOUBLE, "--random", "--dim", "N=3")
    assert status == 0 and re.fullmatch(r"warning: cannot write the cache /dev/null: .*\n", err)


def test_torch_beside_a_program(ita: Run) -> None:
    pytest.importorskip("torch")
    status, out, _ = ita("bench", "mlp.ita", *SIZES, "--against", "numpy,torch", "--seconds", "0.1")
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ["intarsia", "numpy", "torch"]


def test_a_pinned_schedule(ita: Run) -> None:
    sizes = ("--random", "--dim", "N=64")
    assert ita("run", "-e", DOUBLE, *sizes, "--schedule", "split i0 16", "--compare", "--out", "y.npy")[0] == 0
    Path("s.txt").write_text("split i0 16\n")
    assert "in 0..4" in ita("emit", "-e", DOUBLE, "--dim", "N=64", "--schedule", "s.txt", "--to", "scheduled")[1]
    status, _, err = ita("run", "-e", DOUBLE, *sizes, "--schedule", "split nosuch 16")
    assert status == 1 and "error[E1602]" in err
    status, _, err = ita("run", "-e", DOUBLE, *sizes, "--schedule", "nosuchstep i")
    assert status == 1 and "error[E1601]" in err


# ---------------------------------------------------------------------- emit and opt


STAGES = ["graph", "fused", "kernels", "scheduled", "plan", "llvm", "llvm-opt", "asm"]


@pytest.mark.parametrize("stage", ["ast", *STAGES, "header", "dot"])
def test_emit_every_text(ita: Run, stage: str) -> None:
    status, out, err = ita("emit", "mlp.ita", "--to", stage, *SIZES)
    assert (status, err) == (0, "") and len(out) > 100
    assert ita("emit", "mlp.ita", "--to", stage, *SIZES, "-o", "out.txt") == (0, "", "")
    assert Path("out.txt").read_text() == out


def test_emit_object_code(ita: Run) -> None:
    assert ita("emit", "mlp.ita", "--to", "obj", *SIZES, "-o", "m.o") == (0, "", "")
    assert Path("m.o").read_bytes()[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


def test_emit_for_another_machine(ita: Run) -> None:
    assert "aarch64" in ita("emit", "mlp.ita", "--to", "llvm", *SIZES, "--target", "cpu:neon")[1]


@pytest.mark.parametrize("stage", ["ast", "graph", "dot"])
def test_some_stages_need_no_sizes(ita: Run, stage: str) -> None:
    assert ita("emit", "mlp.ita", "--to", stage)[0] == 0


def test_the_others_name_the_sizes_that_lack(ita: Run) -> None:
    status, _, err = ita("emit", "mlp.ita", "--to", "fused", "--dim", "B=2", "--dim", "N=1")
    assert status == 1 and "nothing decides K, F" in err and "--dim K=… --dim F=…" in err


def test_sizes_from_files(ita: Run) -> None:
    np.save("x.npy", data(3, 5))
    out = ita("emit", "mlp.ita", "--to", "graph", "--arg", "x=x.npy", "--dim", "F=8", "--dim", "N=2")[1]
    assert "%x: f32[3, 5]" in out and "%w2: f32[8, 2]" in out


@pytest.mark.parametrize("dynamic", [(), ("--dynamic", "B")])
def test_dumps_are_input_of_opt(ita: Run, dynamic: tuple[str, ...]) -> None:
    assert ita("emit", "mlp.ita", "--all", "stages", *SIZES, *dynamic)[0] == 0
    files = sorted(p.name for p in Path("stages").iterdir())
    assert files == [
        "00-graph.ir", "01-fused.ir", "02-kernels.ir", "03-scheduled.ir", "04-plan.plan", "05-llvm.ll",
        "06-llvm-opt.ll", "07-asm.s",
    ]  # fmt: skip
    for name in files[:4]:
        status, out, err = ita("opt", f"stages/{name}")
        assert (status, out, err) == (0, Path("stages", name).read_text(), "")


def test_debug_info(ita: Run) -> None:
    out = ita("emit", "mlp.ita", "--to", "graph", "--debug-info")[1]
    assert 'loc("mlp.ita":3:12)' in out
    Path("d.ir").write_text(out)
    assert ita("opt", "d.ir", "--debug-info")[1] == out


def test_opt_runs_the_same_passes_as_emit(ita: Run) -> None:
    ita("emit", "mlp.ita", "--all", "stages", *SIZES)
    passes = (
        "canonicalize,cse,dce,expand-sorts,legalize-dtype,canonicalize,cse,sink-scales,sample,dce,contract,exchange,hoist,merge,fuse,"
        "skip-rounding,dce,lower"
    )
    out = ita("opt", "stages/00-graph.ir", "--passes", passes, "--verify-each=exec", "-o", "-")[1]
    assert out == Path("stages/02-kernels.ir").read_text()


IR = """func @f(%x: f32[4]) {
  %0 = mul %x, %x : f32[4]
  %1 = mul %x, %x : f32[4]
  %2 = add %0, %1 : f32[4]
  return %2
}
"""


def test_opt_shows_what_passes_do(ita: Run) -> None:
    Path("f.ir").write_text(IR)
    status, out, err = ita("opt", "f.ir", "--passes", "cse,dce", "--diff", "--timing", "--remarks")
    assert status == 0 and out.count("mul") == 1
    assert "-  %1 = mul %x, %x : f32[4]" in err and "total" in err
    err = ita("opt", "f.ir", "--passes", "cse,dce", "--print-ir-before", "cse", "--print-ir-after-all")[2]
    assert [line for line in err.splitlines() if line.startswith("# -----")] == [
        "# ----- before cse", "# ----- after cse", "# ----- after dce"
    ]  # fmt: skip
    err = ita("opt", "f.ir", "--passes", "cse,dce", "--print-ir-after-change")[2]
    assert "after cse" in err and "after dce" not in err


def test_opt_bisects(ita: Run) -> None:
    Path("f.ir").write_text(IR)
    counts = [ita("opt", "f.ir", "--passes", "cse,fuse", "--stop-after", n)[1] for n in "012"]
    assert [c.count("mul") for c in counts] == [2, 1, 1]
    assert "fused" not in counts[1] and "fused" in counts[2]


def test_opt_reads_standard_input_and_several_modules(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Stdin:
        buffer = io.BytesIO((IR + "# -----\n" + IR.replace("@f", "@g")).encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    status, out, _ = ita("opt", "-", "--split-input-file", "--passes", "cse")
    assert status == 0 and out.count("# -----\n") == 1 and "@f" in out and "@g" in out
    Path("bad.ir").write_text(IR + "# -----\nfunc @g(%x: f32[4]) { return %y }\n")
    status, out, err = ita("opt", "bad.ir", "--split-input-file")
    assert status == 1 and "@f" in out and "bad.ir:8:" in err


def test_opt_lists_passes_and_says_what_is_wrong(ita: Run) -> None:
    assert "canonicalize" in ita("opt", "--list")[1]
    Path("f.ir").write_text(IR)
    for passes, code in (("nosuch", "E1401"), ("cse{x=1}", "E1402"), ("cse{", "E1404")):
        status, _, err = ita("opt", "f.ir", "--passes", passes)
        assert status == 1 and f"error[{code}]" in err


def test_opt_catches_a_pass_that_is_wrong(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("f.ir").write_text(IR)
    wrong = read_module(Source("wrong.ir", IR.replace("add %0, %1", "add %0, %x")))
    monkeypatch.setattr(PASSES["dce"], "run", lambda self, module, context: wrong)
    status, _, err = ita("opt", "f.ir", "--passes", "cse,dce", "--verify-each=exec")
    assert status == 3 and err.startswith("pass dce: result 0 of @f: ")
    assert "# intarsia opt %s --passes dce --verify-each=exec" in err


# ---------------------------------------------------------------------- check, explain, fmt, test


def test_check(ita: Run) -> None:
    assert ita("check", "mlp.ita") == (0, "", "mlp.ita: 1 function, no mistakes\n")
    Path("bad.ita").write_text("fn f(x: f32[N, M]) -> f32[N] {\n    y = x @ x\n    return z\n}\n")
    status, _, err = ita("check", "bad.ita")
    assert status == 1
    assert re.findall(r"error\[(E\d+)\]", err) == ["E0203", "E0301"]  # both in one run


def test_explain_a_code(ita: Run) -> None:
    assert ita("explain", "E0203")[1].startswith("# E0203")
    assert ita("explain", "e0203")[1].startswith("# E0203")
    status, _, err = ita("explain", "E9999")
    assert status == 1 and "error[E0001]" in err


@pytest.mark.parametrize("about, wanted", [
    ("fusion", "one kernel"), ("memory", "workspace"), ("schedule", "kernel mlp_"), ("sharding", "nothing to decide"),
])  # fmt: skip
def test_explain_decisions(ita: Run, about: str, wanted: str) -> None:
    status, out, _ = ita("explain", "mlp.ita", "--about", about, *SIZES)
    assert status == 0 and wanted in out


def test_explain_layouts(ita: Run) -> None:
    """A transpose is a pass over memory where nothing else is done to what it moves; copies tell their order."""
    text = (
        "fn f(x: f32[32, 14, 14], w: f32[32, 5, 5], z: f32[64, 48]) -> (f32[32, 10, 10], f32[48, 64], f32[48, 64]) {\n"
        " y = tensor[c, i < 10, j < 10](sum[r, s](x[c, i + r, j + s] * w[c, r, s]))\n"
        " return y, transpose(z), exp(transpose(z)) }"
    )
    status, out, _ = ita("explain", "-e", text, "--about", "layout")
    assert status == 0
    assert re.search(r"transpose of f32\[64, 48\] to \(1, 0\): a pass over memory", out)
    assert re.search(r"transpose of f32\[64, 48\] to \(1, 0\): in the subscripts of a kernel of exp", out)
    assert re.search(r"x is copied at c\S* as \[i\S* \+ r, j\S* \+ j\S* \+ s, c\S*\]", out)


def test_explain_scratch(ita: Run) -> None:
    """Copies that a kernel makes for itself are told with the steps that make them, and with the memory of the plan."""
    text = (
        "fn f(x: f32[1, 32, 14, 14], w: f32[32, 1, 5, 5]) -> f32[1, 32, 14, 14]"
        " { return conv2d(x, w, padding=2, groups=32) }"
    )
    for about in ("memory", "schedule"):
        status, out, _ = ita("explain", "-e", text, "--about", about)
        assert status == 0 and re.search(r"scratch.* x\.0: f32\[18, 20\], 1440 bytes a thread", out)


def test_fmt(ita: Run) -> None:
    Path("a.ita").write_text("fn f(x:f32[N])->f32[N]{return x*2.0}\n")
    status, out, _ = ita("fmt", "--check", "a.ita", "mlp.ita")
    assert status == 1 and "+fn f(x: f32[N]) -> f32[N] {" in out
    assert ita("fmt", "a.ita")[0] == 0
    assert ita("fmt", "--check", "a.ita") == (0, "", "")


def test_test(ita: Run) -> None:
    Path("t.ita").write_text("""
test "right" { assert 1 + 1 == 2 }
test "wrong" {
    assert true
    assert sum(ones(f32[3])) == 4.0
}
test "ill" { assert ones(f32[2]) }
""")
    for target in ("cpu", "reference", "triton-interpret"):
        status, out, err = ita("test", "t.ita", "--target", target)
        assert status == 1
        assert out.splitlines() == ["ok  right", "FAIL  wrong", "FAIL  ill", "1 passed, 2 failed"]
        assert re.findall(r"error\[(E\d+)\]", err) == ["E0805", "E0507"] and "t.ita:5:12" in err
    assert ita("test", "t.ita", "-k", "right")[:2] == (0, "ok  right\n1 passed, 0 failed\n")


# ---------------------------------------------------------------------- bench, reduce, cache, list


def test_bench(ita: Run) -> None:
    status, out, _ = ita("bench", "mlp.ita", *SIZES, "--against", "numpy", "--seconds", "0.02", "--json", "b.json")
    assert status == 0
    assert re.search(r"^intarsia .* ms", out, re.MULTILINE) and re.search(r"^numpy .* x$", out, re.MULTILINE)
    assert set(json.loads(Path("b.json").read_text())["seconds"]) == {"intarsia", "numpy"}
    assert ita("bench", "mlp.ita", *SIZES, "--against", "abacus")[0] == 2


def test_reduce_to_an_error(ita: Run) -> None:
    Path("big.ita").write_text("""
fn helper(x: f32[N]) -> f32[N] { return x + 1.0 }
fn main(x: f32[N], y: f32[M]) -> f32[N] {
    a = helper(x) * 2.0
    b = a + helper(y)
    return b
}
""")
    status, out, _ = ita("reduce", "big.ita", "--while", "E0204")
    assert status == 0
    assert out == "fn main(x: f32[N], y: f32[M]) -> f32[N] {\n    return (x + y)\n}\n"


def test_reduce_to_a_wrong_result(ita: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that gets exp wrong."""
    Path("big.ita").write_text("fn main(x: f32[N]) -> f32[N] {\n    a = x * 2.0\n    return exp(a + 1.0) + a\n}\n")
    monkeypatch.setattr(reduce, "_is_wrong", lambda bound, target: "exp" in bound.function.program.source.text)
    status, out, _ = ita("reduce", "big.ita", "--while", "wrong", "--dim", "N=3", "-o", "small.ita")
    assert (status, out) == (0, "")
    assert Path("small.ita").read_text() == "fn main(x: f32[N]) -> f32[N] {\n    return exp(x)\n}\n"


def test_reduce_with_nothing_to_find(ita: Run) -> None:
    for target in ("cpu", "triton-interpret"):
        status, _, err = ita("reduce", "mlp.ita", "--while", "wrong", *SIZES, "--target", target)
        assert status == 1 and "the outcome is right" in err


def test_cache(ita: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path / "own"))
    ita("run", "-e", DOUBLE, "--random", "--dim", "N=3")
    out = ita("cache", "info")[1]
    assert re.search(r"program +1$", out, re.MULTILINE) and "limit  1 GiB" in out
    assert "removed" in ita("cache", "clear")[2]
    assert re.search(r"entries +0$", ita("cache", "info")[1], re.MULTILINE)


@pytest.mark.parametrize("kind, wanted", [
    ("ops", "matmul"), ("passes", "canonicalize"), ("targets", "cpu:host"), ("steps", "split"), ("dtypes", "bf16"),
    ("formats", "mxfp4"), ("errors", "E0203"),
])  # fmt: skip
def test_list(ita: Run, kind: str, wanted: str) -> None:
    status, out, _ = ita("list", kind)
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith(wanted))
    assert len(row.split()) > 1, "each has a description"


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("arguments", [
    (), ("run",), ("run", "mlp.ita", "--nosuch"), ("nosuch",), ("emit", "mlp.ita"), ("emit", "mlp.ita", "--to", "x"),
    ("explain", "mlp.ita"), ("list", "x"), ("run", "mlp.ita", "--threads", "0"), ("cache", "x"),
    ("emit", "mlp.ita", "--to", "graph", "--all", "d"), ("reduce", "mlp.ita"),
    ("run", "mlp.ita", "--random", *SIZES, "--target", "reference", "--time"),
])  # fmt: skip
def test_wrong_use_gives_2(ita: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = ita(*arguments)
    assert status == 2 and (out + err)


@pytest.mark.parametrize("arguments, code", [
    (("run", "nosuch.ita"), "E0701"),
    (("run", "mlp.ita:nosuch", "--random"), "E0316"),
    (("run", "mlp.ita"), "E0613"),
    (("run", "mlp.ita", "--random"), "E0614"),
    (("run", "mlp.ita", "--random", "--dim", "Q=1"), "E0611"),
    (("run", "mlp.ita", "--random", "--dim", "B=x"), "E0611"),
    (("run", "mlp.ita", "--arg", "xx=randn"), "E0610"),
    (("run", "mlp.ita", "--arg", "x=radn"), "E0607"),
    (("run", "mlp.ita", "--arg", "x"), "E0607"),
    (("run", "mlp.ita", "--arg", "x=nosuch.npy", *SIZES, "--random"), "E0701"),
    (("run", "mlp.ita", "--weights", "q=w.npz"), "E0610"),
    (("run", "mlp.ita", *SIZES, "--random", "--out", "y.txt"), "E0706"),
    (("run", "mlp.ita", *SIZES, "--random", "--out", "no/such/y.npy"), "E0709"),
    (("run", "mlp.ita", *SIZES, "--random", "--passes", "fuse"), "E1405"),
    (("emit", "mlp.ita", "--to", "graph", "-o", "no/such/file"), "E0709"),
    (("check", "-e", "fn f( {"), "E0105"),
    (("fmt", "nosuch.ita"), "E0701"),
    (("opt", "nosuch.ir"), "E0701"),
])  # fmt: skip
def test_mistakes_give_1_and_a_code(ita: Run, arguments: tuple[str, ...], code: str) -> None:
    status, _, err = ita(*arguments)
    assert status == 1 and err.startswith(f"error[{code}]: "), err


def test_arguments_of_the_wrong_type(ita: Run) -> None:
    np.save("x.npy", np.ones((3, 5)))
    status, _, err = ita("run", "mlp.ita", "--arg", "x=x.npy", "--random", "--dim", "F=8", "--dim", "N=2")
    assert status == 1 and "x" in err and "f64" in err
    np.save("x.npy", np.ones(3, np.float32))
    status, _, err = ita("run", "mlp.ita", "--arg", "x=x.npy", "--random", *SIZES)
    assert status == 1 and "error[" in err


def test_what_is_missing_is_named(ita: Run) -> None:
    assert "no argument for w1, b1, w2" in ita("run", "mlp.ita", "--arg", "x=randn")[2]


def test_a_bug_of_ours_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import intarsia.commands.fmt as verb

    monkeypatch.setattr(verb, "read_text", lambda name: 1 / 0)
    assert main(["fmt", "x y.ita"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "This is a bug in Intarsia" in err and "`intarsia fmt 'x y.ita'`" in err


LONG_LOOPS = {
    "one kernel": "fn f(x: f64, n: i64) -> f64 { return loop (y = x) for t < n { yield sin(y) + x } }",
    "several": "fn f(x: f64[8, 8], n: i64) -> f64[8, 8] { return loop (y = x) for t < n { yield y @ x } }",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("name", ["one kernel", pytest.param("several", marks=pytest.mark.slow)])
def test_interrupts_end_the_run(ita: Run, name: str) -> None:
    Path("long.ita").write_text(LONG_LOOPS[name])
    script = (
        "import os, sys\n"
        "from intarsia.cli import main\n"
        "from intarsia.executable import PreparedCall\n"
        "call = PreparedCall.__call__\n"
        "PreparedCall.__call__ = lambda self, *given: (print('begun', flush=True), call(self, *given))[1]\n"
        "sys.exit(main(['run', 'long.ita', '--random', '--arg', 'n=1_000_000_000_000']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parent.parent)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.1)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and err.strip() == "interrupted"
        assert time.perf_counter() - start < 5  # well within a second on an idle machine


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("run", "emit", "opt", "check", "explain", "fmt", "test", "bench", "reduce", "cache", "list"):
        assert re.search(rf"^  {verb} ", out, re.MULTILINE)
        assert main([verb, "--help"]) == 0


def test_nothing_is_searched_for_cycles_at_the_end_of_the_process() -> None:
    script = """
import atexit, gc, sys
from intarsia.cli import main

atexit.register(lambda: print("kept", gc.get_freeze_count() > 1000))
sys.argv = ["intarsia", "--version"]
sys.exit(main())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("kept True\n")


def test_dimensions_that_are_kept_open(ita: Run) -> None:
    text = "fn f(x: f32[N, M]) -> f32[N] { return sum(x, axis=1) }"
    sizes = ("--dim", "N=3", "--dim", "M=5")
    status, out, err = ita("run", "-e", text, "--random", "--compare", "--dynamic", "N,M", *sizes)
    assert status == 0 and "equal to the reference" in out + err
    for command in (("run", "-e", text, "--random", *sizes), ("explain", "-e", text, "--about", "fusion")):
        status, _, err = ita(*command, "--dynamic", "N,Z")
        assert status == 1 and "E0611" in err and "'Z'" in err


def test_triton(ita: Run) -> None:
    """The code for a GPU is shown, and interpreted, without one."""
    status, out, _ = ita("emit", "mlp.ita", *SIZES, "--target", "gpu:sm_90", "--to", "triton")
    assert status == 0 and "@triton.jit" in out
    status, _, err = ita("emit", "mlp.ita", *SIZES, "--target", "gpu:sm_90", "--to", "asm")
    assert status == 1 and "error[E1702]: there is no stage asm for gpu:sm_90" in err
    status, _, err = ita("run", "mlp.ita", *SIZES, "--random", "--target", "triton-interpret", "--compare")
    assert status == 0 and "result: equal to the reference" in err, err


@pytest.mark.slow
def test_code_for_a_gpu(ita: Run) -> None:
    """Code is compiled ahead of time, and what it takes of the chip is counted."""
    status, out, err = ita("emit", "mlp.ita", *SIZES, "--target", "gpu:sm_80", "--to", "ptx")
    assert status == 0 and ".target sm_80" in out and re.search(r"kernel mlp_\w+: \d+ registers, .*no spills", err), err
    status, out, _ = ita("explain", "mlp.ita", *SIZES, "--target", "gpu:sm_80", "--about", "schedule")
    assert status == 0 and re.search(r"launch mlp_\w+: \d+ programs, BLOCK_I0 = \d+", out), out
    assert re.search(
        r"about \d+ schedules, \d+ predicted\n  chosen is the default one: predicted .*\n  runner-up", out
    ), out
