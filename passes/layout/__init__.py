"""In which order the dimensions of a tensor lie in memory, where only kernels of the program see it.

    %0 = call @f_conv2d(%x, %w) : f32[1, 64, 56, 56]          %0 = call @f_conv2d.0(%x, %w) : f32[1, 56, 56, 64]
    %1 = call @f_conv2d_1(%0, %v) : f32[1, 64, 56, 56]   =>   %1 = call @f_conv2d_1.0(%0, %v) : f32[1, 64, 56, 56]

Parameters and results are as the program says. What one kernel makes and others read may lie as suits them: its type,
the parameters of the kernels and their subscripts are those of a program that was written so, and nothing else in the
compiler knows of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.kernel import Buffer, Kernel
from intarsia.ir.ops import Call
from intarsia.ir.target import Target
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.weighing import against
from intarsia.passes.layout.orders import Order, is_same, is_whole, last, stages, with_orders
from intarsia.passes.layout.wanted import Classes, Demands
from intarsia.passes.lower import kernels_called
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_regions
from intarsia.passes.schedule.choosing import LONG_ENOUGH
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.schedule.shape import count, points

WORTH = 0.95
"""An order is changed if the kernels that make and read a tensor are then predicted to take at most this part of the
time."""

Orders: TypeAlias = dict[Value, Order]
"""The orders of tensors that lie in memory otherwise than their types say."""


@dataclass(frozen=True)
class Layout(Pass):
    """Choose for tensors between kernels which dimension comes last in memory.

    Before:  %0 = call @f_matmul(%x, %w) : f32[128, 64]; %1 = call @f_matmul_1(%0, %y) : f32[64, 32]
    After:   %0 = call @f_matmul.0(%x, %w) : f32[64, 128]; %1 = call @f_matmul_1.0(%0, %y) : f32[64, 32]

    `choose`: a dimension that a product would like last comes last if that is predicted to pay; `always`: without a
    prediction; `never`.

    Keeps: values, bit for bit. Needs: `lower`. Leaves: kernels as if the program had been written so.
    """

    name: ClassVar[str] = "layout"
    exact: ClassVar[bool] = True
    choose: Literal["predicted", "always", "never"] = "predicted"

    def run(self, module: Module, context: Context) -> Module:
        is_possible = context.target.kind == "cpu" and context.pinned_schedule is None and not context.checks
        if self.choose == "never" or not is_possible or (self.choose == "predicted" and context.predict is None):
            return module
        kernels = {kernel.name: kernel for kernel in module.kernels}
        body = self._region(module.graph.body, kernels, context)
        if body is module.graph.body:
            return module
        called = frozenset(kernels_called(body))
        return replace(module.with_body(body), kernels=tuple(k for k in kernels.values() if k.name in called))

    def _region(self, region: Region, kernels: dict[str, Kernel], context: Context) -> Region:
        """The region, and those inside it, with tensors in other orders; new kernels are added to `kernels`."""
        inner = change_regions(region, lambda _, r: self._region(r, kernels, context))
        block = _Block(inner, kernels, context)
        orders: Orders = {}
        for changed in block.candidates():
            wanted = {**orders, **changed}
            found = block.weigh(changed, wanted, orders) if self.choose == "predicted" else (0.0, 1.0)
            if found is None:
                continue
            new, old = found
            if pays := new <= WORTH * old:
                orders = wanted
            text = "" if self.choose == "always" else f": {against(*sorted(found))}"
            for value in changed:
                moved = "is stored as" if pays else "is not stored as"
                message = f"{value.tensor}, made by {_maker(value)}, {moved} {_moved(value, changed)}{text}"
                self.remark(context, "layout", message, value.node.span, pays)
        return block.with_orders(orders) if orders else inner


@dataclass(frozen=True)
class _Block:
    """The calls of a region, and what orders of their tensors would mean for their kernels."""

    region: Region
    kernels: dict[str, Kernel]
    context: Context
    _demands: dict[str, Demands] = field(default_factory=dict)
    _seconds: dict[Kernel, float] = field(default_factory=dict)
    _made: dict[tuple[str, tuple[tuple[str, Order], ...]], Kernel] = field(default_factory=dict)

    @property
    def calls(self) -> Iterator[Call]:
        return (node for node in self.region.nodes if isinstance(node, Call))

    def arguments(self, call: Call) -> Iterator[tuple[Buffer, Value]]:
        """The parameters of the kernel of a call with the values given for them, and its results."""
        given, made = iter(call.arguments), iter(call.values)
        for buffer in self.kernels[call.kernel].parameters:
            if buffer.role in ("in", "inout"):
                yield buffer, next(given)
            if buffer.role in ("out", "inout"):
                yield buffer, next(made)

    def private(self) -> dict[Value, None]:
        """The tensors that calls make and nothing but calls of this region reads, element by element."""
        open_ = {v for node in self.region.nodes if not isinstance(node, Call) for v in node.inputs}
        open_ |= set(self.region.results)
        made: dict[Value, None] = {}
        for call in self.calls:
            kernel = self.kernels[call.kernel]
            for buffer, value in self.arguments(call):
                plain = buffer.role in ("in", "out") and buffer.length is None and not kernel.sizes
                if not plain or is_whole(kernel, buffer.name):
                    open_.add(value)
                if buffer.role == "out":
                    made[value] = None
        return {value: None for value in made if value not in open_ and isinstance(value.type, TensorType)}

    def candidates(self) -> Iterator[Orders]:
        """Orders that some kernel wants: a dimension of a tensor last, and all dimensions that go together with it. Not
        those for which a kernel that only passes elements on would turn around a tensor whose order is fixed."""
        private, classes = self.private(), Classes()
        if not private:
            return
        wanted: set[tuple[Value, int]] = set()
        fixed: set[tuple[Value, int]] = set()
        for call in self.calls:
            values = {buffer.name: value for buffer, value in self.arguments(call)}
            demands = self.demands(call.kernel)
            for together in demands.together:
                places = [(values[name], place) for name, place in together]
                for other in places[1:]:
                    classes.join(places[0], other)
                if demands.wanted.issuperset(together):
                    wanted.add(places[0])
                elif any(values[name] not in private for name in demands.across(together)):
                    fixed.add(places[0])
        chosen = {classes.find(place) for place in wanted} - {classes.find(place) for place in fixed}
        found: dict[Hashable, Orders] = {}
        for value in private:
            shape = value.tensor.shape
            for place in range(len(shape)):
                order, one = last(place, len(shape)), classes.find((value, place))
                if one in chosen and not is_same(order, shape):
                    found.setdefault(one, {}).setdefault(value, order)
        yield from found.values()

    def demands(self, name: str) -> Demands:
        """What a kernel says of its parameters."""
        if name not in self._demands:
            self._demands[name] = Demands.of(self.kernels[name])
        return self._demands[name]

    # ------------------------------------------------------------------ weighing

    def weigh(self, changed: Orders, new: Orders, old: Orders) -> tuple[float, float] | None:
        """Seconds of the kernels that make or read tensors whose order changes, with the new orders and with the old;
        None if these take no time that is worth a look, or so little beside their arithmetic that no order can pay, or
        if what would come last does not fill a vector: lanes, which then run along it, would be empty."""
        if any(self._is_short(value.tensor, order) for value, order in changed.items()):
            return None
        touched = [call for call in self.calls if any(value in changed for _, value in self.arguments(call))]
        before = sum(self.seconds(self.kernel(call, old)) for call in touched)
        least = sum(_least_seconds(self.kernels[call.kernel], self.context.target) for call in touched)
        if before < LONG_ENOUGH or least > WORTH * before:
            return None
        return sum(self.seconds(self.kernel(call, new)) for call in touched), before

    def _is_short(self, tensor: TensorType, order: Order) -> bool:
        """Is the dimension that comes last in an order shorter than a vector?"""
        return count(tensor.shape[order[-1]]) < self.context.target.lanes(tensor.dtype.bits)

    def kernel(self, call: Call, orders: Orders) -> Kernel:
        """The kernel of a call whose tensors lie in orders."""
        kernel = self.kernels[call.kernel]
        own = tuple((buffer.name, orders[value]) for buffer, value in self.arguments(call) if value in orders)
        if not own:
            return kernel
        if (kernel.name, own) not in self._made:
            made = with_orders(kernel, dict(own))
            taken = {*self.kernels, *(k.name for k in self._made.values())}
            name = next(n for i in range(len(taken) + 1) if (n := f"{kernel.name}.{i}") not in taken)
            self._made[kernel.name, own] = replace(made, name=name)
        return self._made[kernel.name, own]

    def seconds(self, kernel: Kernel) -> float:
        """How long a naive kernel is predicted to take with its default schedule."""
        key = replace(kernel, name="")
        if key not in self._seconds:
            assert self.context.predict is not None
            built = self.context.tried.get(key)
            built = built or build_schedule(kernel, self.context.target, applied=self.context.applied)
            self._seconds[key] = self.context.predict([built.kernel])[0]
        return self._seconds[key]

    # ------------------------------------------------------------------ rebuilding

    def with_orders(self, orders: Orders) -> Region:
        """The region whose tensors lie in orders."""
        values: dict[Value, Value] = {}
        nodes: list[Node] = []
        for old in self.region.nodes:
            node = old.with_operands(values)
            if isinstance(old, Call) and isinstance(node, Call) and any(v in orders for _, v in self.arguments(old)):
                kernel = self.kernel(old, orders)
                self.kernels[kernel.name] = kernel
                node = replace(node, kernel=kernel.name, types=tuple(_moved(v, orders) for v in old.values))
            values.update(zip(old.values, node.values, strict=True))
            nodes.append(node)
        return Region(self.region.parameters, tuple(nodes), tuple(values.get(v, v) for v in self.region.results))


def _moved(value: Value, orders: Mapping[Value, Order]) -> TensorType:
    kind = value.tensor
    return replace(kind, shape=tuple(kind.shape[d] for d in orders[value])) if value in orders else kind


def _maker(value: Value) -> str:
    """The kernel that makes a tensor."""
    assert isinstance(value.node, Call)
    return value.node.kernel


def _least_seconds(kernel: Kernel, target: Target) -> float:
    """What the sums of a naive kernel take at the peak of a machine, whatever lies where: a multiply-add for each
    point."""
    sums = [(loops, put) for loops, put in stages(kernel) if put.operator == "+="]
    vectors = sum(points(loops) / target.lanes(put.value.dtype.bits) for loops, put in sums)
    return vectors / (target.rates.arithmetic * target.rates.clock * target.cores)
