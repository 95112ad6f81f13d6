"""The signature of a function: its parameters' types with every dimension an unknown."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.dsl import ast
from intarsia.dsl.semantics.names import SignatureNames
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.types import GENERIC_CLASSES, Pattern, TensorPattern, TuplePattern, leaves, read_type
from intarsia.dsl.semantics.unify import unknown
from intarsia.ir.dtypes import dtype
from intarsia.ir.errors import CompileError
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter; a static one has no pattern."""

    declaration: ast.Parameter
    pattern: Pattern | None

    @property
    def name(self) -> str:
        return self.declaration.name.text


@dataclass(frozen=True)
class Signature:
    """What a function takes and gives.

    dimensions: every dimension name, in order of binding. explicit: those that only a keyword can give. static_sizes:
    static parameters that stand in types. packs: the names of packs. classes: the generic dtypes and formats, with
    their classes.
    """

    function: ast.Function
    file: File
    parameters: tuple[ParameterInfo, ...]
    result: Pattern | None
    dimensions: tuple[str, ...]
    explicit: tuple[str, ...]
    static_sizes: tuple[str, ...]
    packs: tuple[str, ...]
    classes: dict[str, str]

    @property
    def name(self) -> str:
        return self.function.name.text

    def tensors(self) -> list[tuple[str, TensorPattern, Size | None]]:
        """The tensors of all typed parameters, flattened: label, type, and the length of a list."""
        return [leaf for p in self.parameters if p.pattern is not None for leaf in leaves(p.name, p.pattern)]


def read_signature(function: ast.Function, file: File) -> Signature:
    """Look up the names in a signature. Raises CompileError."""
    classes: dict[str, str] = {}
    explicit: dict[str, None] = {}
    for generic in function.generics:
        name, kind = generic.name.text, generic.kind.text
        if kind not in GENERIC_CLASSES:
            hint = f"the classes are {', '.join(GENERIC_CLASSES)}"
            raise CompileError("E0303", f"no class of types is named `{kind}`", generic.kind.span, hint=hint)
        if name in classes or name in explicit or dtype(name):
            raise CompileError("E0314", f"`{name}` is declared twice", generic.name.span)
        if kind == "dim":
            explicit[name] = None
        else:
            classes[name] = kind
    names = SignatureNames(file, classes)
    parameters: dict[str, ParameterInfo] = {}
    for parameter in function.parameters:
        name = parameter.name.text
        if name in parameters or name in classes or name in explicit:
            raise CompileError("E0314", f"`{name}` is declared twice", parameter.name.span)
        pattern = None if parameter.type is None else read_type(parameter.type, names)
        if isinstance(pattern, TuplePattern):
            hint = "give each tensor a parameter of its own"
            raise CompileError("E0303", "a parameter is no tuple", parameter.span, hint=hint)
        if pattern is not None:
            list(leaves(name, pattern))
        parameters[name] = ParameterInfo(parameter, pattern)
    bound = {*names.dimensions, *explicit}
    packs = tuple(names.packs)
    result = None if function.result is None else read_type(function.result, names)
    static = {name for name, parameter in parameters.items() if parameter.pattern is None}
    for name, span in names.dimensions.items():
        if name in classes or (name in parameters and name not in static):
            raise CompileError("E0314", f"`{name}` is a dimension here, and declared as something else too", span)
        if name not in bound and name not in static:
            hint = f"no parameter has it; declare it after the name: fn {function.name}[{name}: dim](…)"
            raise CompileError("E0309", f"no argument decides the dimension {name}", span, hint=hint)
    for name, span in names.packs.items():
        if name not in packs:
            raise CompileError("E0309", f"no argument decides the dimensions ..{name}", span)
    found = _determined(parameters)
    explicit_only = tuple(n for n in explicit if n not in found)
    dimensions = tuple(n for n in (*names.dimensions, *explicit) if n not in static)
    sizes = tuple(n for n in names.dimensions if n in static)
    return Signature(
        function=function,
        file=file,
        parameters=tuple(parameters.values()),
        result=result,
        dimensions=tuple(dict.fromkeys(dimensions)),
        explicit=explicit_only,
        static_sizes=sizes,
        packs=packs,
        classes=classes,
    )


def _determined(parameters: dict[str, ParameterInfo]) -> set[str]:
    """The names that stand in the types of parameters."""
    found: set[str] = set()
    for parameter in parameters.values():
        if parameter.pattern is None:
            continue
        for _, leaf, length in leaves(parameter.name, parameter.pattern):
            sizes = [d for d in leaf.dims if isinstance(d, Size)] + ([length] if length is not None else [])
            found |= {s[1:] for size in sizes for s in size.symbols}
    return found


def unknowns(signature: Signature) -> list[str]:
    """The symbols of the dimensions of a signature."""
    return [unknown(name) for name in signature.dimensions]
