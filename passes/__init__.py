"""Passes: Module in, Module out. Each is a frozen dataclass registered by name in `intarsia.passes.pipeline`."""

from __future__ import annotations

from importlib import import_module

MODULES: tuple[str, ...] = (
    "specialize",
    "canonicalize",
    "shard",
    "collectives",
    "cse",
    "dce",
    "expand_sorts",
    "legalize_dtype",
    "sample",
    "sink_scales",
    "contract",
    "exchange",
    "checkpoint",
    "hoist",
    "merge",
    "recompute",
    "fuse",
    "skip_rounding",
    "lower",
    "join",
    "layout",
    "schedule.scheduling",
)
"""Every module that defines passes; importing it registers them."""


def all_passes() -> None:
    """Import every module of passes, so that the registry is complete."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
