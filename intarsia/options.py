"""What a user may choose about a compilation, and the machine that it is for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from intarsia.ir.errors import CompileError
from intarsia.ir.target import TARGETS, Target

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Options:
    """What a user may choose about a compilation.

    target: a CPU target's name, or None for this machine. dynamic: dimension names kept as run-time values.
    passes: the pipeline after `specialize` in place of the default one. schedule: pinned schedules, as text.
    checks: subscripts that depend on data and divisors are checked at run time. unordered: float atomics are allowed.
    """

    target: str | None = None
    dynamic: tuple[str, ...] = ()
    passes: str | None = None
    schedule: str | None = None
    checks: bool = False
    unordered: bool = False

    def resolve_target(self) -> Target:
        return resolve_target(self.target)


def resolve_target(name: str | None) -> Target:
    """The target of a name such as `cpu`, `cpu:host` or `cpu:x86-avx2`; None is this machine.

    Raises CompileError E1701 where no target has this name.
    """
    if name in (None, "cpu", "cpu:host"):
        return host_target()
    assert name is not None
    if name not in TARGETS:
        names = ", ".join(["cpu", *TARGETS])
        raise CompileError("E1701", f"no target is named '{name}'", hint=f"targets: {names}, reference, kernels, plan")
    if TARGETS[name].kind != "cpu":
        raise CompileError("E1702", f"there is no back end for {name} in this version", hint="run it on the cpu")
    return TARGETS[name]


def require_host(target: Target) -> None:
    """Raise CompileError E1702 where this machine cannot run code for `target`."""
    host = host_target()
    missing = sorted(set(target.features) - set(host.features))
    if target.triple.partition("-")[0] != host.triple.partition("-")[0]:
        message = f"this machine is a {host.triple.partition('-')[0]} and cannot run code for {target.name}"
    elif missing and target != host:
        message = f"this machine lacks {', '.join(missing)} and cannot run code for {target.name}"
    else:
        return
    raise CompileError("E1702", message, hint="leave out --target, or only emit the code")


@cache
def host_target() -> Target:
    """This machine: its processor as LLVM knows it, its cores and caches."""
    from intarsia.backends.cpu import machine

    found = machine.host_target()
    return replace(found, cores=os.cpu_count() or 1, caches=_cache_sizes() or found.caches)


def _cache_sizes() -> tuple[int, ...]:
    """Bytes of each data cache, the nearest first, as Linux tells them; empty where it does not."""
    sizes: dict[int, int] = {}
    for folder in sorted(_CACHES.glob("index*")):
        try:
            kind, level, text = ((folder / n).read_text().strip() for n in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and (found := re.fullmatch(r"(\d+)([KMG]?)", text)):
            sizes[int(level)] = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]
    return tuple(size for _, size in sorted(sizes.items()))
