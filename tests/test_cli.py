"""The command line, in process: every verb on real input, and what it says when it is used wrongly."""

from __future__ import annotations

import json
import os
import re
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
from intarsia.commands import comparison, reduce
from intarsia.ir.errors import Source
from intarsia.ir.text import read_module
from intarsia.ir.tolerance import Expected
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
