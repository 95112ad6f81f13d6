"""What the cost model says of groups: how long their kernels take, so that ways to fuse can be weighed against others.

Rules decide what is fused, since most of it saves memory traffic and costs nothing. Where a rule has a threshold, and a
program is near it, the predictor of the context is asked; it changes what the rule says only where it is far from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from intarsia.ir.graph import Node, Region, Structured, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Constant, Fused
from intarsia.ir.proofs import Facts
from intarsia.passes.lower.kernel import GroupLowering
from intarsia.passes.lower.stages import rename_buffers
from intarsia.passes.pipeline import Context
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.skip_rounding import without_roundings

SURE = 1.25
"""A rule is overruled where what it says is predicted to take so many times as long: predictions are not sharper."""


@dataclass(frozen=True)
class Weighing:
    """Predicted times of kernels, of equal ones once, with the schedules that chains were tried with or the default
    ones; `names` are the dimensions and counters that may occur. What is made of the values that are `constant` alone
    takes no time."""

    context: Context
    names: Sequence[str]
    constant: Callable[[Value], bool] = lambda value: False
    _seconds: dict[Kernel, float] = field(default_factory=dict)
    _scheduled: dict[Kernel, Kernel] = field(default_factory=dict)

    @cached_property
    def alone(self) -> Weighing:
        """The same on one core."""
        return replace(self, context=replace(self.context, predict=self.context.predict_alone), _seconds={})

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
        lowered = GroupLowering(group.nodes, group.results, self.names, facts).run("", node.span)
        if lowered.kernel.sizes:
            return None
        kernel = with_constants(lowered.kernel, map(self.constant, lowered.arguments))
        key = rename_buffers(kernel, {name: f"#{n}" for n, name in enumerate(kernel.buffers())})
        if key not in self._scheduled:
            builder = self.context.tried.get(kernel) or build_schedule(kernel, self.context.target)
            self._scheduled[key] = builder.kernel
        if key not in self._seconds:
            assert self.context.predict is not None
            self._seconds[key] = self.context.predict([self._scheduled[key]])[0]
        return self._seconds[key]


def with_constants(kernel: Kernel, constant: Iterable[bool]) -> Kernel:
    """A kernel with those of its inputs marked that do not change."""
    marks = iter(constant)
    given = (replace(b, constant=next(marks)) if b.role in ("in", "inout") else b for b in kernel.parameters)
    return replace(kernel, parameters=tuple(given))


def against(chosen: float, other: float) -> str:
    """What a remark says about two ways: seconds of that which was taken, and of the other."""
    return f"predicted {1e6 * chosen:.3g} us against {1e6 * other:.3g} us"
