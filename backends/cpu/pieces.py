"""Object code of a plan in pieces: a kernel that was compiled before, in whatever program, is not compiled again.

Each kernel is an object file of its own, named after the digest of what decides its code: its text, the target, and the
version of LLVM. The entry function is the last piece; the linker of the process joins them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Protocol

import llvmlite.binding as llvm

from intarsia.backends.cpu.compile import compile_module
from intarsia.backends.cpu.emit import emit_kernel, function_name
from intarsia.backends.cpu.plan import add_entry, entry_name, kernels_in_place, new_module
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.mapping import Mapper
from intarsia.ir.plan import Invoke, Plan, PlanStatement, Repeat
from intarsia.ir.target import Rates, Target


class ObjectStore(Protocol):
    """Where object code is kept between compilations."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, code: bytes) -> None: ...


def compile_pieces(plan: Plan, target: Target, store: ObjectStore, each: Mapper = map) -> tuple[bytes, ...]:
    """The object code of each kernel that differs from the others, from the store where it is there, then that of the
    entry function. `each` is how those that have to be compiled are."""
    aliasing = kernels_in_place(plan)
    names: dict[str, str] = {}
    pieces: dict[str, bytes | None] = {}
    wanted: list[_Piece] = []
    for kernel in plan.kernels:
        overlapping = kernel.name in aliasing
        text = print_kernel(replace(kernel, name="k"))
        key = _digest(text, str(astuple(replace(target, rates=Rates()))), str(overlapping), str(llvm.llvm_version_info))
        names[kernel.name] = key
        if key in pieces:
            continue
        pieces[key] = store.get(key)
        if pieces[key] is None:
            wanted.append(_Piece(replace(kernel, name=key), overlapping, len(text)))
    wanted.sort(key=lambda piece: -piece.length)
    for piece, code in zip(wanted, each(partial(_kernel_code, target=target), wanted)):
        store.put(piece.kernel.name, code)
        pieces[piece.kernel.name] = code
    return (*[code for code in pieces.values() if code is not None], _entry_code(_renamed(plan, names), target))


@dataclass(frozen=True)
class _Piece:
    """A kernel to compile. aliasing: its results may overlap its inputs. length: that of its text, to which the time
    that this takes is about proportional."""

    kernel: Kernel
    aliasing: bool
    length: int


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kernel_code(piece: _Piece, target: Target) -> bytes:
    module = new_module(target)
    emit_kernel(module, piece.kernel, target, aliasing=piece.aliasing, linkage="")
    return compile_module(module, target, function_name(piece.kernel.name)).object_code


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
