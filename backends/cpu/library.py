"""A program as a C library: a header, and a shared library that needs neither Python nor this package.

For a function `f` the library exports `int32_t f(inputs…, results…, sizes…, void *workspace)` and
`int64_t f_workspace_size(sizes…)`; where it has constants also `f_prepared_size` and `f_prepare`, as
docs/c-interface.md describes. They are written in LLVM IR beside the entry function of the plan, which they call; the
system's linker makes the shared library.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from intarsia.backends.cpu.compile import Compiled, compile_module
from intarsia.backends.cpu.emit import safe
from intarsia.backends.cpu.expressions import Expressions
from intarsia.backends.cpu.llvm import Function, Module
from intarsia.backends.cpu.plan import add_entry, add_kernels, new_module
from intarsia.backends.cpu.registers import Registers
from intarsia.ir.conditions import Condition
from intarsia.ir.dtypes import DType
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.plan import Plan, Slot
from intarsia.ir.sizes import Size, product
from intarsia.ir.target import Target

_C_KEYWORDS = frozenset((
    "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "false", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return", "short",
    "signed", "sizeof", "static", "struct", "switch", "true", "typedef", "union", "unsigned", "void", "volatile",
    "while", "workspace", "prepared",
))  # fmt: skip
"""Names that parameters and functions cannot have."""

_CPP_KEYWORDS = frozenset((
    "and", "asm", "catch", "class", "delete", "explicit", "export", "friend", "mutable", "namespace", "new", "not",
    "operator", "or", "private", "protected", "public", "template", "this", "throw", "try", "typename", "using",
    "virtual", "xor",
))  # fmt: skip
"""Names that would keep the header from C++."""

_C_FUNCTIONS = frozenset((
    "abort", "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "calloc", "cbrt", "ceil", "cos", "cosh",
    "erf", "erfc", "exit", "exp", "exp2", "expm1", "fabs", "floor", "fma", "fmax", "fmin", "fmod", "fputs", "free",
    "hypot", "log", "log10", "log1p", "log2", "logb", "malloc", "memchr", "memcmp", "memcpy", "memmove", "memset",
    "pow", "printf", "putchar", "puts", "qsort", "rand", "read", "realloc", "remainder", "rint", "round", "scanf",
    "sin", "sinh", "sleep", "sqrt", "strlen", "tan", "tanh", "tgamma", "time", "trunc", "write",
))  # fmt: skip
"""Functions of the C library, whose place one of the same name would take in the whole process, in our code too."""

_RESERVED = _C_KEYWORDS | _CPP_KEYWORDS

_DRIVERS = ("cc", "gcc", "clang")
_LINKERS = ("ld", "ld.lld")


MISSING_POINTER = -1
"""The status of a call where a pointer is NULL though there is something to read or write."""


@dataclass(frozen=True)
class Interface:
    """What C is offered: a plan, and what is known of it beside.

    constants: numbers of the inputs that do not change between calls. conditions: what must hold of the sizes that stay
    open. checks: what the run-time checks of the plan mean, by number, each perhaps with the user's place.
    """

    plan: Plan
    constants: frozenset[int] = frozenset()
    conditions: tuple[Condition, ...] = ()
    checks: tuple[tuple[int, str, Span | None], ...] = ()

    @cached_property
    def name(self) -> str:
        """The name of the function. Raises CompileError E1712 where C reserves it."""
        name = safe(self.plan.name).replace(".", "_")
        if name in _RESERVED | _C_FUNCTIONS:
            raise CompileError(
                "E1712", f"a C library cannot have a function named '{name}'", hint="give the function another name"
            )
        return name

    @cached_property
    def parameters(self) -> tuple[tuple[Slot, str], ...]:
        """Inputs in order, then results, with names fit for C and distinct."""
        taken: set[str] = set()
        slots = _slots(self.plan, "input")
        given = slots[: len(slots) - len(self.made)]
        return tuple((s, _c_name(s.name, taken)) for s in (*given, *_slots(self.plan, "output")))

    @property
    def prepared(self) -> tuple[tuple[Slot, str], ...]:
        """The constants."""
        return tuple(p for p in self.parameters if self.is_constant(p[0]))

    @property
    def passed(self) -> tuple[tuple[Slot, str], ...]:
        """What is given in each call."""
        return tuple(p for p in self.parameters if not self.is_constant(p[0]))

    @property
    def made(self) -> tuple[Slot, ...]:
        """What is computed from the constants once."""
        return () if self.plan.preparation is None else tuple(_slots(self.plan.preparation.plan, "output"))

    @property
    def prepared_offsets(self) -> tuple[Size, ...]:
        """Where the tensors made of the constants lie in the prepared memory, after pointers to the constants; where
        that ends, which is where their workspace begins; and where this ends."""
        pointers = Size.of(8 * len(self.prepared))
        if self.plan.preparation is None:
            return (pointers,)
        offsets = [_rounded(pointers)]
        for slot in self.made:
            offsets.append(offsets[-1] + _rounded(product(slot.shape) * slot.dtype.bytes))
        return (*offsets, offsets[-1] + self.plan.preparation.plan.workspace_bytes)

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """The names of the open sizes, fit for C."""
        taken = {name for _, name in self.parameters}
        return tuple(_c_name(s, taken) for s in self.plan.sizes)

    def is_constant(self, slot: Slot) -> bool:
        return slot.place == "input" and slot.index in self.constants

    @cached_property
    def required(self) -> tuple[tuple[int, Condition], ...]:
        """The conditions of the sizes, after those of the tensors' own dimensions, with the statuses of their failure.

        Raises CompileError E1714 for one that cannot be stated.
        """
        found: dict[Condition, None] = {}
        for slot, _ in self.parameters:
            for dim in (*slot.shape, *([slot.length] if slot.length is not None else [])):
                if dim.constant is None:
                    found[Condition(dim, f"the size {dim} is negative")] = None
        found |= dict.fromkeys(self.conditions)
        if (unknown := next((c for c in found if c.size is None), None)) is not None:
            raise CompileError(
                "E1714",
                f"{unknown.message}, and what must hold of {', '.join(self.plan.sizes)} cannot be stated",
                unknown.span,
                hint="leave out --dynamic, or give the index a range in which the access is inside for every size",
            )
        return tuple(enumerate(found, max((number for number, *_ in self.checks), default=0) + 1))


def header(interface: Interface) -> str:
    """The C header of a library."""
    name, guard = interface.name, f"INTARSIA_{interface.name.upper()}_H"
    size_list = ", ".join(f"int64_t {s}" for s in interface.sizes) or "void"
    sizes = [f"int64_t {s}" for s in interface.sizes]
    own = [_declaration(slot, n) for slot, n in interface.passed]
    prepared = ["const void *prepared"] if interface.prepared else []
    declarations = f"""/* Bytes that `workspace` must point to, aligned to 64; it may be NULL for 0. */
int64_t {name}_workspace_size({size_list});
"""
    if interface.prepared:
        constants = [_declaration(slot, n) for slot, n in interface.prepared]
        declarations += f"""
/* Bytes that `prepared` must point to, aligned to 64. */
int64_t {name}_prepared_size({size_list});

/* Prepares constants for any number of calls; they stay where and as they are while `prepared` is in use. */
int32_t {name}_prepare(
{_parameter_lines([*constants, *sizes, "void *prepared"])});
"""
    return f"""/* {name}, compiled by Intarsia. Arrays are dense and row-major; see docs/c-interface.md. */
#ifndef {guard}
#define {guard}

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{declarations}
/* May run on several threads at once. Returns 0, or a status:
{chr(10).join(_status_lines(interface))} */
int32_t {name}(
{_parameter_lines([*own, *sizes, *prepared, "void *workspace"])});

#ifdef __cplusplus
}}
#endif

#endif
"""


def library_code(interface: Interface, target: Target) -> Compiled:
    """The code of the library: the plan, and the functions that C calls."""
    module = new_module(target, openmp=True)
    entry = f"entry.{interface.name}"
    add_kernels(module, interface.plan, target)
    add_entry(module, interface.plan, target, entry, linkage="internal")
    if interface.plan.preparation is not None:
        add_entry(module, interface.plan.preparation.plan, target, f"{entry}.prepare", linkage="internal")
    writer = _Writer(module, interface, target)
    writer.workspace_size()
    if interface.prepared:
        writer.prepared_size()
        writer.prepare()
    writer.wrapper(entry)
    return compile_module(module, target, interface.name)


def shared_library(interface: Interface, target: Target) -> bytes:
    """The shared library of a plan.

    Raises CompileError E1711 where no linker is found or it fails, E1712 where the function has a name that C
    reserves, E1713 for another machine's code, E1714 for conditions of open sizes that cannot be stated.
    """
    code = library_code(interface, target)
    architecture = target.triple.split("-")[0]
    if architecture.replace("aarch64", "arm64") != platform.machine().replace("aarch64", "arm64"):
        raise CompileError(
            "E1713",
            f"this machine's linker makes no libraries for {target.name}",
            hint="emit --to obj, and link on a machine of that kind",
        )
    return _link(code.object_code, threaded="GOMP_parallel" in code.source, stem=code.entry)


# ---------------------------------------------------------------------- what C sees


def _slots(plan: Plan, place: str) -> list[Slot]:
    return sorted((s for s in plan.slots if s.place == place), key=lambda s: s.index)


def _rounded(size: Size) -> Size:
    """Bytes up to the next whole cache line."""
    return (size + 63) // 64 * 64


def _c_name(name: str, taken: set[str]) -> str:
    found = re.sub(r"\W", "_", name)
    while found in _RESERVED or found in taken:
        found += "_"
    taken.add(found)
    return found


def _declaration(slot: Slot, name: str) -> str:
    """A parameter with its type in the program. Floats of 16 bits and fewer are passed as their bits, narrow ones in
    a byte each."""
    element = _c_element(slot.dtype)
    pointer = f"const {element} *"
    if slot.place == "output":
        pointer = f"{element} *"
    elif slot.length is not None:
        pointer = f"const {element} *const *"
    shape = f"[{', '.join(map(str, slot.shape))}]" if slot.shape else ""
    return f"{pointer}{name} /* {f'list[{slot.length}] ' if slot.length is not None else ''}{slot.dtype}{shape} */"


def _c_element(dtype: DType) -> str:
    if dtype.name in ("f64", "f32"):
        return "double" if dtype.bits == 64 else "float"
    if dtype.kind == "bool":
        return "bool"
    return f"{'int' if dtype.kind == 'int' else 'uint'}{max(8, dtype.bits)}_t"


def _parameter_lines(parameters: Sequence[str]) -> str:
    """One parameter on each line, the comma before its comment."""
    lines = []
    for position, parameter in enumerate(parameters):
        comma = "," if position < len(parameters) - 1 else ""
        declared, _, comment = parameter.partition(" /*")
        lines.append(f"    {declared}{comma}{f' /*{comment}' if comment else ''}")
    return "\n".join(lines)


def _status_lines(interface: Interface) -> list[str]:
    found: list[tuple[int, str, Span | None]] = [(MISSING_POINTER, "a pointer is NULL", None), *interface.checks]
    found += [(number, c.message, c.span) for number, c in interface.required]
    return [
        f"   {number}: {message.replace('*/', '* /')}{f' ({span})' if span is not None else ''}"
        for number, message, span in found
    ]


# ---------------------------------------------------------------------- the exported functions


@dataclass(frozen=True)
class _Writer:
    """Writes the functions that C calls."""

    module: Module
    interface: Interface
    target: Target

    def workspace_size(self) -> None:
        function = Function(self.module, f"{self.interface.name}_workspace_size", self._sizes, result="i64")
        function.finish(f"i64 {self._numbers(function).number(self.interface.plan.workspace_bytes)}")

    def prepared_size(self) -> None:
        """A pointer for each constant, then what is made of them."""
        function = Function(self.module, f"{self.interface.name}_prepared_size", self._sizes, result="i64")
        function.finish(f"i64 {self._numbers(function).number(self.interface.prepared_offsets[-1])}")

    def prepare(self) -> None:
        """Keep the pointers to the constants, and compute what needs nothing else."""
        slots = [slot for slot, _ in self.interface.prepared]
        pointers = [("ptr", f"t{i}") for i in range(len(slots))]
        parameters = [*pointers, *self._sizes, ("ptr", "prepared")]
        function = Function(self.module, f"{self.interface.name}_prepare", parameters, result="i32")
        numbers = self._numbers(function)
        self._check_sizes(function, numbers)
        self._require_pointers(function, numbers, [(f"%{n}", s) for (_, n), s in zip(pointers, slots)])
        self._require(function, "%prepared")
        for position, (kind, name) in enumerate(pointers):
            place = function.offset("%prepared", kind, position)
            function.do(f"store {kind} %{name}, ptr {place}, align 8")
        once = self.interface.plan.preparation
        if once is None:
            function.finish("i32 0")
            return
        numbers_of = {slot.index: f"%{name}" for (_, name), slot in zip(pointers, slots)}
        *made, workspace = self._made(function, numbers)
        sizes = [f"%s{self.interface.plan.sizes.index(name)}" for name in once.plan.sizes]
        given = [numbers_of[n] for n in once.inputs]
        entry = f"entry.{self.interface.name}.prepare"
        function.finish(f"i32 {self._run(function, entry, given, made, sizes, workspace)}")

    def _made(self, function: Function, numbers: Expressions) -> list[str]:
        """The addresses of what is made of the constants, and of the workspace that this takes."""
        offsets = self.interface.prepared_offsets[:-1]
        return [function.offset("%prepared", "i8", numbers.number(offset)) for offset in offsets]

    def _run(
        self,
        function: Function,
        entry: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        sizes: Sequence[str],
        workspace: str,
    ) -> str:
        """Call an entry function; gives its status."""
        tables = [self._table(function, "ptr", values) for values in (inputs, outputs)]
        tables.append(self._table(function, "i64", sizes))
        record = function.alloca("[16 x i64], align 8")
        function.do(f"store i64 0, ptr {record}, align 8")
        arguments = ", ".join(f"ptr {p}" for p in (*tables, workspace, record, "null"))
        return function.emit(f"call i32 @{entry}({arguments})")

    def wrapper(self, entry: str) -> None:
        """Check sizes and pointers, then put the arguments into the tables that the entry function takes."""
        interface = self.interface
        names = {slot: f"%t{i}" for i, (slot, _) in enumerate(interface.passed)}
        parameters = [("ptr", name[1:]) for name in names.values()] + list(self._sizes)
        parameters += [("ptr", n) for n in (*(["prepared"] if interface.prepared else []), "workspace")]
        function = Function(self.module, interface.name, parameters, result="i32")
        numbers = self._numbers(function)
        self._check_sizes(function, numbers)
        self._require_pointers(function, numbers, [(name, slot) for slot, name in names.items()])
        needed = function.compare("sgt", numbers.number(interface.plan.workspace_bytes), 0)
        self._require(function, "%workspace", needed)
        if interface.prepared:
            self._require(function, "%prepared")
        for position, (slot, _) in enumerate(interface.prepared):
            place = function.offset("%prepared", "ptr", position)
            names[slot] = function.emit(f"load ptr, ptr {place}, align 8")
        given, made = ([names[s] for s, _ in interface.parameters if s.place == place] for place in ("input", "output"))
        if interface.made:
            given += self._made(function, numbers)[:-1]
        sizes = [f"%{name}" for _, name in self._sizes]
        function.finish(f"i32 {self._run(function, entry, given, made, sizes, '%workspace')}")

    @property
    def _sizes(self) -> list[tuple[str, str]]:
        return [("i64", f"s{i}") for i in range(len(self.interface.sizes))]

    def _numbers(self, function: Function) -> Expressions:
        """What writes numbers over the open sizes, which are parameters of the function."""
        open_sizes = self.interface.plan.sizes
        found = Expressions(function, self.target, open_sizes, {}, Registers(function, {}, {}), aliasing=True)
        found.axes = {s: f"%s{i}" for i, s in enumerate(open_sizes)}
        return found

    def _table(self, function: Function, kind: str, values: Sequence[str]) -> str:
        table = function.alloca(f"[{max(1, len(values))} x i64], align 8")
        for position, value in enumerate(values):
            function.do(f"store {kind} {value}, ptr {function.offset(table, 'i64', position)}, align 8")
        return table

    def _check_sizes(self, function: Function, numbers: Expressions) -> None:
        """Return the number of the first condition that does not hold."""
        for number, condition in self.interface.required:
            assert condition.size is not None
            value = numbers.number(condition.size)
            failed = function.compare("ne" if condition.exact else "slt", value, 0)
            for extent in condition.ranges:
                inhabited = function.compare("sgt", numbers.number(extent), 0)
                failed = function.op(f"and i1 {failed}, {inhabited}")
            function.return_if(failed, f"i32 {number}")

    def _require_pointers(self, function: Function, numbers: Expressions, pointers: Sequence[tuple[str, Slot]]) -> None:
        """Return a status where the pointer to a tensor with elements, or to a list with items, is NULL."""
        for pointer, slot in pointers:
            count = slot.length if slot.length is not None else product(slot.shape)
            self._require(function, pointer, function.compare("sgt", numbers.number(count), 0))

    def _require(self, function: Function, pointer: str, needed: str = "true") -> None:
        """Return a status where a pointer is NULL though it is needed."""
        missing = function.op(f"icmp eq ptr {pointer}, null")
        function.return_if(function.op(f"and i1 {missing}, {needed}"), f"i32 {MISSING_POINTER}")


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
