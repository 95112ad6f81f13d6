"""Types as written: what a type expression says once its names are looked up, before its dimensions are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from intarsia.dsl import ast
from intarsia.dsl.semantics.scope import File, suggest
from intarsia.dsl.semantics.values import Format
from intarsia.ir.dtypes import ALL_NAMES, DType, dtype
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.formats import BUILT_IN
from intarsia.ir.sharding import DimensionSharding, MeshAxis, Sharding
from intarsia.ir.sizes import Size

if TYPE_CHECKING:
    pass

GENERIC_CLASSES = ("float", "int", "number", "any", "format", "dim")


@dataclass(frozen=True)
class GenericDType:
    """A dtype that the call decides: `T` in `fn relu[T: float]`."""

    name: str


@dataclass(frozen=True)
class PackName:
    """`..S` before it is known which dimensions it stands for."""

    name: str


@dataclass(frozen=True)
class TensorPattern:
    """`T[..S, 2*D]`. Sizes are over the names that `Namespace.size` gave."""

    element: DType | GenericDType | Format
    dims: tuple[Size | PackName, ...]
    sharding: Sharding | None = None

    def __str__(self) -> str:
        name = self.element.name
        if not self.dims:
            return name
        dims = (f"..{d.name}" if isinstance(d, PackName) else str(d) for d in self.dims)
        return f"{name}[{', '.join(dims)}]".replace("?", "")


@dataclass(frozen=True)
class StructPattern:
    """`Linear(N, K)`, or with a length a list of them. `file` is where the struct is declared."""

    declaration: ast.Struct
    file: File
    dims: tuple[Size, ...]
    length: Size | None = None

    def __str__(self) -> str:
        text = f"{self.declaration.name}({', '.join(map(str, self.dims))})"
        return (text if self.length is None else f"{text}[{self.length}]").replace("?", "")


@dataclass(frozen=True)
class TuplePattern:
    """`(f32[N], i64[N])`: several results."""

    items: tuple[Pattern, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


Pattern: TypeAlias = TensorPattern | StructPattern | TuplePattern


class Namespace(Protocol):
    """What the names in a type stand for where it is written."""

    @property
    def file(self) -> File: ...

    def size(self, name: str, span: Span) -> Size:
        """A dimension. Raises CompileError."""

    def pack(self, name: str, span: Span) -> tuple[Size | PackName, ...]:
        """The dimensions of a pack, or the pack itself. Raises CompileError."""

    def element(self, name: str) -> DType | GenericDType | Format | None:
        """A dtype of the language is found before this is asked."""

    def visible(self) -> list[str]:
        """The names that `element` knows, for suggestions."""


def read_type(expression: ast.TypeExpression, names: Namespace) -> Pattern:
    """Look up the names of a type. Raises CompileError for those that are none."""
    match expression:
        case ast.TensorTypeExpr():
            return _tensor(expression, names)
        case ast.StructTypeExpr(name, dims, length):
            return _struct(name, dims, length, names)
        case ast.TupleTypeExpr(items):
            return TuplePattern(tuple(read_type(item, names) for item in items))


def read_element(name: str, span: Span, names: Namespace) -> DType | GenericDType | Format:
    """The element type called `name`. Raises CompileError E0302."""
    found = dtype(name) or names.element(name)
    if found is None:
        hint = suggest(name, [*ALL_NAMES[:13], *names.visible()])
        raise CompileError("E0302", f"no type is named `{name}`", span, hint=hint)
    return found


def _tensor(expression: ast.TensorTypeExpr, names: Namespace) -> TensorPattern:
    name = expression.name
    if dtype(name.text) is None and names.file.struct(name.text):
        declared = names.file.struct(name.text)
        assert declared is not None
        example = ", ".join(str(d) for d in declared[0].dims)
        hint = f"the dimensions of a struct stand in parentheses: {name.text}({example})"
        raise CompileError("E0302", f"`{name.text}` is a struct", name.span, hint=hint)
    element = read_element(name.text, name.span, names)
    dims: list[Size | PackName] = []
    marks: list[DimensionSharding] = []
    for dim in expression.dims:
        match dim:
            case ast.Pack(pack):
                found = names.pack(pack, dim.span)
                dims += found
                marks += [DimensionSharding()] * len(found)
            case ast.Dim(size, sharding):
                dims.append(read_size(size, names))
                marks.append(_dimension_sharding(sharding) if sharding else DimensionSharding())
                _require_axes(sharding.axes if sharding else (), names.file)
    if sum(isinstance(d, ast.Pack) for d in expression.dims) > 1:
        raise CompileError("E0303", "a type has at most one pack", expression.span)
    return TensorPattern(element, tuple(dims), _sharding(tuple(marks), expression, names.file))


def _sharding(marks: tuple[DimensionSharding, ...], expression: ast.TensorTypeExpr, file: File) -> Sharding | None:
    """What a type says of a mesh, with a mark for each dimension and pack; None where it says nothing."""
    if (along := expression.along) is None:
        return Sharding(marks) if any(mark != DimensionSharding() for mark in marks) else None
    _require_axes(along.axes, file)
    axes = tuple(MeshAxis(a.text) for a in along.axes)
    if along.word == "replicated":
        return Sharding(marks, replicated=axes)
    return Sharding(marks, partial=axes, combiner=along.word)


def read_mesh(mesh: ast.Mesh) -> dict[str, int]:
    """The devices along each axis. Raises CompileError E0314 for an axis that is there twice, E0303 for one without a
    number of devices."""
    found: dict[str, int] = {}
    for axis in mesh.axes:
        if axis.name.text in found:
            raise CompileError("E0314", f"the axis `{axis.name}` is declared twice", axis.span)
        match axis.value:
            case ast.Number(_, int() as value) if value > 0:
                found[axis.name.text] = value
            case _:
                hint = "the number of devices along it, as in data=2"
                raise CompileError("E0303", f"the axis `{axis.name}` has no size", axis.value.span, hint=hint)
    return found


def _require_axes(axes: tuple[ast.Identifier, ...], file: File) -> None:
    """Raise E0302 for an axis that the mesh of the program does not have; a mesh may also be given when it is run."""
    mesh = file.mesh() if axes else None
    known = [axis.name.text for axis in mesh.axes] if mesh is not None else []
    for axis in axes:
        if mesh is not None and axis.text not in known:
            hint = suggest(axis.text, known) or f"{mesh.name} has {', '.join(known)}"
            raise CompileError("E0302", f"the mesh has no axis `{axis}`", axis.span, hint=hint)


def _dimension_sharding(sharding: ast.Sharding) -> DimensionSharding:
    return DimensionSharding(tuple(MeshAxis(a.text) for a in sharding.axes), sharding.open, sharding.priority or 0)


def _struct(
    name: ast.Identifier, dims: tuple[ast.TypeDim, ...], length: ast.DimExpression | None, names: Namespace
) -> StructPattern:
    found = names.file.struct(name.text)
    if found is None:
        if dtype(name.text):
            hint = f"the dimensions of a tensor stand in brackets: {name.text}[…]"
            raise CompileError("E0302", f"`{name.text}` is a dtype, not a struct", name.span, hint=hint)
        hint = suggest(name.text, names.file.names())
        raise CompileError("E0302", f"no struct is named `{name.text}`", name.span, hint=hint)
    declaration, file = found
    _require_finite(declaration, file, ())
    sizes: list[Size] = []
    for dim in dims:
        if isinstance(dim, ast.Pack):
            raise CompileError("E0303", "a struct has no packs", dim.span)
        sizes.append(read_size(dim.size, names))
    if len(sizes) != len(declaration.dims):
        wanted = ", ".join(map(str, declaration.dims))
        message = f"{declaration.name}({wanted}) has {len(declaration.dims)} dimensions, and {len(sizes)} are given"
        raise CompileError("E0303", message, name.span)
    return StructPattern(declaration, file, tuple(sizes), None if length is None else read_size(length, names))


def _require_finite(struct: ast.Struct, file: File, around: tuple[ast.Struct, ...]) -> None:
    """Raise E0303 at the field through which a struct contains itself, directly or inside of another."""
    for field in struct.fields:
        found = file.struct(field.type.name.text) if isinstance(field.type, ast.StructTypeExpr) else None
        if found is None:
            continue
        if found[0] is struct or found[0] in around:
            raise CompileError("E0303", f"`{found[0].name}` contains itself", field.span)
        _require_finite(*found, (*around, struct))


def read_size(dim: ast.DimExpression, names: Namespace) -> Size:
    """A dimension as a size."""
    match dim:
        case ast.DimNumber(value):
            return Size.of(value)
        case ast.DimName(name):
            return names.size(name, dim.span)
        case ast.DimBinary(operator, left, right):
            a, b = read_size(left, names), read_size(right, names)
            match operator:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*":
                    return a * b
                case "//":
                    return a // b
                case "%":
                    return a % b


@dataclass(frozen=True)
class StructNames:
    """The names in the fields of a struct: its own dimensions, with the sizes that its type gives them."""

    file: File
    sizes: Mapping[str, Size]

    def size(self, name: str, span: Span) -> Size:
        if name in self.sizes:
            return self.sizes[name]
        match self.file.constant(name):
            case (ast.Const(_, ast.Number(_, int() as value)), _):
                return Size.of(value)
        hint = suggest(name, self.sizes) or "a struct lists its dimensions after its name"
        raise CompileError("E0302", f"no dimension is named `{name}`", span, hint=hint)

    def pack(self, name: str, span: Span) -> tuple[Size | PackName, ...]:
        raise CompileError("E0303", "a struct has no packs", span)

    def element(self, name: str) -> DType | GenericDType | Format | None:
        declared = self.file.format(name)
        return named_format(name, declared)

    def visible(self) -> list[str]:
        return []


def named_format(name: str, declared: ast.Format | None) -> Format | None:
    """A declared or built-in format."""
    return Format(name, declared) if declared is not None or name in BUILT_IN else None


def struct_fields(pattern: StructPattern) -> Iterator[tuple[ast.StructField, Pattern]]:
    """The fields of one record, with their types in terms of the sizes of the record's type."""
    sizes = {str(name): size for name, size in zip(pattern.declaration.dims, pattern.dims)}
    names = StructNames(pattern.file, sizes)
    for field in pattern.declaration.fields:
        yield field, read_type(field.type, names)


def leaves(label: str, pattern: Pattern) -> Iterator[tuple[str, TensorPattern, Size | None]]:
    """The tensors of a parameter: dotted name, type, and the length of the list that it is in."""
    match pattern:
        case TensorPattern(element=Format() as found):
            for name, element, dims in stored(found, pattern, label):
                yield name, TensorPattern(element, dims), None
        case TensorPattern():
            yield label, pattern, None
        case StructPattern():
            for field, inner in struct_fields(pattern):
                for name, leaf, length in leaves(f"{label}.{field.name}", inner):
                    if length is not None and pattern.length is not None:
                        message = f"{label}.{field.name} is a list within a list"
                        raise CompileError("E0901", message, field.span, hint="use one list of one struct")
                    yield name, leaf, length if length is not None else pattern.length
        case TuplePattern():
            raise AssertionError("a parameter is no tuple")


def stored(found: Format, pattern: TensorPattern, label: str) -> list[tuple[str, DType, tuple[Size, ...]]]:
    """The tensors in which a tensor of a format is stored. Raises CompileError E0303 or E0901."""
    dims = tuple(d for d in pattern.dims if isinstance(d, Size))
    if len(dims) < len(pattern.dims):
        hint = "give each dimension a name"
        raise CompileError("E0901", f"{label} is {pattern}: a format of a pack of dimensions", hint=hint)
    return found.leaves(dims, label)


def accepts(kind: str, element: DType) -> bool:
    """Is a dtype in a class of generics?"""
    match kind:
        case "float":
            return element.is_float and not element.is_narrow
        case "int":
            return element.is_integer
        case "number":
            return element.kind != "bool" and not element.is_narrow
        case "any":
            return True
    return False
