"""From `--arg`, `--weights`, `--dim` and `--random` to the arguments of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from intarsia.arguments import (
    ArgumentSpec,
    Number,
    bind_leaves,
    check_names,
    parse_arguments,
    parse_dimensions,
    parse_weights,
    random_fill,
)
from intarsia.files import Weights, read_weights
from intarsia.ir.dtypes import F32, I64, Array
from intarsia.ir.errors import CompileError
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.program import Function, Tensors, type_of
from intarsia.signature import ParameterForm, TensorForm, known_sizes, size_of


def argument_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--arg, --weights and --random."""
    text = "A number, x.npy, w.npz:key, m.safetensors:key, or randn, rand, zeros, ones, arange with (seed=, lo=, hi=)."
    for decorate in (
        click.option("--random", "fill", is_flag=True, help="Fill arguments that are not named with random numbers."),
        click.option("--weights", multiple=True, metavar="[NAME=]FILE", help="Bind a struct, or all, by dotted name."),
        click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help=text),
    ):
        function = decorate(function)
    return function


@dataclass(frozen=True)
class Bound:
    """Arguments of one run: static ones, tensors by label, and sizes given."""

    statics: dict[str, object]
    tensors: Tensors
    dims: dict[str, int]


def bind(
    function: Function, arguments: Sequence[str], weights: Sequence[str], dims: Sequence[str], fill: bool
) -> Bound:
    """Read files, bind weights, solve dimension names, and make what has no shape of its own.

    Raises CompileError that lists what is missing or does not fit.
    """
    form = function.form
    specs = parse_arguments(arguments)
    sizes = parse_dimensions(dims)
    check_names(list(specs), [p.name for p in form.parameters] + [t.label for t in form.tensors], complete=False)
    for name in sizes:
        if name not in form.dimensions:
            known = ", ".join(form.dimensions) or "none"
            raise CompileError("E0611", f"{form.function} has no dimension '{name}'", hint=f"its dimensions: {known}")
    files = [(name, read_weights(path)) for name, path in map(parse_weights, weights)]
    statics: dict[str, object] = {}
    pending: dict[str, tuple[ArgumentSpec, TensorForm]] = {}
    tensors: Tensors = {}
    missing: list[str] = []
    for parameter in form.parameters:
        file = next((f for name, f in files if name == parameter.name), None)
        unnamed = next((f for name, f in files if name is None), None)
        if parameter.is_static:
            if parameter.name in specs:
                statics[parameter.name] = _static(specs[parameter.name], parameter)
            elif not parameter.has_default:
                missing.append(parameter.name)
            continue
        given = {t.label: specs[t.label] for t in parameter.tensors if t.label in specs}
        source = file if file is not None else unnamed if parameter.is_struct or parameter.name not in specs else None
        if source is not None and len(given) < len(parameter.tensors) and (file is not None or _has(source, parameter)):
            tensors.update(_from_weights(parameter, source))
        for tensor in parameter.tensors:
            if tensor.label in given:
                pending[tensor.label] = (given[tensor.label], tensor)
            elif tensor.label in tensors or parameter.has_default:
                continue
            elif fill:
                pending[tensor.label] = (random_fill(tensor.dtype or F32), tensor)
            else:
                missing.append(tensor.label)
    if missing:
        check_names([n for n in [p.name for p in form.parameters] if n not in missing], missing)
    _make(function, pending, tensors, sizes)
    return Bound(statics, tensors, sizes)


@dataclass(frozen=True)
class BoundTypes:
    """The types of one compilation: what `emit` needs instead of arrays."""

    types: dict[str, Type] | None
    statics: dict[str, object]
    dims: dict[str, int]


def bind_types(
    function: Function,
    arguments: Sequence[str],
    weights: Sequence[str],
    dims: Sequence[str],
    *,
    required: bool,
) -> BoundTypes:
    """Types from the files and numbers that are given; what is not given keeps the type of the signature.

    `required`: every dimension name must be decided. Raises CompileError E0614 naming those that are not.
    """
    form = function.form
    specs = parse_arguments(arguments)
    sizes = parse_dimensions(dims)
    check_names(list(specs), [p.name for p in form.parameters] + [t.label for t in form.tensors], complete=False)
    files = [(name, read_weights(path)) for name, path in map(parse_weights, weights)]
    types: dict[str, Type] = {}
    statics: dict[str, object] = {}
    for parameter in form.parameters:
        if parameter.is_static and (given := specs.get(parameter.name)) is not None:
            statics[parameter.name] = _static(given, parameter)
        for name, file in files:
            if name == parameter.name or (name is None and _has(file, parameter)):
                types.update((label, type_of(value)) for label, value in _from_weights(parameter, file).items())
        for tensor in parameter.tensors:
            if (spec := specs.get(tensor.label)) is not None and (shape := spec.shape()) is not None:
                types[tensor.label] = TensorType.of(spec.dtype() or tensor.dtype or F32, *shape)
    shapes = {n: t.static_shape for n, t in types.items() if isinstance(t, TensorType)}
    shapes |= {n: t.element.static_shape for n, t in types.items() if isinstance(t, ListType)}
    lengths = {n: int(t.length) for n, t in types.items() if isinstance(t, ListType)}
    known = known_sizes(form, shapes, lengths, sizes)
    open_names = [n for n in form.dimensions if n not in known]
    if required and open_names:
        hint = f"give {' '.join(f'--dim {n}=…' for n in open_names)}"
        raise CompileError("E0614", f"{form.function}: nothing decides {', '.join(open_names)}", hint=hint)
    if types or required:
        for parameter in form.parameters:
            for tensor in parameter.tensors:
                if tensor.label not in types and not parameter.has_default:
                    types[tensor.label] = _declared(form.function, tensor, known)
    return BoundTypes(types or None, statics, known)


def _declared(function: str, tensor: TensorForm, known: Mapping[str, int]) -> Type:
    """The type of the signature with the sizes that are known; a generic element is f32."""
    element = TensorType.of(tensor.dtype or F32, *_wanted_shape(function, tensor, known))
    return element if tensor.length is None else ListType(Size.of(size_of(tensor.length).evaluate(known)), element)


def _has(weights: Weights, parameter: ParameterForm) -> bool:
    """Does a file that was given for everything hold this parameter?"""
    if parameter.is_struct:
        return True
    return parameter.name in weights


def _from_weights(parameter: ParameterForm, weights: Weights) -> Tensors:
    if not parameter.is_struct:
        return {parameter.name: weights[parameter.name]}
    found = bind_leaves(parameter.name, parameter.leaves, weights)
    return {t.label: found[leaf.name] for t, leaf in zip(parameter.tensors, parameter.leaves)}


def _static(spec: ArgumentSpec, parameter: ParameterForm) -> object:
    if isinstance(spec, Number):
        return spec.value
    raise CompileError(
        "E0616", f"{parameter.name} is static: it takes a literal", hint=f"as in --arg {parameter.name}=-1"
    )


def _make(
    function: Function, pending: Mapping[str, tuple[ArgumentSpec, TensorForm]], tensors: Tensors, sizes: dict[str, int]
) -> None:
    """Make the arguments that were given as files or generators, now that sizes can be known."""
    form = function.form
    shapes = {label: _shape_of(value) for label, value in tensors.items()}
    lengths = {label: len(value) for label, value in tensors.items() if isinstance(value, tuple)}
    for label, (spec, _) in pending.items():
        if (shape := spec.shape()) is not None:
            shapes[label] = shape
    known = known_sizes(form, shapes, lengths, sizes)
    for label, (spec, tensor) in pending.items():
        shape = spec.shape()
        if shape is None:
            shape = _wanted_shape(form.function, tensor, known)
        element = tensor.dtype or spec.dtype() or (I64 if _is_integer(spec) else F32)
        length = None if tensor.length is None else size_of(tensor.length).evaluate(known)
        if length is None:
            tensors[label] = spec.make(element, shape, label)
        else:
            tensors[label] = tuple(spec.make(element, shape, f"{label}.{i}") for i in range(length))


def _wanted_shape(function: str, tensor: TensorForm, known: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that the signature asks for. Raises CompileError E0614 naming the sizes that nothing decides."""
    texts = [*tensor.dims, *([tensor.length] if tensor.length else [])]
    unknown: list[str] = []
    for text in texts:
        names = {text} if text.startswith("..") else size_of(text).symbols
        unknown += sorted(n for n in names if n not in known and n not in unknown)
    if unknown:
        options = " ".join(f"--dim {n}=…" for n in unknown if not n.startswith(".."))
        hint = f"give {options}" if options else f"give {tensor.label} as an array in a file"
        raise CompileError(
            "E0614", f"{function}: no argument decides {', '.join(unknown)} of {tensor.label}", hint=hint
        )
    return tuple(size_of(d).evaluate(known) for d in tensor.dims)


def _is_integer(spec: ArgumentSpec) -> bool:
    return isinstance(spec, Number) and isinstance(spec.value, int)


def _shape_of(value: Array | tuple[Array, ...]) -> tuple[int, ...]:
    return np.shape(value[0]) if isinstance(value, tuple) else np.shape(value)
