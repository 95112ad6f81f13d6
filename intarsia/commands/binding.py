"""From `--arg`, `--weights`, `--dim` and `--random` to the arguments of a function, or to their types."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from intarsia.arguments import (
    ArgumentSpec,
    FromFile,
    Generated,
    Leaf,
    Number,
    bind_leaves,
    check_names,
    parse_arguments,
    parse_dimensions,
    parse_static,
    parse_weights,
    random_fill,
)
from intarsia.files import Weights, open_arrays, read_array, read_weights
from intarsia.function import Function, require_dimensions, shapes_of
from intarsia.ir.dtypes import F32, I64, Array, DType, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.options import PROCESS_KINDS
from intarsia.parts import Unmade
from intarsia.signature import ParameterForm, SignatureForm, TensorForm, known_sizes, size_of
from intarsia.tensors import Tensors, adapted, declared_types, split_arguments, type_of

if TYPE_CHECKING:
    from intarsia.driver import Compilation
    from intarsia.gpu_calls import PlacedCall
    from intarsia.mesh_calls import Parts
    from intarsia.mesh_program import MeshProgram

F = TypeVar("F", bound=Callable[..., Any])


def argument_options(function: F) -> F:
    """--arg, --weights and --random."""
    function = click.option("--random", "fill", is_flag=True, help="Fill what is not named with random numbers.")(
        function
    )
    return type_options(function)


def type_options(function: F) -> F:
    """--arg and --weights: their types decide sizes, also where nothing is run."""
    text = "A number, x.npy, w.npz:key, m.safetensors:key, or randn, rand, zeros, ones, arange with (seed=, lo=, hi=)."
    function = click.option(
        "--weights", multiple=True, metavar="[NAME=]FILE[:KEY]", help="Bind a struct, or all, by dotted name."
    )(function)
    return click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help=text)(function)


@dataclass(frozen=True)
class Bound:
    """A function with the arguments of one run: static ones, tensors by label, and the sizes that were given. Arrays
    stand for those of `unmade`, of which each process makes its part, by identity."""

    function: Function
    statics: dict[str, object]
    tensors: Tensors
    dims: dict[str, int]
    unmade: Parts = field(default_factory=dict)

    def whole(self, label: str) -> Array | tuple[Array, ...]:
        """A tensor, or those of a list, with all elements."""
        value = self.tensors[label]
        return tuple(map(self._made, value)) if isinstance(value, tuple) else self._made(value)

    def _made(self, array: Array) -> Array:
        return self.unmade[id(array)][1].made() if id(array) in self.unmade else array

    def compilation(self) -> Compilation:
        """Every stage for these arguments."""
        return self.function.compilation(self.tensors, self.statics, self.dims)

    def inputs(self, compilation: Compilation) -> list[Array | list[Array]]:
        """The arguments in the order of the graph's parameters, as the interpreters take them."""
        found = (self.whole(p.label) for p in compilation.source_module.graph.parameters)
        return [list(value) if isinstance(value, tuple) else value for value in found]

    def result_types(self, results: Sequence[Array]) -> list[DType | None]:
        """The element types of results; bytes may be codes of a type that NumPy does not have, which only the graph
        tells."""
        if all(r.dtype not in (np.int8, np.uint8) for r in results):
            return [of_numpy(r.dtype) for r in results]
        types = [value.type for value in self.compilation().source_module.graph.results]
        return [kind.dtype if isinstance(kind, TensorType) else None for kind in types]

    def result_labels(self, *, compiled: bool) -> tuple[str, ...]:
        """The labels of the results, where some are tensors of structs; compiled code says so without the program."""
        if compiled and self.function.mesh is not None:
            return self.mesh_program().local.labels
        if compiled:
            return self.function.compiled(self.tensors, self.statics, self.dims)[0].labels
        return self.compilation().source_module.graph.labels

    def call(self) -> Callable[[], list[Array]]:
        """A callable that runs the compiled program; compiling is done when this returns. If the program runs on a GPU,
        its arguments are there then, and its results are brought to the host."""
        if self.function.mesh is not None:
            return self.function.mesh.call_for(self.tensors, self.statics, self.dims, parts=self.unmade)
        if self.function.runs_on_gpu:
            return to_host(self.placed())
        executable, sizes = self.function.compiled(self.tensors, self.statics, self.dims)
        inputs = adapted(executable.inputs, self.tensors, sizes)
        _ = executable.native
        prepared = executable.prepared(inputs, sizes)
        return lambda: executable.run(inputs, sizes, prepared)

    def mesh_program(self) -> MeshProgram:
        """The program for the devices of a mesh."""
        assert self.function.mesh is not None
        return self.function.mesh.program(self.tensors, self.statics, self.dims)

    def placed(self, graph: bool = False, compilation: Compilation | None = None) -> PlacedCall:
        """A call of the program, or of another compilation of it, on the GPU, where its arguments are when this
        returns."""
        assert self.function.gpu is not None
        own = self.compilation() if compilation is None else compilation
        return self.function.gpu.repeated(own, self.tensors, graph=graph)


def to_host(call: PlacedCall) -> Callable[[], list[Array]]:
    """A callable that runs a program on the GPU and brings the results to the host."""
    from intarsia.gpu_calls import as_arrays

    return lambda: as_arrays(call.call.launch, call())


def bind(
    function: Function, arguments: Sequence[str], weights: Sequence[str], dims: Sequence[str], fill: bool
) -> Bound:
    """Read files, bind weights, solve dimension names, and make what has no shape of its own.

    Raises CompileError that lists what is missing or does not fit.
    """
    form = function.form
    specs, statics = _specifications(form, arguments)
    sizes = _sizes(form, dims)
    tensors: Tensors = {n: v for n, v in statics.items() if isinstance(v, np.ndarray)}
    pending: dict[str, tuple[ArgumentSpec, TensorForm]] = {}
    missing = [p.name for p in form.parameters if p.is_static and not p.has_default and p.name not in statics]
    files = _weight_files(form, weights)
    for parameter in form.parameters:
        file = _file_of(parameter, files, specs)
        if file is not None:
            tensors.update(_from_weights(parameter, file))
        for tensor in parameter.tensors:
            if tensor.label in specs:
                tensors.pop(tensor.label, None)
                pending[tensor.label] = (specs[tensor.label], tensor)
            elif tensor.label in tensors or parameter.has_default:
                continue
            elif fill:
                pending[tensor.label] = (random_fill(tensor.dtype or F32), tensor)
            else:
                missing.append(tensor.label)
    if missing:
        check_names([], missing)
    in_parts = function.options.devices in PROCESS_KINDS
    unmade = _make(form, pending, tensors, sizes, in_parts)
    kept = {n: v for n, v in statics.items() if n not in tensors}
    return Bound(function, kept, tensors, sizes, unmade)


@dataclass(frozen=True)
class BoundTypes:
    """The types of one compilation: what `emit` needs instead of arrays. None: those of the signature."""

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

    `required`: every dimension name that is not kept open must be decided. Raises CompileError E0614 naming those that
    are not, E0611 for one to keep open that the function does not have.
    """
    form, dynamic = function.form, function.program.options.dynamic
    specs, statics = _specifications(form, arguments)
    sizes = _sizes(form, dims)
    tensors: Tensors = {n: v for n, v in statics.items() if isinstance(v, np.ndarray)}
    files = _weight_files(form, weights)
    for parameter in form.parameters:
        if (file := _file_of(parameter, files, specs)) is not None:
            tensors.update(_from_weights(parameter, file))
    types = declared_types(form, tensors, sizes)
    for tensor in form.tensors:
        if (spec := specs.get(tensor.label)) is not None and (shape := spec.shape()) is not None:
            types[tensor.label] = TensorType.of(tensor.dtype or spec.dtype() or _literal_type(spec), *shape)
    known = known_sizes(form, *shapes_of(types), sizes)
    require_dimensions(form, dynamic)
    open_names = [n for n in form.dimensions if n not in known]
    if required:
        given = [t for p in form.parameters for t in p.tensors if t.label not in types and not p.has_default]
        _require_sizes(form.function, given, {*known, *dynamic}, known)
        _require_explicit(form, {*known, *dynamic})
    statics = {n: v for n, v in statics.items() if n not in tensors}
    if not types and not required:
        return BoundTypes(None, statics, sizes)
    for parameter in form.parameters:
        for tensor in parameter.tensors:
            if tensor.label not in types and not parameter.has_default and not (open_names and not required):
                types[tensor.label] = _declared(tensor, known)
    return BoundTypes(types, statics, sizes if open_names and not required else known)


# ---------------------------------------------------------------------- reading the options


def _specifications(form: SignatureForm, texts: Sequence[str]) -> tuple[dict[str, ArgumentSpec], dict[str, object]]:
    """What `--arg` gives for tensors, and for static parameters; arrays for these are read."""
    names = {p.name for p in form.parameters if p.is_static}
    statics: dict[str, object] = {}
    others: list[str] = []
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in names:
            others.append(text)
        elif name in statics:
            raise CompileError("E0610", f"argument '{name}' is given twice")
        else:
            given = parse_static(value)
            statics[name] = read_array(given.path, given.key) if isinstance(given, FromFile) else given
    specs = parse_arguments(others)
    labels = {t.label: None for t in form.tensors} | {p.name: None for p in form.parameters if not p.is_struct}
    groups = [name for name in specs if any(label.startswith(f"{name}.") for label in labels)]
    parts: dict[str, ArgumentSpec] = {}
    for name in groups:
        parts |= _parts(form, name, specs.pop(name))
    check_names(list(specs), list(labels), complete=False)
    return parts | specs, statics


def _parts(form: SignatureForm, name: str, spec: ArgumentSpec) -> dict[str, ArgumentSpec]:
    """`--arg NAME=FILE` where NAME is several tensors: a tensor of a format, a struct, or a struct in one. With
    `FILE:KEY` they have KEY in front in the file. Raises CompileError E0607, E0609, E0704."""
    own = [t for t in form.tensors if t.label.startswith(f"{name}.")]
    if not isinstance(spec, FromFile) or any(t.length is not None for t in own):
        hint = f"give them by {own[0].label}=…, or by --weights {name.partition('.')[0]}=FILE"
        raise CompileError("E0607", f"'{name}' is {len(own)} tensors: {', '.join(t.label for t in own)}", hint=hint)
    leaves = [Leaf(t.label[len(name) + 1 :]) for t in own]
    file = open_arrays(spec.path)
    wanted = spec.key or name
    if spec.key and not any(key.startswith(f"{wanted}.") for key in file.names):
        file.resolve(wanted)
    arrays = {key: FromFile(spec.path, key) for key in file.names}
    found = bind_leaves(wanted, leaves, {"": arrays[wanted]} if wanted in arrays else arrays)
    return {f"{name}.{leaf}": part for leaf, part in found.items() if isinstance(part, FromFile)}


def _sizes(form: SignatureForm, texts: Sequence[str]) -> dict[str, int]:
    """What `--dim` gives. Raises CompileError E0611 for a name that the function does not have."""
    sizes = parse_dimensions(texts)
    packs = {d[2:] for t in form.tensors for d in t.dims if d.startswith("..")}
    for name in sizes:
        if name not in form.dimensions and name.rpartition("_")[0] not in packs:
            known = ", ".join([*form.dimensions, *(f"{p}_0, {p}_1, …" for p in sorted(packs))]) or "none"
            raise CompileError("E0611", f"{form.function} has no dimension '{name}'", hint=f"its dimensions: {known}")
    return sizes


def _weight_files(form: SignatureForm, texts: Sequence[str]) -> list[tuple[str | None, Weights]]:
    """The files of `--weights` with the parameter that each was given for. Raises CompileError E0610."""
    named = [parse_weights(text) for text in texts]
    check_names([n for n, _, _ in named if n is not None], [p.name for p in form.parameters], complete=False)
    return [(name, read_weights(path).below(key)) for name, path, key in named]


def _file_of(
    parameter: ParameterForm, files: Sequence[tuple[str | None, Weights]], specs: Mapping[str, ArgumentSpec]
) -> Weights | None:
    """The file that holds a parameter: one given for it, else one given for all, unless `--arg` gives everything."""
    if parameter.is_static or all(t.label in specs for t in parameter.tensors):
        return None
    own = next((f for name, f in files if name == parameter.name), None)
    if own is not None:
        return own
    shared = [f for name, f in files if name is None]
    if parameter.is_struct:
        return next((f for f in shared if any(n.startswith(f"{parameter.name}.") for n in f)), next(iter(shared), None))
    return next((f for f in shared if parameter.name in f), None)


def _from_weights(parameter: ParameterForm, weights: Weights) -> Tensors:
    """Raises CompileError E0609, or E0704 for a single tensor, that says what the file lacks."""
    value: object = weights
    if not parameter.is_struct:
        names = list(weights)
        key = parameter.name if parameter.name in weights or len(names) != 1 else names[0]
        value = weights.file.read(weights.file.resolve(weights.prefix + key))
    return split_arguments([parameter], {parameter.name: value})[1]


# ---------------------------------------------------------------------- making arrays


def _make(
    form: SignatureForm,
    pending: Mapping[str, tuple[ArgumentSpec, TensorForm]],
    tensors: Tensors,
    sizes: dict[str, int],
    in_parts: bool,
) -> Parts:
    """Make the arguments that were given as files or generators, now that sizes can be known. Gives those of which only
    parts are to be made, if that is so."""
    unmade: Parts = {}

    def make(spec: ArgumentSpec, element: DType, shape: tuple[int, ...], name: str) -> Array:
        if not in_parts or not isinstance(spec, Generated):
            return spec.make(element, shape, name)
        own = Unmade(shape, element.numpy, partial(spec.part, element, shape, name))
        array = own.stand_in()
        unmade[id(array)] = array, own
        return array

    shapes = {label: _shape_of(value) for label, value in tensors.items()}
    lengths = {label: len(value) for label, value in tensors.items() if isinstance(value, tuple)}
    shapes |= {label: shape for label, (spec, _) in pending.items() if (shape := spec.shape()) is not None}
    known = known_sizes(form, shapes, lengths, sizes)
    _require_sizes(form.function, [t for spec, t in pending.values() if spec.shape() is None or t.length], known, known)
    _require_explicit(form, known)
    elements = _generic_elements(form, tensors, pending)
    for label, (spec, tensor) in pending.items():
        shape = spec.shape()
        if shape is None:
            shape = _wanted_shape(tensor, known)
        element = tensor.dtype or spec.dtype() or elements.get(tensor.element) or _literal_type(spec)
        if (size := math.prod(shape) * element.bytes) >= 1 << 62:  # NumPy knows no such sizes
            raise MemoryError(f"{label} would take {size} bytes")
        if tensor.length is None:
            tensors[label] = make(spec, element, shape, label)
        else:
            count = size_of(tensor.length).evaluate(known)
            tensors[label] = tuple(make(spec, element, shape, f"{label}.{i}") for i in range(count))
    return unmade


def _generic_elements(
    form: SignatureForm, tensors: Tensors, pending: Mapping[str, tuple[ArgumentSpec, TensorForm]]
) -> dict[str, DType]:
    """The element types of generic parameters that files decide."""
    found: dict[str, DType] = {}
    for tensor in form.tensors:
        if tensor.dtype is not None:
            continue
        if tensor.label in tensors:
            kind = type_of(tensors[tensor.label])
            found.setdefault(tensor.element, kind.dtype)
        elif tensor.label in pending and (element := pending[tensor.label][0].dtype()) is not None:
            found.setdefault(tensor.element, element)
    return found


def _declared(tensor: TensorForm, known: Mapping[str, int]) -> Type:
    """The type of the signature with the sizes that are known, others by name; a generic element is f32."""
    values = {name: Size.of(number) for name, number in known.items()}
    shape = tuple(size_of(d).substitute(values) for d in _wanted_dims(tensor, known))
    element = TensorType(tensor.dtype or F32, shape)
    return element if tensor.length is None else ListType(size_of(tensor.length).substitute(values), element)


def _wanted_dims(tensor: TensorForm, known: Mapping[str, int]) -> tuple[str, ...]:
    """The dims that the signature asks for; a pack stands for as many as `--dim S_0=…`, … say."""
    pack = next((d[2:] for d in tensor.dims if d.startswith("..")), None)
    if pack is None:
        return tensor.dims
    count = next(i for i in range(len(known) + 1) if f"{pack}_{i}" not in known)
    return tensor.expanded(len(tensor.dims) - 1 + count) if count else tensor.dims


def _require_explicit(form: SignatureForm, decided: Collection[str]) -> None:
    """Raise CompileError E0614 naming the sizes that only `--dim` can decide and that it does not."""
    _require(form.function, [n for n in form.explicit if n not in decided])


def _require_sizes(
    function: str, tensors: Sequence[TensorForm], decided: Collection[str], known: Mapping[str, int]
) -> None:
    """Raise CompileError E0614 naming all sizes of some tensors that nothing decides."""
    unknown: dict[str, None] = {}
    for tensor in tensors:
        for text in (*_wanted_dims(tensor, known), *([tensor.length] if tensor.length else [])):
            names = {text} if text.startswith("..") else size_of(text).symbols
            unknown.update((n, None) for n in sorted(names) if n not in decided)
    _require(function, list(unknown))


def _require(function: str, unknown: Sequence[str]) -> None:
    if unknown:
        options = " ".join(f"--dim {n[2:]}_0=…" if n.startswith("..") else f"--dim {n}=…" for n in unknown)
        raise CompileError("E0614", f"{function}: nothing decides {', '.join(unknown)}", hint=f"give {options}")


def _wanted_shape(tensor: TensorForm, known: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that the signature asks for."""
    return tuple(size_of(d).evaluate(known) for d in _wanted_dims(tensor, known))


def _literal_type(spec: ArgumentSpec) -> DType:
    """The element type of a generic parameter that nothing else decides."""
    return I64 if isinstance(spec, Number) and isinstance(spec.value, int) else F32


def _shape_of(value: Array | tuple[Array, ...]) -> tuple[int, ...]:
    return np.shape(value[0]) if isinstance(value, tuple) else np.shape(value)
