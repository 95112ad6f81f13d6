"""The C interface: the example of docs/c-interface.md, built and run as it stands there."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intarsia.backends.cpu.compile import host_target
from intarsia.backends.cpu.library import Interface, header, library_code, shared_library
from intarsia.backends.cpu.plan import kernel_plan
from intarsia.dsl.library import load
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.target import TARGETS
from intarsia.passes.lower import Lower
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan

PAGE = Path(__file__).parent.parent / "docs" / "c-interface.md"
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def block(language: str, containing: str) -> str:
    """A code block of the page."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return next(b for b in blocks if containing in b)


@pytest.fixture(scope="module")
def example() -> Interface:
    module = load(Source("axpy.ita", block("ita", "fn axpy"))).build("axpy")
    return Interface(plan(Lower().run(module, Context(host_target()))))


def test_header_is_as_documented(example: Interface) -> None:
    text = re.sub(r"/\* (Bytes|May).*?\*/\n", "", header(example), flags=re.DOTALL)
    assert block("text", "int32_t axpy") in text


@needs_compiler
def test_the_example_runs(example: Interface, tmp_path: Path) -> None:
    (tmp_path / "axpy.h").write_text(header(example))
    (tmp_path / "libaxpy.so").write_bytes(shared_library(example, host_target()))
    (tmp_path / "main.c").write_text(block("c", "main(void)"))
    command = "gcc -Wall -Wextra -Werror -std=c11 main.c -o main -L. -laxpy -Wl,-rpath,."
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    run = subprocess.run([tmp_path / "main"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"It prints `{run.stdout.strip()}`." in PAGE.read_text("utf-8")


@needs_compiler
def test_parallel_loops_and_tables(tmp_path: Path) -> None:
    kernel = read_kernel(
        Source(
            "test",
            """kernel rows(w: list[3] f32[40, 16], out y: f32[40, 16]) {
              parallel i in 0..40 { lane l in 0..16 { y[i, l] = w[0, i, l] + w[2, i, l] } }
            }""",
        )
    )
    library = tmp_path / "librows.so"
    library.write_bytes(shared_library(Interface(kernel_plan(kernel)), host_target()))
    w = np.random.default_rng(0).standard_normal((3, 40, 16)).astype(np.float32)
    y = np.zeros((40, 16), np.float32)
    table = (ctypes.c_void_p * 3)(*(part.ctypes.data for part in w))
    function = ctypes.CDLL(str(library)).rows
    function.argtypes = [ctypes.c_void_p] * 3
    assert function(table, y.ctypes.data, None) == 0
    np.testing.assert_array_equal(y, w[0] + w[2])


def test_errors(example: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="E1713"):
        shared_library(example, TARGETS["cpu:neon"])
    with pytest.raises(CompileError, match="E1712"):
        header(Interface(replace(example.plan, name="main")))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="E1711"):
        shared_library(example, host_target())


def test_the_library_exports_two_functions(example: Interface) -> None:
    defined = re.findall(r"^define (?!internal)\S+ @(\S+)\(", library_code(example, host_target()).source, re.MULTILINE)
    assert defined == ["axpy_workspace_size", "axpy"]
