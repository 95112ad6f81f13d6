"""Dimensions, packs and dtypes of a signature from the types of arguments.

The names of the signature are unknowns, marked `?N` within sizes, so that they never mix with the names of the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from intarsia.dsl.semantics.bounds import Bounds
from intarsia.dsl.semantics.types import (
    GenericDType,
    PackName,
    Pattern,
    StructPattern,
    TensorPattern,
    accepts,
    struct_fields,
)
from intarsia.dsl.semantics.values import Format, FormatTensor, Item, Struct, StructList, describe, tensor_of
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.sharding import Sharding
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.types import TensorType


def unknown(name: str) -> str:
    """The symbol of an unknown dimension."""
    return f"?{name}"


@dataclass(frozen=True)
class Equation:
    """`left`, over unknowns, is `right`; `where` says of what, for messages."""

    left: Size
    right: Size
    where: str
    span: Span | None


@dataclass
class Unifier:
    """Collects what arguments say about a signature, then solves it.

    A name is bound where it first stands alone, else where it is the only unknown of a dimension linear in it.
    """

    bounds: Bounds
    classes: Mapping[str, str]
    sizes: dict[str, Size] = field(default_factory=dict)
    origins: dict[str, Equation] = field(default_factory=dict)
    packs: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    elements: dict[str, DType | Format] = field(default_factory=dict)
    equations: list[Equation] = field(default_factory=list)

    # ------------------------------------------------------------------ collecting

    def match(self, pattern: Pattern, item: Item, where: str, span: Span | None) -> None:
        """Note what an argument says. Raises CompileError E0304 where it cannot fit the pattern."""
        match pattern, item:
            case TensorPattern(element=Format() | GenericDType()), FormatTensor(found, shape):
                mismatch = f"{where} is {item}, and {pattern} is wanted"
                if not (isinstance(pattern.element, Format) and found.stores_like(pattern.element, len(shape))):
                    self._match_element(pattern.element, found, where, span, mismatch)
                self._match_dims(pattern, shape, str(item), where, span)
            case TensorPattern(), _ if (found_type := tensor_of(item)) is not None:
                self.match_tensor(pattern, found_type, where, span)
            case StructPattern(length=None), Struct():
                self._match_struct(pattern, item, where, span)
            case StructPattern(length=Size() as length), StructList(element, found_length):
                self._match_struct(pattern, element, where, span)
                self.equations.append(Equation(length, found_length, f"the length of {where}", span))
            case _:
                raise CompileError("E0304", f"{where} is {describe(item)}, and {pattern} is wanted", span)

    def match_tensor(self, pattern: TensorPattern, found: TensorType, where: str, span: Span | None) -> None:
        """Note what the type of a tensor says."""
        mismatch = f"{where} is {found}, and {pattern} is wanted"
        self._match_element(pattern.element, found.dtype, where, span, mismatch)
        self._match_dims(pattern, found.shape, str(found), where, span)

    def _match_element(
        self, wanted: DType | GenericDType | Format, found: DType | Format, where: str, span: Span | None, mismatch: str
    ) -> None:
        if isinstance(wanted, GenericDType):
            name = wanted.name
            kind = self.classes[name]
            fits = kind in ("format", "any") if isinstance(found, Format) else accepts(kind, found)
            if not fits:
                hint = f"cast it up first, as in f32({_argument(where)})" if _is_narrow(found) else ""
                raise CompileError("E0305", f"{where} is of {found}, and {name} is any {kind} type", span, hint=hint)
            if self.elements.setdefault(name, found) != found:
                before = self.elements[name]
                hint = f"nothing is converted unasked: cast one of them, as in {before}({_argument(where)})"
                raise CompileError("E0305", f"{name} is {before} before, and {found} in {where}", span, hint=hint)
        elif wanted != found:
            hint = ""
            if isinstance(wanted, DType) and isinstance(found, DType):
                hint = f"nothing is converted unasked: cast it, as in {wanted}({_argument(where)})"
            raise CompileError("E0304", mismatch, span, hint=hint)

    def _match_dims(
        self, pattern: TensorPattern, shape: tuple[Size, ...], found: str, where: str, span: Span | None
    ) -> None:
        fixed = sum(isinstance(d, Size) for d in pattern.dims)
        has_pack = fixed < len(pattern.dims)
        if len(shape) < fixed or (len(shape) > fixed and not has_pack):
            message = f"{where} is {found}, and {pattern} is wanted"
            if shape and pattern.dims:
                count = f"{fixed} or more" if has_pack else str(fixed)
                message += f": it has {_count(len(shape))}, not {count}"
            raise CompileError("E0304", message, span)
        position = 0
        for dim in pattern.dims:
            if isinstance(dim, PackName):
                taken = shape[position : position + len(shape) - fixed]
                position += len(taken)
                self._match_pack(dim.name, taken, where, span)
            else:
                name = f"dimension {position} of {where}" if len(shape) > 1 else where
                self.equations.append(Equation(dim, shape[position], name, span))
                position += 1

    def _match_pack(self, name: str, dims: tuple[Size, ...], where: str, span: Span | None) -> None:
        bound = self.packs.setdefault(name, dims)
        if len(bound) != len(dims):
            message = f"..{name} is {_shape(bound)} before, and {_shape(dims)} in {where}"
            raise CompileError("E0306", message, span)
        for position, (left, right) in enumerate(zip(bound, dims)):
            self.equations.append(Equation(left, right, f"dimension {position} of ..{name} in {where}", span))

    def _match_struct(self, pattern: StructPattern, found: Struct, where: str, span: Span | None) -> None:
        if pattern.declaration is not found.declaration:
            raise CompileError("E0304", f"{where} is {found}, and {pattern} is wanted", span)
        for dim, size, name in zip(pattern.dims, found.dims, found.declaration.dims):
            self.equations.append(Equation(dim, size, f"{name} of {where}", span))

    def match_leaves(self, pattern: StructPattern, found: Mapping[str, TensorType], label: str) -> None:
        """Note what the tensors of a struct say, given by dotted name."""
        for struct_field, inner in struct_fields(pattern):
            name = f"{label}.{struct_field.name}"
            if isinstance(inner, StructPattern):
                self.match_leaves(inner, found, name)
            elif isinstance(inner, TensorPattern) and name in found:
                self.match_tensor(inner, found[name], f"`{name}`", None)

    # ------------------------------------------------------------------ solving

    def solve(self) -> None:
        """Bind every unknown that the equations determine, then check them all. Raises E0307 and E0308."""
        for equation in self.equations:
            name = equation.left.as_name
            if name is not None and name.startswith("?") and name not in self.sizes:
                self._bind(name, equation.right, equation)
        waiting = [e for e in self.equations if self._unknowns(e.left)]
        progress = True
        while waiting and progress:
            progress = False
            for equation in waiting:
                progress |= self._solve_linear(equation)
            waiting = [e for e in waiting if self._unknowns(e.left)]
        for equation in self.equations:
            self._check(equation)

    def _bind(self, name: str, size: Size, equation: Equation) -> None:
        self.sizes[name] = size
        self.origins[name] = equation

    def _unknowns(self, size: Size) -> list[str]:
        return [n for n in sorted(size.symbols) if n.startswith("?") and n not in self.sizes]

    def _solve_linear(self, equation: Equation) -> bool:
        left = equation.left.substitute(self.sizes)
        names = self._unknowns(left)
        factor = left.coefficient(names[0]) if len(names) == 1 else None
        if not factor:
            return False
        rest = equation.right - left.substitute({names[0]: ZERO})
        remainder = rest % factor if factor > 0 else (-rest) % -factor
        exact = self.bounds.compare(remainder, ZERO)
        if exact is False:
            message = f"{equation.where} is {self.bounds.show(equation.right)}, and {_plain(equation.left)} is wanted"
            raise CompileError("E0308", f"{message}: the division is not exact", equation.span)
        self._bind(names[0], rest // factor if factor > 0 else (-rest) // -factor, equation)
        return True

    def _check(self, equation: Equation) -> None:
        if self._unknowns(equation.left):
            return
        wanted = equation.left.substitute(self.sizes)
        if self.bounds.compare(wanted, equation.right) is not False:
            return
        show = self.bounds.show
        names = [n for n in sorted(equation.left.symbols) if n in self.origins]
        name = equation.left.as_name
        if name in self.origins:
            first = self.origins[name]
            message = (
                f"{name[1:]} is {show(first.right)} in {first.where} and {show(equation.right)} in {equation.where}"
            )
            notes = [(f"{name[1:]} is {show(first.right)} here", first.span)] if first.span else []
            raise CompileError(
                "E0307", message, equation.span, hint=_share(first.right, equation.right, name[1:]), notes=notes
            )
        where = ", ".join(f"{n[1:]} is {show(self.sizes[n])}" for n in names)
        plain = _plain(equation.left)
        message = f"{equation.where} is {show(equation.right)}, and {plain} is wanted"
        if where:
            message += f", which is {show(wanted)} where {where}"
        raise CompileError("E0307", message, equation.span, hint=_share(wanted, equation.right, plain))

    # ------------------------------------------------------------------ reading

    def element(self, pattern: TensorPattern) -> DType | Format:
        """What the elements of a pattern are. Raises E0309 where nothing determines it."""
        element = pattern.element
        if not isinstance(element, GenericDType):
            return element
        if element.name not in self.elements:
            raise CompileError("E0309", f"nothing decides which type {element.name} is")
        return self.elements[element.name]

    def tensor(self, pattern: TensorPattern) -> TensorType:
        """The type that a pattern stands for. Raises E0309 where a part of it is not determined."""
        element = self.element(pattern)
        assert isinstance(element, DType)
        return TensorType(element, self.shape(pattern), self.sharding(pattern))

    def shape(self, pattern: TensorPattern) -> tuple[Size, ...]:
        """The dimensions of a pattern, whatever its elements."""
        return tuple(size for dim in pattern.dims for size in self._sizes(dim))

    def sharding(self, pattern: TensorPattern) -> Sharding | None:
        """How a pattern says that its tensors lie on a mesh; a pack as its mark, in each dimension."""
        if (said := pattern.sharding) is None:
            return None
        marks = (m for dim, mark in zip(pattern.dims, said.dimensions) for m in [mark] * len(self._sizes(dim)))
        return replace(said, dimensions=tuple(marks))

    def _sizes(self, dim: Size | PackName) -> tuple[Size, ...]:
        return self.pack(dim.name) if isinstance(dim, PackName) else (self.size(dim),)

    def size(self, size: Size) -> Size:
        """A size with the unknowns replaced. Raises E0309 for one that is not determined."""
        solved = size.substitute(self.sizes)
        if missing := self._unknowns(solved):
            raise CompileError("E0309", f"no argument decides the dimension {missing[0][1:]}")
        return solved

    def pack(self, name: str) -> tuple[Size, ...]:
        """The dimensions of a pack. Raises E0309 where nothing determines them."""
        if name not in self.packs:
            raise CompileError("E0309", f"no argument decides the dimensions ..{name}")
        return tuple(self.size(d) for d in self.packs[name])

    def struct(self, pattern: StructPattern) -> StructPattern:
        """A struct's type with its dimensions known."""
        length = None if pattern.length is None else self.size(pattern.length)
        return StructPattern(pattern.declaration, pattern.file, tuple(self.size(d) for d in pattern.dims), length)


def _argument(where: str) -> str:
    """The argument in backquotes that a description names."""
    return where.split("`")[1] if where.count("`") >= 2 else "…"


def _is_narrow(element: DType | Format) -> bool:
    return isinstance(element, DType) and element.is_narrow


def _count(number: int) -> str:
    return "no dimension" if number == 0 else "1 dimension" if number == 1 else f"{number} dimensions"


def _shape(dims: tuple[Size, ...]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def _plain(size: Size) -> str:
    return str(size).replace("?", "")


def _share(left: Size, right: Size, name: str) -> str:
    """What to do about two sizes that differ."""
    a, b = left.as_name, right.as_name
    if a is not None and b is not None:
        return f"different names never match: if they are always equal, give both the name {a}"
    if a is not None or b is not None:
        symbol, size = (a, right) if a is not None else (b, left)
        return f"{symbol} stands for any size: declare it as {size}, or give both one name"
    return f"both must be one size, {name}"
