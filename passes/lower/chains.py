"""Kernels that only pass large values on to each other become one, whose schedule can go through all of them block by
block, as several steps of a stencil or a chain of filters do.

    %1 = call @f_blur(%x) : f32[96, 64]
    %2 = call @f_blur_1(%1) : f32[94, 64]      =>     %2 = call @f_chain(%x) : f32[94, 64]

Whether it is worth doing is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.graph import Node, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Call
from intarsia.ir.proofs import Facts
from intarsia.ir.sizes import Size
from intarsia.ir.types import ListType
from intarsia.passes.lower.kernel import LoweredGroup
from intarsia.passes.lower.stages import StageWriter, symbols
from intarsia.passes.lower.whole_loops import CallWriter


def chain_of(nodes: Sequence[Node], results: Collection[Value], kernels: Mapping[str, Kernel]) -> tuple[Call, ...]:
    """The calls of a region that make results of one shape, with all calls whose values only these read."""
    readers: dict[Value, set[Node]] = {}
    for node in nodes:
        for value in node.inputs:
            readers.setdefault(value, set()).add(node)
    calls = [node for node in nodes if isinstance(node, Call) and _is_plain(node, kernels[node.kernel])]
    last = [c for c in calls if all(v in results and v not in readers for v in c.values)]
    chain = {c for c in last if c.values[0].type == last[-1].values[0].type}
    for call in reversed(calls):
        around = set().union(*(readers.get(v, ()) for v in call.values))
        if around and around <= chain:
            chain.add(call)
    return tuple(c for c in calls if c in chain)


def _is_plain(call: Call, kernel: Kernel) -> bool:
    """Does a call change nothing in place, and know of no list?"""
    lists = any(isinstance(v.type, ListType) for v in call.arguments)
    return not lists and all(b.role in ("in", "out") for b in kernel.parameters)


def one_kernel(
    calls: Sequence[Call], results: Sequence[Value], kernels: Mapping[str, Kernel], names: Sequence[str], facts: Facts
) -> LoweredGroup | None:
    """The calls of a chain as one kernel, which makes these results.

    `names` are the symbols in scope, in order; `facts` hold there. None if a call gives its kernel other names.
    """
    if any(call.sizes != tuple(map(Size.of, kernels[call.kernel].sizes)) for call in calls):
        return None
    writer = _Writer(calls[-1].span, StageWriter(facts, names))
    return writer.write(calls, results, kernels, names)


@dataclass
class _Writer(CallWriter):
    """Writes the kernel of a chain."""

    def write(
        self, calls: Sequence[Call], results: Sequence[Value], kernels: Mapping[str, Kernel], names: Sequence[str]
    ) -> LoweredGroup:
        for call in calls:
            self.writer.body += self.call(call, kernels[call.kernel], set())
        made = [self.buffer(v) for v in results]
        kept = [alloc for alloc in self.allocs if alloc.buffer not in made]
        parameters = (*self.inputs.values(), *(replace(b, role="out") for b in made))
        body = (*kept, *self.writer.body)
        used = symbols(body, parameters)
        kernel = Kernel("", parameters, body, tuple(n for n in names if n in used), span=self.span)
        return LoweredGroup(kernel, tuple(self.inputs), tuple(results))
