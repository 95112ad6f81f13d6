"""What the verifier of kernels finds, and which accesses it can show to be in bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule_samples import SAMPLES, sample

from intarsia.ir.errors import Source
from intarsia.ir.kernel import Alloc, For, Put
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.kernel_verifier import problems, unproved_accesses, verify_kernel
from intarsia.ir.scalar import Load, apply, constant
from intarsia.ir.sizes import Size


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_samples_are_well_formed_and_in_bounds(name: str) -> None:
    kernel, _ = sample(name)
    verify_kernel(kernel)
    assert name == "histogram" or not unproved_accesses(kernel)


def found(body: str, head: str = "x: f32[4, 6], out y: f32[4]", sizes: str = "") -> str:
    return "; ".join(problems(read_kernel(Source("k.ir", f"kernel f({head}){sizes} {{ {body} }}"))))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("for i in 0..4 { for i in 0..4 { y[i] = 0.0 } }", "the name i is used 2 times"),
        ("alloc y: f32[3]", "the name y is used 2 times"),
        ("for i in 0..4 { y[j] = 0.0 }", "j not in scope"),
        ("for i in 0..N { y[i] = 0.0 }", "N not in scope"),
        ("for i in 0..4 { y[i] = x[i] }", "1 subscripts of x"),
        ("x[0, 0] = 1.0", "writes an input"),
        ("if 0 < 1 { alloc t: f32 }\n t[] = 1.0", "buffer t not in scope"),
        ("for i in 0..4 { alloc t: f32[i] }\n y[0] = 1.0", ""),
        ("unroll i in 0..4 { lane j in 0..i { y[i] = 0.0 } }", "the bounds of a lane loop are not numbers"),
        ("alloc t: f32[4] register\n for i in 0..4 { t[i] = 0.0 }", "register t is subscripted by the seq axis i"),
        ("y[0] and= 1.0", "and= on f32"),
    ],
)
def test_problems_are_found(body: str, message: str) -> None:
    assert (message in found(body)) if message else not found(body)


def test_problems_that_text_cannot_say() -> None:
    kernel, _ = sample("pointwise")
    (loop,) = kernel.body
    assert isinstance(loop, For)
    (put,) = loop.body
    assert isinstance(put, Put)
    double = constant(1, read_kernel(Source("k", "kernel g(x: f64) { }")).parameters[0].dtype)
    wrong = replace(loop, body=(replace(put, value=double),), step=0)
    text = "; ".join(problems(kernel.with_body((wrong,))))
    assert "y is f32, the value f64" in text and "step 0" in text
    read = Load("x", (Size.of("i"),), double.dtype)
    text = "; ".join(problems(kernel.with_body((replace(loop, body=(replace(put, value=apply("neg", read)),)),))))
    assert "x[i] is read as f64, x is f32" in text
    temporary = replace(kernel.parameters[0], name="t", role="out")
    assert "role out" in "; ".join(problems(kernel.with_body((Alloc(temporary), *kernel.body))))
    parameter = replace(kernel.parameters[0], memory="cache")
    assert "parameter x is cache" in "; ".join(problems(replace(kernel, parameters=(parameter, kernel.parameters[1]))))


def test_verify_raises_with_the_name_of_the_kernel() -> None:
    kernel = read_kernel(Source("k.ir", "kernel f(x: f32[2]) { x[0] = 1.0 }"))
    with pytest.raises(AssertionError, match=r"kernel f: .*writes an input"):
        verify_kernel(kernel)


@pytest.mark.parametrize(
    ("body", "unproved"),
    [
        ("for i in 0..4 { y[i] = x[i, i + 2] }", 0),
        ("for i in 0..4 { y[i] = x[i, i + 3] }", 1),
        ("for i in 0..5 { y[i] = 0.0 where i < 4 }", 0),
        ("for i in 0..5 { y[min(i, 3)] = 0.0 }", 0),
        ("for i in 0..5 { if i < 4 { y[i] = 0.0 } else { y[i - 1] = 0.0 } }", 0),
        ("for i in 0..9 step 3 { if i < 4 { y[i] = 0.0 } }", 0),
        ("for i in 0..7 step 6 { y[i // 2] = (x[i - 6, 5] if 5 < i) }", 0),
        ("for i in 0..4 { y[i] = (x[i, i + 3] if i < 3) }", 0),
        ("for i in 0..2 { for j in 0..2 { y[2 * i + j] = 0.0 } }", 0),
        ("for i in 0..3 { for j in 0..min(2, 4 - 2 * i) { y[2 * i + j] = 0.0 } }", 0),
    ],
)
def test_bounds_are_proved_or_not(body: str, unproved: int) -> None:
    kernel = read_kernel(Source("k.ir", f"kernel f(x: f32[4, 6], out y: f32[4]) {{ {body} }}"))
    assert len(unproved_accesses(kernel)) == unproved


def test_bounds_of_unknown_sizes_are_proved() -> None:
    text = """kernel f(x: f32[N, M], out y: f32[N])[sizes N, M] {
      for i in 0..N // 16 { for l in 0..16 { y[16 * i + l] = 0.0 } }
      for j in N // 16 * 16..N { y[j] = 1.0 }
      for a in 0..N { for b in 0..M { y[a] += x[a, M - b - 1] } }
    }"""
    assert not unproved_accesses(read_kernel(Source("k.ir", text)))
