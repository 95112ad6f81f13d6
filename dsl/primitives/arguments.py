"""Arguments of built-in functions: bound to the names of a signature, and read as what they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intarsia.dsl.semantics.literals import adapt
from intarsia.dsl.semantics.scope import Scope, suggest
from intarsia.dsl.semantics.values import FormatTensor, Item, describe
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.graph import Value
from intarsia.ir.scalar import Const
from intarsia.ir.sizes import Size
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


@dataclass(frozen=True)
class Argument:
    """The value of an argument, and where it stands. A default has the place of the call."""

    item: Item
    span: Span


_LITERALS: dict[str, Item] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Primitive:
    """A built-in function: its signature as the documentation shows it, `(x; axis=none, keepdims=false)`."""

    name: str
    parameters: str
    build: Callable[[Builder, Scope, Arguments, Span], Item]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters, in order."""
        return tuple(part.partition("=")[0] for part in self._parts)

    @cached_property
    def defaults(self) -> dict[str, Item]:
        """The defaults of the parameters that have one."""
        found: dict[str, Item] = {}
        for part in self._parts:
            name, _, text = part.partition("=")
            if text:
                found[name] = _LITERALS[text] if text in _LITERALS else int(text)
        return found

    @property
    def _parts(self) -> list[str]:
        return self.parameters.replace(";", ",").replace(" ", "").split(",")

    def __str__(self) -> str:
        return f"{self.name}({self.parameters})"


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a built-in function, by name."""

    function: str
    span: Span
    given: Mapping[str, Argument]

    def __getitem__(self, name: str) -> Argument:
        return self.given[name]

    def item(self, name: str) -> Item:
        return self.given[name].item

    # Each of these raises E0310 or E0321 where the argument is something else.

    def tensor(self, builder: Builder, name: str) -> Value:
        """A tensor."""
        argument = self.given[name]
        return builder.as_value(argument.item, argument.span)

    def stored(self, builder: Builder, name: str) -> Value | FormatTensor:
        """A tensor, perhaps in a format."""
        item = self.item(name)
        return item if isinstance(item, FormatTensor) else self.tensor(builder, name)

    def tensors(self, builder: Builder, name: str) -> list[Value] | list[FormatTensor]:
        """A tuple of tensors, all in formats or none."""
        argument = self.given[name]
        if isinstance(argument.item, tuple) and argument.item:
            formats = [item for item in argument.item if isinstance(item, FormatTensor)]
            if len(formats) == len(argument.item):
                return formats
            return [builder.as_value(item, argument.span) for item in argument.item]
        hint = f"tensors stand in parentheses: {self.function}((a, b))"
        raise self.wrong(name, "a tuple of tensors", hint)

    def size(self, name: str) -> Size:
        """A static integer."""
        argument = self.given[name]
        if isinstance(argument.item, (int, Size)) and not isinstance(argument.item, bool):
            size = Size.of(argument.item)
            if not size.opaques:
                return size
        raise self.wrong(name, "an integer that is known when the program is compiled")

    def sizes(self, name: str) -> tuple[Size, ...]:
        """A static tuple of integers; one integer is a tuple of one."""
        item = self.item(name)
        items = item if isinstance(item, tuple) else (item,)
        if any(isinstance(i, bool) or not isinstance(i, (int, Size)) for i in items):
            raise self.wrong(name, "a tuple of integers")
        return tuple(Size.of(i) for i in items if isinstance(i, (int, Size)))

    def integer(self, name: str) -> int:
        """A literal integer."""
        item = self.item(name)
        number = item.constant if isinstance(item, Size) else item
        if isinstance(number, int) and not isinstance(number, bool):
            return number
        raise self.wrong(name, "a literal integer")

    def flag(self, name: str) -> bool:
        """`true` or `false`."""
        item = self.item(name)
        if isinstance(item, bool):
            return item
        raise self.wrong(name, "true or false")

    def text(self, name: str) -> str:
        """A text in quotes."""
        item = self.item(name)
        if isinstance(item, str):
            return item
        raise self.wrong(name, "a text in double quotes")

    def dtype(self, name: str) -> DType:
        """A dtype by its name."""
        item = self.item(name)
        if isinstance(item, TensorType) and not item.rank:
            return item.dtype
        if isinstance(item, DType):
            return item
        raise self.wrong(name, "a dtype such as f32")

    def type(self, name: str) -> TensorType:
        """A tensor type such as `f32[N, M]`."""
        item = self.item(name)
        if isinstance(item, DType):
            return TensorType(item)
        if isinstance(item, TensorType):
            return item
        raise self.wrong(name, "a type such as f32[N]")

    def axis(self, name: str, rank: int) -> int:
        """One dimension of `rank`, from the end where negative. Raises E0209."""
        return self.normal(name, self.integer(name), rank)

    def axes(self, name: str, rank: int) -> tuple[int, ...]:
        """Dimensions: all for none, one for an integer. Raises E0209."""
        item = self.item(name)
        if item is None:
            return tuple(range(rank))
        items = item if isinstance(item, tuple) else (item,)
        found: list[int] = []
        for entry in items:
            number = entry.constant if isinstance(entry, Size) else entry
            if not isinstance(number, int) or isinstance(number, bool):
                raise self.wrong(name, "an integer, a tuple of integers or none")
            axis = self.normal(name, number, rank)
            if axis in found:
                raise CompileError("E0209", f"{self.function}: {name} {number} is given twice", self.given[name].span)
            found.append(axis)
        return tuple(sorted(found))

    def normal(self, name: str, number: int, rank: int) -> int:
        """An axis counted from the front. Raises E0209."""
        if not -rank <= number < rank:
            dims = "is a scalar" if rank == 0 else f"has {rank} dimension{'s' if rank > 1 else ''}"
            hint = "" if rank == 0 else f"from {-rank} to {rank - 1}; negative ones count from the end"
            message = f"{self.function}: {name} is {number}, and the tensor {dims}"
            raise CompileError("E0209", message, self.given[name].span, hint=hint)
        return number % rank

    def wrong(self, name: str, wanted: str, hint: str = "") -> CompileError:
        """E0321: an argument is not what is wanted."""
        argument = self.given[name]
        if self.function in ("max", "min") and name == "axis":
            hint = f"the larger or smaller of two values is {self.function}imum(a, b)"
        message = f"`{name}` of {self.function} is {wanted}, and this is {describe(argument.item)}"
        return CompileError("E0321", message, argument.span, hint=hint)


def bind_arguments(
    primitive: Primitive, positional: Sequence[Argument], keywords: Mapping[str, Argument], span: Span
) -> Arguments:
    """Give each parameter of a built-in function its argument or default. Raises E0315."""
    names = primitive.names
    if len(positional) > len(names):
        message = f"{primitive.name} takes {len(names)} arguments, and {len(positional)} are given"
        raise CompileError("E0315", message, positional[len(names)].span, hint=_usage(primitive))
    given = dict(zip(names, positional))
    for name, argument in keywords.items():
        if name not in names:
            hint = suggest(name, names) or str(primitive)
            raise CompileError("E0315", f"{primitive.name} has no parameter `{name}`", argument.span, hint=hint)
        if name in given:
            raise CompileError("E0315", f"`{name}` of {primitive.name} is given twice", argument.span)
        given[name] = argument
    for name in names:
        if name not in given:
            if name not in primitive.defaults:
                message = f"`{name}` of {primitive.name} is not given"
                raise CompileError("E0315", message, span, hint=str(primitive))
            given[name] = Argument(primitive.defaults[name], span)
    return Arguments(primitive.name, span, given)


def _usage(primitive: Primitive) -> str:
    if primitive.name in ("max", "min"):
        return f"of two values: {primitive.name}imum(a, b)"
    return str(primitive)


def adapt_literal(arguments: Arguments, name: str, dtype: DType) -> int | float | bool:
    """A literal as an element of `dtype`; 0 is false where that is wanted. Raises E0208 and E0321."""
    argument = arguments[name]
    item = argument.item
    if not isinstance(item, (bool, int, float)):
        raise arguments.wrong(name, "a literal")
    if dtype == BOOL and item in (0, 1):
        return bool(item)
    found = adapt(item, dtype, argument.span)
    assert isinstance(found, Const)
    return found.value
