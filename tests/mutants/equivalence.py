"""Is what a broken pass leaves only another way to say the same? Shown with the passes as they are.

A pass that only does less, or chooses otherwise, gives other IR that computes the same, and no check of results can
find that. Three facts show it, without running anything:

- the pass as it is makes of what the broken one left what it makes of the input (a rule was not applied);
- both become the same once groups are dissolved and the graph is simplified (something else was fused);
- the steps that the broken pass chose, applied by the code as it is, give the kernels that it left (another schedule).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corpus import Example

from intarsia.ir.errors import CompileError, ScheduleError, Source
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Fused
from intarsia.ir.target import TARGETS
from intarsia.ir.text import print_module, read_module

TARGET = "cpu:x86-avx2"


@dataclass(frozen=True)
class Change:
    """One pass of a broken pipeline: its place, the text before and after it, and the schedules that it chose."""

    index: int
    before: str
    after: str
    schedules: Mapping[str, str]


def pipeline_and_context(example: Example) -> tuple[Any, Any]:
    """What an example goes through: with the passes as they are imported now, whole or broken."""
    from intarsia.passes.pipeline import Context, Pipeline, default_pipeline

    context = Context(TARGETS[TARGET], pinned_schedule=example.schedule or None)
    return Pipeline.parse(example.passes) if example.passes else default_pipeline(dict(example.sizes)), context


def are_equivalent(changes: Sequence[Change], example: Example) -> bool:
    """Does every pass leave what means the same as what it leaves unbroken? Imports the passes: they must be whole."""
    pipeline, _ = pipeline_and_context(example)
    try:
        return all(_is_equivalent(pipeline.passes[c.index], c, pipeline_and_context(example)[1]) for c in changes)
    except (AssertionError, CompileError, LookupError, ScheduleError, TypeError, ValueError):
        return False  # nothing is shown


def _is_equivalent(pass_: object, change: Change, context: object) -> bool:
    from intarsia.passes.pipeline import Context, Pass

    assert isinstance(pass_, Pass) and isinstance(context, Context)
    before, after = (read_module(Source("before", text)) for text in (change.before, change.after))
    whole = pass_.run(before, context)
    if print_module(whole) == print_module(after):
        return True
    if pass_.name == "schedule":
        return print_module(_rescheduled(before, change.schedules)) == print_module(after)
    if pass_.name == "lower":
        return False
    return _plain(pass_.run(after, context), context) == _plain(whole, context)


def _rescheduled(module: Module, schedules: Mapping[str, str]) -> Module:
    from dataclasses import replace

    from intarsia.ir.schedule import Schedule
    from intarsia.passes.schedule.apply import apply

    return replace(module, kernels=tuple(apply(k, Schedule.parse(schedules[k.name])) for k in module.kernels))


def _plain(module: Module, context: object) -> str:
    """The text of a module without groups, simplified, its nodes in the order in which results need them."""
    from intarsia.passes.pipeline import Context, Pipeline

    assert isinstance(context, Context)
    loose = module.with_body(_in_order(_dissolved(module.graph.body)))
    simple = Pipeline.parse("canonicalize,cse,dce").run(loose, context)
    return print_module(simple.with_body(_in_order(simple.graph.body)))


def _dissolved(region: Region) -> Region:
    """The region with the nodes of groups in place of the groups, also inside loops."""
    from intarsia.passes.regions import change_regions

    region = change_regions(region, lambda node, inner: inner if isinstance(node, Fused) else _dissolved(inner))
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in region.nodes:
        inner = node.body.nodes if isinstance(node, Fused) else (node,)
        for old in inner:
            new = old.with_operands(values)
            values.update(zip(old.values, new.values))
            nodes.append(new)
        if isinstance(node, Fused):
            values.update(zip(node.values, (values.get(v, v) for v in node.body.results)))
    return Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results))


def _in_order(region: Region) -> Region:
    """The nodes of a region as a walk from its results meets them; regions inside stay as they are."""
    own, found = set(region.nodes), dict[Node, None]()

    def visit(node: Node) -> None:
        if node in own and node not in found:
            for value in node.inputs:
                visit(value.node)
            found[node] = None

    for value in region.results:
        visit(value.node)
    return Region(region.parameters, tuple(found), region.results)
