"""Reads the text of a Module by recursive descent; the form is described in `ir/text.py`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Source, Span
from intarsia.ir.functions import COMBINERS, FUNCTIONS
from intarsia.ir.graph import NOT_OWN, OPS, Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.kernel import Kernel, PutOperator
from intarsia.ir.kernel_text import KernelReader
from intarsia.ir.ops.control import Call, Fused, ListGet, Loop
from intarsia.ir.ops.elementwise import Constant, Elementwise
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar_text import Token
from intarsia.ir.space import Space, operand
from intarsia.ir.text_parts import PartReader
from intarsia.ir.text_printer import DERIVED, VERSION
from intarsia.ir.types import ListType, TensorType, Type

N = typing.TypeVar("N", bound=Node)

_HEADER_WORDS = ("target", "mesh", "format", "parameter", "result")
_PUT_WORDS: dict[str, PutOperator] = {"max": "max=", "min": "min=", "and": "and=", "or": "or="}
_PUT_SYMBOLS: dict[str, PutOperator] = {"=": "=", "+=": "+=", "*=": "*="}


@dataclasses.dataclass(frozen=True)
class _Head:
    """What is known of a node before it is built: its span, its result types, its name in the text."""

    types: tuple[Type, ...]
    span: Span
    more_spans: tuple[Span, ...]

    @property
    def spans(self) -> dict[str, Any]:
        shardings = tuple(t.sharding for t in self.types)
        return {
            "span": self.span,
            "more_spans": self.more_spans,
            "shardings": shardings if any(s is not None for s in shardings) else (),
        }


class ModuleReader(PartReader):
    """Reads one module. `scope` maps the names of values to what they stand for where the reader is."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.scope: dict[str, Value] = {}
        self.operands: list[Value] = []
        """The operands of the space that is being read, in order of first reading."""

    def module(self) -> Module:
        header = self._header()
        graph = self._graph()
        kernels: list[Kernel] = []
        reader = KernelReader(self.source)
        while self.token.kind != "end":
            reader.position = self.position
            kernels.append(reader.kernel())
            self.position = reader.position
        return Module(graph, tuple(kernels), header)

    def _header(self) -> tuple[str, ...]:
        name, version = VERSION.split()
        if self.at(name):
            start = self.next()
            if str(self.integer("the version of the text")) != version:
                raise self.error("E1506", f"this compiler reads version {version} of {name}", start)
        lines: list[str] = []
        while self.at(*_HEADER_WORDS):
            start = self.token
            end = self.source.text.find("\n", start.start)
            end = len(self.source.text) if end < 0 else end
            lines.append(self.source.text[start.start : end].split("#")[0].rstrip())
            while self.token.kind != "end" and self.token.start < end:
                self.next()
        return tuple(lines)

    def _graph(self) -> Graph:
        self.expect("func")
        self.expect("@")
        name = self.name("the name of a function")
        dimensions: list[str] = []
        if self.accept("["):
            while not self.accept("]"):
                dimensions.append(self.name("the name of a dimension"))
                self.accept(",")
        self.expect("(")
        parameters: list[Parameter] = []
        while not self.at(")"):
            parameters.append(self._parameter())
            if not self.accept(","):
                break
        self.expect(")")
        self.expect("{")
        nodes = self._nodes()
        self.expect("return")
        results = self._uses()
        self.expect("}")
        return Graph(name, Region(tuple(parameters), nodes, results), tuple(dimensions))

    def _parameter(self) -> Parameter:
        constant = self.accept("const")
        token = self._new_name()
        self.expect(":")
        type_ = self.type()
        span, more = self.location(self.span(token))
        parameter = Parameter(token.text[1:], type_, constant, span=span, more_spans=more)
        self.scope[token.text] = parameter.value
        return parameter

    # ------------------------------------------------------------------ nodes

    def _nodes(self) -> tuple[Node, ...]:
        nodes: list[Node] = []
        while self.token.kind == "value":
            nodes.append(self._node())
        return tuple(nodes)

    def _node(self) -> Node:
        token = self._new_name()
        count = self.integer("the number of results") if self.accept(":") else None
        self.expect("=")
        name = self.expect_kind("name", "the name of an op")
        if (read := self._readers().get(name.text)) is not None:
            node = read(token)
        elif name.text in FUNCTIONS:
            node = self._elementwise(name.text, token)
        else:
            node = self._generic(name, token)
        if count not in (None, len(node.results)):
            raise self.error("E1505", f"{name.text} has {len(node.results)} results, the text says {count}", token)
        for value in node.values:
            text = f"{token.text}#{value.index}" if len(node.results) != 1 else token.text
            self.scope[text] = value
        return node

    def _readers(self) -> dict[str, Callable[[Token], Node]]:
        """The ops with a text of their own."""
        return {
            "compute": self._compute,
            "update": self._update,
            "loop": self._loop,
            "scan": self._loop,
            "list_get": self._list_get,
            "fused": self._fused,
            "call": self._call_node,
            "constant": self._constant,
        }

    def _constant(self, token: Token) -> Constant:
        literal = self.attribute(int | float | bool)
        head = self._head(token)
        return self._check(Constant(literal, self._dtype(head, token), **head.spans), head)

    def _elementwise(self, function: str, token: Token) -> Elementwise:
        arguments = self._tensors()
        head = self._head(token)
        return self._check(Elementwise(function, arguments, **head.spans), head)

    def _compute(self, token: Token) -> Compute:
        self.operands = []
        axes = self.axes()
        combiner = self._combiner() if self.token.kind == "name" else None
        reduced = self.axes() if combiner else ()
        self.expect("(")
        body = self.expression()
        self.expect(")")
        operands = tuple(self.operands)
        head = self._head(token)
        space = Space(axes, body, self._dtype(head, token), reduced, combiner)
        return self._check(Compute(operands, space, **head.spans), head)

    def _combiner(self) -> str:
        token = self.expect_kind("name", "the name of a reduction")
        if token.text not in COMBINERS:
            raise self.unknown(token, COMBINERS)
        return token.text

    def _update(self, token: Token) -> Update:
        base = self._use()
        self.operands = [base]
        self.expect("[")
        targets = self.sizes("]")
        word = self.next().text
        operator = _PUT_SYMBOLS.get(word) or _PUT_WORDS.get(word)
        if operator is None:
            raise self.error("E1502", f"expected an operator such as '=' or '+=', found '{word}'", token)
        if word in _PUT_WORDS:
            self.expect("=")
        axes = self.axes()
        self.expect("(")
        body = self.expression()
        self.expect(")")
        arguments = tuple(self.operands[1:])
        head = self._head(token)
        node = Update(base, arguments, axes, targets, operator, body, **head.spans)
        return self._check(node, head)

    def _list_get(self, token: Token) -> ListGet:
        source = self._use()
        self.operands = []
        self.expect("[")
        index = self.size()
        self.expect("]")
        scalars = tuple(self.operands)
        head = self._head(token)
        return self._check(ListGet(source, index, scalars, **head.spans), head)

    def _fused(self, token: Token) -> Fused:
        body, _ = self._region((), ())
        head = self._head(token)
        return self._check(Fused(body, **head.spans), head)

    def _call_node(self, token: Token) -> Call:
        self.expect("@")
        kernel = self.name("the name of a kernel")
        self.expect("(")
        arguments = self._uses()
        self.expect(")")
        sizes = self.sizes("]") if self.accept("[") else ()
        head = self._head(token)
        return Call(kernel, arguments, head.types, sizes, **head.spans)

    def _loop(self, token: Token) -> Loop:
        self.operands = []
        counter = self.name("the name of a counter")
        self.expect("in")
        lower = self.size()
        self.expect("..")
        upper = self.size()
        scalars = tuple(self.operands)
        self.expect("(")
        names: list[Token] = []
        initial: list[Value] = []
        while not self.at(")"):
            names.append(self._new_name())
            self.expect("=")
            initial.append(self._use())
            if not self.accept(","):
                break
        self.expect(")")
        types_ = [v.type for v in initial]
        condition = self._region(names, types_)[0] if self.accept("while") else None
        body, stacked = self._region(names, types_)
        head = self._head(token)
        fields = (counter, lower, upper, scalars, tuple(initial), body, condition, stacked)
        return self._check(Loop(*fields, **head.spans), head)

    def _region(self, names: Sequence[Token], types_: Sequence[Type]) -> tuple[Region, int]:
        """A region in braces with these parameters, and how many of its results it emits."""
        self.expect("{")
        outer = dict(self.scope)
        parameters = tuple(Parameter(n.text[1:], t, span=self.span(n, n)) for n, t in zip(names, types_))
        self.scope.update((n.text, p.value) for n, p in zip(names, parameters))
        nodes = self._nodes()
        results = self._uses() if self.accept("yield") else ()
        emitted = self._uses() if self.accept("emit") else ()
        self.expect("}")
        self.scope = outer
        return Region(parameters, nodes, (*results, *emitted)), len(emitted)

    def _generic(self, name: Token, token: Token) -> Node:
        """An op whose text follows from its fields."""
        cls = OPS.get(name.text)
        if cls is None or cls is Parameter:
            raise self.unknown(name, [*OPS, *FUNCTIONS])
        operands = list(self._tensors())
        hints = _field_types(cls)
        values: dict[str, Any] = {}
        for field, hint in hints.items():
            if hint is Value:
                if not operands:
                    raise self.error("E1507", f"{name.text} lacks its operand '{field}'", name)
                values[field] = operands.pop(0)
            elif hint == tuple[Value, ...]:
                values[field], operands = tuple(operands), []
        if operands:
            raise self.error("E1507", f"{name.text} has {len(operands)} operands too many", name)
        while self.token.kind == "name" and self.peek().text == "=":
            field_token = self.next()
            if field_token.text not in hints or field_token.text in values:
                raise self.error("E1507", f"{name.text} has no attribute '{field_token.text}'", field_token)
            self.expect("=")
            values[field_token.text] = self.attribute(hints[field_token.text])
        head = self._head(token)
        for field in hints:
            if field in DERIVED and field not in values:
                values[field] = self._derived(field, head, token)
        missing = [f.name for f in _own_fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise self.error("E1507", f"{name.text} lacks {', '.join(missing)}", name)
        return self._check(cls(**values, **head.spans), head)

    # ------------------------------------------------------------------ parts of nodes

    def _head(self, token: Token) -> _Head:
        """`: types loc(…)`, which end a node."""
        types_: list[Type] = []
        if self.accept(":"):
            types_.append(self.type())
            while self.accept(","):
                types_.append(self.type())
        return _Head(tuple(types_), *self.location(self.span(token)))

    def _dtype(self, head: _Head, token: Token) -> DType:
        """The dtype that the text gives the result."""
        if len(head.types) == 1 and isinstance(head.types[0], TensorType):
            return head.types[0].dtype
        raise self.error("E1507", "the node lacks its type", token)

    def _derived(self, field: str, head: _Head, token: Token) -> Any:
        """A field that the type of the result shows."""
        if field == "types":
            return head.types
        dtype = self._dtype(head, token)
        return dtype if field == "dtype" else head.types[0].shape  # type: ignore[union-attr]

    def _check(self, node: N, head: _Head) -> N:
        """The node, if its results have the types that the text says. Raises E1505 if not."""
        made, said = (", ".join(map(str, t)) for t in (node.results, head.types))
        if made != said:
            message = f"{node.name} makes {made or 'nothing'}, the text says {said or 'nothing'}"
            raise CompileError("E1505", message, node.span)
        return node

    def _new_name(self) -> Token:
        token = self.expect_kind("value", "the name of a value")
        if token.text in self.scope:
            raise self.error("E1504", f"'{token.text}' has a value already", token)
        return token

    def _use(self) -> Value:
        token = self.expect_kind("value", "a value")
        if token.text not in self.scope:
            raise self.unknown(token, self.scope)
        return self.scope[token.text]

    def _uses(self) -> tuple[Value, ...]:
        """Values with commas between them, or none."""
        found: list[Value] = []
        while self.token.kind == "value":
            found.append(self._use())
            if not self.accept(","):
                break
        return tuple(found)

    def _tensors(self) -> tuple[Value, ...]:
        """The same, none of them a list."""
        start = self.token
        found = self._uses()
        for value in found:
            if isinstance(value.type, ListType):
                hint = "list_get takes one tensor of a list"
                raise self.error("E1504", f"{value.type} stands where a tensor is wanted", start, hint)
        return found

    def buffer(self, token: Token) -> tuple[str, DType]:
        """A load in a space reads an operand, which takes the next position when it is read first."""
        if token.text not in self.scope:
            raise self.unknown(token, self.scope)
        value = self.scope[token.text]
        if value not in self.operands:
            self.operands.append(value)
        element = value.type.tensor
        return operand(self.operands.index(value)), element.dtype


def _own_fields(cls: type[Node]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.name not in NOT_OWN]


def _field_types(cls: type[Node]) -> dict[str, Any]:
    """The fields of an op with their types, in order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in _own_fields(cls)}
