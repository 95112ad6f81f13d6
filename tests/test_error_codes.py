"""Every error code has a page, every page is of a code, and every code is provoked by a test."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import pytest

from intarsia.cli import main

ROOT = Path(__file__).parent.parent
PAGES = {p.stem: p.read_text("utf-8") for p in sorted((ROOT / "docs" / "errors").glob("E*.md"))}
FOLDERS = ("dsl", "ir", "passes", "backends", "costmodel", "intarsia")
EXECUTED = re.compile(r"E0[123459]|E15")
"""Codes whose pages hold a program that test_syntax_errors, test_build_errors or test_graph_text runs."""

MLP = """fn mlp(x: f32[B, K], w1: f32[K, F], b1: f32[F], w2: f32[F, N]) -> f32[B, N] {
    h = gelu(x @ w1 + b1)
    return h @ w2
}
"""
FILES = {
    "twice.ir": """mesh pod(data=2)

func @f(%x: f32[8@data, 4@data]) {
  return %x
}
""",
    "either.ir": """mesh pod(data=2, model=2)

func @f(%x: f32[8@data], %y: f32[8@model]) {
  %0 = add %x, %y : f32[8]
  return %0
}
""",
    "open.ir": """mesh pod(data=2)

func @f[N](%x: f32[N@data]) {
  %0 = exp %x : f32[N]
  return %0
}
""",
    "product.ir": """mesh pod(a=2)

func @f(%x: f32[8, 4@a], %y: f32[4@a, 6]) {
  %0 = matmul %x, %y : f32[8, 6]{sum: a}
  %1 = exp %0 : f32[8, 6]
  return %1
}
""",
    "turns.ir": """mesh pod(model=2, part=2)
parameter f32[8@(part, model)]
result f32[8@(part, model)]

func @f(%x: f32[2]) {
  return %x
}
""",
    "mlp.ita": MLP,
    "relu.ita": "fn relu(x: f32[8]) -> f32[8] { return maximum(x, 0.0) }\nfn main(x: f32[8]) -> f32[8] { return x }\n",
    "softmax.ita": "fn f(x: f32[N, M], axis = -1) -> f32[N, M] { return softmax(x, axis=axis) }\n",
    "pick.ita": """fn pick(x: f32[N], y: f32[M]) -> f32[M] {
    return tensor[i < M](x[i * i % 7] + y[i])
}
""",
    "measurements.txt": """intarsia measurements 1
problem 3f0c5a1be2d94c07
  kind tuned
  cores 2
  source
    | fn f(x: f32[64]) -> f32[64] { return exp(x) }
  kernel
    | kernel f_exp(x: f32[64], out y: f32[64]) { … }
  machine znver5 512 bits, caches 48/1024/32768 KiB
  compiler intarsia 0.1.0, llvmlite 0.50.0, Python 3.11.7
  schedule split i0 16; vectorize i0.1
    timed 73.8 us, spread 0.012, 15 runs, choices {}
""",
    "mlp.ir": """intarsia.ir 1
func @mlp[B, K, N](%x: f32[B, K], %w: f32[K, N]) {
  %0 = matmul %x, %w : f32[B, N]
  return %0
}
""",
}
"""What the commands of the pages are run on."""


def commands() -> dict[str, tuple[str, str]]:
    """The pages that begin with a command, with what it prints."""
    found = {}
    for code, text in PAGES.items():
        blocks = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
        if len(blocks) > 1 and blocks[0].startswith("intarsia "):
            found[code] = blocks[0].strip(), blocks[1].rstrip()
    return found


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    sources = [p.read_text("utf-8") for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")]
    raised = {code for text in sources for code in re.findall(r'"(E\d{4})"', text)}
    assert raised == set(PAGES)


@pytest.mark.parametrize("code", PAGES)
def test_pages_have_one_shape(code: str) -> None:
    text = PAGES[code]
    assert re.match(rf"# {code}: \S", text) and "\n## Example\n" in text and "\n## How to mend it\n" in text
    assert f"error[{code}]: " in text


def test_every_code_is_provoked() -> None:
    tests = "".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    known = {code for code in PAGES if EXECUTED.match(code) or code in commands()}
    assert {code for code in PAGES if code not in known and code not in tests} == set()


@pytest.mark.parametrize("code", commands())
def test_commands_of_the_pages_print_what_they_say(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if code == "E1703" and find_spec("torch") is not None:
        pytest.skip("PyTorch is installed")
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    command, wanted = commands()[code]
    main(shlex.split(command)[1:])
    printed = "".join(capsys.readouterr())
    for line, expected in zip_longest(printed.strip().splitlines(), wanted.splitlines(), fillvalue=""):
        pattern = re.escape(" ".join(expected.split())).replace("…", ".*")
        assert re.fullmatch(pattern, " ".join(line.split())), f"{line!r} is not {expected!r}"
