"""Every node in its simplest form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module
from intarsia.ir.rewriting import rewrite
from intarsia.passes.canonicalize import elementwise, reductions, spaces, views
from intarsia.passes.pipeline import Context, Pass

RULES = (
    *elementwise.RULES,
    *views.RULES,
    *reductions.RULES,
    *spaces.RULES,
)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Apply the algebra that always helps, until no rule applies: constants, views, selections, trivial reductions.

    Before:  %0 = transpose %x axes=(1, 0) : f32[8, 4]              After:  %0 = mul %x, %x : f32[4, 8]
             %1 = transpose %0 axes=(1, 0) : f32[4, 8]
             %2 = pow %1, %c : f32[4, 8]          with %c = 2.0

    Each rule is a function whose docstring is its equation. None gains or loses a NaN, an infinity or the sign of a
    zero; powers as products may change the last digit, everything else keeps every bit.

    Keeps: values, to the last digit. Needs: nothing. Leaves: no node that a rule applies to.
    """

    name: ClassVar[str] = "canonicalize"
    exact: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> Module:
        body = rewrite(module.graph.body, RULES)
        return module.with_body(body)
