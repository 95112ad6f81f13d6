"""The signature of a function: its parameters' types with every dimension an unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intarsia.dsl import ast
from intarsia.dsl.semantics.names import SignatureNames
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.types import GENERIC_CLASSES, Pattern, TensorPattern, TuplePattern, leaves, read_type
from intarsia.dsl.semantics.unify import unknown
from intarsia.ir.dtypes import dtype
from intarsia.ir.errors import CompileError, Diagnostic, Span
from intarsia.ir.sizes import Size

RESERVED = re.compile(r"[ijr]\d+")
"""Names that ops give to their axes, so that no size may have one of them."""


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

    dimensions: every dimension name, in order of binding, with the place where it first stands. explicit: those that
    only a keyword can give. static_sizes: static parameters that stand in types. packs: the names of packs. classes:
    the generic dtypes and formats, with their classes.
    """

    function: ast.Function
    file: File
    parameters: tuple[ParameterInfo, ...]
    result: Pattern | None
    dimensions: Mapping[str, Span]
    explicit: tuple[str, ...]
    static_sizes: tuple[str, ...]
    packs: tuple[str, ...]
    classes: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.function.name.text

    def tensors(self) -> list[tuple[str, TensorPattern, Size | None]]:
        """The tensors of all typed parameters, flattened: label, type, and the length of a list."""
        return _tensors(self.parameters)


def read_signature(function: ast.Function, file: File) -> Signature:
    """Look up the names in a signature. Raises CompileError with all that is wrong."""
    reader = _Reader(function, file)
    signature = reader.read()
    if reader.diagnostics:
        raise CompileError.of(reader.diagnostics)
    return signature


class _Reader:
    """Reads one signature, and collects what is wrong with it."""

    def __init__(self, function: ast.Function, file: File) -> None:
        self.function = function
        self.file = file
        self.diagnostics: list[Diagnostic] = []
        self.classes: dict[str, str] = {}
        self.explicit: dict[str, Span] = {}
        self.names = SignatureNames(file, self.classes)
        self.parameters: dict[str, ParameterInfo] = {}

    def report(self, code: str, message: str, span: Span, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, span, hint))

    def read(self) -> Signature:
        for generic in self.function.generics:
            self._generic(generic)
        for parameter in self.function.parameters:
            try:
                self._parameter(parameter)
            except CompileError as error:
                self.diagnostics += error.diagnostics
        of_parameters, packs = dict(self.names.dimensions), tuple(self.names.packs)
        result = None
        try:
            if self.function.result is not None:
                result = read_type(self.function.result, self.names)
        except CompileError as error:
            self.diagnostics += error.diagnostics
        static = {name for name, parameter in self.parameters.items() if parameter.pattern is None}
        dimensions = {n: s for n, s in (of_parameters | self.explicit).items() if n not in static}
        solved = _determined(tuple(self.parameters.values()), static | self.explicit.keys())
        if not self.diagnostics:
            self._check(dimensions, static, packs, solved)
        alone = _determined(tuple(self.parameters.values()), static)
        return Signature(
            function=self.function,
            file=self.file,
            parameters=tuple(self.parameters.values()),
            result=result,
            dimensions=dimensions,
            explicit=tuple(n for n in self.explicit if n not in alone),
            static_sizes=tuple(n for n in self.names.dimensions if n in static),
            packs=packs,
            classes=self.classes,
        )

    def _generic(self, generic: ast.Generic) -> None:
        name, kind = generic.name.text, generic.kind.text
        if kind not in GENERIC_CLASSES:
            hint = f"the classes are {', '.join(GENERIC_CLASSES)}"
            self.report("E0303", f"no class of types is named `{kind}`", generic.kind.span, hint)
            kind = "any"
        if name in self.classes or name in self.explicit or dtype(name):
            self.report("E0314", f"`{name}` is declared twice", generic.name.span)
        elif kind == "dim":
            self.explicit[name] = generic.name.span
        else:
            self.classes[name] = kind

    def _parameter(self, parameter: ast.Parameter) -> None:
        name = parameter.name.text
        if name in self.parameters or name in self.classes or name in self.explicit:
            raise CompileError("E0314", f"`{name}` is declared twice", parameter.name.span)
        pattern = None if parameter.type is None else read_type(parameter.type, self.names)
        if isinstance(pattern, TuplePattern):
            hint = "give each tensor a parameter of its own"
            raise CompileError("E0303", "a parameter is no tuple", parameter.span, hint=hint)
        if pattern is not None:
            list(leaves(name, pattern))  # the fields of a struct are looked up too
        self.parameters[name] = ParameterInfo(parameter, pattern)

    def _check(
        self, dimensions: Mapping[str, Span], static: set[str], packs: tuple[str, ...], solved: set[str]
    ) -> None:
        """Every name in a type is bound, once."""
        for name, span in dimensions.items():
            if RESERVED.fullmatch(name):
                hint = "give the dimension another name"
                self.report("E0314", f"`{name}` is the name of an index in built-in operations", span, hint)
        for name, span in self.names.dimensions.items():
            if name in self.classes or (name in self.parameters and name not in static):
                self.report("E0314", f"`{name}` is a dimension here, and declared as something else too", span)
            elif name not in dimensions and name not in static:
                call = f"fn {self.function.name}[{name}: dim](…)"
                hint = f"use a name of a parameter's type, or let the caller give it: {call}"
                self.report("E0309", f"no argument decides the dimension {name}", span, hint)
            elif name not in solved:
                hint = "it stands alone nowhere: let the caller give it, "
                hint += f"fn {self.function.name}[{name}: dim](…), or add a parameter that has it"
                self.report("E0309", f"the arguments do not decide the dimension {name}", span, hint)
        for name, span in self.names.packs.items():
            if name not in packs:
                self.report("E0309", f"no argument decides the dimensions ..{name}", span)


def _tensors(parameters: Sequence[ParameterInfo]) -> list[tuple[str, TensorPattern, Size | None]]:
    return [leaf for p in parameters if p.pattern is not None for leaf in leaves(p.name, p.pattern)]


def _determined(parameters: Sequence[ParameterInfo], given: set[str]) -> set[str]:
    """The names that arguments decide: one that stands alone, or is the only unknown of a dimension linear in it."""
    sizes = [d for _, leaf, _ in _tensors(parameters) for d in leaf.dims if isinstance(d, Size)]
    sizes += [length for _, _, length in _tensors(parameters) if length is not None]
    known = {unknown(name) for name in given}
    progress = True
    while progress:
        progress = False
        for size in sizes:
            left = [n for n in size.symbols if n not in known]
            if len(left) == 1 and size.substitute(dict.fromkeys(known, Size.of(2))).coefficient(left[0]):
                known.add(left[0])
                progress = True
    return {name[1:] for name in known}
