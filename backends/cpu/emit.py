"""From a kernel to LLVM IR: one walk over its statements, which decides nothing.

A loop is written as its kind says (`analysis.py`): `seq` as a loop whose register buffers are phis, `unroll` written
out, `lane` as vectors, `parallel` as a function of its own that threads share (`parallel.py`). Every kernel can be
emitted, scheduled or not. A kernel becomes `void @kernel.NAME(ptr parameters…, i64 sizes…, ptr error_record)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from intarsia.backends.cpu import parallel, routines
from intarsia.backends.cpu.analysis import Analysis, allocations, analyse, statements, trip_count
from intarsia.backends.cpu.dots import Dots
from intarsia.backends.cpu.indices import Lane
from intarsia.backends.cpu.llvm import Function, Module, Operand
from intarsia.backends.cpu.registers import Place, Registers
from intarsia.backends.cpu.values import Value, extract, padded, resized, storage_type
from intarsia.ir.errors import Span
from intarsia.ir.kernel import (
    Alloc,
    Buffer,
    Call,
    Check,
    For,
    If,
    Kernel,
    Prefetch,
    Put,
    Statement,
)
from intarsia.ir.sizes import Size, product
from intarsia.ir.target import Target

STACK_BUFFER = 32 << 10
"""A larger temporary (bytes) does not go on the stack."""

STACK_TOTAL = 256 << 10
"""All temporaries of one function that may be on the stack, in bytes."""

RECORDED_VALUES = 14
"""Values that an error record holds after the number of the check and the count."""


def function_name(kernel: str) -> str:
    """The name of a kernel's function in the module."""
    return f"kernel.{safe(kernel)}"


def safe(name: str) -> str:
    """A name with the characters that LLVM and linkers take without quotes."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def emit_kernel(
    module: Module, kernel: Kernel, target: Target, *, aliasing: bool = False, linkage: str = "internal"
) -> None:
    """Add the function of a kernel to the module. `aliasing`: buffers given to it may overlap."""
    pointer = "ptr" if aliasing else "ptr noalias"
    parameters = [(pointer, f"b.{safe(b.name)}") for b in kernel.parameters]
    parameters += [("i64", f"s.{safe(s)}") for s in kernel.sizes]
    function = Function(module, function_name(kernel.name), [*parameters, ("ptr", "record")], linkage=linkage)
    emitter = Emitter(function, kernel, target, analyse(kernel), aliasing=aliasing)
    for buffer in kernel.parameters:
        emitter.pointers[buffer.name] = f"%b.{safe(buffer.name)}"
    for size in kernel.sizes:
        emitter.bind_size(size, f"%s.{safe(size)}")
    emitter.whole(kernel.body)


class Emitter(Dots):
    """Writes the statements of one function: a kernel, or the body of a parallel loop in it."""

    def __init__(
        self, function: Function, kernel: Kernel, target: Target, analysis: Analysis, *, aliasing: bool = False
    ) -> None:
        buffers = kernel.buffers()
        registers = Registers(function, analysis.registers, buffers)
        super().__init__(function, target, kernel.sizes, buffers, registers, aliasing=aliasing)
        self.kernel = kernel
        self.analysis = analysis
        function.plain_loops = analysis.is_scalar
        function.begin_at(first_span(kernel))
        self.heap: list[str] = []

    def child(self, function: Function) -> Emitter:
        """An emitter of the same kernel for another function, with nothing bound."""
        return Emitter(function, self.kernel, self.target, self.analysis, aliasing=self.aliasing)

    # ------------------------------------------------------------------ names

    def bind_size(self, name: str, operand: Operand) -> None:
        """Give a size of the kernel its value."""
        self.axes[name] = operand
        self.size_operands.add(str(operand))

    def bind_axis(self, loop: For, operand: Operand) -> None:
        """Give an axis its value in the current iteration."""
        self.axes[loop.axis] = operand
        multiple = math.gcd(self.multiple(loop.lower), loop.step)
        self.multiples[loop.axis] = multiple
        if isinstance(operand, str):
            self.operand_multiples[operand] = multiple

    # ------------------------------------------------------------------ whole functions

    def whole(self, body: tuple[Statement, ...]) -> None:
        """Write the function: its memory, the statements, the return."""
        self.allocate(body)
        self.read_numbers()
        self.block(body)
        self.leave()

    def leave(self) -> None:
        for pointer in self.heap:
            self.function.call("void", "free", [("ptr", pointer)])
        if self.wrote_nontemporal:
            self.function.call("void", "llvm.x86.sse.sfence", [])
        self.function.finish()

    def temporaries(self, body: tuple[Statement, ...]) -> list[Buffer]:
        """The temporaries in memory that belong to this function, not to a parallel loop inside it."""
        return [
            buffer
            for buffer, loops in allocations(body)
            if not self.registers.holds(buffer.name)
            and not any(self.analysis.modes[loop.axis] == "parallel" for loop in loops)
        ]

    def large_temporaries(self, body: tuple[Statement, ...]) -> list[Buffer]:
        """Those that do not fit the stack, of sizes that are known on entry."""
        total, found = 0, []
        for buffer in self.temporaries(body):
            size = _bytes(buffer)
            if size.constant is not None and size.constant <= STACK_BUFFER and total + size.constant <= STACK_TOTAL:
                total += size.constant
            elif size.symbols <= self.axes.keys():
                found.append(buffer)
        return found

    def allocate(self, body: tuple[Statement, ...]) -> None:
        """Memory for temporaries: on the stack if small, else from the heap, once, where it was not given already."""
        large = self.large_temporaries(body)
        for buffer in self.temporaries(body):
            size = _bytes(buffer)
            if buffer in large and buffer.name not in self.pointers:
                self.pointers[buffer.name] = self.new_memory(size)
                self.heap.append(self.pointers[buffer.name])
            elif buffer not in large and size.constant is not None:
                self.pointers[buffer.name] = self.function.alloca(f"[{max(1, size.constant)} x i8], align 64")

    def size_of(self, name: str) -> Size:
        """Bytes of a buffer."""
        return _bytes(self.buffers[name])

    def new_memory(self, size: Size) -> str:
        """Memory from the heap, aligned to cache lines."""
        wanted = self.function.maximum(self.number(size), 1)
        rounded = self.function.add(wanted, 63)
        rounded = rounded & -64 if isinstance(rounded, int) else self.function.op(f"and i64 {rounded}, -64")
        return self.function.call("ptr", "aligned_alloc", [("i64", "64"), ("i64", str(rounded))], pure=False)

    # ------------------------------------------------------------------ statements

    def block(self, body: tuple[Statement, ...]) -> None:
        """Statements in order; memory that was allocated among them is given back at the end."""
        taken: list[str] = []
        for statement in body:
            self.forget_values()
            if isinstance(statement, Alloc):
                taken += self.begin_buffer(statement.buffer)
            else:
                with self.function.at(statement.span if isinstance(statement, (Put, Check)) else None):
                    self.statement(statement)
        for name in taken:
            self.function.call("void", "free", [("ptr", self.pointers.pop(name))])
        for statement in body:
            if isinstance(statement, Alloc) and self.registers.holds(statement.buffer.name):
                self.registers.clear(statement.buffer.name)  # its values may not be known where branches meet again

    def begin_buffer(self, buffer: Buffer) -> list[str]:
        """A fresh temporary; gives its name if memory was taken for it here."""
        taken = []
        if self.registers.holds(buffer.name):
            self.registers.clear(buffer.name)
        elif buffer.name not in self.pointers:
            self.pointers[buffer.name] = self.new_memory(_bytes(buffer))
            taken.append(buffer.name)
        self.forget([buffer.name])
        return taken

    def statement(self, statement: For | Put | If | Prefetch | Check | Call) -> None:
        match statement:
            case For():
                self.loop(statement)
            case Put():
                self.put(statement)
            case If(condition, then, otherwise):
                self.branch_on(self.condition(condition).uniform, then, otherwise)
            case Prefetch():
                self.prefetch(statement)
            case Check():
                self.check(statement)
            case Call():
                routines.call(self, statement)

    # ------------------------------------------------------------------ loops

    def loop(self, loop: For) -> None:
        outside = self.open_loops
        self.open_loops = (*outside, loop)
        match self.analysis.modes[loop.axis]:
            case "parallel":
                parallel.emit(self, loop)
            case "dot" if self.dot(loop):
                pass
            case "unrolled" | "dot":
                for i in range(int(self.number(loop.lower)), int(self.number(loop.upper)), loop.step):
                    self.bind_axis(loop, i)
                    self.block(loop.body)
            case "lanes":
                self.lane = self.lane_of(loop)
                self.block(loop.body)
                self.lane = None
            case "sequential":
                self.sequential(loop, self.number(loop.lower), self.number(loop.upper))
        self.axes.pop(loop.axis, None)
        self.open_loops = outside

    def lane_of(self, loop: For) -> Lane:
        count = trip_count(loop)
        assert count is not None
        base = self.number(loop.lower)
        self.axes[f"{loop.axis}.base"] = base
        self.multiples[f"{loop.axis}.base"] = self.multiple(loop.lower)
        return Lane(loop.axis, base, loop.step, count)

    def sequential(self, loop: For, lower: Operand, upper: Operand) -> None:
        """A loop in order; the registers that it writes are phis."""
        if isinstance(lower, int) and isinstance(upper, int) and upper - lower <= loop.step:
            if lower < upper:
                self.bind_axis(loop, lower)
                self.block(loop.body)
            return
        places = list(dict.fromkeys(self.written_places(loop.body)))
        carried = [padded(self.function, self.registers.current(p)) for p in places]
        written = {s.buffer for s in statements(loop.body) if isinstance(s, Put)} | _called(loop.body)
        known = self.known_loads()
        self.forget(written)
        with self.function.loop(lower, upper, loop.step, [(v.type, v.text) for v in carried]) as made:
            self.bind_axis(loop, made.index)
            for place, value, name in zip(places, carried, made.values):
                self.registers.values[place] = self.unpadded(place, replace(value, text=name))
            self.block(loop.body)
            made.following = [padded(self.function, self.registers.current(p)).text for p in places]
        for place, value, name in zip(places, carried, made.results):
            self.registers.values[place] = self.unpadded(place, replace(value, text=name))
        self.restore_loads(known, written)

    def unpadded(self, place: Place, value: Value) -> Value:
        """A register's value without the lanes that it had between blocks."""
        return resized(self.function, value, self.registers.layouts[place.buffer].lanes)

    def written_places(self, body: tuple[Statement, ...]) -> Iterator[Place]:
        """The registers that statements write, but for those of buffers that they allocate."""
        own = {s.buffer.name for s in statements(body) if isinstance(s, Alloc)}
        wanted = {s.buffer for s in statements(body) if isinstance(s, Put) and self.registers.holds(s.buffer)} - own
        return self._written(body, wanted)

    def _written(self, body: tuple[Statement, ...], wanted: set[str]) -> Iterator[Place]:
        for statement in body:
            match statement:
                case For():
                    if any(isinstance(s, Put) and s.buffer in wanted for s in statements(statement.body)):
                        yield from self._written_in_loop(statement, wanted)
                case If(_, then, otherwise):
                    yield from self._written((*then, *otherwise), wanted)
                case Put(buffer, indices) if buffer in wanted:
                    yield from self.registers.written(buffer, self.positions(indices), self.lanes)

    def _written_in_loop(self, loop: For, wanted: set[str]) -> Iterator[Place]:
        match self.analysis.modes[loop.axis]:
            case "unrolled" | "dot":
                for i in range(int(self.number(loop.lower)), int(self.number(loop.upper)), loop.step):
                    self.axes[loop.axis] = i
                    yield from self._written(loop.body, wanted)
            case "lanes":
                self.lane = self.lane_of(loop)
                yield from self._written(loop.body, wanted)
                self.lane = None
            case _:
                yield from self._written(loop.body, wanted)

    # ------------------------------------------------------------------ branches

    def branch_on(self, condition: str, then: tuple[Statement, ...], otherwise: tuple[Statement, ...] = ()) -> None:
        written = {s.buffer for s in statements((*then, *otherwise)) if isinstance(s, Put)}
        written |= _called((*then, *otherwise))
        self.branch(
            condition, written, lambda: self.block(then), (lambda: self.block(otherwise)) if otherwise else None
        )

    # ------------------------------------------------------------------ the rest

    def prefetch(self, prefetch: Prefetch) -> None:
        address = self.address(prefetch.buffer, prefetch.indices)
        stored = storage_type(self.buffers[prefetch.buffer].dtype)
        pointer, lines = address.pointer, 1
        if address.index is not None:
            pointer = self.function.offset(pointer, stored, extract(self.function, address.index, 0).text)
        elif address.is_contiguous:
            size = self.lanes * self.buffers[prefetch.buffer].dtype.bytes
            lines = -(-size // self.target.cache_line)
        locality = max(0, 4 - prefetch.level)
        for line in range(lines):
            place = self.function.offset(pointer, "i8", line * self.target.cache_line)
            arguments = [("ptr", place), ("i32", str(int(prefetch.write))), ("i32", str(locality)), ("i32", "1")]
            self.function.call("void", "llvm.prefetch.p0", arguments)

    def check(self, check: Check) -> None:
        """Record the first failure of the call; the kernel goes on."""
        holds = self.value(check.condition)
        if self.lane is not None:
            all_hold = self.arithmetic.reduce_lanes("and", holds)
            failed = self.function.op(f"xor i1 {all_hold.text}, true")
            self.branch(failed, (), lambda: self.lane_by_lane(check))
            return
        failed = self.function.op(f"xor i1 {holds.text}, true")
        self.branch(failed, (), lambda: self._record(check))

    def _record(self, check: Check) -> None:
        function = self.function
        pair = function.emit(f"cmpxchg ptr %record, i64 0, i64 {check.number} monotonic monotonic")
        first = function.emit(f"extractvalue {{ i64, i1 }} {pair}, 1")

        def store() -> None:
            values = check.values[:RECORDED_VALUES]
            numbers = [str(len(values)), *(self.value(v).text for v in values)]
            for position, number in enumerate(numbers, 1):
                place = function.offset("%record", "i64", position)
                function.do(f"store i64 {number}, ptr {place}, align 8")

        self.branch(first, (), store)


def first_span(kernel: Kernel) -> Span | None:
    """Where a kernel comes from: it itself, or the first statement that says."""
    spans = (s.span for s in statements(kernel.body) if isinstance(s, (Put, Check)))
    return kernel.span or next((s for s in spans if s is not None), None)


def _bytes(buffer: Buffer) -> Size:
    return product(buffer.shape) * buffer.dtype.bytes


def _called(body: tuple[Statement, ...]) -> set[str]:
    """Buffers that routines write."""
    return {name for s in statements(body) if isinstance(s, Call) for name, _ in s.writes}
