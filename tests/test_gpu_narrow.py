"""Narrow types on GPUs: every code means there what it means anywhere, and weights in codes cost what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_codes import EVERY, NAMED, all_codes, around, narrow, same, same_codes
from test_formats import DECLARED, NAMES, data, dequantized

import intarsia
from intarsia.backends.gpu.toolchain import compile_kernels
from intarsia.backends.gpu.triton_kernel import TritonKernel
from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.conversion import codes, convert
from intarsia.ir.dtypes import BF16, F16, F32, F64, I8, I32, I64, U8, Array, DType
from intarsia.ir.errors import Source
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.target import TARGETS
from intarsia.options import Options

pytest.importorskip("triton")

TARGET = "gpu:sm_90"


def compilation(text: str, function: str = "f", target: str = TARGET, **sizes: int) -> Compilation:
    return Compilation(load(Source("program.ita", text)).build(function), sizes, Options(target=target))


def launches(made: Compilation) -> list[TritonKernel]:
    return [launch for found in made.launches.values() for launch in found]


def interpreted(text: str, inputs: list[Array], **sizes: int) -> list[Array]:
    made = compilation(text, **sizes)
    return list(run_plan(made.plan, list(inputs), sizes, made.interpret_launches))


def cast(values: Array, sources: list[DType], targets: list[DType]) -> list[Array]:
    """Values as each of some types, or of several types as one, in a single launch."""
    parameters = ", ".join(f"x{n}: {t}[N]" for n, t in enumerate(sources))
    several = [f"{t}(x{n})" for n in range(len(sources)) for t in targets]
    types = ", ".join(f"{t}[N]" for _ in sources for t in targets)
    text = f"fn f({parameters}) -> ({types}) {{ return {', '.join(several)} }}"
    with np.errstate(all="ignore"):
        inputs = [values if len(sources) == 1 else values.astype(t.numpy) for t in sources]
    return interpreted(text, inputs, N=values.size)


def check_type(t: DType) -> None:
    """Every code as other types, and numbers of other types as codes."""
    every = np.tile(all_codes(t), 3)
    targets = [F32, F64, BF16, F16, I32, U8]
    for target, found in zip(targets, cast(every, [t], targets)):
        assert same(found, convert(every, t, target)), f"{t} as {target}"
    x = around(t if t.is_float else narrow("f6e3m2"))
    floats = [F32, F64, F16]
    for source, found in zip(floats, cast(x, floats, [t])):
        with np.errstate(all="ignore"):
            assert same_codes(found, convert(x.astype(source.numpy), source, t), t), f"{source} as {t}"
    whole = np.arange(-300, 300)
    integers = [I64, I8]
    for source, found in zip(integers, cast(whole, integers, [t])):
        assert same_codes(found, convert(whole.astype(source.numpy), source, t), t), f"{source} as {t}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMED, *EVERY[::6]}))
def test_every_code_of_a_type_means_what_it_says(name: str) -> None:
    check_type(narrow(name))


def test_bytes_of_users_are_read_for_their_low_bits() -> None:
    """PyTorch has no `i4`: its codes come in bytes, whose other bits are the sign, and go back like that."""
    t = narrow("i4")
    given = np.arange(-8, 8, dtype=np.int8)
    text = "fn f(x: i4[N]) -> (f32[N], i4[N], i4[N]) { return f32(x), i4(x), tensor[i < N](x[N - 1 - i]) }"
    values, again, turned = interpreted(text, [given.view(t.numpy)], N=16)
    assert (
        (values == given).all() and (again.view(np.int8) == given).all() and (turned.view(np.int8) == given[::-1]).all()
    )


@pytest.mark.slow
def test_subnormal_numbers_are_not_lost(tmp_path: Path) -> None:
    """Codes become numbers by way of subnormal ones, which no instruction may take for 0."""
    text = "fn f(x: f4e2m1[N], s: f8e8m0[N], y: f32[N]) -> (f32[N], f8e4m3[N]) { return f32(x) * f32(s), f8e4m3(y) }"
    made = compile_kernels(launches(compilation(text, N=4096)), TARGETS[TARGET], tmp_path)
    assert all("mul.rn.f32" in m.ptx and ".ftz" not in m.ptx and m.usage[1] == 0 for m in made)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_formats_have_the_same_values(name: str) -> None:
    """Codes, scales and values of a quantized tensor, as NumPy has them."""
    x = data()
    declaration = DECLARED.get(name, name)
    parts = intarsia.quantize(x, declaration)
    declared = f"format stored = {declaration}\n" if name in DECLARED else ""
    stored = "stored" if name in DECLARED else name
    text = f"{declared}fn f(w: {stored}[K, N]) -> f32[K, N] {{ return dequantize(w) }}"
    (values,) = interpreted(text, list(parts.values()), K=x.shape[0], N=x.shape[1])
    assert (values == dequantized(parts, declaration)).all()
    text = f"{declared}fn f(x: f32[K, N]) -> {stored}[K, N] {{ return quantize(x, {stored}) }}"
    made = compilation(text, K=x.shape[0], N=x.shape[1])
    results = run_plan(made.plan, [x], made.sizes, made.interpret_launches)
    for result, array, value in zip(results, parts.values(), made.source_module.graph.results):
        assert (codes(result, value.dtype) == codes(array, value.dtype)).all()
