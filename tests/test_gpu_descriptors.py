"""Walks of programs over blocks, and tensor descriptors: what is written, and that it computes the same."""

from __future__ import annotations

import ctypes
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gpu_emit import assert_same, compilation, draw, force

from intarsia.backends.gpu.emit import emit_kernel
from intarsia.backends.gpu.interpreter import run as run_launch
from intarsia.backends.gpu.toolchain import compile_kernel
from intarsia.backends.gpu.traffic import bytes_moved
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel_interpreter import run as run_kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.kernel_verifier import problems, verify_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.options import Options
from intarsia.passes.schedule.apply import apply
from intarsia.passes.schedule.programs import build_programs
from intarsia.runtime import cuda

pytest.importorskip("triton")

BLOCKS = "split i 16; split j 8; reorder i.0 j.0 i.1 j.1; vectorize i.1 j.1; grid i.0 j.0; "

PRODUCT = """kernel product(x: f16[40, 72], w: f16[72, 56], out y: f16[40, 56]) {
  alloc t: f32[40, 56]
  for i in 0..40 { for j in 0..56 { t[i, j] = 0.0 } }
  for m in 0..40 { for n in 0..56 { for k in 0..72 { t[m, n] += f32(x[m, k]) * f32(w[k, n]) } } }
  for p in 0..40 { for q in 0..56 { y[p, q] = f16(t[p, q]) } }
}"""


def same(text: str, steps: str, **sizes: int) -> TritonKernel:
    """The one launch of a kernel after some steps, which computes what the kernel does."""
    kernel = read_kernel(Source("test.ir", text))
    scheduled = apply(kernel, Schedule.parse(steps))
    verify_kernel(scheduled)
    (launch,) = emit_kernel(scheduled)
    random = np.random.default_rng(0)
    given: dict[str, Array] = {}
    for buffer in kernel.parameters:
        shape = tuple(extent.evaluate(sizes) for extent in buffer.shape)
        drawn = random.standard_normal(shape) if buffer.dtype.is_float else random.integers(1, 9, shape)
        given[buffer.name] = drawn.astype(buffer.dtype.numpy)
    expected = {name: array.copy() for name, array in given.items()}
    run_kernel(kernel, expected, sizes)
    run_launch(launch, given, sizes)
    for name, array in expected.items():
        np.testing.assert_allclose(given[name], array, rtol=1e-3, atol=1e-3, err_msg=name)
    return launch


def test_what_lies_beyond_an_edge_needs_no_mask() -> None:
    text = """kernel f(x: f32[20, 28], out y: f32[20, 28]) {
      for i in 0..20 { for j in 0..28 { y[i, j] = x[i, j] * 2.0 } }
    }"""
    launch = same(text, BLOCKS + "describe x y")
    assert "x_desc.load([pid_i * BLOCK_I, pid_j * BLOCK_J])" in launch.text
    assert "y_desc.store([pid_i * BLOCK_I, pid_j * BLOCK_J], " in launch.text
    assert "mask" not in launch.text and "tl.load" not in launch.text
    assert {(t.buffer, t.writes, t.elements) for t in launch.transfers} == {("x", False, 128), ("y", True, 128)}


def test_dimensions_of_one_element_and_columns_that_are_written_as_rows() -> None:
    text = """kernel f(x: f32[3, 20, 32], out y: f32[32, 20]) {
      for i in 0..20 { for j in 0..32 { y[j, i] = x[1, i, j] } }
    }"""
    launch = same(text, BLOCKS + "describe x y")
    assert "tl.reshape(x_desc.load([1, pid_i * BLOCK_I, pid_j * BLOCK_J]), (BLOCK_I, BLOCK_J))" in launch.text
    assert "tl.trans(x)" in launch.text


MASKED_INSIDE = """kernel f(x: f32[20, 32], out y: f32[20, 32]) {
  for i in 0..20 { for j in 0..32 { y[i, j] = (x[i, j] if j < i else 0.0) } }
}"""
OTHER_THAN_ZERO = """kernel f(x: f32[20, 32], out y: f32[24, 32]) {
  for i in 0..24 { for j in 0..32 { y[i, j] = (x[i, j] if i < 20 else 1.0) } }
}"""
NEGATIVE_ZERO = OTHER_THAN_ZERO.replace("1.0", "-0.0")
WRITTEN_TOO = """kernel f(inout x: f32[20, 32]) {
  for i in 0..20 { for j in 0..32 { x[i, j] = x[i, j] * 2.0 } }
}"""


@pytest.mark.parametrize("text", [MASKED_INSIDE, OTHER_THAN_ZERO, NEGATIVE_ZERO, WRITTEN_TOO])
def test_what_a_descriptor_would_read_wrongly_is_read_by_pointers(text: str) -> None:
    launch = same(text, BLOCKS + "describe x")
    assert "x_desc" not in launch.text and "tl.load(x_ptr" in launch.text


def test_padding_is_read_as_zero() -> None:
    text = """kernel f(x: f32[20, 32], out y: f32[24, 32]) {
      for i in 0..24 { for j in 0..32 { y[i, j] = (x[i - 2, j] if 1 < i and i < 22) } }
    }"""
    launch = same(text, BLOCKS + "describe x y")
    assert "x_desc.load([pid_i * BLOCK_I + -2" in launch.text or "x_desc.load([pid_i * BLOCK_I - 2" in launch.text


PRODUCT = """kernel f(x: f16[24, 72], w: f16[80, 24], out y: f16[20, 24]) {
  for i in 0..20 { for j in 0..24 {
    alloc t: f32 register
    t[] = 0.0
    for k in 0..ROWS { t[] += f32(x[i + 2, k]) * f32(w[k, j]) }
    y[i, j] = f16(t[])
  } }
}"""
PRODUCT_BLOCKS = "split i 16; split j 16; split k 32; reorder i.0 j.0 i.1 j.1; vectorize k.1 j.1 i.1; grid i.0 j.0; "


def test_rows_that_are_not_written_are_read_as_they_are() -> None:
    """Row 22 is inside of x, but no row of the result; what is multiplied beyond the end of the sum is none."""
    launch = same(PRODUCT.replace("ROWS", "72"), PRODUCT_BLOCKS + "programs 2; describe x w y")
    assert "x_desc.load([pid_i * BLOCK_I + 2, k_0 * BLOCK_K])" in launch.text and "w_ptr + k" in launch.text
    assert "tl.num_programs(0)):" in launch.text, "what is read by pointers begins anew with every block"


def test_a_sum_that_ends_before_its_factors_do() -> None:
    launch = same(PRODUCT.replace("ROWS", "64"), PRODUCT_BLOCKS + "programs 2; describe x w y")
    assert "x_desc.load" in launch.text and "w_desc.load" in launch.text and "flatten=True" in launch.text
    launch = same(PRODUCT.replace("ROWS", "40"), PRODUCT_BLOCKS + "describe x w y")
    assert "_desc.load" not in launch.text


def test_what_is_written_again_is_in_order() -> None:
    text = """kernel f(x: f32[4, 16, 32], out y: f32[16, 32]) {
      for i in 0..16 { for j in 0..32 { for k in 0..4 { y[i, j] = x[k, i, j] } } }
    }"""
    launch = same(text, BLOCKS.replace("i.1 j.1; vec", "k i.1 j.1; vec") + "describe x y")
    assert "x_desc.load" in launch.text and "tl.store(y_ptr" in launch.text


def test_memory_that_begins_anywhere_has_no_descriptor() -> None:
    text = """kernel f(x: f32[16, 32], out y: f32[16, 32]) {
      for i in 0..16 { for j in 0..32 { y[i, j] = x[i, j] } }
    }"""
    kernel = apply(read_kernel(Source("test.ir", text)), Schedule.parse(BLOCKS + "describe x y"))
    (launch,) = emit_kernel(kernel, unaligned=["x"])
    assert "x_desc" not in launch.text and "y_desc.store" in launch.text


def test_counters_of_64_bits_become_offsets_of_32() -> None:
    text = """kernel f(x: f32[64, 32], ends: i64[1], inout y: f32[64, 32]) {
      for k in 0..min(4, ends[0]) { for i in 0..16 { for j in 0..32 { y[16 * k + i, j] = x[16 * k + i, j] } } }
    }"""
    launch = same(text, "vectorize i j; describe x")
    assert "x_desc.load([(k * BLOCK_I).to(tl.int32), 0])" in launch.text


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_walk_takes_every_block_once(count: int) -> None:
    text = """kernel f(x: f32[20, 28], out y: f32[20, 28]) {
      for i in 0..20 { for j in 0..28 { y[i, j] = x[i, j] * 2.0 } }
    }"""
    launch = same(text, f"{BLOCKS}programs {count}")
    assert [int(n) for n in launch.grid] == [count]
    assert "for tile in tl.range(tl.program_id(0), 8, tl.num_programs(0)):" in launch.text
    assert bytes_moved(launch, {}) == bytes_moved(same(text, BLOCKS), {})


def test_a_walk_over_sizes_that_stay_open() -> None:
    text = """kernel f(x: f32[N, M], out y: f32[N, M])[sizes N, M] {
      for i in 0..N { for j in 0..M { y[i, j] = x[i, j] * 2.0 } }
    }"""
    launch = same(text, BLOCKS + "programs 3", N=37, M=19)
    assert launch.grid[0].evaluate({"N": 37, "M": 19}) == 3 and launch.grid[0].evaluate({"N": 16, "M": 16}) == 2
    same(text, BLOCKS + "programs 3", N=5, M=5)


def test_no_walk_over_fewer_blocks_than_programs() -> None:
    text = "kernel f(x: f32[64], out y: f32[64]) { for i in 0..64 { y[i] = x[i] } }"
    launch = same(text, "split i 16; vectorize i.1; grid i.0; programs 4")
    assert "tl.range" not in launch.text and [int(n) for n in launch.grid] == [4]


def test_problems_of_kernels_with_walks_and_descriptors() -> None:
    kernel = read_kernel(Source("test.ir", "kernel f(x: list[2] f32[8] described, out y: f32[8]) { y[0] = x[0, 0] }"))
    assert problems(kernel) == ("list x is described",)
    assert "-1 programs" in problems(replace(kernel, programs=-1))


# ---------------------------------------------------------------------- programs


WHOLE_ROWS = {
    "transposed": "fn f(a: f16[72, 40], b: f16[56, 72]) -> f16[40, 56] { return transpose(a) @ transpose(b) }",
    "batch": "fn f(a: f32[3, 40, 72], b: f32[3, 72, 56]) -> f32[3, 40, 56] { return tanh(a @ b) }",
    "residual": "fn f(a: f16[40, 72], b: f16[72, 56], c: f16[40, 56]) -> f16[40, 56] { return a @ b + c }",
    "parts": "fn f(a: f16[24, 1024], b: f16[1024, 24]) -> f16[24, 24] { return a @ b }",
    "attention": """fn f(q: f16[2, 72, 32], k: f16[2, 136, 32], v: f16[2, 136, 24]) -> f16[2, 72, 24] {
        return attention(q, k, v)
    }""",
    "causal": """fn f(q: f32[2, 72, 16], k: f32[2, 72, 16], v: f32[2, 72, 16]) -> f32[2, 72, 16] {
        return attention(q, k, v, causal=true)
    }""",
    "softmax": "fn f(x: f32[20, 88]) -> f32[20, 88] { return softmax(x, axis=1) }",
    "norm": "fn f(x: f16[20, 88], g: f16[88], b: f16[88]) -> f16[20, 88] { return layer_norm(x, g, b) }",
    "greatest": "fn f(x: f32[20, 88]) -> f32[88] { return max(x, axis=0) }",
    "least": "fn f(x: f32[20, 88]) -> f32[20] { return min(x, axis=1) }",
    "products": "fn f(x: f32[20, 24]) -> f32[20] { return prod(x, axis=1) }",
    "transposition": "fn f(x: f32[136, 72]) -> f32[72, 136] { return transpose(x) }",
    "sum": "fn f(x: i32[200, 88]) -> i32 { return sum(x) }",
    "bytes": "fn f(a: i8[40, 80], b: i8[80, 64]) -> i32[40, 64] { return i32(a) @ i32(b) }",
    "padded": "fn f(x: f32[20, 40]) -> f32[24, 48] { return pad(x, ((1, 3), (4, 4))) }",
    "pieces": "fn f(x: f32[20, 40], y: f32[20, 24]) -> f32[20, 64] { return concat((x, y), axis=1) }",
    "slices": "fn f(x: f32[40, 64]) -> f32[20, 32] { return x[4:24, 8:40] * 2.0 }",
    "convolution": """fn f(x: f16[2, 12, 20, 32], w: f16[3, 3, 32, 24]) -> f16[2, 12, 20, 24] {
        p = pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y[n, i < 12, j < 20, o] = sum[c, a, b](p[n, i + a, j + b, c] * w[a, b, c, o])
        return y
    }""",
    "shifted": """fn f(x: f32[24, 40]) -> f32[24, 40] {
        p = pad(x, ((1, 0), (0, 0)))
        y[i < 24, j] = where(i < 20, p[i, j], 1.0) + x[i, j]
        return y
    }""",
}
"""Programs whose rows are multiples of 16 bytes, and no multiples of blocks."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_programs_by_descriptors(name: str, tmp_path: Path) -> None:
    made = compilation(WHOLE_ROWS[name])
    inputs = draw(made.source_module)
    force(made)
    assert_same(made, inputs, tuple(evaluate(made.source_module, inputs, {})))
    launches = [launch for launches in made.launches.values() for launch in launches]
    assert any("_desc" in launch.text for launch in launches)
    for launch in launches:
        assert compile_kernel(launch, TARGETS["gpu:sm_90"], tmp_path).usage[1] == 0


# ---------------------------------------------------------------------- products


def product(rows: int, depth: int, columns: int, target: str = "gpu:sm_90", factors: str = "a @ b") -> Compilation:
    """A product of halves with its default schedule."""
    types = f"a: f16[{rows}, {depth}], b: f16[{depth}, {columns}]"
    library = load(Source("product.ita", f"fn f({types}) -> f16[{rows}, {columns}] {{ return {factors} }}"))
    return Compilation(library.build("f"), {}, Options(target=target))


def the_launch(compilation: Compilation) -> TritonKernel:
    ((launch,),) = compilation.launches.values()
    return launch


def test_large_products_are_walked_over_where_there_is_an_engine() -> None:
    launch = the_launch(product(4096, 1024, 4096))
    assert [int(n) for n in launch.grid] == [132]
    assert "a_desc.load(" in launch.text and "b_desc.load(" in launch.text and "flatten=True" in launch.text
    for other in (product(4096, 1024, 4096, "gpu:sm_80"), product(1024, 1024, 1024), product(4096, 1023, 4096)):
        assert "tl.range" not in the_launch(other).text and "_desc" not in the_launch(other).text


def test_whether_a_program_walks_is_a_choice() -> None:
    (kernel,) = product(4096, 1024, 4096).kernels.kernels
    target = TARGETS["gpu:sm_90"]
    walks = build_programs(kernel, target, lambda _: None)
    (name,) = (n for n in walks.decisions if n.startswith("programs over"))
    plain = build_programs(kernel, target, lambda _: None, {name: 1})
    assert (walks.kernel.programs, plain.kernel.programs) == (132, 0)


def test_files_bring_memory_for_descriptors() -> None:
    text = product(4096, 1024, 4096).text("triton")
    assert "    triton.set_allocator(allocate)\n" in text and "def allocate(size, alignment, stream):" in text
    assert "is not at a multiple of 16 bytes" in text
    assert "set_allocator" not in product(1024, 1024, 1024).text("triton")


@pytest.mark.slow
def test_launches_bring_memory_for_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """128 bytes for each descriptor of each program, whose address is the first hidden parameter."""
    hidden: list[int] = []
    asked: list[int] = []

    class Driver:
        def __getattr__(self, name: str) -> Any:
            return self.launch if name == "cuLaunchKernelEx" else lambda *arguments: 0

        def launch(self, *arguments: Any) -> int:
            hidden.extend(ctypes.cast(arguments[2][n], ctypes.POINTER(ctypes.c_int64))[0] for n in range(5))
            return 0

    def empty(size: int, **_: Any) -> Any:
        asked.append(size)
        return types.SimpleNamespace(data_ptr=lambda: 1 << 40)

    torch = types.SimpleNamespace(empty=empty, uint8=None, device=lambda *_: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setattr(cuda, "require_torch", lambda: torch)
    start = cuda.CudaDevice(0, TARGETS["gpu:sm_90"], tmp_path).load(the_launch(product(4096, 1024, 4096)))
    start((132, 1, 1), [(0, 0), (0, 64), (1, 0)])([64, 192], 0)
    assert hidden == [64, 128, 192, 1 << 40, 0] and asked == [3 * 128 * 132]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:sm_80", "gpu:sm_90", "gpu:sm_100"])
@pytest.mark.parametrize("rows, depth, columns", [(4096, 4096, 4096), (4000, 1000, 8200), (16384, 128, 2048)])
def test_code_of_large_products(rows: int, depth: int, columns: int, target: str, tmp_path: Path) -> None:
    launch = the_launch(product(rows, depth, columns, target))
    compiled = compile_kernel(launch, TARGETS[target], tmp_path)
    found = compiled.resources
    assert not found.spilled and found.shared <= TARGETS[target].shared_memory
    assert found.count({"gpu:sm_80": "hmma", "gpu:sm_90": "hgmma", "gpu:sm_100": "tcgen05"}[target])
    if TARGETS[target].has_tensor_descriptors:
        assert "UTMALDG" in compiled.sass and not found.count("copy_async") and not found.count("load_global")
        assert compiled.global_scratch >= 128
