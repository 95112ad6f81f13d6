"""What a learned model sees of a kernel that is scheduled for a GPU, beside what it sees for a CPU (`features.py`).

Those of launches are those of the launch that is predicted to take longest.
"""

from __future__ import annotations

import math

from intarsia.costmodel.analytic import is_product
from intarsia.costmodel.extents import Extents
from intarsia.costmodel.launches import estimate_launches, reports
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Kernel, Put
from intarsia.ir.preparation import split_preparation
from intarsia.ir.scalar import Apply, Cast, loads, walk
from intarsia.ir.target import Target

RESOURCES = ("matrix units", "arithmetic", "cache 2", "waiting", "memory", "launches")
"""The resources of the analytic model."""

LAUNCH_FEATURES: dict[str, str] = {
    "estimate": "log2 s: the time that the analytic model predicts",
    **{f"share {name}": f"time that the analytic model gives to {name} / estimate" for name in RESOURCES},
    "operations": "log2 scalar operations",
    "executions": "log2 executions of statements, lanes counted one by one",
    "parameter bytes": "log2 bytes of all parameters",
    "intensity": "log2 scalar operations a parameter byte",
    "multiply-adds": "share of statements' executions that add a product",
    "conversions": "casts an operation",
    "masked": "share of executions under a mask",
    "narrow loads": "share of loads of types of 16 bits and less",
    "bits": "log2 bits of the widest element",
    "launches": "number of launches",
    "programs": "log2 programs, or blocks of work where programs take several",
    "walks": "1 where programs take several blocks, else 0",
    "warps": "log2 warps a program",
    "stages": "steps of a loop under way",
    "block": "log2 elements of the largest block",
    "elements a thread": "log2 elements of the largest block / threads",
    "rows": "log2 rows of the largest product of blocks, 0 without one",
    "columns": "log2 columns of it",
    "depth": "log2 elements that it sums at a time",
    "wide product": "1 where matrix units take operands from shared memory, else 0",
    "shared bytes": "log2 bytes of shared memory a program, as estimated",
    "registers": "registers a thread, as estimated",
    "room": "log2 programs that a core has room for",
    "rounds": "log2 blocks of work on the core with most",
    "balance": "work / (cores * the work of the busiest core)",
    "cache 2 traffic": "log2 bytes that programs ask the second cache for / parameter bytes",
    "memory traffic": "log2 bytes that memory gives and takes / parameter bytes",
    "described": "share of parameters whose blocks descriptors move",
}
"""Every feature of a schedule for a GPU by its name, with unit and meaning."""


def launch_features(kernel: Kernel, target: Target) -> dict[str, float]:
    """The features of a scheduled kernel by name."""
    _, kernel = split_preparation(kernel)
    extents = Extents.of(kernel)
    estimated, found = estimate_launches(kernel, target), reports(kernel, extents, target)
    main = max(found, key=lambda report: report.seconds)
    launch, lying = main.launch, main.lying
    product = max(launch.products, key=lambda p: math.prod(p.shape), default=None)
    parameter_bytes = sum(extents.bytes_of(b) for b in kernel.parameters)
    asked = sum(r.work.bytes * r.lying.programs for r in found)
    brought = estimated.resources["memory"] * target.rates.memory
    sums = _sums(kernel, extents)
    executions = max(1.0, sums["executions"])
    return {
        "estimate": _log(estimated.seconds),
        **{f"share {name}": estimated.resources[name] / estimated.seconds for name in RESOURCES},
        "operations": _log(sums["operations"]),
        "executions": _log(executions),
        "parameter bytes": _log(parameter_bytes),
        "intensity": _log(sums["operations"] / max(1.0, parameter_bytes)),
        "multiply-adds": sums["multiply-adds"] / executions,
        "conversions": sums["casts"] / max(1.0, sums["operations"]),
        "masked": sums["masked"] / executions,
        "narrow loads": sums["narrow"] / max(1.0, sums["loads"]),
        "bits": _log(max((b.dtype.bits for b in extents.buffers.values()), default=32)),
        "launches": float(len(found)),
        "programs": _log(lying.programs),
        "walks": float(kernel.programs > 0),
        "warps": _log(launch.warps),
        "stages": float(launch.stages),
        "block": _log(launch.largest),
        "elements a thread": _log(launch.largest / launch.threads),
        **{name: _log(product.shape[n] if product else 1) for n, name in enumerate(("rows", "columns", "depth"))},
        "wide product": float(product is not None and product.is_wide(launch.warps)),
        "shared bytes": _log(launch.shared, 1.0),
        "registers": float(launch.registers),
        "room": _log(lying.room),
        "rounds": _log(lying.rounds),
        "balance": lying.programs / (target.cores * lying.rounds),
        "cache 2 traffic": _log(asked / max(1.0, parameter_bytes)),
        "memory traffic": _log(brought / max(1.0, parameter_bytes)),
        "described": sum(b.described for b in kernel.parameters) / max(1, len(kernel.parameters)),
    }


def _sums(kernel: Kernel, extents: Extents) -> dict[str, float]:
    """What is added up over all executions of statements."""
    total = dict.fromkeys(("executions", "operations", "multiply-adds", "casts", "masked", "loads", "narrow"), 0.0)
    for statement, loops in extents.leaves(kernel.body):
        if not isinstance(statement, Put):
            continue
        points, read = extents.points(loops), set(loads(statement.value))
        inside = list(walk(statement.value))
        casts = sum(isinstance(e, Cast) for e in inside)
        applied = sum(FUNCTIONS[e.function].operations for e in inside if isinstance(e, Apply))
        total["executions"] += points
        total["operations"] += points * (casts + applied)
        total["casts"] += points * casts
        total["multiply-adds"] += points * (statement.operator == "+=" and is_product(statement.value))
        total["masked"] += points * bool(statement.mask or any(x.mask for x in read))
        total["loads"] += points * len(read)
        total["narrow"] += points * sum(x.dtype.bits <= 16 for x in read)
    return total


def _log(value: float, least: float = 2.0**-40) -> float:
    return math.log2(max(value, least))
