"""Bugs of LLVM that the back end avoids."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from guarded_memory import GuardedMemory

from intarsia.backends.cpu.compile import compile_kernel, host_target, load, parse
from intarsia.backends.cpu.workarounds import without_single_lane_stores
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import read_kernel
from intarsia.runtime.native import NativeFunction, address_of, native_symbols

KERNEL = """
kernel narrow(x: {wide}[17], out y: {narrow}[17]) {{
  for i in 0..3 {{
    lane j in 0..8 {{
      y[8 * i + j] = {narrow}((x[8 * i + j] if 8 * i + j < 17)) where 8 * i + j < 17
    }}
  }}
  lane j.1 in 0..8 {{
    y[16 + j.1] = {narrow}((x[16 + j.1] if 16 + j.1 < 17)) where 16 + j.1 < 17
  }}
}}
"""


@pytest.mark.parametrize(
    "wide, narrow", [("f64", "bf16"), ("i32", "i8"), ("i64", "i16"), ("f32", "u8"), ("f32", "f16")]
)
def test_one_narrow_element_is_stored_alone(wide: str, narrow: str) -> None:
    """The last element ends where memory ends: 4 bytes in place of 1 or 2 would fault."""
    kernel = read_kernel(Source("k.ir", KERNEL.format(wide=wide, narrow=narrow)))
    code = compile_kernel(kernel, host_target())
    loaded = load(code.object_code, code.entry, native_symbols())
    source, target = kernel.parameters
    memory = GuardedMemory()
    x = memory.array(np.arange(17).astype(source.dtype.numpy))
    y = memory.array(np.zeros(17, target.dtype.numpy))
    assert NativeFunction(loaded.address, 1, 1, owner=loaded).call([address_of(x)], [address_of(y)]) == 0
    np.testing.assert_array_equal(y.astype(np.float64), np.arange(17))


def test_only_constant_masks_of_one_lane_change() -> None:
    mask = ", ".join(["i1 true", *["i1 false"] * 7])
    call = "  call void @llvm.masked.store.v8i16.p0(<8 x i16> %t, ptr align 2 %p, <8 x i1> {})\n"
    assert "store i16" in without_single_lane_stores(call.format(f"<{mask}>"))
    for other in ("%m", f"<{mask.replace('false', 'true', 1)}>"):
        assert without_single_lane_stores(call.format(other)) == call.format(other)


def test_a_module_in_a_reference_cycle_ends_before_its_context() -> None:
    for _ in range(50):
        cycle: list[object] = [parse("define i32 @f(i32 %x) {\n  ret i32 %x\n}")]
        cycle.append(cycle)
        del cycle
    gc.collect()
    assert "ret i32" in str(parse("define i32 @f(i32 %x) {\n  ret i32 %x\n}"))
