"""Kernels compiled for GPUs on a machine without one: what they consist of, and what is said of faulty ones."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import gpu_kernels
import numpy as np
import pytest

from intarsia.backends.gpu.interpreter import run
from intarsia.backends.gpu.toolchain import (
    ToolchainError,
    compile_kernel,
    compile_kernels,
    count_instructions,
    counted,
    first_useful_line,
)
from intarsia.backends.gpu.triton_kernel import Pointer, TritonKernel
from intarsia.backends.gpu.triton_module import module_text
from intarsia.ir.dtypes import BF16, F32
from intarsia.ir.sizes import Size
from intarsia.ir.target import TARGETS, Target
from intarsia.workers import map_with

pytest.importorskip("triton")

AMPERE, HOPPER, BLACKWELL = (TARGETS[f"gpu:sm_{n}"] for n in (80, 90, 100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


def test_a_compiled_kernel_holds_every_text(folder: Path) -> None:
    found = compile_kernel(gpu_kernels.copy(divisible=True), HOPPER, folder)
    assert (found.name, found.entry, found.target) == ("copy", "copy", "gpu:sm_90")
    assert "tt.func public @copy" in found.ttir and "#ttg.blocked" in found.ttgir and "define " in found.llvm
    assert ".target sm_90a" in found.ptx and ".entry copy(" in found.ptx and found.cubin.startswith(b"\x7fELF")
    assert "STG.E.128" in found.sass
    assert found.resources.warps == 4 and found.resources.shared == 0 and 0 < found.resources.registers < 64
    assert pickle.loads(pickle.dumps(found)) == found


def test_divisible_sizes_let_masked_accesses_be_vectors(folder: Path) -> None:
    scalars, vectors = (
        compile_kernel(gpu_kernels.copy(BF16, 1024, divisible=d), AMPERE, folder) for d in (False, True)
    )
    assert scalars.resources.count("load_global_16") == 0 and scalars.resources.count("load_global") == 8
    assert vectors.resources.count("load_global_16") == 1 == vectors.resources.count("store_global_16")
    assert vectors.resources.count("total") < scalars.resources.count("total")


def test_texts_are_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    first, again = (compile_kernel(gpu_kernels.copy(), AMPERE, place) for place in (folder, tmp_path))
    assert first == again
    assert any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("target", [AMPERE, HOPPER], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "kernel",
    [
        gpu_kernels.softmax(4096, warps=8),
        gpu_kernels.matmul(BF16, (128, 128, 64), warps=8, divisible=True),
        gpu_kernels.attention(64, (128, 64), warps=4),
        gpu_kernels.scan(1024),
        gpu_kernels.histogram(1024),
    ],
    ids=lambda k: k.name,
)
def test_nothing_is_spilled(kernel: TritonKernel, target: Target, folder: Path) -> None:
    resources = compile_kernel(kernel, target, folder).resources
    assert resources.spilled == 0 == resources.count("load_local") == resources.count("store_local")
    if kernel.name == "matmul":
        assert (resources.count("hmma") > 0, resources.count("hgmma") > 0) == (target is AMPERE, target is HOPPER)
        assert resources.count("copy_async_16") == resources.count("copy_async") > 0 and resources.shared >= 64 << 10
    if kernel.name == "attention":
        assert resources.count("mufu") > 0 and resources.count("shuffle") > 0
    if kernel.name == "histogram":
        assert resources.count("atomic") > 0


@pytest.mark.slow
def test_tensor_cores_of_blackwell_and_sorting(folder: Path) -> None:
    kernels = [gpu_kernels.matmul(BF16, (128, 128, 64), warps=8, divisible=True), gpu_kernels.sort(1024)]
    matmul, sort = map(counted, compile_kernels(kernels, BLACKWELL, folder, each=partial(map_with, 2)))
    assert matmul.resources.count("tcgen05") > 0 and matmul.resources.spilled == 0
    assert sort.resources.count("shuffle") > 100 and "resources" in vars(sort)
    assert matmul == compile_kernel(kernels[0], BLACKWELL, folder)


def test_a_kernel_is_interpreted_and_compiled_in_one_process(folder: Path) -> None:
    kernel = gpu_kernels.softmax(64)
    x = np.zeros((1, 64), np.float32)
    y = np.zeros_like(x)
    for _ in range(2):
        run(kernel, {"x": x, "y": y}, {"M": 1, "N": 64})
        assert (y == 1 / 64).all()
        assert "tt.reduce" in compile_kernel(kernel, AMPERE, folder).ttir


@pytest.mark.slow
def test_products_are_fused_only_where_it_is_said(folder: Path) -> None:
    text = """@triton.jit
def f(x, y):
    i = tl.arange(0, 128)
    v = tl.load(x + i)
    tl.store(y + i, {})
"""
    pointers = (Pointer("x", "x", F32), Pointer("y", "y", F32))
    plain, fused = (
        TritonKernel("f", text.format(body), pointers, (Size.of(1),)) for body in ("v * v + v", "tl.fma(v, v, v)")
    )
    assert compile_kernel(plain, AMPERE, folder).resources.count("ffma") == 0
    assert compile_kernel(plain, AMPERE, folder, fuse_products=True).resources.count("ffma") == 1
    assert compile_kernel(fused, AMPERE, folder).resources.count("ffma") == 1


def broken(body: str) -> TritonKernel:
    return TritonKernel("f", f"@triton.jit\ndef f(x):\n{body}", (Pointer("x", "x", F32),), (Size.of(1),))


def refused(
    kernel: TritonKernel, folder: Path, capfd: pytest.CaptureFixture[str], target: Target = AMPERE
) -> ToolchainError:
    with pytest.raises(ToolchainError) as caught:
        compile_kernel(kernel, target, folder)
    assert capfd.readouterr() == ("", "")
    assert pickle.loads(pickle.dumps(caught.value)).output == caught.value.output
    return caught.value


def test_what_the_front_end_refuses(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = refused(broken("    tl.store(x + tl.arange(0, 100), 1.0)\n"), folder, capfd)
    assert str(found) == "kernel 'f' cannot be compiled for gpu:sm_80: arange's range must be a power of 2"
    found = refused(broken("    tl.store(x, undefined)\n"), folder, capfd)
    assert "undefined is not defined" in str(found)


@pytest.mark.parametrize("target", [AMPERE, HOPPER], ids=lambda t: t.name)
def test_what_ptxas_refuses(target: Target, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asm = '"nonsense.f32 $0, $1;", "=f,f", [tl.load(x)], dtype=tl.float32, is_pure=True, pack=1'
    found = refused(broken(f"    tl.store(x, tl.inline_asm_elementwise({asm}))\n"), folder, capfd, target)
    wanted = f"kernel 'f' cannot be compiled for {target.name}: Not a name of any known instruction: 'nonsense'"
    assert str(found) == wanted
    assert "ptxas" in found.output


@pytest.mark.slow
def test_more_shared_memory_than_there_is(folder: Path) -> None:
    kernel = replace(gpu_kernels.matmul(BF16, (128, 128, 64), warps=8, divisible=True), stages=8)
    with pytest.raises(ToolchainError, match=r"'matmul' needs \d+ bytes of shared memory; gpu:sm_80 has 166912"):
        compile_kernel(kernel, AMPERE, folder)


def test_the_first_useful_line() -> None:
    assert (
        first_useful_line("warning: x\n/tmp/a.ttir:3:4: error: failed to legalize\nnote: y\n") == "failed to legalize"
    )
    ptxas = "ptxas info : x\nptxas /tmp/a.ptx, line 9; error   : Not a name: 'f'\nptxas fatal : aborted"
    assert first_useful_line(ptxas) == "Not a name: 'f'"
    assert first_useful_line("at 3:4:\n  x = y\n      ^\nwrong type") == "wrong type"
    assert first_useful_line("") == ""


def test_instructions_are_counted_by_kind() -> None:
    sass = """copy:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R8.64] ;
        /*0010*/              @!P0 LDG.E.U16 R4, desc[UR4][R8.64] ;
        /*0020*/             @!UP0 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R8.64] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0040*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;
        /*0050*/                   NOP ;
"""
    assert count_instructions(sass) == {
        "total": 5, "tcgen05": 1, "hgmma": 1, "load_global": 2, "load_global_16": 1,
        "copy_async": 1, "copy_async_16": 1,
    }  # fmt: skip


def test_a_file_of_kernels_has_each_helper_once() -> None:
    text = module_text([gpu_kernels.softmax(128), gpu_kernels.attention(64, (64, 64)), gpu_kernels.softmax(128)])
    assert text.startswith("import triton\n") and text.count("def maximum(") == 1 == text.count("def softmax(")
    compile(text, "kernels.py", "exec")


@pytest.mark.parametrize(
    "code, setting, message",
    [
        ("E1704", 'sys.modules["triton"] = None', "Triton is not installed beside Intarsia"),
        ("E1705", 'os.environ["TRITON_INTERPRET"] = "1"', "TRITON_INTERPRET is set, and Triton compiles nothing then"),
    ],
)
def test_where_triton_is_of_no_use_the_error_says_what_to_do(code: str, setting: str, message: str) -> None:
    program = f"""import os, sys
{setting}
from pathlib import Path
import gpu_kernels
from intarsia.backends.gpu import interpreter, toolchain
from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS
for work in (
    lambda: toolchain.compile_kernel(gpu_kernels.copy(), TARGETS["gpu:sm_80"], Path(".")),
    lambda: interpreter.run(gpu_kernels.copy(), {{}}, {{"N": 1}}),
):
    try:
        work()
    except CompileError as error:
        print(error)
"""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), *sys.path[1:]])
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": path}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    page = (here.parent / "docs" / "errors" / f"{code}.md").read_text("utf-8")
    assert printed.count(f"error[{code}]: {message}") == 2
    shown = page.split("```text\n")[1].splitlines()
    assert [line.strip() for line in printed.splitlines()[:2]] == [line.strip() for line in shown[:2]]
