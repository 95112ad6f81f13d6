"""Declared types whose elements are sums of what devices have: they are honoured, by all that runs programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from test_mpi import mpiexec, needs_mpi

import intarsia
from intarsia import Options
from intarsia.ir.errors import CompileError
from intarsia.ir.spmd import simulate

TEXT = """mesh pod(data=2, model=2)

fn given(x: f32[B@data, D@model], w: f32[D@model, F]) -> f32[B@data, F]{sum: model} {
    return x @ w
}

fn made(x: f32[B@data, D], w: f32[D, F]) -> (f32[B@data, F]{sum: model}, f32[]{sum: (data, model)}, f32[D]{max: data}) {
    return x @ w, sum(x), max(x, axis=0)
}

fn taken(x: f32[B@data, D]{sum: model}, w: f32[D, F]{prod: model}) -> (f32[B, F@data], f32[D, F@model]) {
    return gelu(x @ (w * 2.0)), w
}

fn passed(x: f32[B@data, D]{sum: model}, w: f32[D, F]) -> (f32[B, D]{prod: model}, f32[F@data, D], f32[B@data, D]{sum: model}) {
    return x, transpose(w), 2.0 * x
}
"""  # noqa: E501
FILES = {"parts.ita": TEXT}
SIZES = ("--dim", "B=5", "--dim", "D=6", "--dim", "F=3")
NAMES = ("given", "passed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("made", "taken")))


def data() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    x = draw((5, 6)).astype(np.float32)
    x[0] = -0.0
    return x, draw((6, 3)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_devices_give_what_one_gives(name: str) -> None:
    """Compiled, and in the graph interpreter."""
    function, alone = intarsia.compile(TEXT)[name], intarsia.compile(TEXT, Options(devices="one"))[name]
    wanted = np.atleast_1d(alone(*data())) if name == "given" else alone(*data())
    partitioned = function.lower(*data()).compilation.partitioned
    wanted = [wanted] if name == "given" else wanted
    compiled = function(*data())
    for found in (simulate(partitioned, data()), [compiled] if name == "given" else compiled):
        for own, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
            if name == "passed":
                np.testing.assert_array_equal(np.signbit(own), np.signbit(other))


@pytest.mark.parametrize("first", ["f32[B@data, D]", "f32[B, D@(model, data)]", "f32[B, D]{sum: model}"])
def test_parts_are_made_of_what_another_type_lays_out(first: str) -> None:
    """Of two declared types, one after the other, each holds for its own value."""
    text = f"fn f(x: f32[B, D]) -> f32[B, D]{{prod: data}} {{\n    y: {first} = 2.0 * x\n    return y\n}}"
    function = intarsia.compile(f"mesh pod(data=2, model=2)\n{text}").f
    x = data()[0]
    (found,) = simulate(function.lower(x).compilation.partitioned, [x])
    np.testing.assert_array_equal(found, 2 * x)


def test_what_a_loop_stacks_may_be_parts() -> None:
    text = """mesh pod(data=2, model=2)
fn f(x: f32[B, D]) -> (f32[D@model], f32[B, D]) {
    return scan (s = zeros(f32[D])) for t < B {
        y: f32[D@model]{prod: data} = s + x[t]
        yield s + x[t]
        emit y
    }
}"""
    function, x = intarsia.compile(text).f, data()[0]
    last, every = simulate(function.lower(x).compilation.partitioned, [x])
    np.testing.assert_allclose(every, np.cumsum(x, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(last, every[-1])


def test_nothing_is_merged_that_stays_in_parts(ita: Run) -> None:
    text = ita("emit", "parts.ita:given", *SIZES, "--to", "partitioned")[1]
    assert "all_reduce" not in text and "result f32[5@data, 3]{sum: model}" in text
    assert ita("fmt", "--check", "parts.ita")[0] == 1  # long lines
    ita("fmt", "parts.ita")
    formatted = Path("parts.ita").read_text()
    assert "f32[]{sum: (data, model)}" in formatted and "f32[D, F]{prod: model}" in formatted


def test_what_has_no_parts_is_an_error(ita: Run) -> None:
    text = "mesh pod(a=2)\nfn f(x: bool[N]{sum: a}) -> bool[N] { return x }"
    status, _, report = ita("shard", "-e", text, "--dim", "N=4")
    assert status == 1 and "only a tensor of numbers of 8 bits and more is the sum of parts" in report
    assert "<command line>:2:" in report
    with pytest.raises(CompileError, match="the mesh has no axis `b`"):
        intarsia.compile(text.replace("sum: a", "sum: b")).f(np.ones(4, bool))
    field = "struct S(N) { max: f32 }\nfn f(s: S(4)) -> f32 { return s.max }"  # which is no annotation
    assert intarsia.compile(field).f({"max": 2.0}) == 2.0


@needs_mpi
@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    """Whole results are merged; parts go from one call into the next."""
    (tmp_path / "parts.ita").write_text(TEXT)
    (tmp_path / "program.py").write_text("""import numpy as np
import intarsia
program = intarsia.load("parts.ita", intarsia.Options(devices="mpi"))
draw = np.random.default_rng(0).standard_normal
x, w = draw((5, 6)).astype("f4"), draw((6, 3)).astype("f4")
np.testing.assert_allclose(program.given(x, w), x @ w, rtol=1e-5, atol=1e-5)
y, total, most = program.made(x, w)
np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)
np.testing.assert_allclose(total, x.sum(), rtol=1e-5)
np.testing.assert_array_equal(most, x.max(0))
part = program.passed.local(x, w)[2]
assert part.type == "f32[5@data, 6]{sum: model}"
np.testing.assert_allclose(program.passed(part, w)[2], 4 * x, rtol=1e-6)
print("fine")
""")
    found = mpiexec(4, "program.py", folder=tmp_path)
    assert found.returncode == 0 and found.stdout.count("fine") == 4, found.stderr


def test_the_search_keeps_what_types_say(ita: Run) -> None:
    text = "mesh m(a=2)\nfn f(x: f32[N, N]{sum: a}, w: f32[N, N]{replicated: a}) -> f32[N, N] { return exp(x) @ w }"
    status, shown, report = ita("shard", "-e", text, "--dim", "N=64", "--search")
    assert status == 0, report
    assert "x: f32[64, 64]{sum: a}\n" in shown and "w: f32[64, 64]{replicated: a}\n" in shown
    assert "all_reduce" in shown or "reduce_scatter" in shown
