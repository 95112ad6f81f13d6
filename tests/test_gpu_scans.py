"""Prefix sums on GPUs: what is written in Triton, and that it computes what the language says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compare import compare

from intarsia.driver import Compilation
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.options import Options

TARGET = "gpu:sm_90"
PROGRAMS = Path(__file__).parent.parent / "benchmarks" / "gpu.ita"
CHUNKED = Path(__file__).parent.parent / "examples" / "linear_attention.ita"


def drawn(*shape: int, dtype: str = "float32") -> Array:
    """Random numbers, among them NaN, infinities and zeros of both signs if they are floats and many."""
    random = np.random.default_rng(0)
    if not dtype.startswith("float"):
        return random.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def special(*shape: int) -> Array:
    x = drawn(*shape)
    x[1, 5:], x[2, 7], x[3, 11], x[3, 12], x[4] = -0.0, np.inf, np.inf, -np.inf, -0.0
    x[0, 9] = np.nan
    return x


CASES: dict[str, tuple[str, Array]] = {
    "rows": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=1) }", drawn(5, 37)),
    "columns": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=0) }", drawn(37, 5)),
    "inner": ("fn f(x: f32[B, N, M]) -> f32[B, N, M] { return cumsum(x, axis=1) }", drawn(3, 41, 70)),
    "not finite": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=1) }", special(5, 40)),
    "products": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumprod(x * 0.1 + 1.0, axis=1) }", drawn(4, 50)),
    "exclusive": ("fn f(x: f32[N, M]) -> f32[N, M] { return exp(cumsum(x, axis=1) - x) }", drawn(4, 33)),
    "backwards": (
        "fn f(x: f32[N, M]) -> f32[N, M] { return flip(cumsum(flip(x, axis=1), axis=1), axis=1) }", drawn(3, 45)
    ),
    "bytes": ("fn f(x: i8[N, M]) -> (i64[N, M], i64[N, M]) {\n"
              " return i64(cumsum(x, axis=1)), i64(cumprod(x, axis=0)) }", drawn(4, 33, dtype="int8")),
    "places of what is kept": (
        "fn f(keep: bool[N]) -> i64[N] { return where(keep, cumsum(keep, axis=0) - 1, -1) }", drawn(130, dtype="bool")
    ),
    "halves": ("fn f(x: f16[N, M]) -> f16[N, M] { return cumsum(x, axis=1) * 2.0 }", drawn(4, 33, dtype="float16")),
    "pieces": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=1) }", drawn(140, 8300)),
    "shared": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x * 2.0, axis=1) + 1.0 }", drawn(2, 9011)),
    "shared columns": ("fn f(x: f64[N, M]) -> f64[N, M] { return cumsum(x, axis=0) }", drawn(600, 7, dtype="float64")),
    "one row": ("fn f(x: i64[N]) -> i64[N] { return cumsum(x, axis=0) }", drawn(9011, dtype="int64")),
    "square": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=0) }", drawn(20, 20)),
    "nothing": ("fn f(x: f32[N, M]) -> f32[N, M] { return cumsum(x, axis=0) }", drawn(20, 0)),
    "one short row": ("fn f(x: f32[N]) -> f32[N] { return cumsum(x, axis=0) }", drawn(100)),
}  # fmt: skip
"""Programs with an argument for each."""


def require(name: str, dynamic: bool, levels: tuple[str, ...]) -> None:
    text, x = CASES[name]
    dims = tuple("NMB") if dynamic else ()
    names = tuple(d for d in dims if f"{d}," in text or f"{d}]" in text)
    parameter = text.partition("(")[2].partition(":")[0]
    failure = compare(text, {parameter: x}, levels, Options(target=TARGET, dynamic=names))
    assert failure is None, failure


@pytest.mark.parametrize("name", ["inner", "square", "nothing", "not finite", "places of what is kept", "one row"])
def test_prefixes(name: str) -> None:
    require(name, dynamic=False, levels=("triton",))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", CASES)
def test_all_prefixes(name: str, dynamic: bool) -> None:
    large = CASES[name][1].size > 100_000  # too many elements to go through one by one
    require(name, dynamic, ("triton",) if large else ("plan", "triton"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_prefixes_in_code_of_chips(name: str) -> None:
    """It compiles, without spills."""
    require(name, dynamic=False, levels=("cubin",))


def launches(text: str) -> list[str]:
    compilation = Compilation(load(Source("f.ita", text)).build("f"), {}, Options(target=TARGET))
    return [launch.text for found in compilation.launches.values() for launch in found]


def test_one_launch_where_there_are_rows_for_all_cores() -> None:
    text = "fn f(x: f32[4096, 4096]) -> f32[4096, 4096] { return exp(cumsum(x * 2.0, axis=1) - x) }"
    (launch,) = launches(text)
    assert "tl.cumsum" in launch and "for " not in launch, "a row is one block, with what is around the sum"


def test_long_rows_are_shared() -> None:
    first, second = launches("fn f(x: f32[4, 4194304]) -> f32[4, 4194304] { return cumsum(x, axis=1) }")
    assert "tl.sum" in first and "tl.cumsum" not in first
    assert "tl.cumsum" in second


def test_columns_are_scanned_side_by_side() -> None:
    (launch,) = launches("fn f(x: f32[2048, 65536]) -> f32[2048, 65536] { return cumsum(x, axis=0) }")
    assert "tl.cumsum" in launch and "BLOCK_I1" in launch


# ---------------------------------------------------------------------- linear attention


def attended(text: str, function: str, levels: tuple[str, ...], *shape: int, dynamic: tuple[str, ...] = ()) -> None:
    random = np.random.default_rng(0)
    given = {n: random.standard_normal(shape).astype(np.float32) for n in ("q", "k", "v")}
    failure = compare(text, given, levels, Options(target=TARGET, dynamic=dynamic), function)
    assert failure is None, failure


def test_linear_attention_in_chunks() -> None:
    """Three launches: what chunks add to the state, states before chunks, and one sweep for each chunk."""
    attended(CHUNKED.read_text(), "chunked", ("triton",), 2, 3, 20, 16)
    compilation = of_chunks(64)
    found = [launch for launches in compilation.launches.values() for launch in launches]
    assert [launch.text.count("tl.dot") for launch in found] == [1, 0, 3]


def of_chunks(width: int, target: str = TARGET) -> Compilation:
    sizes = {"H": 128, "S": 4096, "D": width}
    library = load(Source("gpu.ita", PROGRAMS.read_text()))
    return Compilation(library.build("linear_attention"), sizes, Options(target=target))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [(), ("C",), ("H", "C", "L")], ids=["fixed", "chunks", "open"])
@pytest.mark.parametrize("function, shape", [("chunked", (2, 5, 33, 16)), ("chunked", (1, 2, 130, 24))])
def test_linear_attention_of_any_size(function: str, shape: tuple[int, ...], dynamic: tuple[str, ...]) -> None:
    attended(CHUNKED.read_text(), function, ("triton",), *shape, dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [(), ("S",)], ids=["fixed", "open"])
@pytest.mark.parametrize("shape", [(2, 100, 16), (1, 300, 64)])
def test_quadratic_linear_attention(shape: tuple[int, ...], dynamic: tuple[str, ...]) -> None:
    attended(CHUNKED.read_text(), "quadratic", ("triton",), *shape, dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("target, unit", [("gpu:sm_80", "hmma"), ("gpu:sm_90", "hgmma")])
def test_linear_attention_on_chips(target: str, unit: str, width: int) -> None:
    """Products on matrix units, accesses of 16 bytes, no spills."""
    codes = [code.resources for made in of_chunks(width, target).counted_code.values() for code in made]
    assert [found.count(unit) > 0 for found in codes] == [True, False, True]
    for found in codes:
        assert not found.spilled, found
        assert found.count("load_global") == found.count("load_global_16"), found
        assert found.count("store_global") == found.count("store_global_16"), found
