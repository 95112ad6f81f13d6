"""What a group saves: bytes that no longer go through memory, and passes over what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.graph import Module, Node, Parameter, Region, Value
from intarsia.ir.ops import After, Call, Cast, Constant, Fused, ListGet, Loop, Reshape
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.types import TensorType
from intarsia.passes.fuse.members import Member
from intarsia.passes.fuse.rows import passes_over, stages_of

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


Counter: TypeAlias = Callable[[Region], Mapping[Value, int]]
"""How often the kernel of a group reads each of its inputs."""


@dataclass(frozen=True)
class PassCount:
    """How often a group reads one of its inputs from memory, with a kernel for each op (before) and as one (after)."""

    group: Fused
    value: Value
    before: int
    after: int


def passes_by_stages(group: Region) -> dict[Value, int]:
    """What the stages of a group alone tell: one that share rows read what they share once, as long as a row fits a
    cache."""
    members = _members(group.nodes)
    stages = stages_of(members, frozenset(group.results))
    return {value: passes_over(value, stages) for value in group.captures}


def pass_counts(module: Module, count: Counter = passes_by_stages) -> list[PassCount]:
    """The passes over each input of each fused group, groups of loops included, in order."""
    found: list[PassCount] = []
    for node in module.graph.body.walk():
        if not isinstance(node, Fused):
            continue
        after = count(node.body)
        before: dict[Value, int] = {}
        for member in _members(node.body.nodes):
            own = [v for v in dict.fromkeys(member.node.operands) if v in node.inputs]
            passes = count(Region((), (member.node,), member.node.values)) if own else {}
            before.update((v, before.get(v, 0) + passes.get(v, 1)) for v in own)
        for value in node.inputs:
            if not isinstance(value.node, Constant):
                found.append(PassCount(node, value, before[value], after.get(value, 1)))
    return found


def pass_report(module: Module, count: Counter = passes_by_stages) -> str:
    """`pass_counts` of a module after fusion as text: a paragraph for each group, with the user's line, and the number
    of kernels with an op each and now."""
    labels = {p.value: p.label for p in module.graph.parameters}
    kernels = list(_kernels(module.graph.body))
    ops = sum(max(1, len(_computing(members))) for members in kernels)
    lines = [f"{_counted(ops, 'op')} in {_counted(len(kernels), 'kernel')}"]
    counts = pass_counts(module, count)
    if counts:
        lines = [f"{lines[0]}; passes over what each reads:", ""]
    for group in dict.fromkeys(c.group for c in counts):
        lines.append(f"{group.span or module.graph.name}: {operations(_members(group.body.nodes))}")
        for found in counts:
            if found.group is group:
                name = labels.get(found.value, f"{title(found.value.node)} {found.value.type}")
                before = _counted(found.before, "pass")
                lines.append(f"    {name}: {before} with a kernel for each op, {found.after} fused")
        inner = [n for n in group.body.nodes if n.value not in group.body.results and not isinstance(n, Constant)]
        if inner:
            lines.append(f"    {_counted(len(inner), 'value')} in between not written and read again")
    return "\n".join(lines).rstrip("\n") + "\n"


def operations(members: Sequence[Member]) -> str:
    """The ops of a group that compute something, as a user calls them."""
    return ", ".join(m.title for m in _computing(members)) or "views"


def _computing(members: Sequence[Member]) -> list[Member]:
    return [m for m in members if m.work > 0 or m.is_reduced]


def _members(nodes: Sequence[Node]) -> list[Member]:
    return [member for node in nodes if (member := Member.of(node)) is not None]


def _kernels(region: Region) -> Iterator[list[Member]]:
    """The members of each kernel; none of what is a kernel of its own."""
    for node in _outside_groups(region):
        if isinstance(node, Fused):
            yield _members(node.body.nodes)
        elif not isinstance(node, (Constant, Reshape, ListGet, After, Loop, Call)):
            yield _members((node,))


def _outside_groups(region: Region) -> Iterator[Node]:
    """The nodes of a region and of the loops in it, each group as one node."""
    for node in region.nodes:
        yield node
        if not isinstance(node, Fused):
            for inner in node.regions:
                yield from _outside_groups(inner)


def _counted(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count} {what if count == 1 else plural}"


def title(node: Node) -> str:
    """What a user calls a node."""
    match node:
        case Fused(body=body):
            return title(body.results[0].node)
        case Loop(stacked=stacked):
            return "scan" if stacked else "loop"
        case Cast(x, _, True):
            return title(x.node)
        case Parameter(label=label):
            return label
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
