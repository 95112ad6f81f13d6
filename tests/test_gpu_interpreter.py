"""Kernels for Triton in the interpreter: the numbers are right, and no access that must not be goes unnoticed."""

from __future__ import annotations

from typing import Any

import gpu_kernels
import ml_dtypes
import numpy as np
import pytest

from intarsia.backends.gpu.guard import MemoryFault
from intarsia.backends.gpu.interpreter import InterpreterError, run
from intarsia.backends.gpu.triton_kernel import Pointer, Scalar, TritonKernel
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U32, Array, DType
from intarsia.ir.sizes import Size

pytest.importorskip("triton")

RNG = np.random.default_rng


def kernel(
    body: str, *pointers: str | tuple[str, DType], grid: int = 1, helpers: tuple[str, ...] = (), **options: Any
) -> TritonKernel:
    """A kernel from its statements; its pointers are to f32 unless said."""
    named = [(p, F32) if isinstance(p, str) else p for p in pointers]
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = f"@triton.jit\ndef f({', '.join(name for name, _ in named)}):\n{lines}"
    parameters = tuple(Pointer(name, name, dtype) for name, dtype in named)
    return TritonKernel("f", text, parameters, (Size.of(grid),), helpers=helpers, **options)


def elementwise(expression: str, *inputs: Array, result: DType = F32) -> Array:
    """An expression of the values of arrays x, y, z of 128 elements."""
    names = "xyz"[: len(inputs)]
    loads = "".join(f"{name} = tl.load({name}_ptr + i)\n" for name in names)
    types = [(f"{name}_ptr", of(array)) for name, array in zip(names, inputs)]
    found = np.zeros(128, result.numpy)
    body = f"i = tl.arange(0, 128)\n{loads}tl.store(out + i, {expression})"
    arrays = {name: array for (name, _), array in zip(types, inputs)}
    run(kernel(body, *types, ("out", result)), {**arrays, "out": found}, {})
    return found


def of(array: Array) -> DType:
    return next(d for d in (F32, F16, BF16, F64, I8, I16, I32, I64, U8, U32, BOOL) if d.numpy == array.dtype)


def numbers(dtype: DType = F32, seed: int = 0) -> Array:
    return RNG(seed).standard_normal(128).astype(dtype.numpy)


# ---------------------------------------------------------------------- whole kernels


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64, I8, I64, BOOL], ids=str)
def test_copy(dtype: DType) -> None:
    x = (RNG(0).standard_normal(1000) * 100).astype(dtype.numpy)
    y = np.zeros_like(x)
    run(gpu_kernels.copy(dtype, 256), {"x": x, "y": y}, {"N": 1000})
    np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


def test_softmax_of_masked_rows_keeps_nan() -> None:
    x = RNG(0).standard_normal((5, 100)).astype(np.float32)
    x[3, 7] = np.nan
    y = np.zeros_like(x)
    run(gpu_kernels.softmax(128), {"x": x, "y": y}, {"M": 5, "N": 100})
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-6)
    assert np.isnan(y[3]).all() and not np.isnan(np.delete(y, 3, 0)).any()


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_matmul(dtype: DType) -> None:
    x, w = (RNG(n).standard_normal(shape).astype(dtype.numpy) for n, shape in enumerate([(40, 50), (50, 33)]))
    y = np.zeros((40, 33), dtype.numpy)
    run(gpu_kernels.matmul(dtype, (32, 32, 16)), {"x": x, "w": w, "y": y}, {"M": 40, "N": 33, "K": 50})
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=dtype.epsilon, atol=1e-5)


def test_attention() -> None:
    heads, positions, width = 2, 50, 16
    q, k, v = (RNG(n).standard_normal((heads, positions, width)).astype(ml_dtypes.bfloat16) for n in range(3))
    y = np.zeros_like(q)
    run(gpu_kernels.attention(width, (32, 16)), {"q": q, "k": k, "v": v, "y": y}, {"M": heads, "N": positions})
    scores = np.einsum("hid,hjd->hij", q.astype(np.float64), k.astype(np.float64)) / width**0.5
    scores = np.where(np.tri(positions, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = p / p.sum(-1, keepdims=True) @ v.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=2e-2, atol=2e-2)


def test_scan_with_a_function_of_pairs() -> None:
    a, x = (RNG(n).uniform(0.5, 1.0, (3, 100)).astype(np.float32) for n in range(2))
    y = np.zeros_like(a)
    run(gpu_kernels.scan(128), {"a": a, "x": x, "y": y}, {"M": 3, "N": 100})
    state, wanted = np.zeros(3), np.zeros((3, 100))
    for t in range(100):
        state = state * a[:, t] + x[:, t]
        wanted[:, t] = state
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


def test_sort() -> None:
    x = RNG(0).standard_normal((2, 60)).astype(np.float32)
    y = np.zeros_like(x)
    run(gpu_kernels.sort(64), {"x": x, "y": y}, {"M": 2, "N": 60})
    np.testing.assert_array_equal(y, np.sort(x))


def test_programs_add_to_the_same_cells_by_atomic_operations() -> None:
    x = RNG(0).integers(0, 10, 500).astype(np.int32)
    counts = np.zeros(10, np.int32)
    run(gpu_kernels.histogram(128), {"x": x, "counts": counts}, {"N": 500})
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=10))


# ---------------------------------------------------------------------- operations

UNARY = {
    "tl.exp": np.exp, "tl.exp2": np.exp2, "tl.sin": np.sin, "tl.cos": np.cos, "tl.floor": np.floor, "tl.ceil": np.ceil,
    "tl.abs": np.abs, "libdevice.tanh": np.tanh, "libdevice.expm1": np.expm1, "libdevice.tan": np.tan,
    "libdevice.sinh": np.sinh, "libdevice.cosh": np.cosh, "libdevice.atan": np.arctan, "libdevice.rint": np.rint,
    "libdevice.asinh": np.arcsinh, "libdevice.trunc": np.trunc,
}  # fmt: skip
UNARY_ABOVE_ZERO = {
    "tl.log": np.log, "tl.log2": np.log2, "tl.sqrt": np.sqrt, "libdevice.log1p": np.log1p,
    "libdevice.asin": np.arcsin, "libdevice.acos": np.arccos, "libdevice.atanh": np.arctanh, "libdevice.log": np.log,
    "tl.rsqrt": lambda x: 1 / np.sqrt(x), "libdevice.lgamma": None, "tl.erf": None, "libdevice.erf": None,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_functions_of_one_number(dtype: DType) -> None:
    special = pytest.importorskip("scipy.special")
    others = {"libdevice.lgamma": special.gammaln, "tl.erf": special.erf, "libdevice.erf": special.erf}
    x = numbers(dtype)
    for inputs, functions in ((x, UNARY), (np.abs(x) / 8, UNARY_ABOVE_ZERO)):
        for name, function in functions.items():
            wanted = (function or others[name])(inputs.astype(np.float64))
            np.testing.assert_allclose(
                elementwise(f"{name}(x)", inputs, result=dtype), wanted, rtol=4 * dtype.epsilon, err_msg=name
            )


def test_functions_of_two_and_three_numbers() -> None:
    x, y, z = (numbers(seed=n) for n in range(3))
    wide = [a.astype(np.float64) for a in (x, y, z)]
    np.testing.assert_array_equal(elementwise("tl.div_rn(x, y)", x, y), x / y)
    np.testing.assert_array_equal(elementwise("tl.sqrt_rn(tl.abs(x))", x), np.sqrt(np.abs(x)))
    np.testing.assert_array_equal(
        elementwise("libdevice.pow(libdevice.abs(x), y)", x, y), (np.abs(wide[0]) ** wide[1]).astype(np.float32)
    )
    np.testing.assert_array_equal(
        elementwise("libdevice.atan2(x, y)", x, y), np.arctan2(wide[0], wide[1]).astype(np.float32)
    )
    np.testing.assert_array_equal(elementwise("libdevice.isnan(x / 0.0 * 0.0)", x, result=BOOL), np.ones(128, bool))


def test_a_fused_multiply_add_rounds_once() -> None:
    x = np.float32(1 + 2.0**-12) * np.ones(128, np.float32)
    z = -x * x
    np.testing.assert_array_equal(elementwise("tl.fma(x, x, y)", x, z), np.float32(2.0**-24))
    # a little less than halfway to the next number: so little that a sum in f64 would be halfway and go to even
    x, y, z = (np.full(128, v, np.float32) for v in (2.0**-12 + 2.0**-35, 2.0**-12 - 2.0**-35, 1 + 2.0**-23))
    np.testing.assert_array_equal(elementwise("tl.fma(x, y, z)", x, y, z), np.float32(1 + 2.0**-23))
    x, y, z = (numbers(F64, n) for n in range(3))
    exact = (x.astype(np.longdouble) * y + z).astype(np.float64)
    np.testing.assert_allclose(elementwise("tl.fma(x, y, z)", x, y, z, result=F64), exact, rtol=2**-52)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_arithmetic_of_16_bits_is_rounded_after_each_operation(dtype: DType) -> None:
    x, y = numbers(dtype, 1), numbers(dtype, 2)
    for symbol, function in (("+", np.add), ("*", np.multiply), ("-", np.subtract)):
        wanted = function(x.astype(np.float32), y.astype(np.float32)).astype(dtype.numpy)
        np.testing.assert_array_equal(elementwise(f"x {symbol} y", x, y, result=dtype), wanted)
    np.testing.assert_array_equal(elementwise("x < y", x, y, result=BOOL), x < y)
    np.testing.assert_array_equal(
        elementwise("x * 0.5", x, result=dtype), (x.astype(np.float32) / 2).astype(dtype.numpy)
    )
    np.testing.assert_array_equal(elementwise("-x", x, result=dtype), -x)


def test_every_bf16_and_back() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    wide = np.zeros(1 << 16, np.float32)
    back = np.zeros_like(codes)
    body = """i = tl.arange(0, 65536)
v = tl.load(x + i).to(tl.float32)
tl.store(y + i, v)
tl.store(z + i, v.to(tl.bfloat16))"""
    run(kernel(body, ("x", BF16), "y", ("z", BF16)), {"x": codes, "y": wide, "z": back}, {})
    np.testing.assert_array_equal(wide, codes.astype(np.float32))
    numbers = ~np.isnan(wide)
    np.testing.assert_array_equal(back[numbers], codes[numbers])
    assert np.isnan(back[~numbers].astype(np.float32)).all()


def test_floats_become_integers_as_by_the_instruction() -> None:
    x = np.resize(
        np.array([1.9, -1.9, 300.5, -300.5, 3e9, -3e9, 1e20, -1e20, np.inf, -np.inf, np.nan], np.float32), 128
    )
    found = elementwise("x.to(tl.int32)", x, result=I32)
    low, high = -(1 << 31), (1 << 31) - 1
    np.testing.assert_array_equal(found[:11], [1, -1, 300, -300, high, low, high, low, high, low, 0])
    found = elementwise("x.to(tl.uint32)", x, result=U32)
    high = (1 << 32) - 1
    np.testing.assert_array_equal(found[:11], [1, 0, 300, 0, 3000000000, 0, high, 0, high, 0, 0])
    found = elementwise("x.to(tl.int64)", x, result=I64)
    low, high = -(1 << 63), (1 << 63) - 1
    np.testing.assert_array_equal(found[4:11], [3000000000, -3000000000, high, low, high, low, low])
    # 16 bits saturate, and of them 8 remain
    np.testing.assert_array_equal(elementwise("x.to(tl.int8)", x, result=I8)[2:6], [44, -44, -1, 0])


def test_division_of_integers_is_that_of_c_and_by_zero_nonsense() -> None:
    x = np.resize(np.array([7, -7, 7, -7, 5], np.int32), 128)
    y = np.resize(np.array([2, 2, -2, -2, 0], np.int32), 128)
    np.testing.assert_array_equal(elementwise("x // y", x, y, result=I32)[:5], [3, -3, -3, 3, -1])
    np.testing.assert_array_equal(elementwise("x % y", x, y, result=I32)[:5], [1, -1, 1, -1, 5])


def test_nan_in_maxima() -> None:
    """`tl.maximum` and `tl.max` drop NaN on the chip unless told otherwise; so they do here."""
    x, y = numbers(seed=1), numbers(seed=2)
    x[3] = np.nan
    np.testing.assert_array_equal(elementwise("tl.maximum(x, y)", x, y), np.fmax(x, y))
    kept = "tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)"
    np.testing.assert_array_equal(elementwise(kept, x, y), np.maximum(x, y))
    least, greatest = "float('-inf')", "float('inf')"
    np.testing.assert_array_equal(elementwise(f"tl.clamp(x, {least}, {greatest})", x)[3], -np.inf)
    y[...] = np.nanmax(x)
    np.testing.assert_array_equal(elementwise("tl.max(x, 0) + tl.zeros([128], tl.float32)", x), y)


def test_reductions() -> None:
    x = RNG(0).standard_normal((8, 16)).astype(np.float32)
    x[2, 5] = np.nan
    y, z, total = np.zeros(8, np.float32), np.zeros(16, np.float32), np.zeros(1, np.float32)
    indices = np.zeros(8, np.int32)
    body = """i = tl.arange(0, 8)
j = tl.arange(0, 16)
v = tl.load(x + i[:, None] * 16 + j[None, :])
tl.store(y + i, tl.reduce(v, 1, maximum))
tl.store(z + j, tl.sum(v, 0))
v = tl.where(v != v, 0.0, v)
tl.store(total, tl.sum(v))
tl.store(indices + i, tl.argmax(v, 1))"""
    launched = kernel(body, "x", "y", "z", "total", ("indices", I32), helpers=(gpu_kernels.MAXIMUM,))
    run(launched, {"x": x, "y": y, "z": z, "total": total, "indices": indices}, {})
    np.testing.assert_array_equal(y, x.max(1))
    np.testing.assert_allclose(z, x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(total[0], np.nansum(x), rtol=1e-5)
    np.testing.assert_array_equal(indices, np.nan_to_num(x).argmax(1))


def test_reductions_keep_the_order_of_what_they_combine() -> None:
    """Among equal numbers `tl.argmax` gives the first place, and a sum of bf16 is one of bf16."""
    x = np.resize(np.array([1, 5, 5, 2], np.int32), 64)
    y = np.zeros(1, np.int32)
    body = "v = tl.load(x + tl.arange(0, 64))\ntl.store(y, tl.argmax(v, 0))"
    run(kernel(body, ("x", I32), ("y", I32)), {"x": x, "y": y}, {})
    assert y[0] == 1
    x, y = np.ones(512, ml_dtypes.bfloat16), np.zeros(1, ml_dtypes.bfloat16)
    run(
        kernel("tl.store(y, tl.sum(tl.load(x + tl.arange(0, 512)), 0))", ("x", BF16), ("y", BF16)), {"x": x, "y": y}, {}
    )
    assert y[0] == 512


def test_scans_forwards_and_backwards() -> None:
    x = RNG(0).standard_normal((4, 16)).astype(np.float32)
    y, z = np.zeros_like(x), np.zeros_like(x)
    body = """at = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
v = tl.load(x + at)
tl.store(y + at, tl.cumsum(v, 1))
tl.store(z + at, tl.associative_scan(v, 1, maximum, reverse=True))"""
    run(kernel(body, "x", "y", "z", helpers=(gpu_kernels.MAXIMUM,)), {"x": x, "y": y, "z": z}, {})
    np.testing.assert_allclose(y, np.cumsum(x, 1), rtol=1e-5)
    np.testing.assert_array_equal(z, np.maximum.accumulate(x[:, ::-1], 1)[:, ::-1])


def test_dots_of_three_dimensions_transposed_and_of_integers() -> None:
    a, b = (RNG(n).integers(-128, 128, (2, 16, 16)).astype(np.int8) for n in range(2))
    y = np.zeros((2, 16, 16), np.int32)
    z = np.zeros((2, 16, 16), np.float32)
    body = """i = tl.arange(0, 16)
at = tl.arange(0, 2)[:, None, None] * 256 + i[None, :, None] * 16 + i[None, None, :]
x = tl.load(a + at)
w = tl.load(b + at)
tl.store(y + at, tl.dot(x, w, out_dtype=tl.int32))
tl.store(z + at, tl.dot(x.to(tl.float32), tl.permute(w, (0, 2, 1)).to(tl.float32), input_precision="ieee"))"""
    run(kernel(body, ("a", I8), ("b", I8), ("y", I32), "z"), {"a": a, "b": b, "y": y, "z": z}, {})
    wide = a.astype(np.int64), b.astype(np.int64)
    np.testing.assert_array_equal(y, wide[0] @ wide[1])
    np.testing.assert_array_equal(z, wide[0] @ wide[1].swapaxes(1, 2))


def test_a_dot_in_tf32_reads_19_bits() -> None:
    x = np.full((16, 16), 1 + 2.0**-20, np.float32)
    y = np.zeros_like(x)
    body = """at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
v = tl.load(x + at)
tl.store(y + at, tl.dot(v, v, input_precision="tf32"))"""
    run(kernel(body, "x", "y"), {"x": x, "y": y}, {})
    assert (y == 16).all()


def test_control_flow() -> None:
    """What Python would read otherwise: conditions of tensors, counters and constants of loops."""
    x = np.arange(128, dtype=np.int32)
    y = np.zeros(128, np.int64)
    body = """i = tl.arange(0, 128)
v = tl.load(x + i)
total = 0
for k in range(0, 3):
    total += k.to(tl.int64) * 4294967296
for k in tl.static_range(2):
    total += k
step = 1
while step < 8:
    step *= 2
chosen = v > 3 and not (v > 9) or v == 20
tl.store(y + i, tl.where(chosen, total + step, 0))"""
    run(kernel(body, ("x", I32), ("y", I64)), {"x": x, "y": y}, {})
    chosen = ((x > 3) & (x <= 9)) | (x == 20)
    np.testing.assert_array_equal(y, np.where(chosen, 3 * (1 << 32) + 1 + 8, 0))


@pytest.mark.parametrize("dtype", [F32, F16, BF16, I32], ids=str)
def test_atomic_operations(dtype: DType) -> None:
    x = (np.arange(128) % 7).astype(dtype.numpy)
    cells, before = np.zeros(2, dtype.numpy), np.zeros(128, dtype.numpy)
    body = "i = tl.arange(0, 128)\ntl.store(before + i, tl.atomic_add(cells + i % 2, tl.load(x + i)))"
    run(kernel(body, ("x", dtype), ("cells", dtype), ("before", dtype)), {"x": x, "cells": cells, "before": before}, {})
    assert list(cells) == [x[0::2].astype(np.float32).sum(), x[1::2].astype(np.float32).sum()]
    np.testing.assert_array_equal(before[2::2], np.cumsum(x[0:-2:2].astype(np.float32)))


def test_atomic_extrema_and_exchange() -> None:
    x = numbers()
    cells, lock = np.array([-np.inf, np.inf], np.float32), np.zeros(1, np.int32)
    body = """i = tl.arange(0, 128)
v = tl.load(x + i)
tl.atomic_max(cells + i * 0, v)
tl.atomic_min(cells + 1 + i * 0, v)
tl.atomic_cas(lock, 0, tl.program_id(0) + 5)"""
    run(kernel(body, "x", "cells", ("lock", I32), grid=3), {"x": x, "cells": cells, "lock": lock}, {})
    assert list(cells) == [x.max(), x.min()] and lock[0] == 5


def test_tensor_descriptors() -> None:
    x = RNG(0).standard_normal((20, 32)).astype(ml_dtypes.bfloat16)
    y = np.zeros((32, 20), np.float32)
    body = """read = tl.make_tensor_descriptor(x, shape=[20, 32], strides=[32, 1], block_shape=[16, 16])
write = tl.make_tensor_descriptor(y, shape=[32, 20], strides=[20, 1], block_shape=[16, 16])
for i in range(0, 20, 16):
    for j in range(0, 32, 16):
        write.store([j, i], tl.trans(read.load([i, j])).to(tl.float32))"""
    run(kernel(body, ("x", BF16), "y"), {"x": x, "y": y}, {})
    np.testing.assert_array_equal(y, x.T.astype(np.float32))


def test_elements_of_a_list_are_buffers_of_their_own() -> None:
    xs = [numbers(seed=n) for n in range(3)]
    y = np.zeros(128, np.float32)
    body = "    i = tl.arange(0, 128)\n    tl.store(y + i, tl.load(x0 + i) - tl.load(x2 + i))\n"
    text = f"@triton.jit\ndef f(x0, x2, y):\n{body}"
    parameters = (Pointer("x0", "x", F32, Size.of(0)), Pointer("x2", "x", F32, Size.of(2)), Pointer("y", "y", F32))
    run(TritonKernel("f", text, parameters, (Size.of(1),)), {"x": xs, "y": y}, {})
    np.testing.assert_array_equal(y, xs[0] - xs[2])


# ---------------------------------------------------------------------- what must not be


def fault(launched: TritonKernel, **arrays: Any) -> MemoryFault:
    with pytest.raises(MemoryFault) as caught:
        run(launched, arrays, {})
    return caught.value


def test_an_access_outside_names_kernel_program_buffer_and_offset() -> None:
    x, y = np.zeros(1000, np.float32), np.zeros(1024, np.float32)
    found = fault(
        kernel("i = tl.program_id(0) * 256 + tl.arange(0, 256)\ntl.store(y + i, tl.load(x + i))", "x", "y", grid=4),
        x=x,
        y=y,
    )
    assert (found.kernel, found.program, found.buffer, found.offset) == ("f", (3, 0, 0), "x", 4000)
    assert str(found) == (
        "kernel 'f', program (3, 0, 0): load outside, as x has 4000 bytes: byte 4000 of x, 24 of 256 accesses\n"
        "  tl.store(y + i, tl.load(x + i))"
    )
    assert fault(kernel("tl.store(x - 1 + tl.arange(0, 128), 0.0)", "x"), x=x).offset == -4


def test_buffers_that_touch_in_memory_are_apart() -> None:
    both = np.zeros(256, np.float32)
    assert fault(kernel("tl.store(x + tl.arange(0, 256), 1.0)", "x", "y"), x=both[:128], y=both[128:]).buffer == "x"


def test_two_names_of_one_memory() -> None:
    """In place is right where each program reads what it writes, and a race where it does not."""
    given = numbers()
    x = given.copy()
    shown = x.view()
    shown.flags.writeable = False
    start = "p = tl.program_id(0)\ni = tl.arange(0, 64)\n"
    launched = kernel(f"{start}tl.store(y + p * 64 + i, -tl.load(x + p * 64 + i))", "x", "y", grid=2, warps=2)
    run(launched, {"x": shown, "y": x}, {})
    np.testing.assert_array_equal(x, -given)
    launched = kernel(f"{start}tl.store(y + p * 64 + i, -tl.load(x + 64 - p * 64 + i))", "x", "y", grid=2, warps=2)
    assert "load of what program 0 writes" in str(fault(launched, x=shown, y=x))
    with pytest.raises(AssertionError, match="overlap in part"):
        run(launched, {"x": x[:64], "y": x}, {})


def test_masked_lanes_touch_nothing_and_hold_nonsense() -> None:
    x, y = np.zeros(3, np.float32), np.zeros(128, np.float32)
    run(kernel("i = tl.arange(0, 128)\ntl.store(y + i, tl.load(x + i, mask=i < 3))", "x", "y"), {"x": x, "y": y}, {})
    assert (y[:3] == 0).all() and np.isnan(y[3:]).all()
    run(kernel("tl.store(y, tl.load(x + 9, mask=1 < 0, other=0.0))", "x", "y"), {"x": x, "y": y}, {})
    assert y[0] == 0


def test_addresses_that_are_not_aligned_or_of_no_buffer() -> None:
    x = np.zeros(128, np.float32)
    assert "not a multiple of 8" in str(
        fault(kernel("p = (x + 1).to(tl.pointer_type(tl.int64))\ntl.store(p, 1)", "x"), x=x)
    )
    assert "no buffer" in str(
        fault(kernel("p = tl.arange(0, 128).to(tl.int64).to(tl.pointer_type(tl.float32))\ntl.store(p, 1.0)", "x"), x=x)
    )


def test_what_may_only_be_read() -> None:
    x = np.zeros(128, np.float32)
    x.flags.writeable = False
    assert "only be read" in str(fault(kernel("tl.store(x + tl.arange(0, 128), 1.0)", "x"), x=x))
    assert "only be read" in str(fault(kernel("tl.atomic_add(x + tl.arange(0, 128), 1.0)", "x"), x=x))


@pytest.mark.parametrize(
    "body, message",
    [
        ("tl.store(x + i, 1.0)", "store to what program 0 writes"),
        ("tl.store(x + i * 0, i * 1.0)", "several lanes store different values"),
        ("tl.store(x + p * 64 + i % 64, 0.0)\nif p == 1:\n    v = tl.load(x + i)", "load of what program 0 writes"),
        ("v = tl.load(x + i)\nif p == 1:\n    tl.store(x + i, v)", "write to what several programs read"),
        ("if p == 0:\n    v = tl.load(x + i)\nelse:\n    tl.store(x + i, 1.0)", "write to what program 0 reads"),
        ("tl.atomic_add(x + i, 1.0)\ntl.store(y + i, tl.load(x + i))", "load of what is updated atomically"),
        ("if p == 0:\n    tl.store(x + i, 0.0)\nelse:\n    tl.atomic_add(x + i, 1.0)", "atomic update of what program"),
        ("tl.store(y + p * 128 + i, 1.0)\nv = tl.load(y + p * 128 + 127 - i)", "load of what another lane stored"),
        ("v = tl.load(y + p * 128 + i)\ntl.store(y + p * 128 + 127 - i, v)", "store to what another lane loaded"),
        ("tl.store(y + p * 128, 1.0)\ntl.store(x + p, tl.load(y + p * 128))", "load of what another lane stored"),
    ],
)  # fmt: skip
def test_races(body: str, message: str) -> None:
    x, y = np.zeros(128, np.float32), np.zeros(256, np.float32)
    launched = kernel(f"p = tl.program_id(0)\ni = tl.arange(0, 128)\n{body}", "x", "y", grid=2)
    assert message in str(fault(launched, x=x, y=y))


@pytest.mark.parametrize(
    "body",
    [
        "tl.store(y + p * 128 + i, tl.load(x + i))",
        "tl.store(y + p * 128 + i, i * 1.0)\ntl.store(y + p * 128 + i, tl.load(y + p * 128 + i) + 1.0)",
        "tl.store(y + p * 128 + i, i * 1.0)\ntl.debug_barrier()\nv = tl.load(y + p * 128 + 127 - i)",
        "v = tl.load(y + p * 128 + 127 - i)\ntl.debug_barrier()\ntl.store(y + p * 128 + i, v)",
        "tl.store(y + p * 128 + i // 2, (i // 2) * 1.0)",
        "tl.atomic_add(x + i, 1.0)\ntl.atomic_add(x + i, 1.0)",
    ],
)
def test_what_is_no_race(body: str) -> None:
    x, y = np.zeros(128, np.float32), np.zeros(256, np.float32)
    run(kernel(f"p = tl.program_id(0)\ni = tl.arange(0, 128)\n{body}", "x", "y", grid=2), {"x": x, "y": y}, {})


def test_what_a_launch_refuses() -> None:
    x, y = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    with pytest.raises(InterpreterError, match="n = 1000 is promised to be divisible by 16"):
        run(gpu_kernels.copy(divisible=True), {"x": x, "y": y}, {"N": 1000})
    with pytest.raises(InterpreterError, match="x is not at a multiple of 16 bytes"):
        run(gpu_kernels.copy(), {"x": x[1:], "y": y}, {"N": 999})
    with pytest.raises(InterpreterError, match=r"n = 3000000000 is no i32"):
        run(gpu_kernels.copy(block=1 << 22), {"x": x, "y": y}, {"N": 3_000_000_000})
    text = "@triton.jit\ndef f(x):\n    pass\n"
    with pytest.raises(InterpreterError, match="a grid of 1, 65536, 1 programs cannot be launched"):
        run(TritonKernel("f", text, (Pointer("x", "x", F32),), (Size.of(1), Size.of(65536))), {"x": x}, {})


def test_what_triton_cannot_read_is_said_with_its_line() -> None:
    x = np.zeros(128, np.float32)
    with pytest.raises(
        InterpreterError,
        match=r"kernel 'f', program \(0, 0, 0\): .*libdevice.clz.*\n  tl.store\(x, libdevice.clz\(3\)\)",
    ):
        run(kernel("tl.store(x, libdevice.clz(3))", "x"), {"x": x}, {})


def test_a_branch_needs_one_number() -> None:
    x = np.zeros(128, np.float32)
    with pytest.raises(InterpreterError, match="a condition of"):
        run(kernel("if tl.load(x + tl.arange(0, 128)) > 0:\n    tl.store(x, 1.0)", "x"), {"x": x}, {})


def test_a_number_of_64_bits_is_a_parameter() -> None:
    y = np.zeros(1, np.int64)
    text = "@triton.jit\ndef f(y, n):\n    tl.store(y, n)\n"
    parameters = (Pointer("y", "y", I64), Scalar("n", Size.of("N"), "i64"))
    run(TritonKernel("f", text, parameters, (Size.of(1),)), {"y": y}, {"N": 1 << 40})
    assert y[0] == 1 << 40
