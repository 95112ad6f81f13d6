"""The pages about the command line, Python and low-bit data: their examples run and print what the pages say."""

from __future__ import annotations

import re
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intarsia
from intarsia.cli import main
from intarsia.files import write_results
from intarsia.ir.conversion import largest as largest_of
from intarsia.ir.dtypes import dtype

DOCS = Path(__file__).parent.parent / "docs"
CLI, PYTHON, LOW_BIT = ((DOCS / name).read_text("utf-8") for name in ("cli.md", "python.md", "low-bit.md"))

GATHER = """fn main(table: f32[V], ids: i64[N]) -> f32[N] {
    return tensor[i](table[ids[i]])
}
"""
ATTENTION = """fn attend(v: f32[1, D]) -> f32[1, D] { return softmax(ones(f32[1, 1])) @ v }
test "one key is returned as it is" { assert all(attend(ones(f32[1, 4])) == 1.0) }
"""
BIG = """fn helper(x: f32[N]) -> f32[N] { return exp(x) }
fn main(x: f32[N], y: f32[M]) -> f32[N] {
    z = helper(x) * 2.0
    w = sum(z)
    return x + y
}
"""
LINEAR = """format w4 = quant(i4, scale=f16, group=128, axis=0)
fn linear(x: f32[1, K], const w: w4[K, N]) -> f32[1, N] { return x @ dequantize(w) }
"""
FILES = {"linear.ita": LINEAR, "gather.ita": GATHER, "attention.ita": ATTENTION, "big.ita": BIG}

TIMED = re.compile(r"--time|--profile|--timing|^intarsia bench")
"""Commands whose output is full of numbers, and in an order, that a machine decides."""

BUSY = re.compile(r"^note: the machine was busy .*\n", re.MULTILINE)
"""What `--time` says more where other programs run."""


def transcripts() -> list[tuple[str, str]]:
    """Every command of cli.md with what it prints, in order."""
    found = []
    for block in re.findall(r"```text\n(\$ .*?)```", CLI, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed.rstrip()))
    return found


def matches(printed: str, wanted: str) -> bool:
    """Is a line as the page says, but for spaces and for what `…` stands for?"""
    return re.fullmatch(re.escape(" ".join(wanted.split())).replace("…", ".*"), " ".join(printed.split())) is not None


def words(text: str) -> list[str]:
    """The words of an output without its numbers and units, in alphabetical order."""
    return sorted(w for w in re.findall(r"[A-Za-z_]\w+", text) if w not in ("us", "ms"))


@pytest.mark.slow
def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other in one folder, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTARSIA_CACHE_DIR", str(tmp_path / "cache"))
    found = re.search(r"```\n(fn mlp.*?)```", CLI, re.DOTALL)
    assert found is not None
    for name, text in {"mlp.ita": found[1], **FILES}.items():
        Path(name).write_text(text)
    draw = np.random.default_rng(0).standard_normal
    np.savez(
        "model.npz",
        **{"down.weight": draw((512, 128), "f4"), "bias": draw(128, "f4"), "up.weight": draw((128, 512), "f4")},
    )
    for command, wanted in transcripts():
        arguments = shlex.split(command)
        assert arguments[0] == "intarsia"
        main(arguments[1:])
        out, err = capsys.readouterr()
        if TIMED.search(command):
            assert words(BUSY.sub("", err) + out) == words(wanted), err + out
            continue
        lines, expected = (err + out).strip().splitlines(), [line.strip() for line in wanted.splitlines()]
        if "…" in expected:  # a line that stands for several
            place = expected.index("…")
            lines[place : len(lines) - len(expected) + place + 1] = ["…"]
        for line, wanted_line in zip_longest(lines, expected, fillvalue=""):
            assert matches(line, wanted_line), f"{command}\n{line!r} is not {wanted_line!r}"


def test_the_options_of_the_page_exist(capsys: pytest.CaptureFixture[str]) -> None:
    verb = "run"
    for line in CLI.splitlines():
        if line.startswith("## "):
            verb = line[3:].split(",")[0]
            continue
        if verb in ("run", "emit", "opt", "bench", "quantize", "Programs"):
            main([verb if verb != "Programs" else "run", "--help"])
            text = capsys.readouterr().out
            for cell in re.findall(r"^\| (`--.*?) \|", line):
                for option in re.findall(r"`(--[a-z-]+)", cell):
                    assert option in text, f"{verb} {option}"


def test_the_python_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("layers.ita").write_text(
        "fn mlp(x: f32[B, K], w1: f32[K, F], b1: f32[F], w2: f32[F, N]) -> f32[B, N] { return gelu(x @ w1 + b1) @ w2 }"
    )
    code = re.search(r"```python\n(import intarsia\n.*?)```", PYTHON, re.DOTALL)
    assert code is not None
    draw = np.random.default_rng(0).standard_normal
    names: dict[str, Any] = {
        n: draw(s).astype(np.float32) for n, s in {"x": (2, 3), "w1": (3, 4), "b1": (4,), "w2": (4, 5)}.items()
    }
    exec(code[1], names)
    assert names["y"].shape == (2, 5) and "matmul" in names["kernel"].asm["graph"]
    np.testing.assert_array_equal(names["bound"](names["x"]), names["y"])
    np.testing.assert_array_equal(names["relu"](names["x"][0]), np.maximum(names["x"][0], 0))


def test_the_names_of_the_page_exist() -> None:
    """What python.md says of attributes is there."""
    program = intarsia.compile("fn f(const x: f32[N]) -> f32[N] { return x }")
    function = program["f"]
    lowered = function.lower(np.ones(3, np.float32))
    things = {"program": program, "function": function, "lowered": lowered, "intarsia": intarsia}
    named = re.findall(r"`(program|function|lowered|intarsia)\.([a-z_]+)", PYTHON)
    assert len(named) > 10
    for thing, name in named:
        assert hasattr(things[thing], name) or name == "name", f"{thing}.{name}"


def test_the_page_about_low_bit_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its programs have no mistakes, its Python runs, its commands work on files of that name."""
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```ita\n(.*?)```", LOW_BIT, re.DOTALL)
    for text in programs:
        Path("page.ita").write_text(text)
        assert main(["check", "page.ita"]) == 0
    Path("linear.ita").write_text(programs[1])
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", LOW_BIT, re.DOTALL):
        exec(code, names)
    np.testing.assert_allclose(names["y"], names["x"] @ names["values"], rtol=1e-4)
    np.testing.assert_allclose(names["same"], names["y"], rtol=1e-5)
    write_results("model.safetensors", {"layer.0.weight": names["w"]})
    words = {"qweight": np.zeros((8, 32), np.int32), "qzeros": np.zeros((2, 4), np.int32)}
    scales = np.ones((2, 32), np.float16)
    write_results("packed.safetensors", {f"a.{n}": t for n, t in {**words, "scales": scales}.items()})
    for block in re.findall(r"```sh\n(.*?)```", LOW_BIT, re.DOTALL):
        for line in block.splitlines():
            assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert "result: f32[2, 64]" in capsys.readouterr().out
    for name, largest in (("f8e4m3", 448), ("f8e5m2", 57344), ("f6e2m3", 7.5), ("f6e3m2", 28), ("f4e2m1", 6)):
        element = dtype(name)
        assert element is not None and largest_of(element) == largest
