"""Updates: a copy of the base with a region written, or the region alone where the base can be changed in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from intarsia.ir.kernel import For
from intarsia.ir.kernel_access import is_injective
from intarsia.ir.ops import Update
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.proofs import Facts
from intarsia.ir.scalar import Expr, loads
from intarsia.ir.sizes import ONE, ZERO, Size
from intarsia.ir.space import Axis
from intarsia.passes.lower.checks import check_update
from intarsia.passes.lower.stages import subscripts

if TYPE_CHECKING:
    from intarsia.passes.lower.kernel import GroupLowering


def lower_update(group: GroupLowering, node: Update) -> None:
    """Write the elements at the targets, in the order of the axes.

    Where no point reads what another one writes, the kernel changes the base in place: its parameter has the role
    `inout`, and memory planning copies the base first if its old value is still needed. Else the result begins as a
    copy, of what the region does not cover where that is a box less a box, and the body reads the base.
    """
    if group.checks is not None:
        check_update(group, node, group.checks)
    base = group.definition(node.base)
    axes = group.inlined_axes(node.axes, node.operands)
    targets = [group.inlined_size(t, node.operands) for t in node.targets]
    value = group.inlined(node.body, node.operands)
    group.reduce_for(axes, value)
    target = base.buffer
    facts = group.writer.scope.facts
    if target is None or not (_reads_only_old(target, axes, targets, value, facts) and group.take_over(node, target)):
        target = group.storage(node.value).name
        for box in _kept(node, axes, targets):
            group.writer.write(box, target, subscripts(box), "=", base.at(subscripts(box)), node.span)
    group.writer.write(axes, target, targets, node.operator, value, node.span)


def _reads_only_old(buffer: str, axes: Sequence[Axis], targets: Sequence[Size], value: Expr, facts: Facts) -> bool:
    """Does every point, in whatever order they run, read elements of `buffer` as they were before the update?"""
    if all(a.extent.constant == 1 for a in axes):
        return True
    sizes = (*targets, *(bound for a in axes for bound in (a.lower, a.upper)))
    fixed = [load for s in sizes for o in s.opaques for load in loads(o) if load.buffer == buffer]
    read = [load for load in dict.fromkeys(loads(value)) if load.buffer == buffer]
    own = is_injective(tuple(targets), [For(a.name, a.lower, a.upper, ()) for a in axes])
    own = own and not any(t.opaques for t in targets)
    elsewhere = [*fixed, *(load for load in read if not (own and load.indices == tuple(targets)))]
    return all(_never_meet(load.indices, targets, axes, facts) for load in elsewhere)


def _never_meet(read: Sequence[Size], written: Sequence[Size], axes: Sequence[Axis], facts: Facts) -> bool:
    """Is the element that one point reads never the one that any point writes? Shown dimension by dimension: if all
    earlier subscripts are equal, this one differs."""
    other = {a.name: Size.of(f"{a.name}'") for a in axes}
    for axis in axes:
        if not (axis.lower.opaques or axis.upper.opaques):
            facts = facts.within(axis.name, axis.lower, axis.upper)
            facts = facts.within(f"{axis.name}'", axis.lower.substitute(other), axis.upper.substitute(other))
    pairs = [(r, w.substitute(other)) for r, w in zip(read, written) if not (r.opaques or w.opaques)]
    for difference in sorted((r - w for r, w in pairs), key=lambda d: len(d.terms)):
        if facts.proves(difference - 1) or facts.proves(-difference - 1):
            return True
        facts = facts.given(difference, -difference)
    return False


def _kept(node: Update, axes: Sequence[Axis], targets: Sequence[Size]) -> list[tuple[Axis, ...]]:
    """Boxes that cover what an update keeps of its base. Around a box these are slabs: before and after it in the first
    dimension; beside it in the second, within its range in the first; and so on."""
    everything = axes_for(node.base.tensor.shape)
    region = _region(axes, targets)
    if node.operator != "=" or region is None:
        return [everything]
    boxes: list[tuple[Axis, ...]] = []
    for d, (whole, (lower, upper)) in enumerate(zip(everything, region)):
        inside = tuple(Axis(a.name, *bounds) for a, bounds in zip(everything, region[:d]))
        for slab in (Axis(whole.name, ZERO, lower), Axis(whole.name, upper, whole.upper)):
            if slab.extent != ZERO:
                boxes.append((*inside, slab, *everything[d + 1 :]))
    return boxes


def _region(axes: Sequence[Axis], targets: Sequence[Size]) -> list[tuple[Size, Size]] | None:
    """The box that targets cover, as a range for each dimension; None if it is no box that is known beforehand."""
    left = {a.name: a for a in axes}
    names = frozenset(left)
    if any(b.opaques or b.symbols & names for a in axes for b in (a.lower, a.upper)):
        return None
    ranges: list[tuple[Size, Size]] = []
    for target in targets:
        own = [name for name in sorted(left) if target.coefficient(name) == 1]
        axis = left.pop(own[0]) if own else Axis("", ZERO, ONE)
        offset = target - axis.name if own else target
        if offset.opaques or offset.symbols & names:
            return None
        ranges.append((axis.lower + offset, axis.upper + offset))
    # An axis that no target uses only repeats the writes, unless it has no points.
    return None if left else ranges
