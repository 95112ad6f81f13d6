"""Kernels compiled ahead of time, on machines without a GPU: Triton makes PTX, its own ptxas the code of the chip.

A compiled kernel comes with every text on the way and with what it takes of the chip, counted in its instructions. All
of it is a pure function of kernel and target; many kernels are compiled by as many processes, as Triton's compiler
holds the interpreter lock.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from intarsia.backends.gpu.triton_kernel import Pointer, TritonKernel
from intarsia.backends.gpu.triton_module import TRITON_LOCK, load_function, refusals, require_triton, signature
from intarsia.ir.mapping import Mapper
from intarsia.ir.target import Target

INSTRUCTIONS = {
    "tcgen05": r"UTC\w*MMA",  # tensor cores of sm_100
    "hgmma": r"HGMMA",  # tensor cores of sm_90, operands in shared memory: 16-bit and tf32,
    "qgmma": r"QGMMA",  # f8,
    "igmma": r"IGMMA",  # i8
    "hmma": r"HMMA",  # tensor cores, operands in registers: 16-bit and tf32,
    "qmma": r"QMMA",  # f8,
    "imma": r"IMMA",  # i8
    "dmma": r"DMMA",  # f64
    "ffma": r"FFMA2?",
    "hfma": r"HFMA2",
    "dfma": r"DFMA",
    "mufu": r"MUFU",  # reciprocals, roots, exponentials, logarithms, sines
    "load_global": r"LDG",
    "load_global_16": r"LDG\.\S*(?:128|256)",
    "store_global": r"STG",
    "store_global_16": r"STG\.\S*(?:128|256)",
    "copy_async": r"LDGSTS",
    "copy_async_16": r"LDGSTS\.\S*128",
    "copy_bulk": r"UTMALDG|UTMASTG|UBLKCP",
    "load_local": r"LDL",
    "store_local": r"STL",
    "load_shared": r"LDS|LDSM",
    "store_shared": r"STS|STSM",
    "atomic": r"ATOMG?|REDG?|ATOMS",
    "shuffle": r"SHFL",
    "barrier": r"BAR",
}
"""The kinds of instructions that are counted: patterns of mnemonics, up to their first dot or with what follows."""

_KINDS = {kind: re.compile(rf"(?:{pattern})(?![A-Z0-9])") for kind, pattern in INSTRUCTIONS.items()}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([\w.]+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_TOOL_SECONDS = 120.0


class ToolchainError(Exception):
    """Triton or ptxas refused a kernel, which is the compiler's fault. `output` is all that they said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output

    def __reduce__(self) -> tuple[type[ToolchainError], tuple[str, str]]:
        return ToolchainError, (str(self), self.output)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a chip.

    registers: of each thread. shared: bytes of shared memory of a program. spilled: bytes of each thread in local
    memory: what did not fit into registers, and arrays, which only sines of great arguments need. warps: of a program,
    which may be more than were asked for. instructions: how many of each kind, where there are any, and the `total`, at
    their places in the text; how often they run is not counted.
    """

    registers: int
    shared: int
    spilled: int
    warps: int
    instructions: dict[str, int]

    def count(self, kind: str) -> int:
        """The number of instructions of a kind of INSTRUCTIONS, or `total`."""
        assert kind in INSTRUCTIONS or kind == "total", kind
        return self.instructions.get(kind, 0)


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel for one target: the texts on the way, and the code.

    entry: the name of the function in `cubin`. It takes the kernel's parameters and then two pointers: to
    `global_scratch` bytes of memory for each program, and to memory for profiling, which may be null. warps, shared:
    what a launch has to give a program, the latter in bytes.
    """

    name: str
    entry: str
    target: str
    ttir: str
    ttgir: str
    llvm: str
    ptx: str
    cubin: bytes
    warps: int
    shared: int
    global_scratch: int

    @cached_property
    def sass(self) -> str:
        """The instructions of the chip. Disassembling takes up to a second."""
        return _tool("nvdisasm", ["-c", "-ndf"], self.cubin)

    @cached_property
    def usage(self) -> tuple[int, int]:
        """Registers and bytes of local memory of a thread, which take less time to find than what is in `resources`."""
        printed = _tool("cuobjdump", ["--dump-resource-usage"], self.cubin)
        found = _USAGE.search(printed)
        assert found is not None, printed
        registers, stack, local = map(int, found.groups())
        return registers, stack + local

    @cached_property
    def resources(self) -> Resources:
        """What the kernel takes of the chip, counted in `sass`."""
        registers, spilled = self.usage
        return Resources(registers, self.shared, spilled, self.warps, count_instructions(self.sass))


def compile_kernel(
    kernel: TritonKernel, target: Target, cache_directory: Path, *, fuse_products: bool = False
) -> CompiledKernel:
    """Compile a kernel for a GPU, or find what Triton keeps of it in `cache_directory`.

    With `fuse_products`, a product that is added is fused wherever it stands, not only in `tl.fma` and `tl.dot`.
    Raises CompileError E1704 where Triton is not installed, and ToolchainError where Triton or its ptxas fails, or
    the kernel needs more shared memory than the target has.
    """
    require_triton()
    with TRITON_LOCK, _settings(cache_directory):
        compiled = _said(kernel, target, lambda: _triton_compile(kernel, target, fuse_products))
    metadata, texts = compiled.metadata, compiled.asm
    if metadata.shared > target.shared_memory:
        needed = f"{metadata.shared} bytes of shared memory; {target.name} has {target.shared_memory}"
        raise ToolchainError(f"kernel '{kernel.name}' needs {needed}", "")
    return CompiledKernel(
        name=kernel.name,
        entry=metadata.name,
        target=target.name,
        ttir=texts["ttir"],
        ttgir=texts["ttgir"],
        llvm=texts["llir"],
        ptx=texts["ptx"],
        cubin=texts["cubin"],
        warps=metadata.num_warps,
        shared=metadata.shared,
        global_scratch=metadata.global_scratch_size,
    )


def compile_kernels(
    kernels: Sequence[TritonKernel],
    target: Target,
    cache_directory: Path,
    *,
    fuse_products: bool = False,
    each: Mapper = map,
) -> list[CompiledKernel]:
    """Compile each kernel; `each` may share the work among processes."""
    require_triton()  # here, so that processes find it imported
    return list(each(partial(_compile_one, target, cache_directory, fuse_products), kernels))


def _compile_one(target: Target, cache_directory: Path, fuse_products: bool, kernel: TritonKernel) -> CompiledKernel:
    return compile_kernel(kernel, target, cache_directory, fuse_products=fuse_products)


def usage_text(code: CompiledKernel) -> str:
    """Registers, warps, shared memory and spills, in words."""
    registers, spilled = code.usage
    spills = f"{spilled} bytes spilled" if spilled else "no spills"
    return f"{registers} registers, {code.warps} warps, {code.shared / 1024:.0f} KiB shared, {spills}"


def counted(code: CompiledKernel) -> CompiledKernel:
    """The same, disassembled and counted: `resources` is known, also when it comes back from another process."""
    assert code.resources
    return code


def _triton_compile(kernel: TritonKernel, target: Target, fuse_products: bool) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    divisible = [["tt.divisibility", 16]]
    attributes = {
        (position,): divisible
        for position, p in enumerate(kernel.parameters)
        if (p.aligned if isinstance(p, Pointer) else p.divisible)
    }
    source = ASTSource(
        fn=load_function(kernel), signature=signature(kernel), constexprs=dict(kernel.constants), attrs=attributes
    )
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": fuse_products}
    return triton.compile(source, target=GPUTarget("cuda", _capability(target), 32), options=options)


def _capability(target: Target) -> int:
    assert target.kind == "gpu", target.name
    return int(target.cpu.removeprefix("sm_"))


@contextmanager
def _settings(cache_directory: Path) -> Iterator[None]:
    """Triton's settings as they are needed here, and afterwards as they were."""
    from triton import knobs

    with knobs.cache.scope():
        knobs.cache.dir = str(cache_directory)
        yield


def _said(kernel: TritonKernel, target: Target, work: Callable[[], Any]) -> Any:
    """What `work` gives. Where it fails, its message and the pages that Triton prints become one ToolchainError."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        try:
            with _redirected(file):
                return work()
        except refusals() as error:
            file.seek(0)
            printed = file.read()
            chain = "\n".join(str(e) for e in _causes(error))
            reason = first_useful_line(f"{chain}\n{printed}") or type(error).__name__
            message = f"kernel '{kernel.name}' cannot be compiled for {target.name}: {reason}"
            raise ToolchainError(message, f"{type(error).__name__}: {chain}\n{printed}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What led to an error, the first cause first."""
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
    yield error


@contextmanager
def _redirected(file: IO[str]) -> Iterator[None]:
    """Both standard streams go to a file: those of Python, and those of the process, which C and its children use."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        with redirect_stdout(file), redirect_stderr(file):
            for stream, _ in kept:
                os.dup2(file.fileno(), stream)
            yield
    finally:
        file.flush()
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


_USEFUL = (
    re.compile(r"^ptxas\S*\s.*?(?:error|fatal)\s*:\s*(.+)$"),
    re.compile(r"^.*?\berror: (.+)$"),
    re.compile(r"^(?:\w+Error\(['\"](.+)['\"]\))$"),
)


def first_useful_line(text: str) -> str:
    """The line that says what is wrong: ptxas's first error, else MLIR's, else the last that is no source or caret."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in _USEFUL:
        for line in lines:
            if found := pattern.match(line):
                return found.group(1).strip()
    told = [line for line in lines if not line.startswith(("^", "at ", "`", "#", "def ", "@"))]
    return told[-1] if told else ""


def _tool(name: str, options: Sequence[str], cubin: bytes) -> str:
    """What one of CUDA's tools, which come with Triton, prints about a cubin."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [getattr(knobs.nvidia, name).path, *options, str(file)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    if run.returncode != 0:
        raise ToolchainError(f"{name}: {first_useful_line(run.stderr + run.stdout)}", run.stderr + run.stdout)
    return run.stdout


def count_instructions(sass: str) -> dict[str, int]:
    """How many instructions of each kind of INSTRUCTIONS a disassembly holds, where there are any, and the `total`."""
    mnemonics = [m for m in _INSTRUCTION.findall(sass) if m != "NOP"]
    counts = {kind: sum(1 for m in mnemonics if pattern.match(m)) for kind, pattern in _KINDS.items()}
    return {"total": len(mnemonics), **{kind: n for kind, n in counts.items() if n}}
