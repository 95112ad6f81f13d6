"""Updates: a copy of the base with a region written, or the region alone where the base can be changed in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.ir.kernel import Buffer, For
from intarsia.ir.kernel_access import is_injective
from intarsia.ir.ops import Update
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.scalar import Load, loads
from intarsia.ir.space import operand_position
from intarsia.passes.lower.checks import check_update
from intarsia.passes.lower.stages import subscripts

if TYPE_CHECKING:
    from intarsia.passes.lower.kernel import GroupLowering


def lower_update(group: GroupLowering, node: Update) -> None:
    """Write the elements at the targets, in the order of the axes.

    Where the body reads the base only at the element that it writes, the kernel changes the base in place: its
    parameter has the role `inout`, and memory planning copies the base first if its old value is still needed. Else
    the result begins as a copy, and the body reads the base.
    """
    if group.checks is not None:
        check_update(group, node, group.checks)
    buffer = _own_storage(group, node)
    if buffer is None:
        base = group.definition(node.base)
        axes = axes_for(node.base.tensor.shape)
        buffer = group.storage(node.value)
        group.writer.write(axes, buffer.name, subscripts(axes), "=", base.at(subscripts(axes)), node.span)
    else:
        group.define_as(node.base, buffer)
    axes = group.inlined_axes(node.axes, node.operands)
    targets = [group.inlined_size(t, node.operands) for t in node.targets]
    value = group.inlined(node.body, node.operands)
    group.writer.write(axes, buffer.name, targets, node.operator, value, node.span)
    group.define_as(node.value, buffer)


def _own_storage(group: GroupLowering, node: Update) -> Buffer | None:
    """The buffer of the base, if the base may be changed in place and nothing else here reads it."""
    reads = _base_reads(node)
    if group.uses.reads[node.base] > 1 + len(reads) or not _is_local(node, reads):
        return None
    if node.base in group.definitions:
        return group.own_temporary(node.base) if node.value not in group.outputs else None
    if node.value in group.outputs and group.is_owned(node.base):
        return group.result(node.value, node.base)
    return None


def _base_reads(node: Update) -> list[Load]:
    """The distinct ways in which an update reads the old base."""
    sizes = (*node.targets, *(bound for a in node.axes for bound in (a.lower, a.upper)))
    found = (*loads(node.body), *(load for s in sizes for o in s.opaques for load in loads(o)))
    return [load for load in dict.fromkeys(found) if node.operands[operand_position(load.buffer)] == node.base]


def _is_local(node: Update, reads: list[Load]) -> bool:
    """Does every point read no old element but the one that it alone writes?"""
    if not reads:
        return True
    loops = [For(a.name, a.lower, a.upper, ()) for a in node.axes]
    in_body = set(loads(node.body))
    return (
        all(load in in_body and load.indices == node.targets for load in reads)
        and not any(t.opaques for t in node.targets)
        and is_injective(node.targets, loops)
    )
