"""Where the transposes of a program went, and in which order kernels copy what they read: `explain --about layout`,
below the tensors between kernels whose dimensions lie in another order."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.driver import Compilation
from intarsia.ir.graph import Module, Node, Region
from intarsia.ir.ops import Elementwise, Fused, Transpose
from intarsia.ir.schedule import Pack, Schedule


def layout_report(compilation: Compilation) -> str:
    """One line for each transpose that is left after the passes, and one for each copy that a kernel packs."""
    lines = [*_transposes(compilation.fused), *_copies(compilation)]
    is_empty = not lines and all(remark.about != "layout" for remark in compilation.remarks.items)
    return "layout: nothing to decide" if is_empty else "\n".join(lines)


def _transposes(module: Module) -> Iterator[str]:
    """A transpose costs nothing where a kernel reads or writes in its order while it does something else."""
    for node, group in _nodes(module.graph.body, None):
        if isinstance(node, Transpose):
            place = f"{node.span}: " if node.span else ""
            what = f"transpose of {node.x.tensor} to ({', '.join(map(str, node.axes))})"
            others = [n for n in group.body.nodes if not isinstance(n, Transpose)] if group else []
            how = f"in the subscripts of a kernel of {_title(others[-1])}" if others else "a pass over memory"
            yield f"{place}{what}: {how}"


def _title(node: Node) -> str:
    return node.function if isinstance(node, Elementwise) else node.name


def _nodes(region: Region, group: Fused | None) -> Iterator[tuple[Node, Fused | None]]:
    for node in region.nodes:
        yield node, group
        for inner in node.regions:
            yield from _nodes(inner, node if isinstance(node, Fused) else group)


def _copies(compilation: Compilation) -> Iterator[str]:
    for kernel in compilation.scheduled.kernels:
        for step in Schedule.parse(compilation.schedules.get(kernel.name, "")):
            if isinstance(step, Pack) and step.memory != "register":
                often = "once for all calls" if step.memory == "prepared" else f"at {step.axis}"
                yield f"kernel {kernel.name}: {step.buffer} is copied {often} as [{', '.join(step.layout)}]"
