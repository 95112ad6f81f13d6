"""Source locations, diagnostics and the two exceptions of the compiler.

`CompileError` is the user's mistake and shows the user's line. `ScheduleError` is a schedule step that does not fit the
kernel. Anything else that is raised is a bug of the compiler.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, eq=False)
class Source:
    """A text that a person wrote: a file, or a string given on the command line or from Python."""

    name: str
    text: str

    @classmethod
    def decoded(cls, name: str, data: bytes) -> Source:
        """The text that bytes in UTF-8 are, without a byte order mark. Raises CompileError E0102 for other bytes."""
        try:
            return cls(name, data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            position = len(data[: error.start].decode("utf-8-sig", "replace"))
            source = cls(name, data.decode("utf-8-sig", "replace"))
            message = f"byte 0x{data[error.start]:02X} is not UTF-8"
            hint = "save the file as UTF-8; is it a text file?"
            raise CompileError("E0102", message, Span(source, position, position + 1), hint=hint) from None

    @cached_property
    def line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character offset."""
        line = bisect.bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of line `number` (from 1), without its newline."""
        start = self.line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """A half-open range of characters of one source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def to(self, other: Span) -> Span:
        """The range from the start of this span to the end of `other`."""
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))


@dataclass(frozen=True)
class Diagnostic:
    """One mistake in a program or in its data, in the one shape that every stage reports.

    `notes` are further places, such as "called from"; `code` is stable and has a page under docs/errors.
    """

    code: str
    message: str
    span: Span | None = None
    hint: str = ""
    notes: tuple[tuple[str, Span], ...] = ()
    label: str = "here"

    def render(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        width = max((len(str(s.line)) for s in (self.span, *(s for _, s in self.notes)) if s), default=1)
        if self.span:
            lines += self._excerpt(self.span, self.label, width)
        if self.hint:
            lines.append(f"{' ' * (width + 1)} = help: {self.hint}")
        for text, span in self.notes:
            lines.append(f"note: {text}")
            lines += self._excerpt(span, "", width)
        return "\n".join(lines)

    @staticmethod
    def _excerpt(span: Span, label: str, width: int) -> list[str]:
        text, caret_start = _clipped(span.source.line(span.line), span.column - 1)
        caret_count = max(1, min(span.end - span.start, len(text) - caret_start))
        # Tabs are kept in the padding so that the carets stand under what they mean.
        padding = "".join(c if c == "\t" else " " for c in text[:caret_start])
        gutter = " " * (width + 1)
        return [
            f"{' ' * width} --> {span}",
            f"{gutter} |",
            f"{span.line:>{width + 1}} | {text}",
            f"{gutter} | {padding}{'^' * caret_count} {label}".rstrip(),
        ]


LONGEST_LINE = 160
"""Characters of a line that a diagnostic shows."""


def _clipped(text: str, position: int) -> tuple[str, int]:
    """A line that is not too long to be read, and the position in it; `…` stands for what is left out."""
    if len(text) <= LONGEST_LINE:
        return text, position
    start = max(0, min(position - LONGEST_LINE // 3, len(text) - LONGEST_LINE))
    shown = text[start : start + LONGEST_LINE]
    if start + LONGEST_LINE < len(text):
        shown += " …"
    return (f"… {shown}", position - start + 2) if start else (shown, position)


class CompileError(Exception):
    """One or several mistakes of the user. `str()` is what the command line prints."""

    diagnostics: tuple[Diagnostic, ...]

    def __init__(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        hint: str = "",
        notes: Sequence[tuple[str, Span]] = (),
    ) -> None:
        self.diagnostics = (Diagnostic(code, message, span, hint, tuple(notes)),)
        super().__init__(message)

    @classmethod
    def of(cls, diagnostics: Sequence[Diagnostic]) -> CompileError:
        first = diagnostics[0]
        error = cls(first.code, first.message, first.span, hint=first.hint, notes=first.notes)
        error.diagnostics = tuple(diagnostics)
        return error

    @property
    def code(self) -> str:
        return self.diagnostics[0].code

    def __str__(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)


class ScheduleError(Exception):
    """A schedule step that is not legal for the kernel it is applied to; the message says why."""


@dataclass(frozen=True)
class Remark:
    """A decision of a pass, for `intarsia explain`: what was or was not done, where, and why."""

    pass_name: str
    about: str  # fusion, layout, schedule, lowbit, sharding, memory
    message: str
    span: Span | None = None
    done: bool = True


@dataclass
class Remarks:
    """Collects the remarks of one compilation, in order."""

    items: list[Remark] = field(default_factory=list)

    def add(self, remark: Remark) -> None:
        self.items.append(remark)
