"""Programs for GPUs as Python files: their layout, and that they compute what their reference in PyTorch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXPECTED
from op_programs import PROGRAMS

from intarsia.backends.gpu.python_layout import laid_out, tidy
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module

FOLDER = Path(__file__).parent / "golden" / "triton"
TARGET = "gpu:sm_90"
SOME = (
    "causal_scores", "dynamic_rows", "emitted_rows", "empty_and_single", "feed_forward", "gather i64", "index_values",
    "layers", "loops", "reduction used again f32", "scalar_recurrence", "tables", "updates_in_group", "views",
)  # fmt: skip
"""Programs with much to write outside their kernels."""


def text_of(source: str, *, checks: bool = False, **sizes: int) -> str:
    program = load(Source("program.ita", source)).build("f")
    return Compilation(program, sizes, Options(target=TARGET, dynamic=tuple(sizes), checks=checks)).text("triton")


def text_of_op(name: str, *, dynamic: bool) -> str:
    case = PROGRAMS[name]()
    options = Options(target=TARGET, dynamic=tuple(case.sizes) if dynamic else ())
    return Compilation(Module(case.graph), case.sizes, options).text("triton")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a few programs."""
    found = tmp_path_factory.mktemp("few")
    (found / "softmax.py").write_text(golden("softmax"))
    (found / "loops.py").write_text(text_of_op("loops", dynamic=True))
    (found / "layers.py").write_text(text_of_op("layers", dynamic=False))
    (found / "prepared.py").write_text(text_of(PREPARED, N=5))
    (found / "keyword.py").write_text(text_of("fn f(x: f32[2*N]) -> f32[N, 2] { return reshape(x, (N, 2)) }", N=5))
    (found / "checked.py").write_text(text_of(CHECKED, checks=True, N=5))
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of many programs."""
    found = tmp_path_factory.mktemp("many")
    for path in FOLDER.glob("*.ita"):
        (found / f"{path.stem}.py").write_text(golden(path.stem))
    for name in SOME:
        for dynamic in (False, True):
            file = found / f"op_{name.replace(' ', '_')}_{'open' if dynamic else 'fixed'}.py"
            file.write_text(text_of_op(name, dynamic=dynamic))
    return found


def golden(name: str) -> str:
    """What the golden file of a program expects."""
    return (FOLDER / f"{name}.ita").read_text().partition(EXPECTED)[2].lstrip("\n")


CHECKED = "fn f(x: f32[N], i: i64[N]) -> f32[N] { return tensor[a](x[i[a]]) }"
PREPARED = "fn f(const w: f32[20, 20], x: f32[N, 20]) -> f32[N, 20] { return x @ (transpose(w) @ w) }"


@pytest.mark.slow
def test_the_formatter_would_change_nothing(few: Path, many: Path) -> None:
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(few), str(many)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
def test_the_linter_finds_nothing(few: Path, many: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", str(few), str(many)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


RUN = """
import contextlib, importlib.util, io, pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        module.main()
    assert "largest error" in out.getvalue() or "There is no reference" in path.read_text(), path
"""


def interpret(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with Triton's own interpreter, which a process has from its start or not at all."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def needs_torch() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")


def test_files_give_what_their_reference_gives(few: Path) -> None:
    needs_torch()
    run = interpret("-c", RUN, *map(str, sorted(few.glob("*.py"))))
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_many_files_give_what_their_reference_gives(many: Path) -> None:
    """But for bf16 and `libdevice`, which Triton's own interpreter does not know."""
    needs_torch()
    files = [
        str(f) for f in sorted(many.glob("*.py")) if not any(w in f.read_text() for w in ("bfloat16", "libdevice"))
    ]
    assert len(files) > 35
    run = interpret("-c", RUN, *files)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_every_op_as_a_file(tmp_path: Path) -> None:
    needs_torch()
    for name in PROGRAMS:
        if "bf16" not in name and "sort" not in name:
            (tmp_path / f"{name.replace(' ', '_')}.py").write_text(text_of_op(name, dynamic=True))
    run = interpret("-c", RUN, *map(str, sorted(tmp_path.glob("*.py"))))
    assert run.returncode == 0, run.stderr[-3000:]


WRONG = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("softmax", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x = torch.zeros(50, 300)
for wrong in (7, x.double(), x[:, 1:], torch.zeros(300, 50).T):
    try:
        module.f(wrong)
    except (TypeError, ValueError) as error:
        print(error)
"""


FAILING = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("checked", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.f(torch.ones(5), torch.tensor([0, 1, 7, 2, -1]))
"""


def test_run_time_checks_of_a_file(few: Path) -> None:
    needs_torch()
    run = interpret("-c", FAILING, str(few / "checked.py"))
    assert run.stderr.endswith("ValueError: E0801: program.ita:1:47: subscript 7 is outside 0..5\n"), run.stderr


def test_arguments_are_checked(few: Path) -> None:
    needs_torch()
    run = interpret("-c", WRONG, str(few / "softmax.py"))
    assert run.stdout.splitlines() == [
        "x is a int, not a tensor",
        "x is torch.float64, not torch.float32",
        "x has shape (50, 299), not (50, 300)",
        "x is not contiguous: pass x.contiguous()",
    ], run.stderr


def test_what_depends_on_constants_is_a_function_of_its_own() -> None:
    text = text_of(PREPARED, N=5)
    assert "def prepare_f(w):" in text
    assert "def f(w, x):" in text
    assert " = prepare_f(w)" in text


def test_sizes_that_no_argument_shows_are_keywords() -> None:
    text = text_of("fn f(x: f32[2*N]) -> f32[N, 2] { return reshape(x, (N, 2)) }", N=5)
    assert "def f(x, *, N):" in text
    assert "def reference(x, *, N):" in text
    assert "f(x, N=5)" in text


def test_what_pytorch_lacks_leaves_the_reference_out() -> None:
    text = text_of("fn f(x: u64[9], y: u64[9]) -> u64[9] { return x + y }")
    assert "# There is no reference in PyTorch: PyTorch does not compute in u64." in text
    assert "def reference" not in text


def test_layout() -> None:
    text = "x = function(argument_one, argument_two, 'a') # why\nmask = (first < 3)[:, None] & (second < 4)[None, :]"
    expected = (
        'x = function(argument_one, argument_two, "a")  # why\nmask = (first < 3)[:, None] & (second < 4)[None, :]\n'
    )
    assert laid_out(text) == expected
    assert laid_out(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((a * b) + (c - d))", "a * b + (c - d)"),
        ("x[:, None][a:b]", "x[:, None][a:b]"),
        ("-(a + b)", "-(a + b)"),
        ("((a & b) == c) & d", "(a & b == c) & d"),
        ("(x if (a) else (y))", "x if a else y"),
    ],
)
def test_brackets_that_python_does_not_need_go(text: str, expected: str) -> None:
    assert tidy(text) == expected
