"""What a device has in memory while its program runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from intarsia.ir.errors import Span
from intarsia.ir.graph import Module, Node, Region, Structured, Value
from intarsia.ir.ops import After, Done, ListGet, Loop, Reshape, Shard
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType, Type


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that the program of a device holds.

    parameters: all of them, from the beginning to the end. results: those for which no parameter gives its memory.
    peak: the most of everything at one time, while the node of `span` runs. between: what is then neither of the two.
    """

    parameters: int
    results: int
    between: int
    peak: int
    span: Span | None


def device_memory(module: Module, donated: Collection[str] = ()) -> DeviceMemory:
    """What the program of a device holds, of the groups that fusing leaves: values inside a group are in no memory.

    donated: labels of parameters, or of the structs that these are parts of, whose memory results of the same type may
    take.
    """
    body = module.graph.body
    own = own_results(body, donated)
    parameters = sum(bytes_of(p.type) for p in body.parameters)
    results = sum(bytes_of(v.type) for v in own)
    peak, between, node = _most(body, own, _taken(body, own))
    return DeviceMemory(parameters, results, between, parameters + peak, node.span if node is not None else None)


def own_results(region: Region, donated: Collection[str]) -> tuple[Value, ...]:
    """The results for which no parameter of `donated` gives its memory: each one does for one of its type."""
    given = Counter(
        p.type.plain for p in region.parameters if p.label in donated or p.label.partition(".")[0] in donated
    )
    own: list[Value] = []
    for value in region.results:
        if given[value.type.plain]:
            given[value.type.plain] -= 1
        else:
            own.append(value)
    return tuple(own)


def _taken(region: Region, own: Collection[Value]) -> set[Value]:
    """The values that lie in memory of parameters, as results."""
    return {_stored(v) for v in region.results} - {_stored(v) for v in own}


def bytes_of(type_: Type) -> int:
    """The bytes of a value whose extents are numbers; others count as 1."""
    if isinstance(type_, ListType):
        return _number(type_.length) * bytes_of(type_.element)
    return -(-math.prod(map(_number, type_.shape)) * type_.dtype.bits // 8)


def _number(size: Size) -> int:
    return 1 if size.constant is None else size.constant


def peak_bytes(region: Region) -> int:
    """The most bytes at one time of what the nodes of a region make, in their order."""
    return _most(region, (), ())[0]


def _most(region: Region, results: Collection[Value], free: Collection[Value]) -> tuple[int, int, Node | None]:
    """The most bytes at one time of what a region makes; those of them that are no results; and the node that runs
    then. free: values that lie in memory which counts elsewhere."""
    last = last_uses(region)
    shown = {v for v in map(_stored, results) if v.node not in region.parameters}
    held = sum(bytes_of(v.type) for v in results) - sum(bytes_of(v.type) for v in shown)  # which are copied
    kept = 0
    found: tuple[int, int, Node | None] = (held, 0, None)
    ending: dict[int, list[Value]] = {}
    for n, node in enumerate(region.nodes):
        made = [v for v in node.values if _stored(v) is v and v not in free and v in last]
        for value in made:
            held += bytes_of(value.type)
            kept += 0 if value in shown else bytes_of(value.type)
            ending.setdefault(last[value], []).append(value)
        inside = _of_loop(node) if isinstance(node, Loop) else 0
        if held + inside > found[0]:
            found = (held + inside, kept + inside, node)
        for value in ending.pop(n, ()):
            held -= bytes_of(value.type)
            kept -= 0 if value in shown else bytes_of(value.type)
    return found


def _of_loop(node: Loop) -> int:
    """What a loop holds beside its results: the states of this step and the next, or what else a step makes, or the
    condition before it."""
    states = sum(bytes_of(p.type) for p in node.states)
    return states + max(states, *(_most(region, (), ())[0] for region in node.regions))


def last_uses(region: Region) -> dict[Value, int]:
    """For each value in memory the number of the node that reads it last; that of no node for results."""
    last: dict[Value, int] = {}
    for n, node in enumerate(region.nodes):
        last.update(dict.fromkeys(map(_stored, node.inputs), n))
        if isinstance(node, Done):
            last.update(dict.fromkeys(map(_stored, node.x.node.operands), n))  # it is being sent until then
    last.update(dict.fromkeys(map(_stored, region.results), len(region.nodes)))
    return last


def _stored(value: Value) -> Value:
    """The value that is in memory where this one is: of a view what it shows."""
    while isinstance(value.node, After | Done | ListGet | Reshape | Shard):
        value = value.node.operands[0]
    return value


# ---------------------------------------------------------------------- before anything is fused


@dataclass(frozen=True)
class Held:
    """The values in memory while a node of a program runs."""

    node: Node
    values: tuple[Value, ...]


def held_moments(region: Region, donated: Collection[str] = ()) -> tuple[Held, ...]:
    """What is in memory at each product, loop and collective of a program that is not fused yet, with those of loops.

    An estimate, which is above what fused programs hold: of the values of pointwise ops it counts those that a product
    reads, as the others are part of their readers' kernels, and everything that a product makes.
    """
    found: list[Held] = []
    taken = _taken(region, own_results(region, donated))
    _moments(region, tuple(p.value for p in region.parameters), taken, found)
    return tuple(found)


def _moments(region: Region, outer: tuple[Value, ...], free: Collection[Value], found: list[Held]) -> None:
    last = last_uses(region)
    read = {v for node in region.nodes if is_product(node) for v in map(_stored, node.inputs)}
    read |= set(map(_stored, region.results))
    live: dict[Value, int] = {}
    for n, node in enumerate(region.nodes):
        for value in node.values:
            if _stored(value) is value and value not in free and value in last and (value in read or is_made(node)):
                live[value] = last[value]
        if is_made(node):
            held = (*outer, *live)
            found.append(Held(node, held))
            if isinstance(node, Loop):
                inner = (*held, *(p.value for p in node.body.parameters))
                _moments(node.body, inner, (), found)
        live = {v: end for v, end in live.items() if end > n}


def is_product(node: Node) -> bool:
    """Does a node read what is in memory: a product, or no op of a kernel that others could be part of?"""
    if not isinstance(node, Structured):
        return not isinstance(node, After | Done | ListGet | Reshape)
    return bool(node.space.reduced) and len(node.operands) > 1


def is_made(node: Node) -> bool:
    """Is what a node makes in memory, whatever reads it?"""
    return is_product(node) or (isinstance(node, Structured) and bool(node.space.reduced))
