"""Static functions: what is known of a tensor when the program is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.semantics.literals import default_dtype
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import FormatTensor, Item, is_weak, tensor_of
from intarsia.ir.errors import Span
from intarsia.ir.sizes import Size, product
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def _type_of(arguments: Arguments) -> TensorType:
    item = arguments.item("x")
    found = TensorType(default_dtype(item)) if is_weak(item) else tensor_of(item)
    if found is None:
        raise arguments.wrong("x", "a tensor")
    return found


def _shape(arguments: Arguments) -> tuple[Size, ...]:
    item = arguments.item("x")
    return item.shape if isinstance(item, FormatTensor) else _type_of(arguments).shape


def _extent(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """The number of elements along some dimensions, all by default."""
    shape = _shape(arguments)
    return product(shape[axis] for axis in arguments.axes("axis", len(shape)))


def _rank(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """The number of dimensions."""
    return len(_shape(arguments))


def _dtype_of(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """The dtype of the elements."""
    return _type_of(arguments).dtype


def _accumulator(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
    """The dtype in which sums over elements of a dtype are formed."""
    return arguments.dtype("dtype").accumulator


QUERIES = (
    Primitive("extent", "x; axis=none", _extent),
    Primitive("rank", "x", _rank),
    Primitive("dtype_of", "x", _dtype_of),
    Primitive("accumulator", "dtype", _accumulator),
)
