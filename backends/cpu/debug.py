"""Line tables: which line of the user's program an instruction comes from.

With them assembly has `.loc` lines, and debuggers and profilers show the program as it was written. Source: LLVM
Language Reference, "Specialized Metadata Nodes" (DIFile, DISubprogram, DILocation).
"""

from __future__ import annotations

from intarsia.ir.errors import Source, Span


class LineTables:
    """The metadata of a module; equal nodes are one. Numbers below 10 are left to others."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}
        self._unit: str | None = None

    def subprogram(self, name: str, span: Span) -> str:
        """The node of a function that begins at `span`."""
        file = self._file(span.source)
        if self._unit is None:
            self._unit = self._node(
                f'distinct !DICompileUnit(language: DW_LANG_C11, file: {file}, producer: "intarsia", '
                "isOptimized: true, runtimeVersion: 0, emissionKind: LineTablesOnly)"
            )
        type_ = self._node("!DISubroutineType(types: !{})")
        return self._node(
            f'distinct !DISubprogram(name: "{name}", scope: {file}, file: {file}, line: {span.line}, type: {type_}, '
            f"scopeLine: {span.line}, spFlags: DISPFlagDefinition | DISPFlagOptimized, unit: {self._unit})"
        )

    def location(self, span: Span, subprogram: str, home: Source) -> str:
        """The node of a place in a function of the file `home`."""
        scope = subprogram
        if span.source.name != home.name:
            file = self._file(span.source)
            scope = self._node(f"!DILexicalBlockFile(scope: {subprogram}, file: {file}, discriminator: 0)")
        return self._node(f"!DILocation(line: {span.line}, column: {span.column}, scope: {scope})")

    def lines(self) -> list[str]:
        """The definitions, for the end of the module."""
        if self._unit is None:
            return []
        flags = self._node('!{i32 2, !"Debug Info Version", i32 3}')
        return [
            f"!llvm.dbg.cu = !{{{self._unit}}}",
            f"!llvm.module.flags = !{{{flags}}}",
            *(f"{name} = {text}" for text, name in self._nodes.items()),
        ]

    def _file(self, source: Source) -> str:
        name = source.name.replace("\\", "\\5C").replace('"', "\\22")
        return self._node(f'!DIFile(filename: "{name}", directory: "")')

    def _node(self, text: str) -> str:
        return self._nodes.setdefault(text, f"!{10 + len(self._nodes)}")
