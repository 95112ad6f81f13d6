"""Object code of a plan in pieces: a kernel that was compiled before, in whatever program, is not compiled again.

Each kernel is an object file of its own, named after the digest of what decides its code: its text, the target, and the
version of LLVM. The entry function is the last piece; the linker of the process joins them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Protocol

import llvmlite.binding as llvm

from intarsia.backends.cpu.compile import compile_module
from intarsia.backends.cpu.emit import emit_kernel, function_name
from intarsia.backends.cpu.plan import add_entry, entry_name, kernels_in_place, new_module
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.plan import Invoke, Plan, PlanStatement, Repeat
from intarsia.ir.target import Rates, Target


class ObjectStore(Protocol):
    """Where object code is kept between compilations."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, code: bytes) -> None: ...


def compile_pieces(plan: Plan, target: Target, store: ObjectStore) -> tuple[bytes, ...]:
    """The object code of each kernel that differs from the others, from the store where it is there, then that of the
    entry function."""
    aliasing = kernels_in_place(plan)
    names: dict[str, str] = {}
    pieces: dict[str, bytes] = {}
    for kernel in plan.kernels:
        overlapping = kernel.name in aliasing
        anonymous = replace(kernel, name="k")
        key = _digest(
            print_kernel(anonymous),
            str(astuple(replace(target, rates=Rates()))),
            str(overlapping),
            str(llvm.llvm_version_info),
        )
        names[kernel.name] = key
        if key in pieces:
            continue
        code = store.get(key)
        if code is None:
            code = _kernel_code(replace(kernel, name=key), target, overlapping)
            store.put(key, code)
        pieces[key] = code
    return (*pieces.values(), _entry_code(_renamed(plan, names), target))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kernel_code(kernel: Kernel, target: Target, aliasing: bool) -> bytes:
    module = new_module(target)
    emit_kernel(module, kernel, target, aliasing=aliasing, linkage="")
    return compile_module(module, target, function_name(kernel.name)).object_code


def _entry_code(plan: Plan, target: Target) -> bytes:
    module = new_module(target)
    for kernel in plan.kernels:
        name = function_name(kernel.name)
        types = ", ".join(["ptr"] * len(kernel.parameters) + ["i64"] * len(kernel.sizes) + ["ptr"])
        module.declare(name, f"declare void @{name}({types})")
    add_entry(module, plan, target, entry_name(plan))
    return compile_module(module, target, entry_name(plan)).object_code


def _renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
    """The plan with its kernels, and what runs them, under other names."""

    def statement(s: PlanStatement) -> PlanStatement:
        match s:
            case Invoke():
                return replace(s, kernel=names[s.kernel])
            case Repeat():
                return replace(s, body=tuple(map(statement, s.body)), test=tuple(map(statement, s.test)))
        return s

    kernels = {names[k.name]: replace(k, name=names[k.name]) for k in plan.kernels}
    return replace(plan, kernels=tuple(kernels.values()), body=tuple(map(statement, plan.body)))
