"""Source files and what they declare; imports are followed from the first file on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from intarsia.dsl import ast
from intarsia.dsl.parser import parse_declaration, parse_program, split_declarations
from intarsia.dsl.semantics.scope import File
from intarsia.ir.errors import CompileError, Diagnostic, Source, Span

PRELUDE = Path(__file__).with_name("prelude.ita")


@dataclass(eq=False)
class SourceFile:
    """A parsed file. Its own declarations hide imported ones of the same name."""

    program: ast.Program
    importer: SourceFile | None = None
    imports: list[SourceFile] = field(default_factory=list)

    is_prelude = False

    @property
    def source(self) -> Source:
        return self.program.source

    @cached_property
    def own(self) -> dict[str, ast.Declaration]:
        """The named declarations, the first of each name."""
        found: dict[str, ast.Declaration] = {}
        for declaration in self.program.declarations:
            if not isinstance(declaration, (ast.Import, ast.Test)):
                found.setdefault(declaration.name.text, declaration)
        return found

    @cached_property
    def visible(self) -> dict[str, tuple[ast.Declaration, SourceFile]]:
        """Everything that can be named in this file."""
        found: dict[str, tuple[ast.Declaration, SourceFile]] = {name: (d, self) for name, d in self.own.items()}
        for file in self.imports:
            for name, declaration in file.own.items():
                found.setdefault(name, (declaration, file))
        return found

    @property
    def functions(self) -> dict[str, ast.Function]:
        """The functions that the file declares itself, in order."""
        return {name: d for name, d in self.own.items() if isinstance(d, ast.Function)}

    @property
    def tests(self) -> tuple[ast.Test, ...]:
        return tuple(d for d in self.program.declarations if isinstance(d, ast.Test))

    def function(self, name: str) -> tuple[ast.Function, File] | None:
        match self.visible.get(name):
            case (ast.Function() as found, file):
                return found, file
        return None

    def struct(self, name: str) -> tuple[ast.Struct, File] | None:
        match self.visible.get(name):
            case (ast.Struct() as found, file):
                return found, file
        return None

    def constant(self, name: str) -> tuple[ast.Const, File] | None:
        match self.visible.get(name):
            case (ast.Const() as found, file):
                return found, file
        return None

    def format(self, name: str) -> ast.Format | None:
        match self.visible.get(name):
            case (ast.Format() as found, _):
                return found
        return None

    def mesh(self) -> ast.Mesh | None:
        own = next((d for d in self.program.declarations if isinstance(d, ast.Mesh)), None)
        return own if own is not None or self.importer is None else self.importer.mesh()

    def names(self) -> Iterable[str]:
        return self.visible


@dataclass(eq=False)
class Prelude:
    """The standard library, `prelude.ita`, of which only the functions that are asked for are parsed."""

    source: Source
    parsed: dict[str, ast.Function] = field(default_factory=dict)

    is_prelude = True

    @cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        return split_declarations(self.source)

    def function(self, name: str) -> tuple[ast.Function, File] | None:
        if name not in self.ranges:
            return None
        if name not in self.parsed:
            declaration = parse_declaration(self.source, *self.ranges[name])
            assert isinstance(declaration, ast.Function)
            self.parsed[name] = declaration
        return self.parsed[name], self

    def struct(self, name: str) -> tuple[ast.Struct, File] | None:
        return None

    def constant(self, name: str) -> tuple[ast.Const, File] | None:
        return None

    def format(self, name: str) -> ast.Format | None:
        return None

    def mesh(self) -> ast.Mesh | None:
        return None

    def names(self) -> Iterable[str]:
        return self.ranges


def load_prelude() -> Prelude:
    """The standard library, not yet parsed."""
    return Prelude(Source(PRELUDE.name, PRELUDE.read_text("utf-8")))


def load_files(source: Source) -> list[SourceFile]:
    """Parse a file and all that it imports; the first is the file itself, each file is there once.

    Raises:
        CompileError: E0314 a name is declared twice, E0319 a file cannot be read, E0320 an import cycle, and what the
            parser finds.
    """
    loader = _Loader()
    loader.load(source, Path(source.name))
    if loader.diagnostics:
        raise CompileError.of(loader.diagnostics)
    return list(loader.files.values())


@dataclass
class _Loader:
    """Loads a file and its imports; `open` are the files whose imports are being followed."""

    files: dict[Path, SourceFile] = field(default_factory=dict)
    open: list[Path] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def load(
        self, source: Source, path: Path, line: ast.Import | None = None, importer: SourceFile | None = None
    ) -> SourceFile | None:
        """Parse one file, then what it imports; `line` is where `importer` does. What is wrong is collected."""
        key = path.resolve()
        try:
            program = parse_program(source)
        except CompileError as error:
            note = [("imported from here", line.span)] if line is not None else []
            self.diagnostics += [
                Diagnostic(d.code, d.message, d.span, d.hint, (*d.notes, *note)) for d in error.diagnostics
            ]
            return None
        file = SourceFile(program, importer)
        self.files[key] = file
        self.open.append(key)
        for declaration in program.declarations:
            if isinstance(declaration, ast.Import):
                self._follow(file, declaration, path)
        self.open.pop()
        self._check_names(file)
        return file

    def _follow(self, file: SourceFile, declaration: ast.Import, path: Path) -> None:
        target = path.parent / declaration.path.value
        key = target.resolve()
        if key in self.open:
            cycle = [*self.open[self.open.index(key) :], key]
            chain = " imports ".join(p.name for p in cycle)
            self._report("E0320", f"an import cycle: {chain}", declaration.span, "move what both need to a third file")
            return
        if key not in self.files:
            try:
                source = Source.decoded(str(target), target.read_bytes())
            except OSError as error:
                hint = "the path is relative to the file that imports it"
                message = f'"{declaration.path.value}" cannot be read: {error.strerror}'
                self._report("E0319", message, declaration.path.span, hint)
                return
            except CompileError as error:
                self.diagnostics += error.diagnostics
                return
            if self.load(source, target, declaration, file) is None:
                return
        imported = self.files[key]
        if imported not in file.imports:
            file.imports.append(imported)

    def _check_names(self, file: SourceFile) -> None:
        """No name is declared twice, and one mesh; two imports may share a name only where the file has its own."""
        seen: dict[str, Span] = {}
        for declaration in file.program.declarations:
            if isinstance(declaration, ast.Import):
                continue
            label = f'test "{declaration.name.value}"' if isinstance(declaration, ast.Test) else declaration.name.text
            span = declaration.name.span
            if label in seen:
                notes = [("it is declared here first", seen[label])]
                self._report("E0314", f"`{label}` is declared twice", span, "give one of them another name", notes)
            seen.setdefault(label, span)
        for second in [d for d in file.program.declarations if isinstance(d, ast.Mesh)][1:]:
            self._report("E0314", "a second mesh: a program has one", second.span)
        origin: dict[str, SourceFile] = {}
        lines = [d for d in file.program.declarations if isinstance(d, ast.Import)]
        for imported in file.imports:
            for name in imported.own:
                first = origin.setdefault(name, imported)
                if first is not imported and name not in file.own:
                    message = f"`{name}` comes from {first.source.name} and from {imported.source.name}"
                    hint = "rename one of them, or declare the name in this file"
                    self._report("E0314", message, lines[-1].span, hint)

    def _report(
        self, code: str, message: str, span: Span, hint: str = "", notes: Iterable[tuple[str, Span]] = ()
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, hint, tuple(notes)))
