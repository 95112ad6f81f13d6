"""Reading the parts of a Graph's text that are neither scalars nor nodes: types, axes, attributes, places."""

from __future__ import annotations

import types
import typing
from typing import Any

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Source, Span
from intarsia.ir.scalar_text import ScalarReader
from intarsia.ir.sharding import Sharding
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis
from intarsia.ir.types import ListType, TensorType, Type


class PartReader(ScalarReader):
    """Extends the reader of sizes and expressions by what the text of a Graph needs besides its nodes."""

    def axes(self) -> tuple[Axis, ...]:
        self.expect("[")
        axes: list[Axis] = []
        while not self.at("]"):
            start = self.token
            name = self.name("the name of an axis")
            if any(a.name == name for a in axes):
                raise self.error("E1504", f"the axis '{name}' occurs twice", start)
            if self.accept("<"):
                axes.append(Axis(name, ZERO, self.size()))
            else:
                self.expect("in")
                lower = self.size()
                self.expect("..")
                axes.append(Axis(name, lower, self.size()))
            if not self.accept(","):
                break
        self.expect("]")
        return tuple(axes)

    def attribute(self, hint: Any) -> Any:
        """The value of an attribute of a given Python type."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is tuple:
            self.expect("(")
            items: list[Any] = []
            while not self.at(")"):
                items.append(self.attribute(arguments[0]))
                if not self.accept(","):
                    break
            self.expect(")")
            return tuple(items)
        if origin in (typing.Union, types.UnionType):
            if type(None) in arguments and self.accept("None"):
                return None
            if bool in arguments and self.at("true", "false"):
                return self.attribute(bool)
            return self._number()
        match hint:
            case _ if hint is bool:
                if not self.at("true", "false"):
                    raise self.unexpected("'true' or 'false'")
                return self.next().text == "true"
            case _ if hint is int:
                return self.integer()
            case _ if hint is Size:
                return self.size()
            case _ if hint is DType:
                return self.dtype()
        if self.token.kind == "string":
            return self.next().text[1:-1]
        return self.name()

    def type(self) -> Type:
        if self.at("list") and self.peek().text == "[":
            self.next()
            self.next()
            length = self.size()
            self.expect("]")
            element = self.type()
            assert isinstance(element, TensorType)
            return ListType(length, element)
        dtype = self.dtype()
        shape: list[Size] = []
        marks: list[str] = []
        if self.accept("["):
            while not self.at("]"):
                shape.append(self.size())
                marks.append(self._mark() if self.accept("@") else "")
                if not self.accept(","):
                    break
            self.expect("]")
        start = self.token
        suffix = self._suffix() if self.at("{") else ""
        try:
            return TensorType(dtype, tuple(shape), Sharding.parse(marks, suffix))
        except ValueError as error:
            raise self.error("E1502", str(error), start) from None

    def _mark(self) -> str:
        """What stands after `@` in a dimension: an axis of the mesh, several in brackets, `_` or `?`; a priority."""
        start = self.next()
        depth = int(start.text == "(")
        while depth:
            if self.token.kind == "end":
                raise self.unexpected("')'")
            depth += {"(": 1, ")": -1}.get(self.next().text, 0)
        if self.accept("!"):
            self.integer("a priority")
        span = self.span(start)
        return self.source.text[span.start : span.end]

    def _suffix(self) -> str:
        """The text between the braces after a type."""
        start = self.expect("{")
        depth = 1
        while depth:
            if self.token.kind == "end":
                raise self.unexpected("'}'")
            depth += {"{": 1, "}": -1}.get(self.next().text, 0)
        span = self.span(start)
        return self.source.text[span.start + 1 : span.end - 1]

    def location(self, own: Span) -> tuple[Span, tuple[Span, ...]]:
        """The places in `loc(…)`, or that of the node in this text."""
        if not self.accept("loc"):
            return own, ()
        self.expect("(")
        spans: list[Span] = []
        while not self.at(")"):
            name = self.expect_kind("string", "the name of a file").text[1:-1]
            self.expect(":")
            line = self.integer("a line")
            self.expect(":")
            column = self.integer("a column")
            # The text of that file is not at hand: a blank one of the right form gives line and column.
            blank = Source(name, "\n" * (line - 1) + " " * column)
            spans.append(Span(blank, line - 1 + column - 1, line - 1 + column))
            if not self.accept(","):
                break
        self.expect(")")
        return spans[0], tuple(spans[1:])


def read_type(source: Source) -> Type:
    """The type that a text is. Raises CompileError E1501, E1502."""
    return PartReader(source).type()
