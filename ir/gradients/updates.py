"""How the result of an update changes with its base and with what is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.gradients.scalar import derivative, times
from intarsia.ir.gradients.spaces import Make, is_hit, one_of_product, zeros
from intarsia.ir.graph import Value
from intarsia.ir.kernel import PutOperator
from intarsia.ir.ops import Compute, Update
from intarsia.ir.scalar import Expr, Index, Load, apply, cast, constant, loads, where
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_buffers, rename_size_buffers


@dataclass(frozen=True)
class LinearUpdate:
    """How an update changes: by what `of_base` makes of the base's change, and at each target by the sum, over the
    loads, of the factor times the load's change.

    form: the update with the names j0, j1, … for its axes, which is no node of the graph. operands: what the factors
    load, the base first. result, winners: of a maximum or minimum, what it gives, and how many elements are equal to
    that at each place.
    """

    form: Update
    operands: tuple[Value, ...]
    factors: Mapping[Load, Expr]
    result: Value
    winners: Value | None = None

    def of_base(self, change: Value, make: Make) -> Value:
        """A change of the base as one of the result, or a cotangent of the result as one of the base."""
        match self.form.operator:
            case "=":
                return _again(self.form, change, "=", constant(0.0, change.dtype), make)
            case "*=":
                return _again(self.form, change, "*=", cast(change.dtype, self.form.body), make)
        if self.winners is None:
            return change
        operands = (self.form.base, self.result, change, self.winners)
        axes, (own, result, moved, count) = _elements(operands)
        share = apply("div", moved, cast(moved.dtype, count))
        body = where(is_hit(own, result), share, constant(0.0, share.dtype))
        return make(Compute(operands, Space(axes, body, change.dtype))).value

    def inside(self) -> list[Expr]:
        """That a write is one: outside of the tensor it is dropped, and only one that depends on data can be there."""
        found: list[Expr] = []
        for target, extent in zip(self.form.targets, self.form.base.tensor.shape):
            if target.opaques:
                found.append(apply("ge", Index(target), Index(Size.of(0))))
                found.append(apply("lt", Index(target), Index(extent)))
        return found


def linear_update(node: Update, varying: Collection[Value], make: Make) -> LinearUpdate:
    """An update as those of its operands that are in `varying` change it.

    Of several writes to one place, `*=` passes on the change of each times the product of the others, and `max=` and
    `min=` that of the greatest, or least; equal ones share.
    """
    names = {a.name: Size.of(f"j{n}") for n, a in enumerate(node.axes)}
    form = replace(
        node,
        axes=tuple(replace(a.substitute(names), name=f"j{n}") for n, a in enumerate(node.axes)),
        targets=tuple(t.substitute(names) for t in node.targets),
        body=node.body.substitute(names),
    )
    operands = [form.base, *form.arguments]
    factors: dict[Load, Expr] = {}
    for load in dict.fromkeys(loads(form.body)):
        if operands[operand_position(load.buffer)] in varying and (factor := derivative(form.body, load)) is not None:
            factors[load] = factor
    winners: Value | None = None
    if node.operator in ("max=", "min="):
        winners = _winners(form, node.value, make)
        operands += [node.value, winners]
        result, count = (Load(operand(len(operands) - n), form.targets, operands[-n].dtype) for n in (2, 1))
        share = apply("div", constant(1.0, form.body.dtype), cast(form.body.dtype, count))
        for load, factor in factors.items():
            factors[load] = where(is_hit(form.body, result), times(share, factor), constant(0.0, factor.dtype))
    elif node.operator == "*=" and factors:
        others = _others(form, operands, make)
        factors = {load: times(others, factor) for load, factor in factors.items()}
    return LinearUpdate(form, tuple(operands), factors, node.value, winners)


def _again(form: Update, base: Value, operator: PutOperator, body: Expr, make: Make) -> Value:
    """The same places of another tensor, with a body that loads what that of the update does."""
    values = (form.base, *form.arguments)
    names = {operand(p): operand(p + 1) for p in range(len(values))}
    axes = tuple(a.rename_operands(names) for a in form.axes)
    targets = tuple(rename_size_buffers(t, names) for t in form.targets)
    return make(Update(base, values, axes, targets, operator, rename_buffers(body, names))).value


def _elements(values: Sequence[Value]) -> tuple[tuple[Axis, ...], list[Load]]:
    """Axes over tensors of one shape, and the element of each there."""
    axes = tuple(Axis.of(f"i{d}", extent) for d, extent in enumerate(values[0].tensor.shape))
    names = tuple(Size.of(a.name) for a in axes)
    return axes, [Load(operand(p), names, v.dtype) for p, v in enumerate(values)]


def _winners(form: Update, result: Value, make: Make) -> Value:
    """How many of the base's element and of what is written are the maximum or minimum at each place."""
    wide = result.dtype.accumulator
    one, zero = constant(1.0, wide), constant(0.0, wide)
    axes, (own, chosen) = _elements((form.base, result))
    first = make(Compute((form.base, result), Space(axes, where(is_hit(own, chosen), one, zero), wide))).value
    there = Load(operand(1 + len(form.arguments)), form.targets, result.dtype)
    with_result = replace(form, arguments=(*form.arguments, result), body=where(is_hit(form.body, there), one, zero))
    return _again(with_result, first, "+=", with_result.body, make)


def _others(form: Update, operands: list[Value], make: Make) -> Expr:
    """The product that a factor is part of, without it."""
    if _is_injective(form):
        return Load(operand(0), form.targets, form.base.dtype)
    wide = form.body.dtype.accumulator
    is_zero = apply("eq", form.body, constant(0.0, form.body.dtype))
    one = where(is_zero, constant(1.0, wide), constant(0.0, wide))
    count = _again(form, zeros(form.base.tensor.with_dtype(wide), make), "+=", one, make)
    rest = _again(form, form.base, "*=", where(is_zero, constant(1.0, form.body.dtype), form.body), make)
    operands += [count, rest]
    number, product = (Load(operand(len(operands) - n), form.targets, operands[-n].dtype) for n in (2, 1))
    return one_of_product(form.body, number, product)


def _is_injective(form: Update) -> bool:
    """Can it be seen that no two points have the same target: does each axis move a target alone?"""
    own = {a.name for a in form.axes}
    moved = [t.symbols & own for t in form.targets if not t.opaques and t.is_affine_in(own)]
    return own <= {name for names in moved if len(names) == 1 for name in names}
