"""A program annotated so that propagation splits it as the search found best, with few annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from intarsia.ir.cluster import Cluster
from intarsia.ir.graph import Module, Parameter, Value
from intarsia.ir.sharding import DimensionSharding, Sharding
from intarsia.passes.pipeline import Context, Pipeline
from intarsia.passes.shard.meshes import reshard_values, with_parameters_laid
from intarsia.passes.shard.report import sent_by
from intarsia.passes.shard.search import Found
from intarsia.passes.shard.ways import sharding_of

MOST = 16
"""Annotations within the program that are tried."""

SAME = 1 + 1e-6
"""Seconds that differ by less are the same."""


@dataclass(frozen=True)
class Proposal:
    """The annotated program: `parameters` say how they lie, and so do the values `within` it, in its order."""

    module: Module
    within: tuple[Value, ...]


def propose(module: Module, cluster: Cluster, found: Found, context: Context) -> Proposal:
    """Annotate the parameters; then, while more is sent than the search says, close the first value that propagation
    splits otherwise. Of the programs that come about it gives the first of those that send for the shortest time."""
    laid = with_parameters(module, found)
    wanted = (*found.parameters, *found.values)
    said: dict[int, Sharding] = {}
    best, least = Proposal(laid, ()), float("inf")
    while True:
        spread = Pipeline.parse("propagate-sharding").run(laid, context)
        local = Pipeline.parse("reshard,partition").run(spread, context)
        seconds = sum(one.seconds for one in sent_by(local, cluster))
        if seconds * SAME < least:
            within = (v for n, v in enumerate(_values(laid)) if n in said and not isinstance(v.node, Parameter))
            best, least = Proposal(laid, tuple(within)), seconds
        pairs = enumerate(zip(_values(spread), wanted))
        others = (n for n, (own, one) in pairs if n not in said and sharding_of(own).axes != one.axes)
        other = next(others, None)
        if seconds <= found.sending * SAME or other is None or len(said) == MOST:
            return best
        said[other] = Sharding(tuple(DimensionSharding(a, False) for a in wanted[other].axes))
        laid = _with_values(laid, said)


def with_parameters(module: Module, found: Found) -> Module:
    """The module whose parameters lie as the search found best."""
    body = module.graph.body
    laid = [_beside(p.value, s) for p, s in zip(body.parameters, found.parameters)]
    return module.with_body(with_parameters_laid(body, laid))


def _beside(value: Value, wanted: Sharding) -> Sharding:
    """A sharding with what the program says of axes that split no dimension."""
    said = value.type.sharding
    if said is None:
        return wanted
    return replace(wanted, replicated=said.replicated, partial=said.partial, combiner=said.combiner)


def _values(module: Module) -> list[Value]:
    """Those of the parameters, then those of `Region.walk`."""
    body = module.graph.body
    return [v for node in (*body.parameters, *body.walk()) for v in node.values]


def _with_values(module: Module, said: Mapping[int, Sharding]) -> Module:
    laid = {v: _beside(v, said[n]) for n, v in enumerate(_values(module)) if n in said}
    return module.with_body(reshard_values(module.graph.body, lambda v: laid.get(v, v.type.sharding)))
