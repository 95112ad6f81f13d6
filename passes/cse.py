"""Equal nodes become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from intarsia.ir.graph import Module
from intarsia.ir.rewriting import rewrite
from intarsia.passes.pipeline import Context, Pass


@dataclass(frozen=True)
class Cse(Pass):
    """Compute once what is written several times, also where an inner region repeats what is around it.

    Before:  %0 = exp %x : f32[4]              After:  %0 = exp %x : f32[4]
             %1 = exp %x : f32[4]                      %1 = mul %0, %0 : f32[4]
             %2 = mul %0, %1 : f32[4]

    The node that stays keeps all spans.

    Keeps: values, bit for bit. Needs: nothing. Leaves: no two equal nodes one of which could stand for the other.
    """

    name: ClassVar[str] = "cse"

    def run(self, module: Module, context: Context) -> Module:
        body = rewrite(module.graph.body, ())
        return module.with_body(body)
