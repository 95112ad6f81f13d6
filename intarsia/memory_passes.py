"""How often the kernels of groups bring what they read from beyond the caches of a core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from intarsia.costmodel.extents import memory_passes
from intarsia.driver import Compilation
from intarsia.ir.graph import Region, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Loop
from intarsia.ir.proofs import Facts
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.schedule.scheduling import schedule_of
from intarsia.passes.skip_rounding import without_roundings


@dataclass(frozen=True)
class MemoryPasses:
    """Counts the passes over each input of a group of a compilation, in the kernel that the group becomes. Equal groups
    are scheduled once."""

    compilation: Compilation
    _known: dict[Kernel, Mapping[str, int]] = field(default_factory=dict)

    def __call__(self, group: Region) -> dict[Value, int]:
        region = without_roundings(group)
        facts = Facts(names=frozenset(self._names))
        lowered = GroupLowering(region.nodes, region.results, self._names, facts).run("", None)
        kernel = lowered.kernel
        if kernel not in self._known:
            target = self.compilation.target
            scheduled = schedule_of(kernel, self.compilation.context).kernel
            self._known[kernel] = memory_passes(scheduled, target.caches[1], target.cache_line)
        passes = self._known[kernel]
        return {v: passes[b.name] for v, b in zip(lowered.arguments, kernel.parameters) if b.name in passes}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The dimensions and counters that may occur in a group."""
        graph = self.compilation.fused.graph
        counters = dict.fromkeys(n.counter for n in graph.body.walk() if isinstance(n, Loop))
        return (*graph.dimensions, *counters)
