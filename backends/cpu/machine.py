"""This machine and its linker: what running compiled code needs, without what makes it.

A program that is found in the cache loads no more of the back end than this file.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from intarsia.ir.target import Target

OPTIMISATION = 2
"""The level (1 to 3) of LLVM's passes and of its code generation."""


def host_target() -> Target:
    """This machine."""
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    kept = tuple(sorted(n for n, on in features.items() if on))
    triple = llvm.get_process_triple()
    bits = 512 if features.get("avx512f") else 256 if features.get("avx2") else 128
    registers = 32 if bits == 512 or "aarch64" in triple else 16
    caches = _data_caches(Path("/sys/devices/system/cpu/cpu0/cache")) or Target.caches
    return Target("cpu:host", "cpu", triple, name, kept, bits, registers, caches, os.cpu_count() or 1)


def _data_caches(folder: Path) -> tuple[int, ...]:
    """Bytes of the data caches of one core from the nearest on, as Linux describes them; empty elsewhere."""
    found: dict[int, int] = {}
    for entry in folder.glob("index*"):
        try:
            level, kind, size = ((entry / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and (match := re.fullmatch(r"(\d+)([KMG]?)", size)):
            found[int(level)] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return tuple(found[level] for level in sorted(found))


@cache
def initialise() -> None:
    """Make every target of LLVM known to this process."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def machine(target: Target) -> llvm.TargetMachine:
    """LLVM's description of a target, which generates its code."""
    initialise()
    features = ",".join(f if f[0] in "+-" else f"+{f}" for f in target.features)
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features, opt=OPTIMISATION, reloc="pic", codemodel="small"
    )


def parse(text: str) -> llvm.ModuleRef:
    """LLVM's own form of a module, in a context of its own."""
    initialise()
    context = llvm.create_context()
    module = llvm.parse_assembly(text, context)
    _keep_for(module, context)
    return module


def _keep_for(user: object, needed: object) -> None:
    """Keep what an object needs until that is gone.

    The garbage collector ends the objects of a cycle in any order, unless something outside of it holds one of them.
    """
    weakref.finalize(user, id, needed).atexit = False


def assemble(text: str) -> bytes:
    """Object code for this machine of LLVM IR that is written out by hand: made in the least time, not for the most
    speed."""
    module = parse(text)
    target = llvm.Target.from_triple(llvm.get_process_triple())
    generator = target.create_target_machine(opt=0, reloc="pic", codemodel="small")
    module.triple, module.data_layout = llvm.get_process_triple(), str(generator.target_data)
    code: bytes = generator.emit_object(module)
    return code


@dataclass(frozen=True, eq=False)
class LoadedFunction:
    """A function in this process. `owner` keeps its code alive."""

    address: int
    owner: object


def load(code: bytes | Sequence[bytes], entry: str, symbols: Mapping[str, int]) -> LoadedFunction:
    """Link object code, in one or several pieces, into this process; `symbols` are addresses of names that it refers to
    besides libc and libm."""
    initialise()
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    builder = llvm.JITLibraryBuilder().export_symbol(entry).add_current_process()
    for piece in [code] if isinstance(code, bytes) else code:
        builder.add_object_img(piece)
    for name, address in sorted(symbols.items()):
        builder.import_symbol(name, address)
    tracker = builder.link(jit, f"program {entry}")
    _keep_for(tracker, jit)
    return LoadedFunction(tracker[entry], (tracker, jit))
