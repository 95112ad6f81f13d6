"""What an expression of a program can be while the Graph is built.

Static values are Python's own: `None`, `bool`, `int`, `float`, `str`, tuples, a `DType`, and a `Size` for what is made
of dimension names, indices and loop counters. `int`, `float` and `Size` are weak: they take the dtype that is asked of
them.
A tensor is a graph `Value`; an element inside index notation, or a scalar that needs no tensor, is an `Expr`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from intarsia.dsl import ast
from intarsia.dsl.semantics.formats import read_format
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError
from intarsia.ir.formats import BUILT_IN, BlockFormat
from intarsia.ir.graph import Value
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, TensorType

EXPRESSIONS = (Const, Index, Load, Apply, Cast, Bitcast)
"""The classes of `Expr`, for isinstance."""


@dataclass(frozen=True)
class Format:
    """A block-quantised storage format that a `format` declaration names. `turned` is what it has become where the
    groups of a tensor are along another axis than it says."""

    name: str
    declaration: ast.Format | None
    turned: BlockFormat | None = None

    @property
    def definition(self) -> BlockFormat:
        """What it says. Raises CompileError E0303."""
        if self.turned is not None:
            return self.turned
        return BUILT_IN[self.name] if self.declaration is None else read_format(self.declaration.value)

    def __str__(self) -> str:
        return self.name if self.turned is None else f"{self.name}(axis={self.turned.axis})"

    def stores_like(self, other: Format, rank: int) -> bool:
        """Are tensors of a rank stored alike in both, whatever their names?"""
        return self.definition.from_front(rank) == other.definition.from_front(rank)

    def turn(self, definition: BlockFormat, rank: int) -> Format:
        """The format of a tensor whose elements have moved; the one that was declared, if it says the same."""
        declared = replace(self, turned=None)
        turned = replace(self, turned=definition)
        return declared if declared.stores_like(turned, rank) else turned

    def leaves(self, shape: tuple[Size, ...], label: str) -> list[tuple[str, DType, tuple[Size, ...]]]:
        """The tensors that store one of a shape, by dotted name. Raises CompileError E0303 where it lacks the axis."""
        try:
            return self.definition.leaves(shape, label)
        except IndexError:
            span = None if self.declaration is None else self.declaration.span
            message = f"{label} has {len(shape)} dimensions, and the format {self.name} is along another one"
            raise CompileError("E0303", message, span) from None


@dataclass(frozen=True)
class FormatTensor:
    """A tensor whose elements are stored in a format. `parts` are the tensors that hold it, by the dotted names of
    `Format.leaves`, without a label; none for a type."""

    format: Format
    shape: tuple[Size, ...]
    parts: Mapping[str, Item] = field(default_factory=dict)

    @property
    def fields(self) -> Mapping[str, Item]:
        """The tensors that hold it, as a program names them: `w.codes`, `w.scale`. Scales with a format of their own
        are several, and not among them."""
        return {name: part for name, part in self.parts.items() if "." not in name}

    def __str__(self) -> str:
        return f"{self.format}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FormatElement:
    """One element of a tensor of a format, within index notation. It can be moved, and dequantized."""

    tensor: FormatTensor
    indices: tuple[Size, ...]

    def __str__(self) -> str:
        return f"an element of {self.tensor}"


@dataclass(frozen=True)
class PackDims:
    """The dimensions that a pack `..S` stands for."""

    dims: tuple[Size, ...]


@dataclass(frozen=True)
class PackIndices:
    """The indices that `..i` stands for in index notation."""

    indices: tuple[Size, ...]


@dataclass(frozen=True)
class ListElement:
    """The tensor at `index` of a list, or row of a tensor; a graph node only where it is used as a whole tensor."""

    source: Value
    index: Size

    @property
    def tensor(self) -> TensorType:
        """The type of one tensor of the list."""
        found = self.source.type
        return found.element if isinstance(found, ListType) else TensorType(found.dtype, found.shape[1:])


@dataclass(frozen=True)
class Struct:
    """A record of tensors, and the sizes that its type was given."""

    declaration: ast.Struct
    dims: tuple[Size, ...]
    fields: Mapping[str, Item]

    def __str__(self) -> str:
        return f"{self.declaration.name}({', '.join(map(str, self.dims))})"

    def at(self, index: Size) -> Struct:
        """One record of a list of records, whose fields hold lists."""
        return Struct(self.declaration, self.dims, {name: _at(field, index) for name, field in self.fields.items()})


def _at(field: Item, index: Size) -> Item:
    match field:
        case Struct():
            return field.at(index)
        case FormatTensor():
            return replace(field, parts={name: _at(part, index) for name, part in field.parts.items()})
        case Value():
            return ListElement(field, index)
    raise AssertionError(f"{field} in a list of structs")


@dataclass(frozen=True)
class StructList:
    """`Layer(D, F)[L]`: the leaves of `element` are lists of tensors, or tensors with a first dimension of L."""

    element: Struct
    length: Size

    def __str__(self) -> str:
        return f"{self.element}[{self.length}]"


@dataclass(frozen=True)
class Poison:
    """The value of a name whose definition was wrong: its uses are not reported again."""


class Poisoned(Exception):
    """An expression uses what was already reported as wrong."""


Subscripted: TypeAlias = "Value | ListElement | FormatTensor"
"""What has elements at places: tensors of all kinds."""

Item: TypeAlias = (
    "bool | int | float | str | DType | Size | Value | Expr | TensorType | Format | FormatTensor | FormatElement"
    " | PackDims | PackIndices | ListElement | Struct | StructList | Poison | tuple[Item, ...] | None"
)


def changed(item: Item, change: Callable[[Item, str], Item], label: str = "") -> Item:
    """A struct or a list of structs with its tensors changed, each of which `change` gets with its dotted name, `*` for
    the index of a list; anything else is changed itself."""

    def fields(of: Mapping[str, Item], label: str) -> dict[str, Item]:
        return {name: changed(field, change, f"{label}.{name}" if label else name) for name, field in of.items()}

    match item:
        case Struct():
            return replace(item, fields=fields(item.fields, label))
        case StructList(element):
            below = fields(element.fields, f"{label}.*" if label else "*")
            return replace(item, element=replace(element, fields=below))
        case FormatTensor():
            return replace(item, parts=fields(item.parts, label))
    return change(item, label)


def leaves_of(item: Item, label: str = "") -> list[tuple[str, Item]]:
    """The tensors of a struct or a list of structs in order, by the names of `changed`; anything else alone."""
    found: list[tuple[str, Item]] = []

    def note(leaf: Item, name: str) -> Item:
        found.append((name, leaf))
        return leaf

    changed(item, note, label)
    return found


def is_weak(item: Item) -> bool:
    """A number without a dtype of its own: it takes the one that is asked of it."""
    return isinstance(item, (int, float, Size))


def tensor_of(item: Item) -> TensorType | None:
    """The type of a tensor, or of an element as a scalar; None for everything else."""
    match item:
        case Value():
            return item.tensor if isinstance(item.type, TensorType) else None
        case ListElement():
            return item.tensor
        case Const() | Index() | Load() | Apply() | Cast() | Bitcast():
            return TensorType(item.dtype)
    return None


def shape_of(item: Subscripted) -> tuple[Size, ...]:
    """The dimensions of a tensor, however it is stored."""
    return item.shape if isinstance(item, FormatTensor) else item.tensor.shape


def describe(item: Item) -> str:
    """What an item is, for messages."""
    if (found := tensor_of(item)) is not None:
        return str(found)
    match item:
        case None:
            return "none"
        case bool():
            return "true" if item else "false"
        case int():
            return f"the integer {item}"
        case float():
            return f"the number {item}"
        case str():
            return f'the text "{item}"'
        case Size():
            return f"the integer {item}"
        case DType() | TensorType():
            return f"the type {item}"
        case Format():
            return f"the format {item}"
        case tuple():
            return f"a tuple of {len(item)}"
        case PackDims() | PackIndices():
            return "a pack"
        case Struct() | StructList() | FormatTensor() | FormatElement():
            return str(item)
    return "a value"
