"""Names and shapes of what a kernel reads and writes, taken from the graph so that kernels read like the program."""

from __future__ import annotations

import re
from collections.abc import Sequence

from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Node, Parameter, Structured, Value
from intarsia.ir.ops import ArgReduce, Compute, Cumulative, Elementwise, ListGet, Reduce
from intarsia.ir.scalar import Apply, Expr, walk
from intarsia.ir.sizes import Size
from intarsia.ir.space import Space
from intarsia.ir.types import ListType


def value_extents(value: Value) -> tuple[Size, ...]:
    """One extent for each subscript of an operand: a list is read with one more, leading."""
    match value.type:
        case ListType(length, element):
            return (length, *element.shape)
        case tensor:
            return tensor.shape


def buffer_label(value: Value) -> str:
    """The name of a parameter of a kernel: the user's where the value has one, of a field its own name alone, for
    other layers may share the kernel."""
    match value.node:
        case Parameter(label):
            return re.sub(r"\W", "_", label.rpartition(".")[2]).strip("_") or "x"
        case ListGet(source):
            return buffer_label(source)
    return "x"


def op_label(node: Node) -> str:
    """A word for what a node does: its name, or the combiner of a reduction; for one without a name `dot` if it sums
    products, else its dearest function, `copy` where nothing is computed."""
    match node:
        case Elementwise(function):
            return function
        case Cumulative(_, combiner):
            return f"cum{combiner}"
        case ArgReduce(_, which):
            return which
        case Reduce(_, combiner):
            return combiner
        case Compute(_, Space(body=body, combiner=combiner)):
            if combiner is None:
                return _dearest(body) or "copy"
            is_product = isinstance(body, Apply) and body.function == "mul"
            return "dot" if combiner == "sum" and is_product else combiner
    return node.name


def kernel_label(members: Sequence[Node]) -> str:
    """The reductions and dear functions of a group in order, at most three words; else what its last member does."""
    words = dict.fromkeys(op_label(m) for m in members if _is_principal(m))
    return "_".join(list(words)[:3]) or op_label(members[-1])


def _is_principal(node: Node) -> bool:
    """Does a node say what its group is for?"""
    if isinstance(node, Structured):
        dearest = _dearest(node.space.body)
        return bool(node.space.reduced) or (dearest is not None and FUNCTIONS[dearest].operations > 4)
    return True


def _dearest(body: Expr) -> str | None:
    """The function of a body that takes the most operations, the first of equals."""
    functions = [e.function for e in walk(body) if isinstance(e, Apply)]
    return max(functions, key=lambda f: FUNCTIONS[f].operations, default=None)
