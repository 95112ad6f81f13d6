"""Arguments of a call as arrays by label, their types, and the layout that compiled code wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from intarsia.arguments import bind_leaves, flatten
from intarsia.executable import TensorLayout
from intarsia.files import Weights, typed
from intarsia.ir.dtypes import F32, I64, Array, DType, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.runtime import dlpack
from intarsia.signature import ParameterForm, SignatureForm, TensorForm, known_sizes, size_of

Tensors: TypeAlias = "dict[str, Array | tuple[Array, ...]]"
"""Arrays by the label of their tensor; a tuple for a tensor of a list of structs."""

Kind: TypeAlias = "tuple[Any, ...]"
"""What decides the type of an array, as something that is quickly made and compared."""


def split_arguments(
    parameters: Sequence[ParameterForm], given: Mapping[str, object]
) -> tuple[dict[str, object], Tensors]:
    """Static arguments by parameter, and the tensors of all others by label. Raises CompileError E0603 to E0609.

    A literal for a generic parameter takes the element type that the other arguments give.
    """
    statics: dict[str, object] = {}
    tensors: Tensors = {}
    literals: list[tuple[TensorForm, object]] = []
    elements: dict[str, DType] = {}
    for parameter in parameters:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if parameter.is_static and not _is_tensor(value):
            statics[parameter.name] = _static(value)
        elif parameter.is_struct:
            found = bind_leaves(parameter.name, parameter.leaves, _leaves_of(value))
            for tensor, leaf in zip(parameter.tensors, parameter.leaves):
                item = found[leaf.name]
                if isinstance(item, tuple):
                    tensors[tensor.label] = tuple(_array(i, tensor) for i in item)
                else:
                    tensors[tensor.label] = _array(item, tensor)
        else:
            tensor = parameter.tensors[0] if parameter.tensors else TensorForm(parameter.name, "", ())
            if tensor.dtype is None and isinstance(value, bool | int | float):
                literals.append((tensor, value))
                continue
            array = tensors[parameter.name] = _array(value, tensor)
            if (element := of_numpy(array.dtype)) is not None:
                elements.setdefault(tensor.element, element)
    for tensor, value in literals:
        tensors[tensor.label] = _array(value, tensor, elements.get(tensor.element))
    return statics, tensors


def _is_tensor(value: object) -> bool:
    return hasattr(value, "__dlpack__") and not isinstance(value, np.generic)


def _static(value: object) -> object:
    """A static argument as the front end takes it: NumPy's scalars and element types become the language's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return of_numpy(np.dtype(value)) or value
    if isinstance(value, list | tuple):
        return tuple(map(_static, value))
    return value


def _array(value: object, tensor: TensorForm, element: DType | None = None) -> Array:
    """An argument as an array of its own type; a Python number takes the parameter's, or i64 or f32 for a generic."""
    declared = tensor.dtype or element or (I64 if isinstance(value, int) else F32)
    array = dlpack.as_array(value, dlpack.Parameter(tensor.label, declared, ()))
    return array if tensor.dtype is None else typed(array, tensor.dtype, tensor.label)


def _leaves_of(value: object) -> Mapping[str, object]:
    """The tensors of a struct argument by dotted name; weights read from a file stay unread."""
    return value if isinstance(value, Weights) else flatten(value)


def snapshot(value: object) -> object:
    """A copy of a bound argument, so that later changes to it are not seen. What a file holds is not copied."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Weights):
        return value
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    if _is_tensor(value):
        return np.array(dlpack.as_array(value, dlpack.Parameter("", F32, ())))
    return value


def kind_of(value: Array | tuple[Array, ...]) -> Kind:
    """The key of an array's type; for a list that of its first tensor and the length."""
    if isinstance(value, tuple):
        return (value[0].dtype, value[0].shape, len(value)) if value else (0,)
    return value.dtype, value.shape


def type_of(value: Array | tuple[Array, ...]) -> Type:
    """The concrete type of an argument. Raises CompileError E0601 where the language lacks its element type."""
    if isinstance(value, tuple):
        element = type_of(value[0])
        assert isinstance(element, TensorType)
        return ListType(Size.of(len(value)), element)
    found = of_numpy(value.dtype.newbyteorder("="))
    if found is None:
        raise CompileError("E0601", f"an array of {value.dtype}: no such element type")
    return TensorType.of(found, *value.shape)


def declared_types(
    form: SignatureForm, tensors: Tensors, dims: Mapping[str, int] | None = None, *, codes: bool = False
) -> dict[str, Type]:
    """The concrete type of each tensor. Where NumPy has no name for the declared element type, such as `i3`, the codes
    in bytes that stand for it have the declared type; with `codes`, where it has one too, as PyTorch lacks most. `dims`
    are sizes that are given: a list without items has those of the signature.

    Raises CompileError E0614 for such a list where nothing decides a size.
    """
    forms = {t.label: t for t in form.tensors}
    found: dict[str, Type] = {}
    for label, value in tensors.items():
        if isinstance(value, tuple) and not value:
            found[label] = ListType(Size.of(0), _type_in(form, forms[label], tensors, dims or {}))
            continue
        kind = type_of(value)
        element = forms[label].dtype if label in forms else None
        if element is not None and element.is_narrow:
            stored = element.numpy_codes if codes else element.numpy
            if kind.dtype.numpy == stored:
                kind = _with_element(kind, element)
        found[label] = kind
    return found


def _type_in(form: SignatureForm, tensor: TensorForm, tensors: Tensors, dims: Mapping[str, int]) -> TensorType:
    """The type of a tensor as the signature has it, for the sizes that others decide."""
    shapes = {
        label: np.shape(v[0]) if isinstance(v, tuple) else v.shape
        for label, v in tensors.items()
        if not isinstance(v, tuple) or v
    }
    lengths = {label: len(v) for label, v in tensors.items() if isinstance(v, tuple)}
    known = known_sizes(form, shapes, lengths, dims)
    sizes = [size_of(d) for d in tensor.dims]
    if unknown := sorted(frozenset[str]().union(*(s.symbols for s in sizes)) - known.keys()):
        message = f"{form.function}: nothing decides {', '.join(unknown)}: the list that has {tensor.label} is empty"
        raise CompileError("E0614", message, hint=f"give {' '.join(f'--dim {n}=…' for n in unknown)}")
    return TensorType.of(tensor.dtype or F32, *(s.evaluate(known) for s in sizes))


def _with_element(kind: Type, element: DType) -> Type:
    if isinstance(kind, ListType):
        return ListType(kind.length, TensorType(element, kind.element.shape))
    return TensorType(element, kind.shape)


def open_types(
    form: SignatureForm, types: Mapping[str, Type], sizes: Mapping[str, int], dynamic: Sequence[str]
) -> dict[str, Type]:
    """The same types with the names in `dynamic` in place of their numbers."""
    fixed = {name: Size.of(number) for name, number in sizes.items() if name not in dynamic}

    def opened(text: str, number: Size) -> Size:
        size = size_of(text).substitute(fixed)
        return number if size.symbols.isdisjoint(dynamic) else size

    found = dict(types)
    for tensor in form.tensors:
        kind = types.get(tensor.label)
        if kind is None:
            continue
        own = kind.tensor
        dims = tensor.expanded(own.rank)
        if len(dims) != own.rank:
            continue  # of another rank than declared: the compiler says so
        element = TensorType(own.dtype, tuple(map(opened, dims, own.shape)))
        if isinstance(kind, ListType):
            found[tensor.label] = ListType(opened(tensor.length or "", kind.length), element)
        else:
            found[tensor.label] = element
    return found


def adapted(
    layouts: Sequence[TensorLayout], tensors: Tensors, sizes: Mapping[str, int]
) -> list[Array | tuple[Array, ...]]:
    """The arrays in the order of the entry function, in the layout that it wants; copied only where they differ.

    Raises CompileError E0601 or E0602 where an array has not the type that the code was compiled for.
    """
    result: list[Array | tuple[Array, ...]] = []
    for layout in layouts:
        value = tensors[layout.label]
        parameter = dlpack.Parameter(layout.label, layout.dtype, layout.concrete_shape(sizes))
        if isinstance(value, tuple):
            result.append(tuple(dlpack.adapt(v, parameter) for v in value))
        else:
            result.append(dlpack.adapt(value, parameter))
    return result
