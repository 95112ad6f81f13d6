"""What the cost model says of groups: how long their kernels take, so that ways to fuse can be weighed against others.

Rules decide what is fused, since most of it saves memory traffic and costs nothing. Where a rule has a threshold, and a
program is near it, the predictor of the context is asked; it changes what the rule says only where it is far from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from intarsia.ir.graph import Node, Region, Structured
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Constant, Fused
from intarsia.ir.proofs import Facts
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.pipeline import Context
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.skip_rounding import without_roundings

SURE = 1.25
"""A rule is overruled where what it says is predicted to take so many times as long: predictions are not sharper."""


@dataclass(frozen=True)
class Weighing:
    """Predicted times of kernels, each predicted once, with the schedules that chains were tried with or the default
    ones; `names` are the dimensions and counters that may occur."""

    context: Context
    names: Sequence[str]
    _seconds: dict[Kernel, float] = field(default_factory=dict)

    def seconds(self, region: Region) -> float | None:
        """Seconds that the kernels of a fused region take, without those of loops; None where nothing can be said."""
        if self.context.predict is None or self.context.target.kind != "cpu" or self.context.checks:
            return None
        total = 0.0
        for node in region.nodes:
            if isinstance(node, (Fused, Structured)) and not isinstance(node, Constant):
                found = self._kernel_seconds(node)
                if found is None:
                    return None
                total += found
        return total

    def _kernel_seconds(self, node: Node) -> float | None:
        group = without_roundings(node.body if isinstance(node, Fused) else Region((), (node,), node.values))
        facts = Facts(names=frozenset(self.names))
        kernel = GroupLowering(group.nodes, group.results, self.names, facts).run("", node.span).kernel
        if kernel.sizes:
            return None
        if kernel not in self._seconds:
            builder = self.context.tried.get(kernel) or build_schedule(kernel, self.context.target)
            assert self.context.predict is not None
            self._seconds[kernel] = self.context.predict([builder.kernel])[0]
        return self._seconds[kernel]


def against(chosen: float, other: float) -> str:
    """What a remark says about two ways: seconds of that which was taken, and of the other."""
    return f"predicted {1e6 * chosen:.3g} us against {1e6 * other:.3g} us"
