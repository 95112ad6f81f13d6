"""Every access of a kernel to memory in the order in which it happens, and what a cache leaves of them.

This is the counting interpreter behind the claim that a fused kernel reads each element of its inputs from memory once:
it knows nothing of fusion, only of loops, subscripts and masks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from intarsia.ir.kernel import Alloc, Check, For, If, Kernel, Prefetch, Put, Statement
from intarsia.ir.kernel_access import expressions
from intarsia.ir.scalar import Load, loads
from intarsia.ir.sizes import Size

Element = tuple[str, int]
"""A buffer and the row-major position of an element."""


def trace(kernel: Kernel, sizes: Mapping[str, int]) -> Iterator[tuple[Element, bool]]:
    """Each access and whether it is a store. Masked-off accesses and registers do not touch memory.

    Raises ValueError where a subscript, bound or mask depends on data.
    """
    buffers = kernel.buffers()

    def element(name: str, indices: tuple[Size, ...], env: Mapping[str, int]) -> Element:
        position = 0
        for index, extent in zip(indices, buffers[name].shape):
            position = position * _number(extent, env) + _number(index, env)
        return name, position

    def run(body: tuple[Statement, ...], env: dict[str, int]) -> Iterator[tuple[Element, bool]]:
        for statement in body:
            match statement:
                case For(axis, lower, upper, inner, _, step):
                    for value in range(_number(lower, env), _number(upper, env), step):
                        yield from run(inner, {**env, axis: value})
                case If(condition, then, otherwise):
                    holds = all(_number(m, env) > 0 for m in condition)
                    yield from run(then if holds else otherwise, env)
                case Put(name, indices, operator, _, mask):
                    if not all(_number(m, env) > 0 for m in mask):
                        continue
                    found = [load for e in expressions(statement) for load in loads(e)]
                    for load in dict.fromkeys(found):
                        if in_memory(load) and all(_number(m, env) > 0 for m in load.mask):
                            yield element(load.buffer, load.indices, env), False
                    if buffers[name].memory != "register":
                        target = element(name, indices, env)
                        if operator != "=":
                            yield target, False
                        yield target, True
                case Alloc() | Prefetch() | Check():
                    pass
                case _:
                    raise ValueError(f"{statement} is opaque")

    def in_memory(load: Load) -> bool:
        return buffers[load.buffer].memory != "register"

    yield from run(kernel.body, dict(sizes))


def memory_traffic(kernel: Kernel, sizes: Mapping[str, int], cache_elements: int) -> dict[str, tuple[int, int]]:
    """Reads from and writes to memory of each parameter, in elements, behind a cache that holds the `cache_elements`
    touched last (least recently used goes first); a written element that leaves the cache is written to memory once."""
    cache: OrderedDict[Element, bool] = OrderedDict()
    counts = {b.name: [0, 0] for b in kernel.parameters}

    def write_back(key: Element, dirty: bool) -> None:
        if dirty and key[0] in counts:
            counts[key[0]][1] += 1

    for key, store in trace(kernel, sizes):
        dirty = cache.pop(key, None)
        if dirty is None and not store and key[0] in counts:
            counts[key[0]][0] += 1
        cache[key] = store or bool(dirty)
        if len(cache) > cache_elements:
            write_back(*cache.popitem(last=False))
    for item in cache.items():
        write_back(*item)
    return {name: (reads, writes) for name, (reads, writes) in counts.items()}


def _number(size: Size, env: Mapping[str, int]) -> int:
    if size.opaques:
        raise ValueError(f"{size} depends on data")
    return size.evaluate(env)
