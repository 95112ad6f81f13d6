"""Builds of whole functions and tests: parameters become those of a Graph, dimension names its symbols."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from intarsia.dsl import ast
from intarsia.dsl.evaluation.builder import Builder
from intarsia.dsl.evaluation.calls import bind_signature
from intarsia.dsl.evaluation.structs import stacked
from intarsia.dsl.files import SourceFile
from intarsia.dsl.semantics.bounds import Bounds
from intarsia.dsl.semantics.scope import File, Scope
from intarsia.dsl.semantics.signature import ParameterInfo, Signature, read_signature
from intarsia.dsl.semantics.types import (
    StructPattern,
    TensorPattern,
    leaves,
    named_format,
    read_mesh,
    struct_fields,
)
from intarsia.dsl.semantics.unify import Equation, Unifier, unknown
from intarsia.dsl.semantics.values import (
    Format,
    FormatTensor,
    Item,
    Poisoned,
    Struct,
    StructList,
    describe,
    leaves_of,
    tensor_of,
)
from intarsia.ir.dtypes import BOOL, F32, I32, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Graph, Module, Parameter, Value, region_of
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType, Type

REPRESENTATIVES: dict[str, DType] = {"float": F32, "int": I32, "number": F32, "any": F32}


@dataclass(frozen=True)
class Instance:
    """A function with its generics and the ranks of its packs decided.

    unifier: every dimension name stands for itself, `..S` for `S_0`, `S_1`, …  known: the values of names that have
    one. labels: the tensors that are given, or None for all. statics: the values of static parameters.
    """

    signature: Signature
    unifier: Unifier
    known: Mapping[str, Size]
    labels: frozenset[str] | None = None
    statics: Mapping[str, object] = field(default_factory=dict)
    untyped: Mapping[str, TensorType] = field(default_factory=dict)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """All names, those of packs after the others."""
        packs = (n for dims in self.unifier.packs.values() for d in dims if (n := d.as_name) is not None)
        own = (s.as_name or "" for t in self.untyped.values() for s in t.shape)
        return (*self.signature.dimensions, *packs, *own)


def bind_types(
    signature: Signature,
    types: Mapping[str, Type] | None,
    dims: Mapping[str, int],
    statics: Mapping[str, object] | None = None,
) -> Instance:
    """Decide generics, packs and sizes by the types of arguments. Raises CompileError where they do not fit."""
    found = Unifier(Bounds(), signature.classes)
    for name, number in dims.items():
        if name in signature.dimensions:
            equation = Equation(Size.of(unknown(name)), Size.of(number), f"{name}={number}", None)
            found.equations.append(equation)
    for label, pattern, length in signature.tensors():
        given = types.get(label) if types is not None else None
        if given is not None:
            _match_leaf(found, label, pattern, length, given)
    found.solve()
    known = {
        name: size
        for name in signature.dimensions
        if (size := found.sizes.get(unknown(name))) is not None and size.constant is not None
    }
    packs: dict[str, tuple[Size, ...]] = {}
    for pack, sizes in found.packs.items():
        names = [_pack_dimension(pack, position, signature) for position in range(len(sizes))]
        packs[pack] = tuple(Size.of(name) for name in names)
        known |= {n: s for name, size in zip(names, sizes) for n, s in ((name, size),) if s.constant is not None}
    known |= {
        name: Size.of(number) for name, number in dims.items() if name in {str(d) for p in packs.values() for d in p}
    }
    unifier = Unifier(Bounds(), signature.classes, _own_names(signature), packs=packs, elements=dict(found.elements))
    for parameter in signature.parameters:
        if parameter.name in signature.static_sizes:
            value = _static_size(parameter, statics or {})
            if value is not None:
                unifier.sizes[unknown(parameter.name)] = Size.of(value)
    labels = None if types is None else frozenset(types)
    untyped = {p.name: _untyped(p.name, types, known) for p in signature.parameters if _is_untyped(p, types)}
    return Instance(signature, unifier, known, labels, statics or {}, untyped)


def _static_size(parameter: ParameterInfo, statics: Mapping[str, object]) -> int | None:
    """The integer that a static parameter is, given or by default."""
    if parameter.name in statics:
        value = statics[parameter.name]
        return value if isinstance(value, int) else None
    match parameter.declaration.default:
        case ast.Number(_, int() as number):
            return number
    return None


def _is_untyped(parameter: ParameterInfo, types: Mapping[str, Type] | None) -> bool:
    return parameter.pattern is None and types is not None and isinstance(types.get(parameter.name), TensorType)


def _untyped(name: str, types: Mapping[str, Type] | None, known: dict[str, Size]) -> TensorType:
    """The type of a tensor for a static parameter, with names `mask_0`, `mask_1`, … for its sizes."""
    given = types[name] if types is not None else None
    assert isinstance(given, TensorType)
    names = [f"{name}_{position}" for position in range(given.rank)]
    known.update(zip(names, given.shape))
    return TensorType(given.dtype, tuple(Size.of(n) for n in names))


def _match_leaf(unifier: Unifier, label: str, pattern: TensorPattern, length: Size | None, given: Type) -> None:
    where = f"`{label}`"
    if isinstance(given, ListType) != (length is not None):
        wanted = f"a list of {pattern}" if length is not None else str(pattern)
        raise CompileError("E0304", f"{where} is {given}, and {wanted} is wanted")
    if isinstance(given, ListType):
        assert length is not None
        unifier.equations.append(Equation(length, given.length, f"the length of {where}", None))
        given = given.element
    unifier.match_tensor(pattern, given, where, None)


def _own_names(signature: Signature) -> dict[str, Size]:
    return {unknown(name): Size.of(name) for name in signature.dimensions}


def _pack_dimension(pack: str, position: int, signature: Signature) -> str:
    """`S_0`, or with more underscores where the signature has such a name."""
    name = f"{pack}_{position}"
    while name in signature.dimensions:
        name = f"{name}_"
    return name


def representative(signature: Signature) -> Instance | None:
    """The instance on which a function is checked alone; None where a static parameter has no default."""
    if any(p.pattern is None and p.declaration.default is None for p in signature.parameters):
        return None
    elements: dict[str, DType | Format] = {}
    for name, kind in signature.classes.items():
        example = named_format("mxfp4", None) if kind == "format" else REPRESENTATIVES[kind]
        assert example is not None
        elements[name] = example
    packs = {p: tuple(Size.of(_pack_dimension(p, n, signature)) for n in range(2)) for p in signature.packs}
    unifier = Unifier(Bounds(), signature.classes, _own_names(signature), packs=packs, elements=elements)
    return Instance(signature, unifier, {})


# ---------------------------------------------------------------------- building


def build_function(builder: Builder, instance: Instance) -> Module:
    """The Graph of an instance. Raises CompileError with everything that is wrong."""
    signature = instance.signature
    bounds = builder.bounds
    bounds.dimensions = dict.fromkeys(instance.dimensions)
    bounds.known = dict(instance.known)
    bounds.untyped = {n for t in instance.untyped.values() for s in t.shape for n in s.symbols}
    instance.unifier.bounds = bounds
    scope = Scope(signature.file)
    bind_signature(signature, instance.unifier, scope)
    parameters: list[Parameter] = []
    try:
        for info in signature.parameters:
            _bind_parameter(builder, instance, info, scope, parameters)
        item = builder.function_body(signature, instance.unifier, scope, None)
        results, labels = _results(builder, item, signature)
    except Poisoned:
        results, labels = [], ()
    except CompileError as error:
        builder.report(error)
    if builder.diagnostics:
        raise CompileError.of(builder.diagnostics)
    body = region_of(parameters, builder.regions[0], results)
    return Module(Graph(signature.name, body, instance.dimensions, labels), header=header(signature.file))


def _bind_parameter(
    builder: Builder, instance: Instance, info: ParameterInfo, scope: Scope, parameters: list[Parameter]
) -> None:
    """Bind a parameter to graph parameters or to a static value; one that is left out gets its default later."""
    name, declaration = info.name, info.declaration
    if info.pattern is None:
        if name in instance.untyped:
            parameter = Parameter(name, instance.untyped[name], declaration.const, span=declaration.span)
            parameters.append(parameter)
            scope.bind(name, parameter.value, declaration.name.span)
        elif name in instance.statics:
            scope.bind(name, static_item(instance.statics[name], name), declaration.name.span)
        elif declaration.default is None:
            raise CompileError("E0315", f"the static parameter `{name}` is not given", declaration.span)
        return
    labels = [label for label, _, _ in leaves(name, info.pattern)]
    missing = [label for label in labels if instance.labels is not None and label not in instance.labels]
    if missing:
        if declaration.default is not None and len(missing) == len(labels):
            return
        raise CompileError("E0315", f"`{missing[0]}` is not given", declaration.span)
    scope.bind(
        name, _parameter_item(builder, instance, info, name, info.pattern, None, parameters), declaration.name.span
    )


def _parameter_item(
    builder: Builder,
    instance: Instance,
    info: ParameterInfo,
    label: str,
    pattern: TensorPattern | StructPattern | object,
    length: Size | None,
    parameters: list[Parameter],
) -> Item:
    """A parameter of the graph for each tensor of a parameter of the function."""
    if isinstance(pattern, StructPattern):
        sizes = instance.unifier.struct(pattern)
        inner = length if pattern.length is None else sizes.length
        fields: dict[str, Item] = {}
        for struct_field, found in struct_fields(pattern):
            own = f"{label}.{struct_field.name}"
            fields[struct_field.name.text] = _parameter_item(builder, instance, info, own, found, inner, parameters)
        struct = Struct(pattern.declaration, sizes.dims, fields)
        return struct if sizes.length is None else StructList(struct, sizes.length)
    assert isinstance(pattern, TensorPattern)
    element = pattern.element
    if isinstance(element, Format) or isinstance(instance.unifier.elements.get(element.name), Format):
        found_format = element if isinstance(element, Format) else instance.unifier.elements[element.name]
        assert isinstance(found_format, Format)
        shape = instance.unifier.shape(pattern)
        parts: dict[str, Item] = {}
        for name, stored, dims in found_format.leaves(shape, label):
            part = name.removeprefix(f"{label}.")
            # Codes lie as the tensor does; how scales lie follows from them.
            sharding = instance.unifier.sharding(pattern) if part == "codes" else None
            stored_type = TensorType(stored, dims, sharding)
            parts[part] = _tensor_parameter(builder, info, name, stored_type, length, parameters)
        return FormatTensor(found_format, shape, parts)
    return _tensor_parameter(builder, info, label, instance.unifier.tensor(pattern), length, parameters)


def _tensor_parameter(
    builder: Builder,
    info: ParameterInfo,
    label: str,
    tensor: TensorType,
    length: Size | None,
    parameters: list[Parameter],
) -> Value:
    """One parameter of the graph, a list if it has a length."""
    _note_sizes(builder, tensor.shape)
    type_: Type = tensor
    if length is not None:
        type_ = ListType(length, tensor)
        _note_sizes(builder, (length,))
    parameter = Parameter(label, type_, info.declaration.const, span=info.declaration.span)
    parameters.append(parameter)
    return parameter.value


def _note_sizes(builder: Builder, sizes: Iterable[Size]) -> None:
    """A declared size is at least 0: `N - 1` says that N is at least 1."""
    builder.bounds.facts += [s for s in sizes if s.as_name is None and s.constant is None]


def static_item(value: object, name: str) -> Item:
    """A Python value as a static item: numbers, texts, None, dtypes, sizes and tuples of these."""
    if isinstance(value, (list, tuple)):
        return tuple(static_item(v, name) for v in value)
    if value is None or isinstance(value, (bool, int, float, str, DType, Size, Format)):
        return value
    raise CompileError(
        "E0321", f"`{name}` cannot be {value!r}", hint="static values are numbers, texts, none and tuples"
    )


def _results(builder: Builder, item: Item, signature: Signature) -> tuple[list[Value], tuple[str, ...]]:
    """The tensors that a function gives and, where structs are among what it gives, the name of each.

    `0`, `1.layer.*.up` are those of a tensor and of a struct, `layer.*.up` is one of a struct that is the only result.
    """
    span = signature.function.name.span
    items = item if isinstance(item, tuple) else (item,)
    values: list[Value] = []
    labels: list[str] = []
    for position, result in enumerate(items):
        if result is None or isinstance(result, (str, DType, tuple)):
            hint = "results are tensors and structs, or several of them separated by commas"
            raise CompileError("E0310", f"{signature.name} returns {describe(result)}", span, hint=hint)
        leaves = leaves_of(result, str(position) if len(items) > 1 else "")
        values += [stacked(builder, builder.as_value(leaf, span), span) for _, leaf in leaves]
        labels += [label for label, _ in leaves]
    has_structs = any(isinstance(i, (Struct, StructList)) for i in items)
    return values, tuple(labels) if has_structs else ()


def header(file: File) -> tuple[str, ...]:
    """The lines before a Graph: the mesh that a file declares. Raises CompileError where it is none."""
    mesh = file.mesh()
    if mesh is None:
        return ()
    return (f"mesh {mesh.name}({', '.join(f'{axis}={devices}' for axis, devices in read_mesh(mesh).items())})",)


def build_test(builder: Builder, test: ast.Test, file: SourceFile, name: str) -> Module:
    """The Graph of a test: its results are what it asserts. Raises CompileError."""
    scope = Scope(file)
    results: list[Value] = []
    for statement in test.body:
        if isinstance(statement, ast.Assert):
            builder.attempt(statement, scope, partial(_assert, builder, statement, scope, results))
        else:
            builder.run([statement], scope)
    if builder.diagnostics:
        raise CompileError.of(builder.diagnostics)
    return Module(Graph(name, region_of((), builder.regions[0], results)), header=header(file))


def _assert(builder: Builder, statement: ast.Assert, scope: Scope, results: list[Value]) -> None:
    """Add what a statement asserts to the results. Raises E0507 if it is no truth value."""
    item = builder.evaluate(statement.condition, scope)
    found = tensor_of(item)
    if not isinstance(item, bool) and (found is None or found.rank or found.dtype != BOOL):
        hint = "all(…) of a tensor is a scalar" if found is not None and found.rank else "compare: x == y"
        message = f"assert wants a scalar bool, and this is {describe(item)}"
        raise CompileError("E0507", message, statement.condition.span, hint=hint)
    results.append(builder.as_value(item, statement.condition.span))


# ---------------------------------------------------------------------- checking


def check_function(function: ast.Function, file: File, builder: Builder) -> None:
    """Report what is wrong with a function."""
    try:
        instance = representative(read_signature(function, file))
        if instance is not None:
            build_function(builder, instance)
    except CompileError as error:
        builder.report(error)


def check_test(test: ast.Test, file: SourceFile, builder: Builder) -> None:
    """Report what is wrong with a test."""
    try:
        build_test(builder, test, file, "test")
    except CompileError as error:
        builder.report(error)


def calls_of(node: ast.Node) -> str | None:
    """The function that a call, or a transform of a function, names."""
    match node:
        case ast.Call(head, (ast.Name(name), *_)) if head.text in ast.TRANSFORMS:
            return name
        case ast.Call(head):
            return head.text
    return None


def call_order(files: Iterable[SourceFile]) -> list[tuple[ast.Function, File]]:
    """All functions, each after those that it calls, so that a mistake is found where it is made."""
    order: dict[ast.Function, File] = {}
    seen: set[ast.Function] = set()
    for file in files:
        for function in file.functions.values():
            stack: list[tuple[ast.Function, File, bool]] = [(function, file, False)]
            while stack:
                current, home, ready = stack.pop()
                if ready:
                    order.setdefault(current, home)
                    continue
                if current in seen:
                    continue
                seen.add(current)
                stack.append((current, home, True))
                for node in ast.walk(current):
                    called = calls_of(node)
                    found = home.function(called) if called is not None else None
                    if found is not None:
                        stack.append((*found, False))
    return list(order.items())
