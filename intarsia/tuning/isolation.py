"""A kernel by itself as a program: what it reads comes from outside, what it writes is the result."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from intarsia.driver import executable_for
from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Remarks
from intarsia.ir.graph import Graph, Module, Parameter, Region
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.ops import Call
from intarsia.ir.plan import Plan
from intarsia.ir.sizes import Size
from intarsia.ir.target import Target
from intarsia.ir.types import TensorType, Type
from intarsia.passes.plan_memory import plan
from intarsia.tuning.calls import ONCE, Runs


def problem_key(kernel: Kernel, target: Target) -> str:
    """What a naive kernel on so many cores is kept under, whatever its name."""
    text = print_kernel(replace(kernel, name="kernel"))
    return hashlib.sha256(f"{target.cores}\0{text}".encode()).hexdigest()[:16]


def is_measurable(kernel: Kernel, runs: Runs = ONCE) -> bool:
    """Can a kernel be run by itself? Sizes that stay open would have to be given."""
    is_known = all(s.constant is not None for b in kernel.parameters for s in b.shape)
    return len(kernel.sizes) == len(runs[0]) and is_known and all(b.length is None for b in kernel.parameters)


def program_of(kernel: Kernel, runs: Runs = ONCE) -> Module:
    """A module that calls one kernel on its parameters, several times with these values of its sizes. What one run
    changes in place is what the next one gets: the copy that a program makes of its arguments happens once."""
    given = [b for b in kernel.parameters if b.role in ("in", "inout")]
    parameters = tuple(Parameter(b.name, TensorType(b.dtype, b.shape), b.constant) for b in given)
    types: tuple[Type, ...] = tuple(TensorType(b.dtype, b.shape) for b in kernel.parameters if b.role != "in")
    changed = [b.name for b in kernel.parameters if b.role != "in"]
    values = {b.name: p.value for b, p in zip(given, parameters)}
    calls: list[Call] = []
    for sizes in runs:
        calls.append(Call(kernel.name, tuple(values[b.name] for b in given), types, tuple(map(Size.of, sizes))))
        values.update((name, value) for name, value in zip(changed, calls[-1].values) if name in values)
    return Module(Graph(kernel.name, Region(parameters, tuple(calls), calls[-1].values)), (kernel,))


def plan_alone(kernel: Kernel, target: Target, runs: Runs = ONCE) -> Plan:
    """The plan of a scheduled kernel by itself."""
    return plan(program_of(kernel, runs), Remarks(), target.kind)


def compile_alone(kernel: Kernel, target: Target, runs: Runs = ONCE) -> Executable:
    """Machine code for a scheduled kernel by itself."""
    labels = [b.name for b in kernel.parameters if b.role in ("in", "inout")]
    return executable_for(plan_alone(kernel, target, runs), target, labels)


def random_inputs(kernel: Kernel, seed: int = 0) -> list[Array]:
    """Arrays for the parameters of a kernel. Integers are small enough to be subscripts of anything it reads."""
    generator = np.random.default_rng(seed)
    least = min((int(s) for b in kernel.parameters for s in b.shape), default=1)
    found: list[Array] = []
    for b in kernel.parameters:
        if b.role in ("in", "inout"):
            shape = tuple(map(int, b.shape))
            if b.dtype.is_float:
                found.append(generator.standard_normal(shape).astype(b.dtype.numpy))
            else:
                most = 2 if b.dtype.bits == 1 else min(least, 100)
                found.append(generator.integers(0, max(1, most), shape).astype(b.dtype.numpy))
    return found
