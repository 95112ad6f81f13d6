"""Reductions of whole tensors over some of their dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from intarsia.dsl.primitives.arguments import Arguments, Primitive
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import EXPRESSIONS, Item
from intarsia.ir.dtypes import BOOL, DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.ops import ArgReduce, Reduce, Reshape
from intarsia.ir.sizes import ONE

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder

COMBINERS = ("sum", "prod", "max", "min", "any", "all")


def require_reducible(which: str, dtype: DType, span: Span) -> None:
    """Raise E0202 if elements of a dtype cannot be reduced by `which`."""
    if which in ("any", "all"):
        if dtype != BOOL:
            hint = "compare first, as in x != 0"
            raise CompileError("E0202", f"{which} of {dtype}: the elements are not bool", span, hint=hint)
    elif dtype.is_narrow:
        raise CompileError("E0202", f"{which} of {dtype}", span, hint=f"{dtype} is storage: cast it up first: f32(x)")


def _reduction(which: str) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        require_tensor(builder, scope, arguments)
        x = arguments.tensor(builder, "x")
        axes, keepdims = arguments.axes("axis", x.tensor.rank), arguments.flag("keepdims")
        require_reducible(which, x.dtype, span)
        return builder.add(Reduce(x, which, axes, keepdims, span=span)).value

    return build


def require_tensor(builder: Builder, scope: Scope, arguments: Arguments) -> None:
    """Raise E0404 where a function of whole tensors is given an element of index notation."""
    argument = arguments["x"]
    if scope.frame is not None and isinstance(argument.item, EXPRESSIONS):
        name = arguments.function
        hint = f"over an index: {name}[k](…)" if name in COMBINERS else "define the tensor first, then subscript it"
        if name in ("max", "min"):
            hint += f"; of two numbers: {name}imum(a, b)"
        message = f"{name} is for whole tensors, and this is an element of index notation"
        raise CompileError("E0404", message, argument.span, hint=hint)


def _arg_reduction(which: str) -> Callable[[Builder, Scope, Arguments, Span], Item]:
    def build(builder: Builder, scope: Scope, arguments: Arguments, span: Span) -> Item:
        require_tensor(builder, scope, arguments)
        x = arguments.tensor(builder, "x")
        require_reducible(which, x.dtype, span)
        keepdims = arguments.flag("keepdims")
        kept = x.tensor.shape
        if arguments.item("axis") is None:
            axis = 0
            x = builder.reshaped(x, (x.tensor.elements,), span)
            shape = tuple(ONE for _ in kept)
        else:
            axis = arguments.axis("axis", x.tensor.rank)
            shape = tuple(ONE if d == axis else s for d, s in enumerate(kept))
        if not builder.bounds.may_be_nonnegative(x.tensor.shape[axis] - 1, f"{which} over no elements", span):
            raise CompileError("E0207", f"{which} over no elements: axis {axis} of {x.type} is empty", span)
        found = builder.add(ArgReduce(x, which, axis, span=span)).value
        return builder.add(Reshape(found, shape, span=span)).value if keepdims else found

    return build


REDUCTIONS = (
    *(Primitive(which, "x; axis=none, keepdims=false", _reduction(which)) for which in COMBINERS),
    *(Primitive(which, "x; axis=none, keepdims=false", _arg_reduction(which)) for which in ("argmax", "argmin")),
)
