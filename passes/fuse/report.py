"""What a group saves: bytes that no longer go through memory, and passes over what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Cast, Constant, Fused, Loop, Reshape
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.members import Member
from intarsia.passes.fuse.rows import passes_over, stages_of

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class PassCount:
    """How often a group reads one of its inputs from memory, with a kernel for each op (before) and as one (after)."""

    group: Fused
    value: Value
    before: int
    after: int


def pass_counts(module: Module) -> list[PassCount]:
    """The passes over each input of each fused group, groups of loops included, in order."""
    found: list[PassCount] = []
    for node in module.graph.body.walk():
        if not isinstance(node, Fused):
            continue
        members = [member for n in node.body.nodes if (member := Member.of(n)) is not None]
        stages = stages_of(members, frozenset(node.body.results))
        for value in node.inputs:
            if not isinstance(value.node, Constant):
                before = sum(value in n.operands for n in node.body.nodes)
                found.append(PassCount(node, value, before, passes_over(value, stages)))
    return found


def pass_report(before: Module, after: Module) -> str:
    """`pass_counts` of a module after fusion as text: a paragraph for each group, with the user's line, and the number
    of kernels with an op each and now."""
    labels = {p.value: p.label for p in after.graph.parameters}
    lines = [
        f"{_kernels(before)} kernels with one for each op, {_kernels(after)} fused; passes over what each reads:",
        "",
    ]
    counts = pass_counts(after)
    for group in dict.fromkeys(c.group for c in counts):
        members = [m for n in group.body.nodes if (m := Member.of(n)) is not None]
        lines.append(f"{group.span or after.graph.name}: {operations(members)}")
        for count in counts:
            if count.group is group:
                name = labels.get(count.value, f"{title(count.value.node)} {count.value.type}")
                lines.append(f"    {name}: {_passes(count.before)} with a kernel for each op, {count.after} fused")
        inner = [n for n in group.body.nodes if n.value not in group.body.results and not isinstance(n, Constant)]
        if inner:
            values = "value" if len(inner) == 1 else "values"
            lines.append(f"    {len(inner)} {values} in between not written and read again")
    return "\n".join(lines).rstrip("\n") + "\n"


def operations(members: Sequence[Member]) -> str:
    """The ops of a group that compute something, as a user calls them."""
    return ", ".join(m.title for m in members if m.work > 0 or m.is_reduced) or "views"


def _kernels(module: Module) -> int:
    """The nodes that compute something: one kernel each."""
    count = 0
    for node in _outside_groups(module.graph.body):
        count += isinstance(node, Fused) or (Member.of(node) is not None and not isinstance(node, (Constant, Reshape)))
    return count


def _outside_groups(region: Region) -> Iterator[Node]:
    """The nodes of a region and of the loops in it, each group as one node."""
    for node in region.nodes:
        yield node
        if not isinstance(node, Fused):
            for inner in node.regions:
                yield from _outside_groups(inner)


def _passes(count: int) -> str:
    return f"{count} pass{'es' if count != 1 else ''}"


def title(node: Node) -> str:
    """What a user calls a node."""
    match node:
        case Fused(body=body):
            return title(body.results[0].node)
        case Loop(stacked=stacked):
            return "scan" if stacked else "loop"
        case Cast(x, _, True):
            return title(x.node)
    member = Member.of(node)
    return member.title if member else node.name


def saving(nodes: Sequence[Node], outputs: frozenset[Value]) -> str:
    """The bytes that a group does not move, as text: what its ops read and write one by one, less what it does."""
    region = Region((), tuple(nodes), tuple(v for n in nodes for v in n.values if v in outputs))
    alone = sum((_bytes(v) for n in nodes for v in (*dict.fromkeys(n.operands), *n.values)), ZERO)
    together = sum((_bytes(v) for v in (*region.captures, *region.results)), ZERO)
    return bytes_text(alone - together)


def _bytes(value: Value) -> Size:
    if isinstance(value.node, Constant) or not isinstance(value.type, TensorType):
        return ZERO
    return value.type.elements * value.dtype.bytes


def bytes_text(size: Size) -> str:
    """`12.0 MiB`, or the formula where sizes are open."""
    if size.constant is None:
        return f"{size} bytes"
    amount, unit = float(size.constant), 0
    while abs(amount) >= 1024 and unit + 1 < len(UNITS):
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {UNITS[unit]}" if unit else f"{size} bytes"
