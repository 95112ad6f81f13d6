"""Random shardings: what the parameters, results and some values within a program say about how they lie on a mesh."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import Shard
from intarsia.ir.sharding import COMBINERS, DimensionSharding, Mesh, MeshAxis, Sharding
from intarsia.ir.types import ListType, TensorType
from intarsia.passes.shard.meshes import with_mesh, with_parameters_laid

MESHES = tuple(
    map(Mesh.parse, ("a=2", "a=3", "a=4", "a=5", "a=2,b=2", "a=6", "a=2,b=3", "a=3,b=2", "a=4,b=2", "a=2,b=2,c=2"))
)


def random_layout(type_: TensorType, mesh: Mesh, choose: random.Random, parts: bool = True) -> Sharding:
    """Axes and parts of them on dimensions, in any order, some on none; dimensions open or closed, of any priority; and
    some along which each device has a part of a sum, of numbers, if `parts`."""
    dimensions: list[list[MeshAxis]] = [[] for _ in range(type_.rank)]
    excluded: list[MeshAxis] = []
    partial: list[MeshAxis] = []
    pieces = [piece for name, _ in mesh.axes for piece in _pieces(MeshAxis(name), mesh, choose)]
    choose.shuffle(pieces)
    has_parts = parts and not type_.dtype.is_narrow and type_.dtype.kind != "bool"
    for piece in pieces:
        if type_.rank and choose.random() < 0.6:
            choose.choice(dimensions).append(piece)
        elif choose.random() < 0.2:
            excluded.append(piece)
        elif has_parts and choose.random() < 0.2:
            partial.append(piece)
    return Sharding(
        tuple(
            DimensionSharding(mesh.joined(axes), choose.random() < 0.5, choose.choice((0, 0, 0, 1, 2)))
            for axes in dimensions
        ),
        tuple(sorted(mesh.joined(sorted(excluded)))),
        tuple(sorted(mesh.joined(sorted(partial)))),
        choose.choice(COMBINERS) if partial else "sum",
    )


def _pieces(axis: MeshAxis, mesh: Mesh, choose: random.Random) -> tuple[MeshAxis, ...]:
    """The axis, or two parts of it."""
    size = mesh.size(axis)
    factors = [n for n in range(2, size) if size % n == 0]
    return mesh.split(axis, choose.choice(factors)) if factors and choose.random() < 0.4 else (axis,)


def with_random_layouts(module: Module, mesh: Mesh, seed: int) -> Module:
    """The module, whose sizes are numbers, on a mesh, with layouts of parameters, results and values within."""
    choose = random.Random(seed)

    def some(type_: TensorType | ListType, share: float) -> Sharding | None:
        listed = isinstance(type_, ListType)
        return random_layout(type_.tensor, mesh, choose, not listed) if choose.random() < share else None

    def laid(value: Value, nodes: list[Node], share: float) -> Value:
        if isinstance(value.type, ListType) or (sharding := some(value.type, share)) is None:
            return value
        nodes.append(Shard(value, shardings=(sharding,)))
        return nodes[-1].value

    def region(old: Region, outer: Mapping[Value, Value], results: float) -> Region:
        values = dict(outer)
        nodes: list[Node] = []
        for node in old.nodes:
            regions: dict[str, Any] = {n: region(r, values, 0.0) for n, r in node._fields() if isinstance(r, Region)}
            nodes.append(replace(node, **regions).with_operands(values))
            values.update((v, laid(new, nodes, 0.1)) for v, new in zip(node.values, list(nodes[-1].values)))
        found = tuple(laid(values.get(v, v), nodes, results) for v in old.results)
        return Region(old.parameters, tuple(nodes), found)

    body = module.graph.body
    module = with_mesh(module.with_body(with_parameters_laid(body, [some(p.type, 0.6) for p in body.parameters])), mesh)
    return module.with_body(region(module.graph.body, {}, 0.4))
