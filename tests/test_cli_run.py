"""`intarsia run`: its arguments and results, its targets, and what it shows beside them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from test_cli import DOUBLE, SIZES, data, let_all_be_wrong
from test_cli import FILES as FILES

import intarsia
from intarsia.commands import timing
from intarsia.files import open_arrays
from intarsia.limits import Limits

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


def test_what_cannot_be_written_is_told_before_the_run(ita: Run) -> None:
    text = "fn f(x: f32[2]) -> f32[2] { return x + }"  # which is not read yet
    assert "E0706" in ita("run", "-e", text, "--out", "y.csv")[2]
    assert (
        "E0709]: cannot write none/y.npy: there is no folder none" in ita("run", "-e", text, "--out", "none/y.npy")[2]
    )


def test_nan_names_the_first_operation(ita: Run) -> None:
    text = "fn f(x: f32[3]) -> f32[3] {\n    y = x - 1.0\n    return exp(log(y))\n}"
    status, out, _ = ita("run", "-e", text, "--arg", "x=zeros", "--nan")
    assert status == 0 and "log gives f32[3] with a NaN at [0]" in out and "<command line>:3:16" in out
    assert ita("run", "-e", text, "--arg", "x=ones", "--nan")[1] == "no operation makes a NaN\n"
    assert ita("run", "-e", text, "--arg", "x=ones", "--nan", "--mesh", "a=2", "--devices", "mpi")[0] == 0  # needs none
    status, _, err = ita("run", "-e", text, "--arg", "x=ones", "--nan", "--out", "y.npy")
    assert status == 2 and "--out is about a run" in err
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
