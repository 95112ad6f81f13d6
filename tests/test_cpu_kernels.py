"""Compiled kernels against the kernel interpreter, with every array laid against a page that may not be touched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from guarded_memory import GuardedMemory

from intarsia.backends.cpu.compile import compile_kernel, compile_plan, host_target, load
from intarsia.backends.cpu.plan import kernel_plan
from intarsia.ir import kernel_interpreter
from intarsia.ir.dtypes import Array, DType
from intarsia.ir.errors import Source, Span
from intarsia.ir.kernel import For, Kernel, Put
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.plan import Invoke, Plan, Reference
from intarsia.ir.target import TARGETS, Target
from intarsia.runtime.native import CheckFailure, NativeFunction, native_symbols
from intarsia.runtime.threads import THREADS

Arrays = Mapping[str, "Array | list[Array]"]


def random_array(shape: tuple[int, ...], d: DType, generator: np.random.Generator) -> Array:
    if d.kind == "bool":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if d.is_integer:
        return generator.integers(-50 if d.kind == "int" else 0, 50, shape).astype(d.numpy)
    return generator.standard_normal(shape).astype(d.numpy)


def random_arguments(
    kernel: Kernel, sizes: Mapping[str, int], given: Mapping[str, Array]
) -> dict[str, Array | list[Array]]:
    generator, memory = np.random.default_rng(7), GuardedMemory()
    arrays: dict[str, Array | list[Array]] = {}
    for buffer in kernel.parameters:
        shape = tuple(s.evaluate(sizes) for s in buffer.shape)
        count = 1 if buffer.length is None else buffer.length.evaluate(sizes)
        values = [given.get(buffer.name, random_array(shape, buffer.dtype, generator)) for _ in range(count)]
        copies = [memory.array(v.astype(buffer.dtype.numpy)) for v in values]
        arrays[buffer.name] = copies[0] if buffer.length is None else copies
    return arrays


def compiled(plan: Plan, target: Target) -> NativeFunction:
    code = compile_plan(plan, target)
    loaded = load(code.object_code, code.entry, native_symbols())
    inputs = sum(s.place == "input" for s in plan.slots)
    outputs = sum(s.place == "output" for s in plan.slots)
    return NativeFunction(loaded.address, inputs, outputs, len(plan.sizes), owner=loaded)


def kernel_of(text: str) -> Kernel:
    return read_kernel(Source("test", text))


def copied(arrays: Arrays) -> dict[str, Array | list[Array]]:
    return {n: [x.copy() for x in a] if isinstance(a, list) else a.copy() for n, a in arrays.items()}


def check(
    text: str,
    sizes: Mapping[str, int] | None = None,
    target: Target | None = None,
    wanted: Arrays | None = None,
    **given: Array,
) -> None:
    """The compiled kernel writes what is wanted, or what the interpreter writes."""
    kernel, sizes = kernel_of(text), sizes or {}
    ours = random_arguments(kernel, sizes, given)
    if wanted is None:
        wanted = copied(ours)
        kernel_interpreter.run(kernel, wanted, sizes)
    function = compiled(kernel_plan(kernel), target or host_target())
    results = [ours[b.name] for b in kernel.parameters if b.role != "in"]
    inputs = [ours[b.name] for b in kernel.parameters if b.role == "in"]
    assert function.run(inputs, results, [sizes[s] for s in kernel.sizes]) is None  # type: ignore[arg-type]
    for buffer in kernel.outputs:
        compare(buffer.name, buffer.dtype, ours[buffer.name], wanted[buffer.name])


def compare(name: str, d: DType, ours: object, reference: object) -> None:
    if d.is_float:
        wide = np.asarray(ours).astype(np.float64), np.asarray(reference).astype(np.float64)
        np.testing.assert_allclose(*wide, rtol=16 * d.epsilon, atol=16 * d.epsilon, err_msg=name)
    else:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(reference), err_msg=name)


def runnable_targets() -> Iterator[Target]:
    """This machine, and those with vectors of another width whose code runs on it."""
    host = host_target()
    yield host
    for target in TARGETS.values():
        runs = target.kind == "cpu" and target.triple == host.triple and set(target.features) <= set(host.features)
        if runs and target.vector_bits != host.vector_bits:
            yield target


@pytest.fixture(params=list(runnable_targets()), ids=lambda t: t.name)
def target(request: pytest.FixtureRequest) -> Target:
    assert isinstance(request.param, Target)
    return request.param


GEMM = """kernel gemm(a: f32[M, K], b: f32[K, N], out c: f32[M, N])[sizes M, K, N] {
  for i in 0..M { for j in 0..N { c[i, j] = 0.0 } }
  for i.1 in 0..M { for j.1 in 0..N { for k in 0..K { c[i.1, j.1] += a[i.1, k] * b[k, j.1] } } }
}"""


@pytest.mark.parametrize("m, k, n", [(7, 5, 9), (1, 1, 1), (0, 3, 2), (3, 0, 2)])
def test_naive_loops_with_sizes(m: int, k: int, n: int) -> None:
    check(GEMM, {"M": m, "K": k, "N": n})


TILE = """kernel tile(a: f32[24, 40], b: f32[40, 96], out c: f32[24, 96]) {
  parallel i in 0..24 step 4 { for j in 0..96 step 32 {
    alloc acc: f32[4, 2, 16] register
    unroll i.0 in 0..4 { unroll v.0 in 0..2 { lane l.0 in 0..16 { acc[i.0, v.0, l.0] = 0.0 } } }
    for k in 0..40 { unroll i.1 in 0..4 { unroll v.1 in 0..2 { lane l.1 in 0..16 {
      acc[i.1, v.1, l.1] += a[i + i.1, k] * b[k, j + 16*v.1 + l.1]
    } } } }
    unroll i.2 in 0..4 { unroll v.2 in 0..2 { lane l.2 in 0..16 {
      c[i + i.2, j + 16*v.2 + l.2] = acc[i.2, v.2, l.2]
    } } }
  } }
}"""


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_register_tile_in_parallel(target: Target, threads: int) -> None:
    before = THREADS.get()
    THREADS.set(threads)
    try:
        check(TILE, target=target)
    finally:
        THREADS.set(before)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 37])
def test_masked_lanes(target: Target, n: int) -> None:
    """Loads of a masked write lie outside the buffer where the mask does not hold."""
    check(
        """kernel masked(x: f32[N], w: f32[N], out y: f32[N], out z: i8[N])[sizes N] {
          for i in 0..N step 16 { lane l in 0..16 {
            y[i + l] = x[i + l] * w[i + l] where i + l < N
            z[i + l] = i8(x[i + l]) where i + l < N
          } }
        }""",
        {"N": n},
        target,
    )


@pytest.mark.parametrize("d", ["f64", "f32", "f16", "bf16", "i8", "u16", "i64", "bool"])
def test_masked_loads_with_other(target: Target, d: str) -> None:
    other = "true" if d == "bool" else "1.5" if d == "f32" else "i64 1" if d == "i64" else f"{d}:1"
    other = {"f64": "f64:1.5", "f16": "f16:1.5", "bf16": "bf16:1.5", "i64": "1"}.get(d, other)
    check(
        f"""kernel shifted(x: {d}[37], out y: {d}[37], out z: {d}[37], out u: {d}[37]) {{
          for i in 0..37 {{ y[i] = (x[i - 3] if 2 < i else {other}) }}
          for i.1 in 0..48 step 16 {{ lane l in 0..16 {{
            z[i.1 + l] = (x[i.1 + l + 5] if i.1 + l < 32 else {other}) where i.1 + l < 37
          }} }}
          for i.2 in 0..48 step 16 {{ lane l.2 in 0..16 {{
            u[i.2 + l.2] = (x[i.2 + l.2] if i.2 < 16 else {other}) where i.2 + l.2 < 37
          }} }}
        }}""",
        target=target,
    )


def test_masks_of_two_axes(target: Target) -> None:
    check(
        """kernel triangle(x: f32[13, 21], out y: f32[13, 21], out s: f32[13], out m: f32[13]) {
          for i in 0..13 { for j in 0..21 { y[i, j] = 0.0 } }
          for i.1 in 0..13 {
            s[i.1] = 0.0
            m[i.1] = 0.0
            for j.1 in 0..32 step 8 { lane l in 0..8 {
              y[i.1, j.1 + l] = x[i.1, j.1 + l] where j.1 + l < i.1 + 3 and j.1 + l < 21
              s[i.1] += x[i.1, j.1 + l] where i.1 < j.1 + l and j.1 + l < 21
              m[i.1] max= x[i.1 + 8, j.1 + l] where i.1 < 5 and j.1 + l < 21
            } }
          }
        }""",
        target=target,
    )


@pytest.mark.parametrize("d", ["f64", "f32", "f16", "i32", "i8", "u64", "bool"])
def test_strides(target: Target, d: str) -> None:
    """Backwards, every third, columns, diagonals, quotients that lanes cross and those that they do not."""
    check(
        f"""kernel strides(x: {d}[48, 48], out a: {d}[48], out b: {d}[16], out c: {d}[48], out e: {d}[48],
                           out f: {d}[48, 48], out g: {d}[96], out h: {d}[48, 48]) {{
          for i in 0..48 step 16 {{ lane l in 0..16 {{
            a[i + l] = x[2, 47 - i - l]
            c[i + l] = x[i + l, 3]
            e[i + l] = x[i + l, i + l]
          }} }}
          lane l.1 in 0..16 {{ b[l.1] = x[5, 3*l.1 + 1] }}
          for j in 0..48 {{ for i.2 in 0..48 step 16 {{ lane l.2 in 0..16 {{ f[i.2 + l.2, j] = x[j, i.2 + l.2] }} }} }}
          for i.3 in 0..96 step 16 {{ lane l.3 in 0..16 {{
            g[i.3 + l.3] = x[(i.3 + l.3) // 32, (i.3 + l.3) % 48]
          }} }}
          for i.4 in 0..2304 step 16 {{ lane l.4 in 0..16 {{
            h[(i.4 + l.4) // 48, (i.4 + l.4) % 48] = x[(i.4 + l.4) % 7, (i.4 + l.4) // 100]
          }} }}
        }}""",
        target=target,
    )


@pytest.mark.parametrize("step", [2, 3, 4, 5])
@pytest.mark.parametrize("d", ["f32", "f64", "bf16", "i8", "bool"])
def test_writes_of_every_other_element(target: Target, d: str, step: int) -> None:
    """What lies between stays as it was, and nothing after the last element is touched."""
    check(
        f"""kernel spread(x: {d}[40], inout y: {d}[3, {15 * step + 1}], inout z: {d}[{39 * step + 1}]) {{
          for i in 0..3 {{ lane l in 0..16 {{ y[i, {step} * l] = x[l + i] }} }}
          lane m in 0..40 {{ z[{step} * m] = x[m] }}
        }}""",
        target=target,
    )


def test_data_dependent_subscripts(target: Target) -> None:
    generator = np.random.default_rng(1)
    check(
        """kernel gather(x: f32[9, 40], i: i32[32], p: i64[32], out y: f32[9, 32], inout z: f32[32], inout s: f32[40]) {
          for r in 0..9 { for j in 0..32 step 16 { lane l in 0..16 {
            y[r, j + l] = x[r, max(0, min({i[j + l]}, 39))]
          } } }
          for j.1 in 0..32 step 16 { lane l.1 in 0..16 {
            z[{p[j.1 + l.1]}] = x[0, j.1 + l.1]
            s[{i[j.1 + l.1]}] += x[1, j.1 + l.1] where -1 < {i[j.1 + l.1]} and {i[j.1 + l.1]} < 40
          } }
        }""",
        target=target,
        i=generator.integers(-5, 45, 32),
        p=generator.permutation(32),
    )


@pytest.mark.parametrize("d", ["f64", "f32", "i32", "u8", "i64"])
@pytest.mark.parametrize("lanes", [4, 7, 16])
def test_reductions_over_lanes(target: Target, d: str, lanes: int) -> None:
    check(
        f"""kernel reduce(x: {d}[3, {4 * lanes}], out s: {d}[3], out p: {d}[3], out m: {d}[3], out n: {d}[3]) {{
          for i in 0..3 {{
            alloc r: {d} register
            s[i] = {d}(0)
            p[i] = {d}(1)
            m[i] = x[i, 0]
            r[] = x[i, 0]
            for j in 0..4 {{ lane l in 0..{lanes} {{
              s[i] += x[i, j*{lanes} + l]
              p[i] *= x[i, j*{lanes} + l] where l + j < {lanes}
              m[i] max= x[i, j*{lanes} + l]
              r[] min= x[i, j*{lanes} + l] where 1 < l
            }} }}
            n[i] = r[]
          }}
        }}""",
        target=target,
    )


def test_reductions_of_booleans_and_nan(target: Target) -> None:
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    x[1, 7] = np.nan
    x[2, :] = -np.inf
    check(
        """kernel flags(x: f32[4, 32], out some: bool[4], out every: bool[4], out m: f32[4], out n: f32[4]) {
          for i in 0..4 {
            some[i] = false
            every[i] = true
            m[i] = -inf
            n[i] = inf
            for j in 0..32 step 16 { lane l in 0..16 {
              some[i] or= 1.5 < x[i, j + l]
              every[i] and= x[i, j + l] < 2.0
              m[i] max= x[i, j + l]
              n[i] min= x[i, j + l]
            } }
          }
        }""",
        target=target,
        x=x,
    )


@pytest.mark.parametrize("d, n", [("f32", 16), ("f32", 8), ("f64", 8), ("i16", 8), ("u8", 16), ("f32", 4), ("f32", 12)])
def test_register_transpose(target: Target, d: str, n: int) -> None:
    check(
        f"""kernel transpose(x: {d}[{n}, {n}], out y: {d}[{n}, {n}]) {{
          alloc t: {d}[{n}, {n}] register
          unroll i in 0..{n} {{ lane l in 0..{n} {{ t[i, l] = x[i, l] }} }}
          unroll j in 0..{n} {{ lane m in 0..{n} {{ y[j, m] = t[m, j] }} }}
        }}""",
        target=target,
    )


@pytest.mark.parametrize("function", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("other", ["i", "5 * i - 40", "2 * l.1 + i - 20", "7", "i * i"])
def test_comparisons_of_axes(target: Target, function: str, other: str) -> None:
    """As choices and as values, in lanes and outside, of neighbours and of every second element."""
    chosen = f"where(index(l) {function} index({other.replace('l.1', 'l')}), x[l], -1.0)"
    in_turn = chosen.replace("(l)", "(l.2)").replace("[l]", "[l.2]").replace("* l ", "* l.2 ")
    check(
        f"""kernel compare(x: f32[40], out y: f32[17, 40], out z: bool[17, 40], out s: f32[17, 40]) {{
          for i in 0..17 {{
            lane l in 0..40 {{ y[i, l] = {chosen} }}
            lane l.1 in 0..20 {{ z[i, 2 * l.1] = index(l.1) {function} index({other}) z[i, 2 * l.1 + 1] = false }}
            for l.2 in 0..40 {{ s[i, l.2] = {in_turn} }}
          }}
        }}""",
        target=target,
    )


@pytest.mark.parametrize("d, rows, n", [("f32", 8, 16), ("f32", 7, 16), ("f32", 1, 8), ("f64", 3, 8), ("i16", 5, 32)])
def test_register_transpose_of_few_rows(target: Target, d: str, rows: int, n: int) -> None:
    check(
        f"""kernel transpose(x: {d}[{rows}, {n}], out y: {d}[{n}, {rows}]) {{
          alloc t: {d}[{rows}, {n}] register
          unroll i in 0..{rows} {{ lane l in 0..{n} {{ t[i, l] = x[i, l] }} }}
          unroll j in 0..{n} {{ lane m in 0..{rows} {{ y[j, m] = t[m, j] }} }}
        }}""",
        target=target,
    )


def test_register_parts(target: Target) -> None:
    """Halves, single elements, reversed and strided lanes of registers, and writes to them."""
    check(
        """kernel parts(x: f32[32], out y: f32[16], out z: f32[16], out u: f32[16], out v: f32, out w: f32[8]) {
          alloc t: f32[32] register
          unroll h in 0..2 { lane l in 0..16 { t[16*h + l] = x[16*h + l] } }
          lane l.1 in 0..16 { y[l.1] = t[l.1 + 8] }
          lane l.2 in 0..16 { z[l.2] = t[31 - 2*l.2] }
          t[5] = 2.5
          v[] = t[5] + t[17]
          lane l.3 in 0..8 { t[2*l.3] = x[l.3] }
          lane l.4 in 0..8 { w[l.4] = t[l.4] }
          lane l.5 in 0..16 { u[l.5] = t[16] where 3 < l.5 }
          lane l.6 in 0..16 { u[l.6] = t[l.6] where l.6 < 4 }
        }""",
        target=target,
    )


def test_registers_through_loops_and_branches(target: Target) -> None:
    check(
        """kernel flow(x: f32[6, 20], out y: f32[6], out z: f32[6, 4])[sizes N] {
          for i in 0..6 {
            alloc a: f32 register
            alloc b: f32[4] register
            a[] = 1.0
            lane l.0 in 0..4 { b[l.0] = 0.0 }
            for j in 0..N {
              a[] += x[i, j] where i < j
              if j < 2 + i { a[] *= 1.5 } else {
                lane l.1 in 0..4 { b[l.1] += x[i, l.1 + j] * x[i, j] where l.1 + j < 20 }
              }
              for k in 0..3 { if 7 < j { a[] max= x[i, k] } }
            }
            y[i] = a[]
            lane l.2 in 0..4 { z[i, l.2] = b[l.2] }
          }
        }""",
        {"N": 13},
        target,
    )


def test_registers_under_lanes_that_start_anywhere(target: Target) -> None:
    """What a loop carries is found also where lanes begin at other axes; an unknown beginning takes memory."""
    check(
        """kernel starts(x: f32[16], out y: f32[16], out z: f32[16]) {
          alloc t: f32[16] register
          alloc u: f32[16] register
          unroll r in 0..2 { lane i in 8*r..8*r + 8 { t[i] = 0.0 } }
          for s in 0..5 { unroll r.1 in 0..2 { lane i.1 in 8*r.1..8*r.1 + 8 { t[i.1] += x[i.1] } } }
          for r.2 in 0..2 { lane i.2 in 8*r.2..8*r.2 + 8 { u[i.2] = x[i.2] } }
          lane i.3 in 0..16 { y[i.3] = t[i.3] }
          lane i.4 in 0..16 { z[i.4] = u[i.4] }
        }""",
        target=target,
    )


def test_register_subscripts_with_quotients(target: Target) -> None:
    """Of axes that are numbers, they are numbers."""
    check(
        """kernel parts(x: f32[8], out y: f32[8]) {
          alloc t: f32[8] register
          unroll i in 0..8 {
            t[i] = x[i]
            if 0 < i % 3 { t[i // 2] += 1.0 }
            y[i] = t[i // 2] + t[i % 3] * t[min(i, 1)]
          }
        }""",
        target=target,
    )


def test_quotients_of_lanes_after_a_reduction_over_them(target: Target) -> None:
    """While lanes are combined, or written one by one, their axis is a number; afterwards it is not."""
    check(
        """kernel both(x: f32[3, 8], b: i64[8], out s: f32[3], out y: f32[3, 8], out z: f32[3, 8], out w: f32[8]) {
          lane k in 0..8 { w[k] = 0.0 }
          for i in 0..3 {
            s[i] = -inf
            lane j in 0..8 { s[i] max= x[i, j]  y[i, j] = x[i, j // 2] + x[i, j % 3] }
            lane j.1 in 0..8 { w[min(max(b[j.1], 0), 7)] += x[i, j.1]  z[i, j.1] = x[i, j.1 // 2] }
          }
        }""",
        target=target,
    )


def test_values_private_to_lanes(target: Target) -> None:
    check(
        """kernel private(x: f32[5, 64], out y: f32[64], out s: f32) {
          s[] = 0.0
          for i in 0..64 step 16 { lane l in 0..16 {
            alloc t: f32 register
            alloc u: f32[2] register
            t[] = 0.0
            u[1] = x[0, i + l]
            for k in 0..5 { t[] += x[k, i + l] * u[1] }
            s[] += t[]
            y[i + l] = t[] + u[1]
          } }
        }""",
        target=target,
    )


def test_temporaries(target: Target) -> None:
    """On the stack, on the heap, of run-time size, per thread, and of a size that depends on a loop."""
    check(
        """kernel temporaries(x: f32[20, 30], out y: f32[20], out z: f32[20])[sizes N] {
          alloc small: f32[20] cache
          alloc large: f32[20, 3000] cache
          alloc open: f32[N, 30] cache
          for i in 0..20 { small[i] = x[i, 0] }
          for j in 0..20 { for k in 0..30 { large[j, 100*k] = x[j, k] + small[j] } }
          for m in 0..N { for n in 0..30 { open[m, n] = large[m, 100*n] } }
          parallel p in 0..20 {
            alloc row: f32[20000] cache
            alloc tiny: f32[4] cache
            for q in 0..30 { row[600*q] = open[p, q] * 2.0 }
            tiny[1] = row[600] + row[1200]
            y[p] = tiny[1]
          }
          for r in 1..20 {
            alloc grown: f32[r] cache
            for s in 0..r { grown[s] = x[r, s] }
            z[r] = grown[r - 1]
          }
          z[0] = 0.0
        }""",
        {"N": 20},
        target,
    )


@pytest.mark.parametrize("offset", [0, 1])
def test_stores_past_the_caches(target: Target, offset: int) -> None:
    n = 64 + offset
    check(
        f"""kernel stream(x: f32[{n}, 64], out y: f32[{n}, 64], out z: f32[{n}]) {{
          parallel i in 0..{n} {{ for j in 0..64 step 32 {{ unroll u in 0..2 {{ lane l in 0..16 {{
            y[i, j + 16*u + l] = x[i, j + 16*u + l] + 1.0 !nt
          }} }} }} }}
          for k in 0..{n} {{ z[k] = 2.0 !nt }}
          prefetch x[{n}, 0] L1
        }}""",
        target=target,
    )


def test_unusual_loops(target: Target) -> None:
    """Nested lanes, lanes around loops, lane counts that are no power of two or not known, steps, single turns."""
    check(
        """kernel loops(x: f32[12, 24], out y: f32[12, 24], out z: f32[24, 12], out w: f32[24])[sizes N] {
          lane i in 0..12 { lane j in 0..24 { y[i, j] = x[i, j] } }
          lane i.1 in 0..12 { for j.1 in 0..24 { z[j.1, i.1] = x[i.1, j.1] } }
          lane k in 0..N { w[k] = x[3, k] }
          lane m in 0..12 step 5 { y[0, m] = x[1, m] }
          lane p in 3..11 step 2 { y[2, p] = x[1, p] }
          for q in 4..5 { unroll r in 0..q { y[3, r] = x[3, r] } }
          lane t in 0..1 { y[5, t] = 4.0 }
          grid g in 0..3 { parallel h in 0..2 { y[6 + g, h] = 1.0 } }
        }""",
        {"N": 24},
        target,
    )


def test_tables_of_buffers(target: Target) -> None:
    check(
        """kernel tables(w: list[3] f32[4, 16], i: i64[2], out y: f32[3, 4, 16], out z: f32[16]) {
          for t in 0..3 { for r in 0..4 { lane l in 0..16 { y[t, r, l] = w[t, r, l] } } }
          lane m in 0..16 { z[m] = w[{i[1]}, 2, m] }
        }""",
        target=target,
        i=np.array([0, 2]),
    )


@pytest.mark.parametrize("d", ["f32", "f16", "bf16", "i64", "u8", "bool"])
def test_atomic_updates(d: str) -> None:
    generator = np.random.default_rng(3)
    operator = "or=" if d == "bool" else "+="
    w = generator.integers(0, 3, 500)
    check(
        f"""kernel histogram(x: i32[500], w: {d}[500], inout h: {d}[7]) {{
          parallel i in 0..500 {{ h[{{x[i]}}] {operator} w[i] !atomic }}
        }}""",
        x=generator.integers(0, 7, 500),
        w=w,
        h=np.zeros(7),
    )


def test_checks() -> None:
    """The first failure is recorded with its values; the kernel goes on to the end."""
    kernel = kernel_of(
        """kernel checked(x: f32[64], out y: f32[64]) {
          parallel i in 0..4 { lane l in 0..16 {
            check 7: x[16*i + l] < 2.0 (index(16*i + l), index(i))
            y[16*i + l] = x[16*i + l]
          } }
          for j in 0..64 { check 9: x[j] < 3.0 (index(j)) }
        }"""
    )
    function = compiled(kernel_plan(kernel), host_target())
    x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
    assert function.run([x], [y]) is None
    x[37] = 2.5
    assert function.run([x], [y]) == CheckFailure(7, (37, 2))
    assert y[37] == 2.5
    x[63] = np.nan
    failure = function.run([x], [y])
    assert failure is not None and failure.number == 7


def test_in_place() -> None:
    """A kernel that is given one buffer as input and as result does what its statements say, in order."""
    kernel = kernel_of(
        """kernel shift(x: f32[40], out y: f32[40]) {
          for i in 1..40 { y[i - 1] = x[i] + x[i - 1] }
          for j in 0..40 { y[j] = y[j] + x[j] }
        }"""
    )
    plan = kernel_plan(kernel)
    result = Reference("y")
    in_place = Plan("shift", plan.slots, (Invoke("shift", (result, result)),), plan.kernels, (), plan.workspace_bytes)
    ours = np.arange(40, dtype=np.float32)
    expected = ours.copy()
    for i in range(1, 40):
        expected[i - 1] = expected[i] + expected[i - 1]
    expected += expected
    assert compiled(in_place, host_target()).run([np.zeros(40, np.float32)], [ours]) is None
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("n", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 32)), 50])
def test_sorting(n: int) -> None:
    for d in ("f64", "f32", "f16", "bf16", "i64", "i32", "i8", "u64", "u8", "bool"):
        x = np.random.default_rng(4).integers(0, 20, (3, n)).astype(np.float64)
        if d[0] in "fb" and d != "bool":
            x[0, ::7] = np.nan
            x[1, n // 2] = -0.0
        check(
            f"""kernel ordered(x: {d}[3, {n}], out y: {d}[3, {n}], out z: i64[3, {n}]) {{
              for i in 0..3 {{ call sort(x[i]) -> y[i] length {n} call argsort(x[i]) -> z[i] length {n} }}
            }}""",
            x=x,
        )


@pytest.mark.parametrize("name", ["cpu:x86-avx512", "cpu:x86-avx2", "cpu:neon"])
def test_other_targets_have_assembly(name: str) -> None:
    code = compile_kernel(kernel_of(TILE), TARGETS[name])
    multiply = {"cpu:neon": "fmla\tv", "cpu:x86-avx2": "ymm", "cpu:x86-avx512": "zmm"}[name]
    assert multiply in code.text("asm")
    assert code.text("llvm") == compile_kernel(kernel_of(TILE), TARGETS[name]).text("llvm")
    assert len(code.object_code) > 500


def test_shifts_by_what_is_known_are_shifts_by_constants() -> None:
    """LLVM would not see through a count that is computed outside of the loop."""
    kernel = kernel_of(
        """kernel halves(x: u8[N, 64], out y: u8[N, 2, 64])[sizes N] {
          for i in 0..N { unroll p in 0..2 { lane j in 0..64 { y[i, p, j] = shift_right(x[i, j], u8(index(4 * p))) } } }
        }"""
    )
    text = compile_kernel(kernel, TARGETS["cpu:x86-avx512"]).text("llvm")
    assert re.findall(r"lshr (.*)", text) == [f"<64 x i8> {re.search('%v[0-9]+ = load', text)[0][:-7]}, splat (i8 4)"]


def test_lines_of_the_program() -> None:
    """With debug info every instruction of a statement says where it comes from; without it the text has no places."""
    source = Source("f.ita", "fn f(x: f32[8]) -> f32[8] {\n    return x + 1.0\n}\n")
    kernel = kernel_of("kernel f(x: f32[8], out y: f32[8]) { for i in 0..8 { y[i] = x[i] + 1.0 } }")
    (loop,) = kernel.body
    assert isinstance(loop, For)
    (put,) = loop.body
    assert isinstance(put, Put)
    start = source.text.index("x + 1.0")
    place = replace(put, span=Span(source, start, start + 7))
    plan = kernel_plan(replace(kernel, body=(replace(loop, body=(place,)),)))
    text = compile_plan(plan, host_target(), debug_info=True)
    assert re.search(r"fadd float .*, !dbg !\d+", text.source)
    assert 'DIFile(filename: "f.ita"' in text.source and "line: 2, column: 12" in text.source
    assert re.search(r"\.loc\t\d+ 2 12", text.text("asm"))
    assert "!dbg" not in compile_plan(plan, host_target()).source


@pytest.mark.parametrize(
    "name, lanes, rows, register",
    [("cpu:x86-avx512", 16, 8, "zmm"), ("cpu:x86-avx2", 8, 6, "ymm"), ("cpu:neon", 4, 8, "q")],
)
def test_register_tiles_stay_in_registers(name: str, lanes: int, rows: int, register: str) -> None:
    """The loop of a matrix product is multiply-adds and loads: no accumulator goes through memory."""
    kernel = kernel_of(
        f"""kernel tile(a: f32[{rows}, 512], b: f32[512, {2 * lanes}], out c: f32[{rows}, {2 * lanes}]) {{
          alloc acc: f32[{rows}, 2, {lanes}] register
          unroll i in 0..{rows} {{ unroll v in 0..2 {{ lane l in 0..{lanes} {{ acc[i, v, l] = 0.0 }} }} }}
          for k in 0..128 {{ unroll u in 0..4 {{
            unroll i.1 in 0..{rows} {{ unroll v.1 in 0..2 {{ lane l.1 in 0..{lanes} {{
            acc[i.1, v.1, l.1] += a[i.1, 4*k + u] * b[4*k + u, {lanes}*v.1 + l.1]
            }} }} }}
          }} }}
          unroll i.2 in 0..{rows} {{ unroll v.2 in 0..2 {{ lane l.2 in 0..{lanes} {{
            c[i.2, {lanes}*v.2 + l.2] = acc[i.2, v.2, l.2]
          }} }} }}
        }}"""
    )
    assembly = compile_kernel(kernel, TARGETS[name]).text("asm")
    loop = innermost_loop(assembly)
    multiplies = len(re.findall(r"\tv?fm(?:add|la)", loop))
    assert multiplies == 4 * rows * 2
    assert not re.search(rf"{register}\d+.*(?:\(%rsp\)|\(%rbp\)|\[sp)", loop)
    assert len(loop.splitlines()) < 2 * multiplies + 40


@pytest.mark.parametrize("name, adds", [("cpu:x86-avx512", 4), ("cpu:x86-avx2", 7), ("cpu:neon", 14)])
def test_vectors_of_any_length_stay_whole_from_step_to_step(name: str, adds: int) -> None:
    """Sums in 56 lanes are loads and additions of vectors; LLVM would take such a vector apart between two blocks."""
    kernel = kernel_of(
        """kernel sums(x: f32[512, 56], out y: f32[56]) {
          alloc acc: f32[56] register
          lane l in 0..56 { acc[l] = 0.0 }
          for k in 0..512 { lane l.1 in 0..56 { acc[l.1] += x[k, l.1] } }
          lane l.2 in 0..56 { y[l.2] = acc[l.2] }
        }"""
    )
    loop = innermost_loop(compile_kernel(kernel, TARGETS[name]).text("asm"))
    additions = len(re.findall(r"\t(?:vaddps|fadd)\t", loop))
    assert additions and additions % adds == 0
    assert not re.search(r"insert|extract|\bins\b|perm|shuf|blend", loop), loop


def test_exponentials_run_in_vectors() -> None:
    kernel = kernel_of(
        """kernel exps(x: f32[64], out y: f32[64]) {
          for i in 0..4 { lane l in 0..16 { y[16*i + l] = exp(x[16*i + l]) } }
        }"""
    )
    for name, register in (("cpu:x86-avx512", "zmm"), ("cpu:x86-avx2", "ymm")):
        loop = innermost_loop(compile_kernel(kernel, TARGETS[name]).text("asm"))
        assert "call" not in loop and f"vfmadd213ps\t%{register}" in loop.replace("(%rip)", f"%{register}")
        assert not re.search(r"vfmadd\w*ss", loop)


def innermost_loop(assembly: str) -> str:
    """The longest stretch of code that ends with a jump back to its own beginning."""
    lines = assembly.splitlines()
    labels = {line.rstrip(":"): n for n, line in enumerate(lines) if re.match(r"\.?L\w+:", line)}
    best = ""
    for number, line in enumerate(lines):
        jump = re.search(r"\t(?:j\w+|b\.\w+|cbn?z\t\w+,)\t?\s*(\.?L\w+)", line)
        if jump and (start := labels.get(jump[1], number)) < number:
            inside = [n for n in labels.values() if start < n < number]
            body = "\n".join(lines[start : number + 1])
            if not inside and len(body) > len(best):
                best = body
    return best
