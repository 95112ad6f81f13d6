"""Options of decisions about blocks and launches on a GPU: sizes near the likeliest one, warps, steps under way."""

from __future__ import annotations

from intarsia.ir.kernel_launch import STAGES as USUAL_STAGES
from intarsia.ir.kernel_launch import WARPS, has_products_in_steps
from intarsia.ir.schedule import Stages, Warps
from intarsia.passes.schedule.builder import Builder

STAGES = (1, 2, 3, 4, 5)
"""Steps of a loop that may be under way at once: more than these find no room beside large blocks."""


def near(size: int, least: int, most: int) -> tuple[int, ...]:
    """A size, then powers of two times it, the nearest first, as far as they lie between two bounds."""
    others = (2 * size, size // 2, 4 * size, size // 4)
    return (size, *(n for n in others if max(1, least) <= n <= most))


def choose_size(b: Builder, what: str, size: int, least: int, most: int) -> int:
    """One of the sizes near the likeliest one."""
    return b.choose(what, near(size, least, most))


def choose_launch(b: Builder) -> None:
    """Decide how many warps run a program, and how many steps of its loops are under way, where nothing has."""
    if not b.kernel.warps:
        warps = b.choose("warps", (0, *WARPS), lambda n: str(n) if n else "as blocks are large")
        if warps:
            b.take(Warps(warps))
    if not b.kernel.stages and has_products_in_steps(b.kernel):
        stages = b.choose("steps under way", (USUAL_STAGES, *STAGES))
        if stages != USUAL_STAGES:
            b.take(Stages(stages))
