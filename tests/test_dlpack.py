"""Arguments from NumPy, other libraries and plain Python; results in the kind that came in."""

from __future__ import annotations

import array as python_arrays
import timeit
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import intarsia
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType, dtype
from intarsia.ir.errors import CompileError
from intarsia.runtime.dlpack import Parameter, adapt, device_of, library_of, to_library
from intarsia.runtime.native import address_of


def named(name: str) -> DType:
    found = dtype(name)
    assert found is not None
    return found


def fails(value: object, parameter: Parameter) -> CompileError:
    with pytest.raises(CompileError) as error:
        adapt(value, parameter)
    assert f"'{parameter.name}'" in str(error.value)
    return error.value


def test_a_fitting_array_is_taken_as_it_is() -> None:
    x = np.zeros((3, 4), np.float32)
    assert adapt(x, Parameter("x", F32, (3, 4))) is x
    assert adapt(x, Parameter("x", F32, ("B", 4))) is x
    w = np.zeros((2, 2), ml_dtypes.bfloat16)
    assert adapt(w, Parameter("w", BF16, (2, 2))) is w


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.arange(24, dtype=np.float32).reshape(3, 8)[:, ::2],
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.frombuffer(b"\0" + np.arange(12, dtype=np.float32).tobytes(), np.float32, offset=1).reshape(3, 4),
        np.arange(12, dtype=np.float32).reshape(3, 4)[::-1],
    ],
    ids=["fortran", "strided", "big-endian", "unaligned", "reversed"],
)
def test_other_layouts_are_copied_once(value: np.ndarray[Any, Any]) -> None:
    adapted = adapt(value, Parameter("x", F32, (3, 4)))
    np.testing.assert_array_equal(adapted, value)
    assert adapted.flags.c_contiguous and adapted.flags.aligned and adapted.dtype == np.float32
    assert adapted.dtype.isnative


def test_scalars_stay_without_dimensions() -> None:
    adapted = adapt(np.array(3.0, dtype=">f8"), Parameter("x", F64))
    assert adapted.shape == () and adapted == 3.0
    assert adapt(np.float32(2.5), Parameter("x", F32)) == np.float32(2.5)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(3, F32), (3, I8), (-128, I8), (2.5, BF16), (True, BOOL), (2**63, F64), ([[1, 2], [3, 4]], I64), ((1.5, 2), F16)],
)
def test_python_numbers_are_literals(value: object, wanted: DType) -> None:
    shape = np.shape(value)  # type: ignore[arg-type]
    adapted = adapt(value, Parameter("x", wanted, shape))
    assert adapted.dtype == wanted.numpy and adapted.shape == shape
    np.testing.assert_array_equal(adapted.astype(np.float64), np.asarray(value, np.float64))


@pytest.mark.parametrize(
    ("value", "wanted", "code"),
    [
        (np.zeros(3), Parameter("x", F32, (3,)), "E0601"),
        (np.zeros(3, np.int8), Parameter("x", named("i4"), (3,)), "E0601"),
        (np.zeros(3, np.complex64), Parameter("x", F32, (3,)), "E0601"),
        (np.float64(1), Parameter("x", F32), "E0601"),
        (1.5, Parameter("n", I32), "E0601"),
        (True, Parameter("n", I32), "E0601"),
        (1, Parameter("b", BOOL), "E0601"),
        (np.zeros((3, 4), np.float32), Parameter("x", F32, (4, 3)), "E0602"),
        (np.zeros(3, np.float32), Parameter("x", F32, ("B", 3)), "E0602"),
        (1.0, Parameter("x", F32, (1,)), "E0602"),
        ("text", Parameter("x", F32), "E0603"),
        (None, Parameter("x", F32), "E0603"),
        ([[1, 2], [3]], Parameter("x", I64, (2, 2)), "E0603"),
        (["a"], Parameter("x", F32, (1,)), "E0603"),
        (np.array([None]), Parameter("x", F32, (1,)), "E0601"),
        (300, Parameter("n", I8), "E0606"),
        (-1, Parameter("n", U8), "E0606"),
        (2**70, Parameter("n", I64), "E0606"),
        (1e39, Parameter("x", F32), "E0606"),
        ([1.0, 1e6], Parameter("x", F16, (2,)), "E0606"),
        (7.6, Parameter("x", named("f4e2m1")), "E0606"),
        (500.0, Parameter("x", named("f8e4m3")), "E0606"),
        (0.0, Parameter("x", named("f8e8m0")), "E0606"),
        (8.0, Parameter("x", named("f6e1m4")), "E0606"),
        (np.array([4], np.int8), Parameter("x", named("i3"), (1,)), "E0606"),
        (np.array([64], np.uint8), Parameter("x", named("f6e1m4"), (1,)), "E0606"),
    ],
)
def test_what_does_not_fit_is_a_coded_error(value: object, wanted: Parameter, code: str) -> None:
    assert fails(value, wanted).code == code


def test_errors_say_what_is_wanted_and_given() -> None:
    text = str(fails(np.zeros((4, 128)), Parameter("x", F32, ("B", 128))))
    assert "wants f32[B, 128], and was given f64[4, 128]" in text
    assert "declare 'x' as f64" in text
    text = str(fails(np.zeros((4, 100), np.float32), Parameter("x", F32, ("B", 128))))
    assert "dimension 1 is 100, and must be 128" in text
    assert "i8 holds -128 to 127" in str(fails(128, Parameter("n", I8)))


def test_types_without_a_numpy_type_come_as_codes() -> None:
    codes = np.array([-4, 3], np.int8)
    assert adapt(codes, Parameter("x", named("i3"), (2,))) is codes
    assert adapt([-4, 3], Parameter("x", named("i3"), (2,))).dtype == np.int8
    minifloat = named("f6e1m4")
    adapted = adapt([1.5, -0.25], Parameter("x", minifloat, (2,)))
    np.testing.assert_array_equal(convert(adapted, minifloat, F32), [1.5, -0.25])


def test_the_array_protocols_and_buffers_are_read() -> None:
    class Wrapped:
        def __init__(self, name: str, value: object) -> None:
            setattr(self, name, value)

    x = np.arange(3, dtype=np.float32)
    wrapped = adapt(Wrapped("__array_interface__", x.__array_interface__), Parameter("x", F32, (3,)))
    assert address_of(wrapped) == address_of(x)

    class Convertible:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray[Any, Any]:
            return x

    assert address_of(adapt(Convertible(), Parameter("x", F32, (3,)))) == address_of(x)
    np.testing.assert_array_equal(adapt(python_arrays.array("f", [0, 1, 2]), Parameter("x", F32, (3,))), x)
    assert adapt(np.ma.array(x), Parameter("x", F32, (3,))).sum() == 3


class Tensor:
    """A tensor of a library that NumPy does not know, here this module: what DLPack asks for, over an array."""

    def __init__(self, array: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.place = array, device

    def __dlpack__(self, **options: Any) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __array_namespace__(self) -> object:
        return Library


class Library:
    """`from_dlpack` of that library."""

    @staticmethod
    def from_dlpack(array: np.ndarray[Any, Any]) -> Tensor:
        return Tensor(np.from_dlpack(array))


def test_a_tensor_of_another_library_shares_its_memory_both_ways() -> None:
    x = np.arange(6, dtype=np.int64).reshape(2, 3)
    adapted = adapt(Tensor(x), Parameter("x", I64, (2, 3)))
    assert address_of(adapted) == address_of(x)
    assert library_of([x, 3, Tensor(x)]) is Library
    assert library_of([x, 3, np.float32(1)]) is None
    result = to_library(x, library_of([Tensor(x)]))
    assert isinstance(result, Tensor) and address_of(result.array) == address_of(x)
    assert to_library(x, None) is x


def test_calls_with_tensors_of_another_library() -> None:
    program = intarsia.compile(
        "fn f(x: f32[N], a: f32, y: f32[N]) -> (f32[N], f32) { return a * x - y, sum(y) }\n"
        "struct P(N) {\n b: f32[N]\n}\n"
        "fn g(x: f32[N], p: P(N)) -> f32[N] { return x + p.b }"
    )
    x, y = np.arange(3000, dtype=np.float32), np.ones(3000, np.float32)
    for call in (
        lambda: program.f(Tensor(x), 2.0, Tensor(y)),
        lambda: program.f(x, 2.0, Tensor(y)),
        lambda: program.f(Tensor(x), y=Tensor(y), a=2),
        lambda: program.f(Tensor(x[::2]), 2.0, [1.0] * 1500),
    ):
        for _ in range(4):
            difference, total = call()
            assert isinstance(difference, Tensor) and isinstance(total, Tensor)
            step = len(x) // len(difference.array)
            np.testing.assert_array_equal(difference.array, 2 * x[::step] - 1)
            assert total.array == len(difference.array)
    result = program.g(Tensor(x), {"b": Tensor(y)})
    assert isinstance(result, Tensor)
    np.testing.assert_array_equal(result.array, x + y)
    for arguments, code in (
        ((Tensor(x, device=(2, 0)), 2.0, y), "E0604"),
        ((Tensor(x), 2.0), "E0613"),
        ((Tensor(x), 2.0, y, y), "E0615"),
        ((Tensor(x), 2.0, Tensor(y[1:])), "E0307"),
    ):
        with pytest.raises(CompileError) as caught:
            program.f(*arguments)
        assert caught.value.code == code


def test_memory_of_a_device_is_refused() -> None:
    tensor = Tensor(np.zeros(3, np.float32), device=(2, 1))
    assert device_of(tensor) == (2, 1)
    error = fails(tensor, Parameter("x", F32, (3,)))
    assert error.code == "E0604"
    assert "cuda:1" in str(error)


def test_the_common_case_is_quick() -> None:
    x, parameter = np.zeros((8, 16), np.float32), Parameter("x", F32, (8, 16))
    seconds = min(timeit.repeat(lambda: adapt(x, parameter), number=1000, repeat=5)) / 1000
    assert seconds < 20e-6


# ----- with torch, where it is installed


def test_torch_tensors_go_in_and_come_out() -> None:
    torch = pytest.importorskip("torch")
    for element in ("float32", "int64", "bool", "uint8", "bfloat16", "float8_e4m3fn", "float16"):
        tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, element))
        wanted = BF16 if element == "bfloat16" else named("f8e4m3") if "8_e4" in element else None
        wanted = wanted or next(t for t in (F32, I64, BOOL, U8, F16) if t.numpy == np.dtype(element))
        adapted = adapt(tensor, Parameter("x", wanted, (3, 4)))
        assert address_of(adapted) == tensor.data_ptr(), element
        np.testing.assert_array_equal(adapted.astype(np.float64), tensor.double().numpy())
        back = to_library(adapted, library_of([tensor]))
        assert back.dtype == tensor.dtype and back.data_ptr() == tensor.data_ptr()
        turned = adapt(tensor.t(), Parameter("x", wanted, (4, 3)))
        np.testing.assert_array_equal(turned.astype(np.float64), tensor.t().double().numpy())


def test_torch_tensors_that_cannot_be_read() -> None:
    torch = pytest.importorskip("torch")
    error = fails(torch.zeros(3, requires_grad=True), Parameter("x", F32, (3,)))
    assert error.code == "E0605" and "x.detach()" in str(error)
    assert fails(torch.zeros(3, device="meta"), Parameter("x", F32, (3,))).code == "E0604"
    assert fails(torch.zeros(3, dtype=torch.float64), Parameter("x", F32, (3,))).code == "E0601"


def test_narrow_types_come_as_codes() -> None:
    torch = pytest.importorskip("torch")
    for element, expected in (("i4", torch.int8), ("u4", torch.uint8)):
        numbers = np.array([0, 7, -8 if element == "i4" else 15], np.int8)
        result = to_library(numbers.astype(named(element).numpy), torch)
        assert result.dtype == expected
        np.testing.assert_array_equal(result.numpy(), numbers)
