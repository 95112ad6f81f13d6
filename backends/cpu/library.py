"""A program as a C library: a header, and a shared library that needs neither Python nor this package.

For a function `f` the library exports `int32_t f(inputs…, results…, sizes…, void *workspace)` and
`int64_t f_workspace_size(sizes…)`, as docs/c-interface.md describes. They are written in LLVM IR beside the entry
function of the plan, which they call; the system's linker makes the shared library.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from intarsia.backends.cpu.compile import Compiled, compile_module
from intarsia.backends.cpu.emit import safe
from intarsia.backends.cpu.expressions import Expressions
from intarsia.backends.cpu.llvm import Function, Module
from intarsia.backends.cpu.plan import add_plan, new_module
from intarsia.backends.cpu.registers import Registers
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError
from intarsia.ir.plan import Plan, Slot
from intarsia.ir.target import Target

_C_KEYWORDS = frozenset((
    "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "false", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return", "short",
    "signed", "sizeof", "static", "struct", "switch", "true", "typedef", "union", "unsigned", "void", "volatile",
    "while", "workspace",
))  # fmt: skip
"""Names that parameters and functions cannot have."""

_DRIVERS = ("cc", "gcc", "clang")
_LINKERS = ("ld", "ld.lld")


@dataclass(frozen=True)
class _Prototype:
    """The C view of a plan: (type, name, comment) of each parameter."""

    name: str
    tensors: tuple[tuple[str, str, str], ...]
    sizes: tuple[str, ...]

    @property
    def size_list(self) -> str:
        return ", ".join(f"int64_t {s}" for s in self.sizes) or "void"


def header(plan: Plan) -> str:
    """The C header of the library of a plan."""
    prototype = _prototype(plan)
    lines = [f"    {type_}{name},{comment}" for type_, name, comment in prototype.tensors]
    lines += [f"    int64_t {s}," for s in prototype.sizes]
    guard = f"INTARSIA_{prototype.name.upper()}_H"
    return f"""/* {prototype.name}, compiled by Intarsia. Arrays are dense and row-major; see docs/c-interface.md. */
#ifndef {guard}
#define {guard}

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* Bytes that `workspace` must point to, aligned to 64; it may be NULL for 0. */
int64_t {prototype.name}_workspace_size({prototype.size_list});

/* Returns 0, or the number of the run-time check that failed. May run on several threads at once. */
int32_t {prototype.name}(
{chr(10).join(lines)}
    void *workspace);

#ifdef __cplusplus
}}
#endif

#endif
"""


def library_code(plan: Plan, target: Target) -> Compiled:
    """The code of the library: the plan, and the functions that C calls."""
    prototype = _prototype(plan)
    module = new_module(target, openmp=True)
    entry = f"entry.{prototype.name}"
    add_plan(module, plan, target, entry, linkage="internal")
    _write_workspace_size(module, plan, target, f"{prototype.name}_workspace_size")
    _write_wrapper(module, plan, prototype, entry)
    return compile_module(module, target, prototype.name)


def shared_library(plan: Plan, target: Target) -> bytes:
    """The shared library of a plan.

    Raises CompileError E1711 where no linker is found or it fails, E1712 where the function has a name that C
    reserves, E1713 for another machine's code.
    """
    code = library_code(plan, target)
    architecture = target.triple.split("-")[0]
    if architecture.replace("aarch64", "arm64") != platform.machine().replace("aarch64", "arm64"):
        raise CompileError(
            "E1713",
            f"this machine's linker makes no libraries for {target.name}",
            hint="emit --to obj, and link on a machine of that kind",
        )
    return _link(code.object_code, threaded="GOMP_parallel" in code.source, stem=code.entry)


# ---------------------------------------------------------------------- what C sees


def _prototype(plan: Plan) -> _Prototype:
    """Inputs, then results, then sizes; names made fit for C and distinct."""
    name = safe(plan.name).replace(".", "_")
    if name in _C_KEYWORDS:
        raise CompileError(
            "E1712", f"a C library cannot have a function named '{name}'", hint="give the function another name"
        )
    taken: set[str] = set()
    tensors = [
        (_c_type(slot), _c_name(slot.name, taken), f" /* {_shape_text(slot)} */")
        for place in ("input", "output")
        for slot in _slots(plan, place)
    ]
    return _Prototype(name, tuple(tensors), tuple(_c_name(s, taken) for s in plan.sizes))


def _slots(plan: Plan, place: str) -> list[Slot]:
    return sorted((s for s in plan.slots if s.place == place), key=lambda s: s.index)


def _c_name(name: str, taken: set[str]) -> str:
    found = re.sub(r"\W", "_", name)
    while found in _C_KEYWORDS or found in taken:
        found += "_"
    taken.add(found)
    return found


def _c_type(slot: Slot) -> str:
    """16-bit floats are passed as their bits; narrow elements are packed bytes."""
    element = _c_element(slot.dtype)
    if slot.place == "output":
        return f"{element} *"
    return f"const {element} *const *" if slot.length is not None else f"const {element} *"


def _c_element(dtype: DType) -> str:
    if dtype.name in ("f64", "f32"):
        return "double" if dtype.bits == 64 else "float"
    if dtype.kind == "bool":
        return "bool"
    return f"{'int' if dtype.kind == 'int' else 'uint'}{max(8, dtype.bits)}_t"


def _shape_text(slot: Slot) -> str:
    shape = f"[{', '.join(map(str, slot.shape))}]" if slot.shape else ""
    return f"{f'list[{slot.length}] ' if slot.length is not None else ''}{slot.dtype}{shape}"


# ---------------------------------------------------------------------- the exported functions


def _write_workspace_size(module: Module, plan: Plan, target: Target, name: str) -> None:
    function = Function(module, name, [("i64", f"s{i}") for i in range(len(plan.sizes))], result="i64")
    sizes = Expressions(function, target, plan.sizes, {}, Registers(function, {}, {}), aliasing=True)
    sizes.axes = {s: f"%s{i}" for i, s in enumerate(plan.sizes)}
    function.finish(f"i64 {sizes.number(plan.workspace_bytes)}")


def _write_wrapper(module: Module, plan: Plan, prototype: _Prototype, entry: str) -> None:
    """Put the arguments into the tables that the entry function takes."""
    inputs, outputs = (len(_slots(plan, place)) for place in ("input", "output"))
    parameters = [("ptr", f"t{i}") for i in range(inputs + outputs)]
    parameters += [("i64", f"s{i}") for i in range(len(plan.sizes))]
    function = Function(module, prototype.name, [*parameters, ("ptr", "workspace")], result="i32")
    tables = []
    values = [f"%{n}" for _, n in parameters]
    for kind, part in (
        ("ptr", values[:inputs]),
        ("ptr", values[inputs : inputs + outputs]),
        ("i64", values[inputs + outputs :]),
    ):
        table = function.alloca(f"[{max(1, len(part))} x i64], align 8")
        for position, value in enumerate(part):
            function.do(f"store {kind} {value}, ptr {function.offset(table, 'i64', position)}, align 8")
        tables.append(table)
    record = function.alloca("[16 x i64], align 8")
    function.do(f"store i64 0, ptr {record}, align 8")
    arguments = ", ".join(f"ptr {p}" for p in (*tables, "%workspace", record, "null"))
    function.finish(f"i32 {function.emit(f'call i32 @{entry}({arguments})')}")


# ---------------------------------------------------------------------- linking


def _link(code: bytes, *, threaded: bool, stem: str) -> bytes:
    """A shared library of one object file, by the first linker that is found."""
    tool = next((path for name in (*_DRIVERS, *_LINKERS) if (path := shutil.which(name))), None)
    if tool is None:
        raise CompileError(
            "E1711",
            "no linker was found to make a shared library",
            hint="install gcc or clang (or binutils), or emit --to obj and link elsewhere",
        )
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / f"{stem}.o", Path(folder) / f"lib{stem}.so"
        source.write_bytes(code)
        message = ""
        for runtime in (["-lgomp"], ["-lomp"]) if threaded else ([],):
            command = [tool, "-shared", "-o", str(result), str(source), *runtime, "-lm"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode == 0:
                return result.read_bytes()
            message = message or run.stderr.strip().replace(folder, "").splitlines()[-1]
    raise CompileError(
        "E1711",
        f"{Path(tool).name} could not make the shared library: {message}",
        hint="emit --to obj, and link with an OpenMP runtime (-lgomp or -lomp) and -lm",
    )
