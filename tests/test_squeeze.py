"""Codes that share words: what goes in comes out, for every width, every code and every place in a word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_cpu_kernels import compiled, kernel_of

from intarsia.backends.cpu.plan import kernel_plan
from intarsia.ir import kernel_interpreter
from intarsia.ir.dtypes import Array, DType, dtype
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.schedule import Schedule
from intarsia.ir.target import TARGETS
from intarsia.options import host_target
from intarsia.passes.schedule.apply import apply

TYPES = [f"{kind}{bits}" for bits in range(1, 8) for kind in "iu"]


def codes_at_all_places(t: DType, word: int) -> Array:
    """Each column holds one code after another, each row all of them: in twice as many rows as fill whole words."""
    rows, columns = 2 * math.lcm(t.bits, word) // t.bits, max(16, 1 << t.bits)
    codes = (np.arange(columns) + 5 * np.arange(rows)[:, None]) % (1 << t.bits)
    return (codes + int(t.least)).astype(t.numpy)


def squeezed(t: DType, word: int, shape: tuple[int, ...]) -> Kernel:
    """Copies codes by way of a temporary in which they share words, as they are and as numbers."""
    k, j = shape
    byte = "bitcast(t[k.1, j.1], u8)"
    sign = 1 << (t.bits - 1)
    number = f"bitcast(bit_xor(u32({byte}), u32:{sign}) - u32:{sign}, i32)" if t.is_signed else f"u32({byte})"
    kernel = kernel_of(
        f"""kernel f(x: {t}[{k}, {j}], out y: {t}[{k}, {j}], out z: f32[{k}, {j}]) {{
          alloc t: {t}[{k}, {j}]
          for k in 0..{k} {{ for j in 0..{j} {{ t[k, j] = x[k, j] }} }}
          for k.1 in 0..{k} {{
            for j.1 in 0..{j} {{
              y[k.1, j.1] = t[k.1, j.1]
              z[k.1, j.1] = f32({number})
            }}
          }}
        }}"""
    )
    steps = f"squeeze t at k in u{word} -> q; split j.1 16; unroll k.1; vectorize j.1.1"
    return apply(kernel, Schedule.parse(steps))


@pytest.mark.parametrize(("name", "word"), [("i1", 8), ("u3", 8), ("i3", 16), ("i5", 8), ("i6", 16), ("u7", 8)])
def test_codes_come_out_as_they_went_in(name: str, word: int) -> None:
    t = dtype(name)
    assert t is not None
    codes = codes_at_all_places(t, word)
    kernel = squeezed(t, word, codes.shape)
    assert f"q: u{word}[{codes.shape[0] * t.bits // word}, " in print_kernel(kernel)
    y, z = np.full_like(codes, t.greatest), np.full(codes.shape, 99, np.float32)
    kernel_interpreter.run(kernel, {"x": codes, "y": y, "z": z}, {})
    assert (y == codes).all() and (z == codes).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("word", "target"), [(8, "host"), (16, "host"), (32, "host"), (32, "cpu:x86-avx2")])
def test_compiled_code_takes_them_out(name: str, word: int, target: str) -> None:
    """At places that are known where it is compiled: numbers by tables, and by arithmetic."""
    t = dtype(name)
    assert t is not None
    codes = codes_at_all_places(t, word)
    function = compiled(
        kernel_plan(squeezed(t, word, codes.shape)), host_target() if target == "host" else TARGETS[target]
    )
    y, z = np.full_like(codes, t.greatest), np.full(codes.shape, 99, np.float32)
    assert function.run([codes], [y, z], []) is None
    assert (y == codes).all() and (z == codes).all()
