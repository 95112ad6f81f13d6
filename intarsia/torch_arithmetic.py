"""The graph op by op in PyTorch: what `bench --against torch` times.

The interpreter lays out and subscripts arrays with NumPy, without a copy where a view will do; all that is computed on
them, PyTorch computes, on the same memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import BF16, BOOL, Array, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.functions import COMBINERS
from intarsia.runtime.threads import thread_count

_SAME_NAME = (
    "abs", "sign", "floor", "ceil", "round", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "rsqrt", "sin",
    "cos", "tan", "tanh", "sinh", "cosh", "asin", "acos", "atan", "atan2", "erf", "sigmoid", "pow", "minimum",
    "maximum", "isnan", "isinf", "where", "add", "sub", "mul", "div", "neg", "eq", "ne", "lt", "le", "gt", "ge",
)  # fmt: skip
"""Functions that PyTorch has under the same name."""

_LOGIC = {"and": "logical_and", "or": "logical_or", "not": "logical_not"}
_REDUCTIONS = {"sum": "sum", "max": "amax", "min": "amin"}
_NATIVE = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool")


class TorchArithmetic(Arithmetic):
    """Arithmetic on NumPy arrays that PyTorch carries out; what it lacks is left to NumPy."""

    def __init__(self) -> None:
        """Use as many threads as compiled programs do. Raises CompileError E1703 where PyTorch is not installed."""
        try:
            import torch
        except ImportError:
            raise CompileError(
                "E1703", "PyTorch is not installed beside Intarsia", hint="pip install torch, or --against numpy"
            ) from None
        torch.set_num_threads(thread_count())
        with (
            warnings.catch_warnings()
        ):  # PyTorch says once that it could write to what is read-only; here it never does
            warnings.simplefilter("ignore")
            torch.from_numpy(np.broadcast_to(np.zeros(1), (2,)))
        self._torch: Any = torch
        self._types = {name: getattr(torch, _torch_name(name)) for name in _NATIVE}

    def apply(self, function: str, arguments: Sequence[Array], dtypes: Sequence[DType]) -> Array:
        name = function if function in _SAME_NAME else _LOGIC.get(function)
        if name is None or not all(d.name in _NATIVE for d in dtypes):
            return super().apply(function, arguments, dtypes)
        return self._array(getattr(self._torch, name)(*map(self._tensor, arguments)))

    def cast(self, array: Array, source: DType, target: DType) -> Array:
        if source == target or not (source.is_float and target.is_float and {source.name, target.name} <= set(_NATIVE)):
            return super().cast(array, source, target)
        return self._array(self._tensor(array).to(self._types[target.name]))

    def reduce(self, combiner: str, array: Array, axes: tuple[int, ...], dtype: DType) -> Array:
        if combiner not in _REDUCTIONS or dtype.name not in _NATIVE or dtype == BOOL or not axes or not array.size:
            return super().reduce(combiner, array, axes, dtype)
        options = {"dtype": self._types[dtype.name]} if combiner == "sum" else {}
        return self._array(getattr(self._torch, _REDUCTIONS[combiner])(self._tensor(array), dim=axes, **options))

    def accumulate(self, combiner: str, array: Array, axis: int, dtype: DType) -> Array:
        name = {"add": "cumsum", "mul": "cumprod"}.get(COMBINERS[combiner].function)
        if name is None or dtype.name not in _NATIVE:
            return super().accumulate(combiner, array, axis, dtype)
        return self._array(getattr(self._torch, name)(self._tensor(array), axis, dtype=self._types[dtype.name]))

    def matmul(self, left: Array, right: Array, dtype: DType) -> Array:
        if not dtype.is_float or dtype.name not in _NATIVE:
            return super().matmul(left, right, dtype)
        return self._array(self._torch.matmul(self._tensor(left), self._tensor(right)))

    def _tensor(self, array: Array) -> Any:
        """A tensor over the same memory. PyTorch knows no negative strides, and no bf16 of NumPy."""
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        if array.dtype == BF16.numpy:
            return self._torch.from_numpy(array.view(np.int16)).view(self._torch.bfloat16)
        return self._torch.from_numpy(array)

    def _array(self, tensor: Any) -> Array:
        """An array over the same memory."""
        if tensor.dtype == self._torch.bfloat16:
            return np.asarray(tensor.view(self._torch.int16).numpy()).view(BF16.numpy)
        return np.asarray(tensor.numpy())


def _torch_name(name: str) -> str:
    """`float32` for `f32`."""
    if name == "bool":
        return name
    kind = {"f": "float", "i": "int", "u": "uint", "b": "bfloat"}[name[0]]
    return kind + name.lstrip("bfiu")
