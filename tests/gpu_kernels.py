"""Kernels for Triton written by hand, as the emitter would write them, for the tests of what compiles and runs them."""

from __future__ import annotations

from intarsia.backends.gpu.triton_kernel import Parameter, Pointer, Scalar, TritonKernel
from intarsia.ir.dtypes import BF16, F32, I32, DType
from intarsia.ir.sizes import Size

M, N, K = (Size.of(name) for name in "MNK")


def programs(extent: Size, block: int) -> Size:
    """Blocks that an extent is cut into."""
    return (extent + block - 1) // block


MAXIMUM = """@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
"""

COPY = """@triton.jit
def copy(x, y, n, B: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    tl.store(y + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)
"""

SOFTMAX = """@triton.jit
def softmax(x, y, n, B: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n
    i = tl.arange(0, B)
    v = tl.load(x + row + i, mask=i < n, other=float("-inf"))
    v = tl.exp(v - tl.reduce(v, 0, maximum))
    tl.store(y + row + i, tl.div_rn(v, tl.sum(v, 0)), mask=i < n)
"""

MATMUL = """@triton.jit
def matmul(x, w, y, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, k, BK):
        p = start + tl.arange(0, BK)
        a = tl.load(x + i[:, None] * k + p[None, :], mask=(i[:, None] < m) & (p[None, :] < k), other=0.0)
        b = tl.load(w + p[:, None] * n + j[None, :], mask=(p[:, None] < k) & (j[None, :] < n), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    mask = (i[:, None] < m) & (j[None, :] < n)
    tl.store(y + i[:, None] * n + j[None, :], total.to(y.dtype.element_ty), mask=mask)
"""

ATTENTION = """@triton.jit
def attention(q, k, v, y, s, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    head = tl.program_id(1).to(tl.int64) * s * D
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    x = tl.load(q + head + i[:, None] * D + d[None, :], mask=i[:, None] < s, other=0.0)
    greatest = tl.full((BM,), float("-inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, D), tl.float32)
    for start in range(0, tl.minimum((tl.program_id(0) + 1) * BM, s), BN):
        j = start + tl.arange(0, BN)
        inside = j[:, None] < s
        keys = tl.load(k + head + j[:, None] * D + d[None, :], mask=inside, other=0.0)
        values = tl.load(v + head + j[:, None] * D + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(x, tl.trans(keys)) * (1.4426950408889634 / D**0.5)
        scores = tl.where((j[None, :] < s) & (j[None, :] <= i[:, None]), scores, float("-inf"))
        above = tl.maximum(greatest, tl.reduce(scores, 1, maximum), propagate_nan=tl.PropagateNan.ALL)
        p = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(greatest - above)
        weight = weight * shrink + tl.sum(p, 1)
        total = tl.dot(p.to(values.dtype), values, total * shrink[:, None])
        greatest = above
    total = total / weight[:, None]
    tl.store(y + head + i[:, None] * D + d[None, :], total.to(y.dtype.element_ty), mask=i[:, None] < s)
"""

STEP = """@triton.jit
def step(a, b, c, d):
    return a * c, b * c + d
"""

SCAN = """@triton.jit
def scan(a, x, y, n, B: tl.constexpr):
    row = tl.program_id(0) * n
    i = tl.arange(0, B)
    factors = tl.load(a + row + i, mask=i < n, other=1.0)
    terms = tl.load(x + row + i, mask=i < n, other=0.0)
    _, h = tl.associative_scan((factors, terms), 0, step)
    tl.store(y + row + i, h, mask=i < n)
"""

SORT = """@triton.jit
def sort(x, y, n, B: tl.constexpr):
    row = tl.program_id(0) * n
    i = tl.arange(0, B)
    v = tl.load(x + row + i, mask=i < n, other=float("inf"))
    tl.store(y + row + i, tl.sort(v), mask=i < n)
"""

HISTOGRAM = """@triton.jit
def histogram(x, counts, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(counts + v, 1, mask=i < n, sem="relaxed")
"""


def _pointers(*names: str, dtype: DType = F32) -> tuple[Parameter, ...]:
    return tuple(Pointer(name, name, dtype) for name in names)


def copy(dtype: DType = F32, block: int = 1024, *, divisible: bool = False) -> TritonKernel:
    parameters = (*_pointers("x", "y", dtype=dtype), Scalar("n", N, divisible=divisible))
    return TritonKernel("copy", COPY, parameters, (programs(N, block),), constants=(("B", block),))


def softmax(block: int, warps: int = 4) -> TritonKernel:
    parameters = (*_pointers("x", "y"), Scalar("n", N))
    return TritonKernel("softmax", SOFTMAX, parameters, (M,), warps, 1, (("B", block),), (MAXIMUM,))


def matmul(dtype: DType, tile: tuple[int, int, int], warps: int = 4, *, divisible: bool = False) -> TritonKernel:
    sizes = tuple(Scalar(name, size, divisible=divisible) for name, size in (("m", M), ("n", N), ("k", K)))
    constants = tuple(zip(("BM", "BN", "BK"), tile))
    grid = (programs(M, tile[0]), programs(N, tile[1]))
    return TritonKernel("matmul", MATMUL, (*_pointers("x", "w", "y", dtype=dtype), *sizes), grid, warps, 3, constants)


def attention(width: int, tile: tuple[int, int], warps: int = 4) -> TritonKernel:
    """Causal; of M heads and N positions."""
    parameters = (*_pointers("q", "k", "v", "y", dtype=BF16), Scalar("s", N))
    constants = (("D", width), ("BM", tile[0]), ("BN", tile[1]))
    grid = (programs(N, tile[0]), M)
    return TritonKernel("attention", ATTENTION, parameters, grid, warps, 2, constants, (MAXIMUM,))


def scan(block: int) -> TritonKernel:
    parameters = (*_pointers("a", "x", "y"), Scalar("n", N))
    return TritonKernel("scan", SCAN, parameters, (M,), constants=(("B", block),), helpers=(STEP,))


def sort(block: int) -> TritonKernel:
    parameters = (*_pointers("x", "y"), Scalar("n", N))
    return TritonKernel("sort", SORT, parameters, (M,), constants=(("B", block),))


def histogram(block: int) -> TritonKernel:
    parameters = (*_pointers("x", "counts", dtype=I32), Scalar("n", N))
    return TritonKernel("histogram", HISTOGRAM, parameters, (programs(N, block),), constants=(("B", block),))
