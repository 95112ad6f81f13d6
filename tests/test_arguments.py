"""The `--arg` language, weights bound by name, and results as `run` shows them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from intarsia.arguments import (
    ArgumentSpec,
    FromFile,
    Generated,
    Leaf,
    Number,
    bind_leaves,
    check_names,
    flatten,
    match_leaves,
    parse_argument,
    parse_arguments,
    parse_dimensions,
    parse_weights,
    random_fill,
)
from intarsia.files import write_results
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import (
    ALL_NAMES,
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I32,
    I64,
    U8,
    U64,
    DType,
    dtype,
)
from intarsia.ir.errors import CompileError
from intarsia.results import format_array


def named(name: str) -> DType:
    found = dtype(name)
    assert found is not None
    return found


def code_of(action: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(CompileError) as error:
        action(*arguments)
    return error.value.code, str(error.value)


def values(text: str, element: DType, shape: tuple[int, ...] = (1000,), name: str = "x") -> np.ndarray[Any, Any]:
    array = parse_argument(text).make(element, shape, name)
    assert array.dtype == element.numpy and array.shape == shape and array.flags.c_contiguous
    return np.asarray(convert(array, element, F64))


# ----- reading VALUE


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("3", Number(3)),
        ("-1_000", Number(-1000)),
        ("0x1F", Number(31)),
        ("+007", Number(7)),
        ("1_0.5", Number(10.5)),
        ("1.", Number(1.0)),
        ("2.5e-3", Number(0.0025)),
        (".5", Number(0.5)),
        ("true", Number(True)),
        ("false", Number(False)),
        ("-inf", Number(-float("inf"))),
        ("x.npy", FromFile("x.npy")),
        ("w.npz", FromFile("w.npz")),
        ("w.npz:layer.0/up:0", FromFile("w.npz", "layer.0/up:0")),
        ("C:\\data\\model.safetensors:k", FromFile("C:\\data\\model.safetensors", "k")),
        ("dir.npz/x.npy", FromFile("dir.npz/x.npy")),
        ("randn", Generated("randn")),
        ("randn()", Generated("randn")),
        ("rand( seed=3 , lo=-1, hi=1.5 )", Generated("rand", 3, -1, 1.5)),
        ("zeros(seed=1)", Generated("zeros", 1)),
        ("arange(lo=5)", Generated("arange", lo=5)),
    ],
)
def test_values_are_read(text: str, spec: ArgumentSpec) -> None:
    assert parse_argument(text) == spec


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("radn", "E0607", "did you mean 'randn'?"),
        ("True", "E0607", "did you mean 'true'?"),
        ("", "E0607", "generators: randn"),
        ("x.csv", "E0607", "files are .npy"),
        ("1.2.3", "E0607", "not a number"),
        ("1e", "E0607", "not a number"),
        ("[1, 2]", "E0607", "not a number"),
        ("randn(1)", "E0608", "options: seed, lo, hi"),
        ("randn(sed=1)", "E0608", "options: seed, lo, hi"),
        ("randn(seed=1, seed=2)", "E0608", "seed=2"),
        ("randn(seed=1.5)", "E0608", "whole number"),
        ("randn(seed=-1)", "E0608", "whole number"),
        ("rand(lo=nan)", "E0608", "lo=nan"),
        ("rand(lo=2, hi=2)", "E0608", "nothing"),
        ("zeros(lo=1)", "E0608", "options: seed"),
    ],
)
def test_values_that_cannot_be_read(text: str, code: str, said: str) -> None:
    found, message = code_of(parse_argument, text)
    assert found == code and said in message


def test_arguments_dimensions_and_weights() -> None:
    parsed = parse_arguments(["x=randn(seed=1)", "layer.0.w = w.npz:a=b", "n=3"])
    assert parsed == {"x": Generated("randn", 1), "layer.0.w": FromFile("w.npz", "a=b"), "n": Number(3)}
    assert code_of(parse_arguments, ["x"])[0] == "E0607"
    assert code_of(parse_arguments, ["2x=1"])[0] == "E0607"
    assert code_of(parse_arguments, ["x=1", "x=2"])[0] == "E0610"
    assert parse_dimensions(["B=128", "S=1_000", "E = 0", "B=128"]) == {"B": 128, "S": 1000, "E": 0}
    for wrong in ("B", "B=", "B=-1", "B=1.5", "=3", "2=3"):
        assert code_of(parse_dimensions, [wrong])[0] == "E0611"
    assert code_of(parse_dimensions, ["B=1", "B=2"])[0] == "E0611"


def test_weights_may_name_a_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_weights("p=model.safetensors") == ("p", "model.safetensors", "")
    assert parse_weights("p=out.npz:result0") == ("p", "out.npz", "result0")
    assert parse_weights("dir/model.safetensors") == (None, "dir/model.safetensors", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.npz").write_bytes(b"")
    assert parse_weights("a=b.npz") == (None, "a=b.npz", "")


def test_names_are_checked() -> None:
    check_names(["x", "w"], ["x", "w"])
    check_names(["x"], ["x", "w"], complete=False)
    code, text = code_of(check_names, ["weigth"], ["x", "weight"])
    assert code == "E0610" and "did you mean 'weight'?" in text
    code, text = code_of(check_names, ["x"], ["x", "w1", "w2"])
    assert code == "E0613" and "no argument for w1, w2" in text and "--random" in text


# ----- numbers and files


def test_numbers_take_the_type_of_a_scalar_parameter() -> None:
    assert values("3", F32, ()) == 3
    assert values("2.5", BF16, ()) == 2.5
    assert values("true", BOOL, ()) == 1
    assert np.isnan(values("nan", F16, ()))
    assert parse_argument("3").shape() == () and parse_argument("3").dtype() is None
    for text, element, shape, code in (
        ("2.5", I32, (), "E0601"),
        ("300", I8, (), "E0606"),
        ("3", F32, (2,), "E0602"),
        ("true", I32, (), "E0601"),
    ):
        found, message = code_of(parse_argument(text).make, element, shape, "n")
        assert found == code and "'n'" in message


def test_files_know_their_type_and_must_fit(tmp_path: Path) -> None:
    write_results(tmp_path / "w.npz", {"a": np.ones((2, 3), np.float32), "b": np.ones(4, ml_dtypes.bfloat16)})
    spec = parse_argument(f"{tmp_path}/w.npz:a")
    assert (spec.shape(), spec.dtype()) == ((2, 3), F32)
    assert spec.make(F32, (2, 3), "w").sum() == 6
    assert code_of(spec.make, F64, (2, 3), "w")[0] == "E0601"
    assert code_of(spec.make, F32, (3, 2), "w")[0] == "E0602"
    raw = parse_argument(f"{tmp_path}/w.npz:b")
    assert (raw.shape(), raw.dtype()) == ((4,), None)
    assert raw.make(BF16, (4,), "w").astype(np.float32).sum() == 4
    assert code_of(raw.make, F32, (4,), "w")[0] == "E0601"
    assert code_of(parse_argument(f"{tmp_path}/w.npz").shape)[0] == "E0708"
    assert parse_argument("randn").shape() is None


# ----- generators


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("generator", ["randn", "rand", "zeros", "ones", "arange"])
def test_every_generator_makes_every_type(name: str, generator: str) -> None:
    element = named(name)
    made = values(generator, element, (5, 7))
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made, values(generator, element, (5, 7)))
    if generator in ("randn", "rand"):
        assert len(np.unique(made)) > 1
    assert parse_argument(generator).make(element, (), "x").shape == ()
    assert parse_argument(generator).make(element, (0, 3), "x").shape == (0, 3)


def test_a_seed_gives_the_values_of_numpy() -> None:
    expected = np.random.default_rng(7).standard_normal((3, 4), np.float32)
    np.testing.assert_array_equal(values("randn(seed=7)", F32, (3, 4)), expected)
    np.testing.assert_array_equal(values("randn(seed=7)", BF16, (3, 4)), expected.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(values("rand(seed=7)", F64, (9,)), np.random.default_rng(7).random(9))


def test_without_a_seed_parameters_differ_and_runs_do_not() -> None:
    assert not np.array_equal(values("randn", F32, name="x"), values("randn", F32, name="y"))
    np.testing.assert_allclose(values("randn", F32, (2,), "x"), [0.60457236, 0.02509842], rtol=1e-6)


def test_bounds_hold() -> None:
    for text, element, low, high in (
        ("rand", F32, 0, 1),
        ("rand(lo=-1)", F32, -1, 1),
        ("rand(lo=5)", F32, 5, 6),
        ("rand(hi=-2)", F32, -3, -2),
        ("randn(lo=-0.5, hi=0.5)", F32, -0.5, 0.5),
        ("randn(lo=0)", F32, 0, np.inf),
        ("rand", I64, 0, 7),
        ("rand(lo=-4, hi=4)", I64, -4, 3),
        ("rand(hi=100)", I32, 0, 99),
        ("rand", named("i4"), -8, 7),
        ("randn", U8, 0, 255),
        ("arange(lo=2, hi=5)", I64, 2, 4),
        ("arange(lo=0.5, hi=3)", F32, 0.5, 2.5),
    ):
        made = values(text, element, (4000,))
        assert low <= made.min() and made.max() <= high, text
        assert made.max() - made.min() > 0.9 * (min(high, low + 3) - low), text


def test_arange_counts_in_row_major_order() -> None:
    np.testing.assert_array_equal(values("arange", F32, (2, 3)), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(values("arange(lo=10)", U64, (3,)), [10, 11, 12])
    assert values("arange", BF16, (300,))[255:258].tolist() == [255, 0, 1]
    assert values("arange", I8, (130,))[126:].tolist() == [126, 127, 0, 1]
    assert values("arange", BOOL, (4,)).tolist() == [0, 1, 0, 1]


def test_bounds_that_the_type_does_not_have() -> None:
    for text, element in (
        ("rand(lo=0.5)", I32),
        ("rand(hi=300)", I8),
        ("rand(lo=-1)", U8),
        ("arange(hi=9)", named("i4")),
    ):
        code, message = code_of(parse_argument(text).make, element, (3,), "x")
        assert code == "E0608" and str(element) in message
    assert values("rand(hi=128)", I8).max() < 128


def test_random_fill_suits_subscripts_and_data() -> None:
    assert random_fill(F32) == Generated("randn")
    ids = random_fill(I64).make(I64, (1000,), "ids")
    assert (ids.min(), ids.max()) == (0, 7)


# ----- weights

STACK = [Leaf("layer.*.up.weight"), Leaf("layer.*.up.bias"), Leaf("norm")]


def arrays_for(prefix: str = "", layers: int = 3) -> dict[str, str]:
    names = [f"layer.{i}.up.{part}" for i in range(layers) for part in ("weight", "bias")] + ["norm"]
    return {prefix + name: prefix + name for name in reversed(names)}


@pytest.mark.parametrize("prefix", ["", "p."])
def test_leaves_are_found_by_dotted_name(prefix: str) -> None:
    bound = bind_leaves("p", STACK, arrays_for(prefix, 12) | {"unused": "unused"})
    assert bound["norm"] == f"{prefix}norm"
    assert bound["layer.*.up.bias"] == tuple(f"{prefix}layer.{i}.up.bias" for i in range(12))


def test_the_place_of_the_index_may_be_left_to_the_file() -> None:
    leaves = [Leaf("layer.up.weight", is_list=True), Leaf("layer.up.bias", is_list=True), Leaf("norm")]
    assert bind_leaves("p", leaves, arrays_for("p."))["layer.up.bias"] == tuple(
        f"p.layer.{i}.up.bias" for i in range(3)
    )
    listed = {"0.w": 0, "1.w": 1}
    assert bind_leaves("layer", [Leaf("w", is_list=True)], listed) == {"w": (0, 1)}
    assert bind_leaves("layer", [Leaf("w", is_list=True)], {f"layer.{k}": v for k, v in listed.items()}) == {
        "w": (0, 1)
    }


def test_a_tensor_parameter_is_bound_by_its_own_name() -> None:
    assert bind_leaves("w1", [Leaf("")], {"w1": 1, "w2": 2}) == {"": 1}
    binding = match_leaves("w3", [Leaf("")], {"w1": 1})
    assert not binding.found and binding.missing == ("w3",) and binding.extra == ("w1",)


def test_missing_leaves_are_listed_with_what_is_there() -> None:
    arrays = arrays_for("p.")
    del arrays["p.layer.1.up.bias"]
    arrays["p.layer.1.up.bais"] = ""
    del arrays["p.norm"]
    code, text = code_of(bind_leaves, "p", STACK, arrays)
    assert code == "E0609"
    assert "p.layer.1.up.bias (there is p.layer.1.up.bais)" in text and "p.norm" in text
    assert "layer.0" not in text
    code, text = code_of(bind_leaves, "p", [Leaf("a"), Leaf("layers.*.w")], {})
    assert code == "E0609" and "p.a, p.layers.0.w" in text


def test_nested_python_values_are_flattened() -> None:
    nested = {"layer": [{"up": {"weight": 1}}, {"up": {"weight": 2}}], "norm": 3, "values": [1.0, 2.0]}
    assert flatten(nested) == {"layer.0.up.weight": 1, "layer.1.up.weight": 2, "norm": 3, "values": [1.0, 2.0]}
    assert flatten(5, "p") == {"p": 5}


# ----- showing results


def test_results_are_shown_with_type_and_values() -> None:
    assert format_array("y", np.array([[1.5, 2], [3, 4]], np.float32)) == "y: f32[2, 2]\n[[1.5 2. ]\n [3.  4. ]]"
    assert format_array("s", np.array(3.5)) == "s: f64 = 3.5"
    assert format_array("b", np.array([True, False])) == "b: bool[2]\n[ True False]"
    assert format_array("h", np.array([1 / 3], ml_dtypes.bfloat16)) == "h: bf16[1]\n[0.334]"
    assert format_array("q", np.array([-8, 7], ml_dtypes.int4)) == "q: i4[2]\n[-8  7]"
    assert format_array("c", np.array([-4, 3], np.int8), named("i3")) == "c: i3[2]\n[-4  3]"
    assert format_array("m", convert(np.array([1.5]), F64, named("f6e1m4")), named("f6e1m4")) == "m: f6e1m4[1]\n[1.5]"
    assert format_array("e", np.zeros((0, 3), np.float32)) == "e: f32[0, 3]\n[]"
    long = format_array("z", np.arange(10000, dtype=np.float32).reshape(100, 100))
    assert long.startswith("z: f32[100, 100]\n") and "..." in long and len(long) < 1000


@pytest.mark.parametrize("piece", [7, 16])
def test_parts_of_generated_arrays(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process makes its part, with the numbers that it would have of the whole array."""
    elements = map(named, ("f32", "f64", "i64", "bool", "i4"))
    generators = "randn", "rand", "arange", "ones"
    for element, text, shape in itertools.product(elements, generators, ((), (40,), (3, 4, 5), (0, 3))):
        spec = parse_argument(text)
        assert isinstance(spec, Generated)
        whole = spec.make(element, shape, "x")
        with monkeypatch.context() as changed:
            changed.setattr("intarsia.streams.PIECE", piece)
            for places in itertools.product((slice(None), slice(1, 3), slice(4, 9)), repeat=len(shape)):
                found = spec.part(element, shape, "x", places)
                assert found.dtype == whole.dtype
                np.testing.assert_array_equal(found, whole[places])
