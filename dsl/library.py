"""The entry points of the front end: load a file, look at its functions, check it, build a Graph from it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from intarsia.dsl import ast
from intarsia.dsl.evaluation.builder import MAX_DIAGNOSTICS, Assigned, Builder
from intarsia.dsl.evaluation.derivatives import derived_function
from intarsia.dsl.evaluation.entry import (
    bind_types,
    build_function,
    build_test,
    call_order,
    check_function,
    check_test,
    header,
)
from intarsia.dsl.files import Prelude, SourceFile, load_files, load_prelude
from intarsia.dsl.parser import parse_expression
from intarsia.dsl.semantics.checks import check_declarations
from intarsia.dsl.semantics.scope import File
from intarsia.dsl.semantics.signature import Signature, read_signature
from intarsia.dsl.semantics.types import leaves
from intarsia.ir.conditions import Condition
from intarsia.ir.errors import CompileError, Diagnostic, Source, Span
from intarsia.ir.graph import Module
from intarsia.ir.types import Type


@dataclass(frozen=True)
class ParameterEntry:
    """One tensor or static value that a caller gives.

    label: dotted for the tensors of a struct. parameter: the name of the parameter itself. type: as written, with the
    names of the function; None for a static one. const: it does not change between calls. default: the expression as
    written, or None where it must be given.
    """

    label: str
    parameter: str
    type: str | None
    const: bool
    default: str | None

    @property
    def is_static(self) -> bool:
        return self.type is None


@dataclass(frozen=True)
class FunctionEntry:
    """The signature of a function for those who call it from outside.

    dims: dimension names in order of binding. explicit_dims: those that no argument gives. generics: the names of
    generic types, with their classes. result: the declared type as written. axes: those of a mesh over which parameters
    are split.
    """

    name: str
    parameters: tuple[ParameterEntry, ...]
    dims: tuple[str, ...]
    explicit_dims: tuple[str, ...]
    generics: Mapping[str, str]
    result: str | None
    span: Span
    axes: tuple[str, ...]

    def __str__(self) -> str:
        text = self.span.source.text
        return text[self.span.start : self.span.end]


@dataclass
class Library:
    """A loaded file with its imports and the standard library."""

    files: Sequence[SourceFile]
    prelude: Prelude
    _signatures: dict[str, Signature] = field(default_factory=dict)
    _derived: dict[str, tuple[ast.Function, File]] = field(default_factory=dict)

    @property
    def root(self) -> SourceFile:
        return self.files[0]

    @property
    def program(self) -> ast.Program:
        """The syntax tree of the file itself."""
        return self.root.program

    @property
    def mesh(self) -> str:
        """The mesh that the file declares, `mesh pod(data=2)`, or nothing."""
        return "".join(header(self.root))

    @cached_property
    def functions(self) -> dict[str, ast.Function]:
        """The functions of the file itself, in order; then those that it imports."""
        found = dict(self.root.functions)
        for file in self.root.imports:
            for name, function in file.functions.items():
                found.setdefault(name, function)
        return found

    @property
    def tests(self) -> tuple[ast.Test, ...]:
        """The `test` blocks of the file itself."""
        return self.root.tests

    def entry(self, name: str | None = None) -> str:
        """The function to run: the one named, else `main`, else the last one of the file. A name may be a derivative,
        `grad(loss, wrt=w)`.

        Raises:
            CompileError: E0316 there is no such function.
        """
        if name is None:
            own = list(self.root.functions)
            if not own:
                raise CompileError("E0316", f"{self.root.source.name} has no function", hint="fn main(…) { … }")
            return "main" if "main" in own else own[-1]
        if name.startswith(tuple(f"{transform}(" for transform in ast.DERIVATIVES)):
            if name not in self._derived:
                transform = parse_expression(Source("<entry>", name))
                self._derived[name] = derived_function(transform, self.root, self.prelude)
            return name
        if name not in self.functions:
            near = difflib.get_close_matches(name, self.functions, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(self.functions) or 'no functions'}"
            raise CompileError("E0316", f"no function of {self.root.source.name} is named `{name}`", hint=hint)
        return name

    def signature(self, name: str | None = None) -> FunctionEntry:
        """What a function takes and gives. Raises CompileError where its types are wrong."""
        signature = self._signature(self.entry(name))
        function = signature.function
        entries: list[ParameterEntry] = []
        for parameter in signature.parameters:
            default = parameter.declaration.default
            text = None if default is None else _text(default.span)
            const = parameter.declaration.const
            if parameter.pattern is None:
                entries.append(ParameterEntry(parameter.name, parameter.name, None, const, text))
                continue
            for label, leaf, length in leaves(parameter.name, parameter.pattern):
                written = str(leaf) if length is None else f"list[{length}] {leaf}".replace("?", "")
                entries.append(ParameterEntry(label, parameter.name, written, const, text))
        result = None if function.result is None else _text(function.result.span)
        laid = (pattern.sharding for _, pattern, _ in signature.tensors())
        return FunctionEntry(
            function.name.text,
            tuple(entries),
            tuple(signature.dimensions),
            signature.explicit,
            signature.classes,
            result,
            _head(function),
            tuple(dict.fromkeys(a.name for s in laid if s is not None for a in (*s.used, *s.replicated))),
        )

    def _signature(self, name: str) -> Signature:
        if name not in self._signatures:
            found = self._derived.get(name) or self.root.function(name)
            assert found is not None
            self._signatures[name] = read_signature(*found)
        return self._signatures[name]

    def bind_sizes(
        self, function: str | None, types: Mapping[str, Type], dims: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """The value of each dimension name from the types of arguments, by label.

        A pack `..S` gives `S_0`, `S_1`, …  `dims` holds what the caller states. Names that nothing determines are left
        out.

        Raises:
            CompileError: E0304 to E0308, an argument does not fit, or a name gets two values.
        """
        instance = bind_types(self._signature(self.entry(function)), types, dims or {})
        return {name: int(size) for name, size in instance.known.items()}

    def build(
        self,
        function: str | None = None,
        types: Mapping[str, Type] | None = None,
        dims: Mapping[str, int] | None = None,
        statics: Mapping[str, object] | None = None,
    ) -> Module:
        """The Graph of a function, whose sizes are the dimension names of its signature.

        Args:
            function: its name; see `entry`.
            types: the type of each tensor that is given, by label. Parameters with a default may be left out. Without
                `types` every parameter has its declared type.
            dims: values of dimension names. Accesses are proved in bounds for these and for what `types` give; what
                depends on other sizes is left to a build that has them.
            statics: the values of static parameters.

        Raises:
            CompileError: everything that is wrong with the program.
        """
        return self.build_open(function, types, dims or {}, statics or {})[0]

    def build_open(
        self,
        function: str | None,
        types: Mapping[str, Type] | None,
        dims: Mapping[str, int],
        statics: Mapping[str, object],
    ) -> tuple[Module, tuple[Condition, ...]]:
        """The Graph as `build` makes it, and what must hold of the sizes that have no value."""
        instance = bind_types(self._signature(self.entry(function)), types, dims, statics)
        builder = self._builder()
        return build_function(builder, instance), tuple(builder.bounds.left_open)

    def build_traced(
        self, function: str | None, types: Mapping[str, Type], dims: Mapping[str, int], statics: Mapping[str, object]
    ) -> tuple[Module, tuple[Assigned, ...]]:
        """The Graph as `build` makes it, and which of its values the names of the program stand for."""
        instance = bind_types(self._signature(self.entry(function)), types, dims, statics)
        builder = self._builder()
        return build_function(builder, instance), tuple(builder.assigned)

    def build_test(self, index: int) -> Module:
        """The Graph of a test, whose results are the scalar bools that it asserts, in order."""
        return build_test(self._builder(), self.tests[index], self.root, f"test_{index}")

    def check(self) -> list[Diagnostic]:
        """What is wrong with the declarations, functions and tests, for dimensions of any size.

        Generic functions are checked on representative types: `float` as f32, a pack as two dimensions.
        """
        diagnostics: list[Diagnostic] = []
        for file in self.files:
            diagnostics += check_declarations(file, file.program.declarations)
        reported = {(d.code, d.span) for d in diagnostics}
        checks = [partial(check_function, function, file) for function, file in call_order(self.files)]
        checks += [partial(check_test, test, self.root) for test in self.tests]
        for check in checks:
            builder = self._builder(representative=True)
            builder.reported |= reported
            check(builder)
            diagnostics += builder.diagnostics
            reported |= builder.reported
        return diagnostics[:MAX_DIAGNOSTICS]

    def _builder(self, representative: bool = False) -> Builder:
        return Builder(prelude=self.prelude, representative=representative)


def load(source: Source) -> Library:
    """Parse a file and all that it imports, by paths relative to its name.

    Raises:
        CompileError: what is wrong with the syntax, the imports, or names that are declared twice.
    """
    return Library(load_files(source), load_prelude())


def _text(span: Span) -> str:
    return span.source.text[span.start : span.end]


def _head(function: ast.Function) -> Span:
    """The text of a function up to its body."""
    source = function.span.source
    end = source.text.index("{", max(_ends(function)))
    return Span(source, function.span.start, len(source.text[:end].rstrip()))


def _ends(function: ast.Function) -> list[int]:
    parts = [function.name.span.end, *(p.span.end for p in function.parameters)]
    return [*parts, function.result.span.end] if function.result is not None else parts
