"""Makes graph nodes in program order, and turns items into tensors and elements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from intarsia.dsl.semantics.bounds import Bounds
from intarsia.dsl.semantics.frames import Frame
from intarsia.dsl.semantics.literals import adapt, default_dtype, strong, to_size
from intarsia.dsl.semantics.signature import RESERVED
from intarsia.dsl.semantics.values import EXPRESSIONS, FormatElement, FormatTensor, Item, ListElement, describe
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Node, Value
from intarsia.ir.ops import Compute, Constant, ListGet, Reshape
from intarsia.ir.scalar import Const, Expr, Load, loads, transform
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand
from intarsia.ir.types import TensorType, Type

N = TypeVar("N", bound=Node)


@dataclass
class NodeMaker:
    """The nodes made so far. `regions` holds a list of nodes for each region that is open, innermost last."""

    bounds: Bounds = field(default_factory=Bounds)
    regions: list[list[Node]] = field(default_factory=lambda: [[]])
    # Within an expression a tensor is loaded by a name of its own; `canonical` turns these into operand positions.
    buffer_names: dict[Value, str] = field(default_factory=dict)
    buffer_values: dict[str, Value] = field(default_factory=dict)
    axis_names: set[str] = field(default_factory=set)
    # The value of each counter of a loop that ends where data says: what it subscripts depends on data.
    counter_values: dict[str, Value] = field(default_factory=dict)
    saves_states: bool = False  # do loops stack the states of every step, for a derivative?
    user_span: Span | None = None  # the call of the user's, while a function of the prelude is evaluated

    def add(self, node: N) -> N:
        """Append a node to the open region. Code of the prelude is shown at the user's call.

        Raises:
            CompileError: E0412, its shape depends on a loop counter or an index.
        """
        for found in node.results:
            for size in found.extents:
                if not size.symbols <= self.bounds.dimensions.keys():
                    self._refuse_shape(found, size, node.span)
        if self.user_span is not None:
            more = (node.span,) if node.span is not None else ()
            node = dataclasses.replace(node, span=self.user_span, more_spans=more)
        self.regions[-1].append(node)
        return node

    def _refuse_shape(self, found: Type, size: Size, span: Span | None) -> None:
        name = min(size.symbols - self.bounds.dimensions.keys())
        what = "loop counter" if name in self.bounds.counters else "index"
        hint = "a shape is known before the program runs: use a dimension, and where or a range for what is left out"
        raise CompileError("E0412", f"the shape of {found} depends on the {what} {name}", span, hint=hint)

    @contextmanager
    def region(self) -> Iterator[list[Node]]:
        """Nodes made inside belong to a region of their own."""
        self.regions.append([])
        try:
            yield self.regions[-1]
        finally:
            self.regions.pop()

    @contextmanager
    def saving_states(self) -> Iterator[None]:
        """Loops made inside stack the states of every step."""
        before, self.saves_states = self.saves_states, True
        try:
            yield
        finally:
            self.saves_states = before

    # ------------------------------------------------------------------ symbols

    def axis_symbol(self, name: str, frame: Frame | None) -> str:
        """A symbol for an index: its own name, unless a dimension, a counter or an index around it has that."""
        taken = frame.names() if frame is not None else set()
        symbol = _first_free(name, lambda n: n in taken or n in self.bounds.dimensions or n in self.bounds.counters)
        self.axis_names.add(symbol)
        return symbol

    def counter_symbol(self, name: str, used: set[str]) -> str:
        """A symbol for a loop counter, unique in the graph."""
        names = used | self.axis_names | self.bounds.dimensions.keys()
        symbol = _first_free(name, lambda n: n in names or RESERVED.fullmatch(n) is not None)
        used.add(symbol)
        return symbol

    # ------------------------------------------------------------------ items as tensors

    def as_value(self, item: Item, span: Span, dtype: DType | None = None) -> Value:
        """A tensor. A weak number takes `dtype`, or its default."""
        match item:
            case Value():
                return item
            case ListElement(source, index) if isinstance(source.type, TensorType):
                axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(item.tensor.shape))
                row = self.load(item, [Size.of(a.name) for a in axes])
                return self.compute(Space(axes, row, row.dtype), span)
            case ListElement(source, index):
                indices, scalars = self.canonical([index])
                return self.add(ListGet(source, indices[0], scalars, span=span)).value
            case Const():
                return self.add(Constant(item.value, item.dtype, span=span)).value
            case int() | float() | Size():
                return self.as_value(adapt(item, dtype or default_dtype(item), span), span)
            case FormatTensor() | FormatElement():
                hint = "dequantize(w) gives its values as f32"
                raise CompileError("E0202", f"{item} is stored in a format", span, hint=hint)
        if isinstance(item, EXPRESSIONS):
            return self.compute(Space((), item, item.dtype), span)
        raise CompileError("E0310", f"{describe(item)} stands where a tensor is wanted", span)

    def compute(self, space: Space, span: Span) -> Value:
        """A node for a space whose loads have names of `buffer_names`."""
        self.require_closed(space, span)
        canonical, operands = canonical_space(space, self.buffer_values)
        return self.add(Compute(operands, canonical, span=span)).value

    def require_closed(self, space: Space, span: Span) -> None:
        """Raise E0409 if a space uses an index that is bound outside of it."""
        own = {a.name for a in space.all_axes}
        used = space.body.symbols.union(*(a.lower.symbols | a.upper.symbols for a in space.all_axes))
        for name in sorted(used - own):
            if name not in self.bounds.dimensions and name not in self.bounds.counters:
                message = f"the index {name} is used in a tensor that is made for all of its values at once"
                hint = "give that tensor a further dimension for the index, or write the expression element by element"
                raise CompileError("E0409", message, span, hint=hint)

    def reshaped(self, value: Value, shape: Sequence[Size], span: Span) -> Value:
        """The same tensor with sizes written in another form, where they are equal by value."""
        if value.tensor.shape == tuple(shape):
            return value
        return self.add(Reshape(value, tuple(shape), span=span)).value

    def canonical(self, sizes: Sequence[Size]) -> tuple[list[Size], tuple[Value, ...]]:
        """Sizes that load scalars, with those as `a0`, `a1`, …"""
        operands: dict[str, str] = {}
        for size in sizes:
            for value in size.opaques:
                for load in loads(value):
                    operands.setdefault(load.buffer, operand(len(operands)))

        def renamed(value: Expr) -> Size:
            return to_size(transform(value, rule=lambda e: _renamed(e, operands)))

        values = tuple(self.buffer_values[name] for name in operands)
        return [size.substitute({}, renamed) if size.opaques else size for size in sizes], values

    # ------------------------------------------------------------------ items as elements

    def buffer(self, value: Value) -> str:
        """The name by which expressions load from a value."""
        if value not in self.buffer_names:
            name = f"%{len(self.buffer_names)}"
            self.buffer_names[value] = name
            self.buffer_values[name] = value
        return self.buffer_names[value]

    def load(self, item: Value | ListElement, indices: Sequence[Size]) -> Load:
        """An element of a tensor, or of a tensor of a list."""
        if isinstance(item, ListElement):
            return Load(self.buffer(item.source), (item.index, *indices), item.tensor.dtype)
        found = item.type
        assert isinstance(found, TensorType), f"an element of {found}"
        return Load(self.buffer(item), tuple(indices), found.dtype)

    def element(self, item: Item, span: Span, name: str = "") -> Expr:
        """A scalar as an expression. Raises E0404 for a tensor with dimensions."""
        match item:
            case Value() | ListElement():
                found = item.tensor
                if found.rank:
                    what = f"`{name}`" if name else "this"
                    letters = ", ".join("ijklmn"[d % 6] for d in range(found.rank))
                    hint = f"index notation works on elements: write {name}[{letters}]" if name else ""
                    raise CompileError("E0404", f"{what} is {found}, and one element is wanted", span, hint=hint)
                return self.load(item, ())
            case int() | float() | Size():
                return strong(item, span)
            case FormatTensor() | FormatElement():
                hint = "dequantize(w) gives its values as f32"
                raise CompileError("E0202", f"{item} is stored in a format", span, hint=hint)
        if isinstance(item, EXPRESSIONS):
            return item
        raise CompileError("E0310", f"{describe(item)} stands where a number is wanted", span)

    def as_data(self, index: Size) -> Size:
        """A subscript in which counters of loops that end where data says are loaded, so that it counts as data."""
        if self.counter_values.keys().isdisjoint(index.symbols):
            return index
        return index.substitute({n: Size.opaque(self.load(v, ())) for n, v in self.counter_values.items()})

    def integer(self, item: Item, span: Span, what: str) -> Size:
        """An integer scalar as a size; one that depends on data is opaque. Raises E0310."""
        match item:
            case bool():
                pass
            case int() | Size():
                return Size.of(item)
            case Value() | ListElement() if item.tensor.dtype.is_integer and item.tensor.rank == 0:
                return Size.opaque(self.load(item, ()))
        if isinstance(item, EXPRESSIONS) and item.dtype.is_integer:
            return to_size(item)
        raise CompileError("E0310", f"{what} is an integer, and this is {describe(item)}", span)


def canonical_space(space: Space, values: dict[str, Value]) -> tuple[Space, tuple[Value, ...]]:
    """A space whose loads are `a0`, `a1`, … in the order in which it first reads its operands, and these operands."""
    operands: dict[str, str] = {}
    for load in space.loads():
        operands.setdefault(load.buffer, operand(len(operands)))
    if not operands:
        return space, ()

    def size(s: Size) -> Size:
        return s.substitute({}, lambda e: to_size(rename_loads(e, operands))) if s.opaques else s

    axes = tuple(dataclasses.replace(a, lower=size(a.lower), upper=size(a.upper)) for a in space.axes)
    reduced = tuple(dataclasses.replace(a, lower=size(a.lower), upper=size(a.upper)) for a in space.reduced)
    renamed = dataclasses.replace(space, axes=axes, reduced=reduced, body=rename_loads(space.body, operands))
    return renamed, tuple(values[name] for name in operands)


def rename_loads(expression: Expr, names: dict[str, str]) -> Expr:
    return transform(expression, rule=lambda e: _renamed(e, names))


def _renamed(expression: Expr, names: dict[str, str]) -> Expr | None:
    match expression:
        case Load(buffer=buffer) if names[buffer] != buffer:
            return dataclasses.replace(expression, buffer=names[buffer])
    return None


def _first_free(name: str, taken: Callable[[str], bool]) -> str:
    if not taken(name):
        return name
    number = 1
    while taken(f"{name}_{number}"):
        number += 1
    return f"{name}_{number}"
