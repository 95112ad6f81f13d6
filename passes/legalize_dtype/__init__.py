"""Element types that the target does not compute with are computed in wider ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from intarsia.ir.dtypes import BF16, BOOL, F4E2M1, F8E4M3, F8E5M2, F8E8M0, F16, F32, U8, DType
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.kernel import PUT_FUNCTIONS
from intarsia.ir.ops import ArgReduce, Cast, Compute, Constant, Elementwise, Reduce, Update
from intarsia.ir.scalar import Cast as CastExpr
from intarsia.ir.scalar import Expr, walk
from intarsia.ir.target import Target
from intarsia.passes.legalize_dtype.scalar import Arithmetic, legal_body, rounded, widened
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions

_BOOL_FUNCTIONS = {"maximum": "or", "minimum": "and"}
_BOOL_COMBINERS = {"max": "any", "min": "all"}


@dataclass(frozen=True)
class LegalizeDtype(Pass):
    """Compute f16 and bf16 in f32 where the target has no such arithmetic, and order bools as bits.

    Before:  %0 = add %x, %y : bf16[4]       After:  %0 = cast %x : f32[4]
                                                     %1 = cast %y : f32[4]
                                                     %2 = add %0, %1 : f32[4]
                                                     %3 = cast %2 optional=true : bf16[4]

    Every op rounds its result, as the language says; but the roundings are `optional`: `skip-rounding` leaves out those
    between ops of one kernel. Within one body, only the result is rounded. Reductions run in f32 and round once.
    Moving, comparing for equality of bits, and storing need no arithmetic and stay.

    Elements of narrow types (floats of 8 bits or fewer, integers of 7 or fewer) become functions of their codes
    (`ir/codes.py`): `%0 = cast %w : f32[4]` of an `i4` is arithmetic on `bitcast(%w[i], u8)`. For GPUs it
    ends with an i8 or f16, as matrix units multiply it, which is cast; and those that have f8, or codes with scales,
    in instructions keep their casts to f32.

    Keeps: values within the tolerance. Needs: nothing. Leaves: no arithmetic on f16, bf16 that the target lacks, and
    no comparison, minimum or maximum of bools; no conversion from or to narrow types, but for their codes
    and what the target converts.
    """

    name: ClassVar[str] = "legalize-dtype"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        def say(message: str, node: Node) -> None:
            self.remark(context, "lowbit", message, node.span)

        body = _Legalizer(arithmetic(context.target), say).region(module.graph.body)
        return module.with_body(body)


def arithmetic(target: Target) -> Arithmetic:
    """What a target computes with. A GPU would round floats of 16 bits after every operation; its matrix units take
    them as they are, and do not."""
    fast = frozenset({F16}) if {"avx512fp16", "fullfp16"} & set(target.features) else frozenset[DType]()
    converted = frozenset({F8E4M3, F8E5M2}) if target.has_f8 else frozenset[DType]()
    converted |= {F4E2M1, F8E8M0} if target.has_scaled_dots else frozenset()
    return Arithmetic(frozenset({F16, BF16}) - fast, converted, short=target.kind == "gpu")


@dataclass
class _Legalizer:
    """Rewrites one region. `native` is what the target computes with, `say` records what becomes of a node; `nodes` is
    what the region becomes."""

    native: Arithmetic
    say: Callable[[str, Node], None]
    nodes: list[Node] = field(default_factory=list)

    @property
    def slow(self) -> frozenset[DType]:
        """The floats of 16 bits that have no arithmetic."""
        return self.native.slow

    def region(self, old: Region) -> Region:
        region = change_regions(old, lambda _, r: _Legalizer(self.native, self.say).region(r))
        values: dict[Value, Value] = {}
        for node in region.nodes:
            results = self.legal(node.with_operands(values))
            if results != node.values:
                values.update(zip(node.values, results))
        if len(self.nodes) == len(region.nodes) and all(a is b for a, b in zip(self.nodes, region.nodes)):
            return region
        return Region(region.parameters, tuple(self.nodes), tuple(values.get(v, v) for v in region.results))

    def add(self, node: Node) -> Value:
        self.nodes.append(node)
        return node.value

    def legal(self, node: Node) -> tuple[Value, ...]:
        """Emit a node in types that the target computes with, and give its results."""
        match node:
            case Elementwise(arguments=arguments) if arguments[-1].dtype in self.slow and self._computes(node):
                return (self._elementwise(node),)
            case Cast(x, dtype) if x.dtype.is_narrow or dtype.is_narrow:
                return (self.add(self._compute(Compute((x,), node.space, span=node.span))),)
            case Elementwise(function, arguments) if arguments[-1].dtype == BOOL and _orders(function):
                if function in _BOOL_FUNCTIONS:
                    return (self.add(dataclasses.replace(node, function=_BOOL_FUNCTIONS[function])),)
                bits = tuple(self.add(Cast(a, U8, span=node.span)) for a in arguments)
                return (self.add(dataclasses.replace(node, arguments=bits)),)
            case Reduce(x, "max" | "min" as combiner) if x.dtype == BOOL:
                return (self.add(dataclasses.replace(node, combiner=_BOOL_COMBINERS[combiner])),)
            case Reduce(x) if x.dtype in self.slow:
                self.say(f"the {node.combiner} of {x.dtype} is formed in f32, and rounded once", node)
                wide = self.add(dataclasses.replace(node, x=self.wide(x, node)))
                return (self.add(Cast(wide, x.dtype, optional=True, span=node.span)),)
            case ArgReduce(x) if x.dtype in self.slow:
                return (self.add(dataclasses.replace(node, x=self.wide(x, node))),)
            case ArgReduce(x) if x.dtype == BOOL:
                return (self.add(dataclasses.replace(node, x=self.add(Cast(x, U8, span=node.span)))),)
            case Compute():
                return (self.add(self._compute(node)),)
            case Update():
                return (self._update(node),)
        self.nodes.append(node)
        return node.values

    def wide(self, value: Value, origin: Node) -> Value:
        """A value in f32: exact."""
        if isinstance(value.node, Constant):
            return self.add(Constant(rounded(value.node.literal, value.dtype), F32, span=origin.span))
        return self.add(Cast(value, F32, span=origin.span))

    def _computes(self, node: Elementwise) -> bool:
        """Does it do arithmetic? A `where` only moves, but between ops it had better stay in the wide type."""
        if node.function != "where":
            return True
        return any(isinstance(a.node, Cast) and a.node.optional for a in node.arguments[1:])

    def _elementwise(self, node: Elementwise) -> Value:
        self.say(f"{node.function} of {node.arguments[-1].dtype} is computed in f32, and rounded to it", node)
        arguments = tuple(self.wide(a, node) if a.dtype in self.slow else a for a in node.arguments)
        result = self.add(dataclasses.replace(node, arguments=arguments))
        if result.dtype == node.value.dtype:
            return result
        return self.add(Cast(result, node.value.dtype, optional=True, span=node.span))

    def _compute(self, node: Compute) -> Compute:
        space = node.definition
        body = legal_body(space.body, self.native)
        combiner = space.combiner
        if combiner is not None and body.dtype in self.slow:
            body = widened(space.body, self.native)
        if combiner in _BOOL_COMBINERS and body.dtype == BOOL:
            combiner = _BOOL_COMBINERS[combiner]
        if body == space.body and combiner == space.combiner:
            return node
        for message in dict.fromkeys(_casts(space.body, self.native.converted)):
            self.say(message, node)
        return dataclasses.replace(node, definition=dataclasses.replace(space, body=body, combiner=combiner))

    def _update(self, node: Update) -> Value:
        """An update that accumulates does so in f32: base and result are cast."""
        if node.operator == "=" or node.base.dtype not in self.slow:
            body = legal_body(node.body, self.native)
            return self.add(node if body == node.body else dataclasses.replace(node, body=body))
        assert node.operator in PUT_FUNCTIONS
        body = widened(node.body, self.native, wide_buffer="a0")
        base = self.wide(node.base, node)
        arguments = node.arguments
        result = self.add(Update(base, arguments, node.axes, node.targets, node.operator, body, span=node.span))
        return self.add(Cast(result, node.base.dtype, optional=True, span=node.span))


def _casts(body: Expr, converted: frozenset[DType]) -> Iterator[str]:
    """What becomes of the narrow elements of a body, but for those that the target converts."""
    for e in walk(body):
        match e:
            case CastExpr(dtype, value) if value.dtype.is_narrow and value.dtype not in converted:
                yield f"{value.dtype} is read as the code in its byte, from which {dtype} is computed"
            case CastExpr(dtype, value) if dtype.is_narrow:
                yield f"the code of {dtype} is computed from {value.dtype}"


def _orders(function: str) -> bool:
    """Is it a function of bools that is neither logic nor a selection?"""
    return function in (*_BOOL_FUNCTIONS, "eq", "ne", "lt", "le", "gt", "ge") and function in FUNCTIONS
