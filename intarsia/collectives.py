"""Collectives between the devices of a group as transfers of memory without gaps, whatever carries them.

A kind of processes says how a `Group` of them reduces, gathers, exchanges and permutes; `transfer` makes a collective
of the program of that. What lies without gaps is sent from where it is to where it is wanted. Only along a dimension
that is not the first parts are packed before or taken apart after. What a group cannot reduce by itself (floats of 16
bits, which are summed in f32 and rounded once; maxima of floats, where MPI does not say what becomes of NaN) is reduced
by the devices: each takes a part of what all have, merges it, and, for an all-reduce, all parts are gathered. These are
the bytes of a ring, in the type of the elements.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from intarsia.ir.ops.collective import (
    AllGather,
    AllReduce,
    AllToAll,
    Collective,
    CollectivePermute,
    ReduceScatter,
)
from intarsia.runtime import buffers

Memory: TypeAlias = Any
"""An array of NumPy, or a tensor of PyTorch: they are reshaped, filled and viewed as another type alike."""

Wait: TypeAlias = Callable[[], object]
"""Returns when what was begun is done."""


@dataclass(frozen=True)
class Transfer:
    """Something to be sent, as often as it is wanted: `now` does it, `begin` begins it and gives what waits for it.
    Until then the memory must not be touched."""

    now: Callable[[], object]
    begin: Callable[[], Wait]

    @staticmethod
    def at_once(do: Callable[[], object]) -> Transfer:
        """Something that is done when it is begun."""

        def begin() -> Wait:
            do()
            return nothing

        return Transfer(do, begin)

    def around(self, before: Callable[[], object], after: Callable[[], object]) -> Transfer:
        """The same with something done before it begins, and something when it is done."""

        def now() -> None:
            before()
            self.now()
            after()

        def begin() -> Wait:
            before()
            wait = self.begin()

            def finish() -> None:
                wait()
                after()

            return finish

        return Transfer(now, begin)


class Group(ABC):
    """Devices that take part in collectives, of which this process is number `rank`. Memory that is given is without
    gaps, and that of what all have, or give, counts the devices in its first dimension."""

    rank: int
    size: int

    @abstractmethod
    def reduces(self, combiner: str, memory: Memory) -> bool:
        """Can the group reduce elements of this type by itself, and say what becomes of every value?"""

    @abstractmethod
    def all_reduce(self, combiner: str, source: Memory, target: Memory) -> Transfer: ...

    @abstractmethod
    def reduce_scatter(self, combiner: str, source: Memory, target: Memory) -> Transfer: ...

    @abstractmethod
    def all_gather(self, source: Memory, target: Memory) -> Transfer: ...

    @abstractmethod
    def all_to_all(self, source: Memory, target: Memory) -> Transfer: ...

    @abstractmethod
    def permute(self, source: Memory, target: Memory, origin: int, receivers: Sequence[int]) -> Transfer:
        """Take what number `origin` has, unless it is -1, and send to the receivers; none of them is this one."""

    # ------------------------------------------------------------------ memory

    def memory(self, given: Memory) -> Memory:
        """Memory in the form that the group works on: a view, not a copy."""
        return given

    @abstractmethod
    def moved(self, memory: Memory, order: Sequence[int]) -> Memory:
        """A view with the dimensions in another order."""

    @abstractmethod
    def is_dense(self, memory: Memory) -> bool:
        """Does it lie without gaps in row-major order?"""

    @abstractmethod
    def merged(self, combiner: str, parts: Memory) -> Memory:
        """The sum, … of the items of the first dimension: floats of 16 bits in f32, rounded once."""


def empty(shape: Sequence[int], like: Memory) -> Memory:
    """Memory of the same element type in the same place."""
    return buffers.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def transfer(group: Group, node: Collective, given: Memory, taken: Memory) -> Transfer:
    """A collective of the devices of a group, between two places in memory."""
    given, taken, count = group.memory(given), group.memory(taken), group.size
    match node:
        case AllReduce(combiner=combiner):
            return all_reduce(group, combiner, given, taken)
        case ReduceScatter(dim=dim, combiner=combiner):
            source = _blocks(group, given, dim, count)
            if group.reduces(combiner, given):
                return _packed(group, source, taken, lambda s, t: group.reduce_scatter(combiner, s, t))
            return _anew(lambda: _reduce_scatter_by_devices(group, combiner, source, taken))
        case AllGather(dim=dim):
            return all_gather(group, dim, given, taken)
        case AllToAll(split=split, join=join):
            source, target = _blocks(group, given, split, count), _blocks(group, taken, join, count)
            return _packed(group, source, target, group.all_to_all)
        case CollectivePermute(sources=sources):
            return _permute(group, sources, given, taken)
    raise AssertionError(node.name)


def all_reduce(group: Group, combiner: str, given: Memory, taken: Memory) -> Transfer:
    """The sum, … of what all devices have, in memory of the group's form."""
    if group.reduces(combiner, given):
        return group.all_reduce(combiner, given, taken)
    return _anew(lambda: _all_reduce_by_devices(group, combiner, given, taken))


def all_gather(group: Group, dim: int, given: Memory, taken: Memory) -> Transfer:
    """What all devices have, one after the other along a dimension, in memory of the group's form."""
    return _packed(group, given, _blocks(group, taken, dim, group.size), group.all_gather)


def _permute(group: Group, sources: Sequence[int], given: Memory, taken: Memory) -> Transfer:
    own = sources[group.rank]
    receivers = [n for n, s in enumerate(sources) if s == group.rank != n]
    sent = group.permute(given, taken, -1 if own == group.rank else own, receivers)
    if own not in (-1, group.rank):
        return sent
    return sent.around(lambda: _fill(taken, 0 if own == -1 else given), nothing)


def _reduce_scatter_by_devices(group: Group, combiner: str, source: Memory, target: Memory) -> Transfer:
    parts = empty(source.shape, source)
    exchanged = _packed(group, source, parts, group.all_to_all)
    return exchanged.around(nothing, lambda: _fill(target, group.merged(combiner, parts)))


def _all_reduce_by_devices(group: Group, combiner: str, given: Memory, taken: Memory) -> Transfer:
    """Each device merges a part of what all have, and all parts are gathered."""
    count = math.prod(given.shape)
    shape = group.size, -(-count // group.size)
    own, parts, whole = (empty(shape, given) for _ in range(3))
    part = empty(shape[1:], given)

    def before() -> None:
        flat = own.reshape(-1)
        flat[:count] = given.reshape(-1)
        flat[count:] = 0

    def after() -> None:
        _fill(part, group.merged(combiner, parts))
        group.all_gather(part, whole).now()
        _fill(taken, whole.reshape(-1)[:count].reshape(given.shape))

    return group.all_to_all(own, parts).around(before, after)


def _blocks(group: Group, memory: Memory, dim: int, count: int) -> Memory:
    """A view whose first dimension counts the parts of one dimension."""
    shape = tuple(memory.shape)
    split = memory.reshape(*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :])
    return group.moved(split, (dim, *range(dim), *range(dim + 1, len(shape) + 1)))


def _packed(group: Group, source: Memory, target: Memory, send: Callable[[Memory, Memory], Transfer]) -> Transfer:
    """What sends between memory without gaps, for memory that may have some: it is packed before, and taken apart."""
    if group.is_dense(source) and group.is_dense(target):
        return send(source, target)

    def packed() -> Transfer:
        near = source if group.is_dense(source) else empty(source.shape, source)
        far = target if group.is_dense(target) else empty(target.shape, target)
        before = nothing if near is source else lambda: _fill(near, source)
        after = nothing if far is target else lambda: _fill(target, far)
        return send(near, far).around(before, after)

    return _anew(packed)


def _anew(make: Callable[[], Transfer]) -> Transfer:
    """A transfer that is made each time, and has memory of its own for as long as it takes."""
    return Transfer(lambda: make().now(), lambda: make().begin())


def _fill(target: Memory, value: Memory) -> None:
    target[...] = value


def nothing() -> None:
    """What comes before or after a transfer that needs nothing there."""
