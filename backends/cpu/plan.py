"""From a plan to one native entry function, as `ir/plan.py` documents it.

The entry function calls `@kernel.NAME` for each invocation, keeps the states of loops as pointers that change places,
and reads the interrupt flag before each kernel. Besides libc it refers to `GOMP_parallel` and `intarsia_thread_count`,
and only if a kernel has a parallel loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from intarsia.backends.cpu.analysis import statements
from intarsia.backends.cpu.debug import LineTables
from intarsia.backends.cpu.emit import emit_kernel, first_span, function_name, safe
from intarsia.backends.cpu.expressions import Expressions
from intarsia.backends.cpu.llvm import Function, Module
from intarsia.backends.cpu.registers import Registers
from intarsia.ir.kernel import Buffer, Check, Kernel
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat, Slot, State
from intarsia.ir.sizes import Size, product
from intarsia.ir.target import Target

_PARAMETERS = tuple(("ptr", n) for n in ("inputs", "outputs", "sizes", "workspace", "record", "interrupt"))
_EXCHANGE = ("ptr", "exchange")


def entry_name(plan: Plan) -> str:
    """The symbol of the entry function."""
    return safe(plan.name)


def emit_plan(plan: Plan, target: Target, *, debug_info: bool = False) -> Module:
    """The LLVM IR of a plan: its kernels, each once, and the entry function; with the user's lines if asked for."""
    module = new_module(target)
    module.line_tables = LineTables() if debug_info else None
    add_kernels(module, plan, target)
    for part in plan.whole:
        add_entry(module, part, target, entry_name(part))
    return module


def new_module(target: Target, *, openmp: bool = False) -> Module:
    """An empty module. `openmp`: the number of threads comes from the OpenMP runtime, not from this package's."""
    return Module(target.triple, _attributes(target), openmp=openmp)


def add_kernels(module: Module, plan: Plan, target: Target) -> None:
    """Add the kernels of a plan, and of the one that prepares its constants, to a module, each once."""
    aliasing = {name for part in plan.whole for name in kernels_in_place(part)}
    for kernel in {k.name: k for part in plan.whole for k in part.kernels}.values():
        emit_kernel(module, kernel, target, aliasing=kernel.name in aliasing)


def add_entry(module: Module, plan: Plan, target: Target, entry: str, linkage: str = "") -> None:
    """Add the entry function of a plan, whose kernels the module has or declares."""
    parameters = (*_PARAMETERS, _EXCHANGE) if plan.exchanges else _PARAMETERS
    _Entry(Function(module, entry, parameters, "i32", linkage), plan, target).whole()


def kernel_plan(kernel: Kernel) -> Plan:
    """The plan that runs one kernel on its parameters; in-place ones are results, and have to be filled before."""
    places: dict[str, Literal["input", "output", "workspace"]] = {"in": "input", "temp": "workspace"}
    slots: list[Slot] = []
    workspace = Size.of(0)
    for buffer in kernel.parameters:
        place = places.get(buffer.role, "output")
        index = sum(s.place == place for s in slots)
        slots.append(Slot(buffer.name, buffer.dtype, buffer.shape, place, index, workspace, buffer.length))
        if place == "workspace":
            workspace = workspace + (product(buffer.shape) * buffer.dtype.bytes + 63) // 64 * 64
    call = Invoke(kernel.name, tuple(Reference(b.name) for b in kernel.parameters), tuple(map(Size.of, kernel.sizes)))
    return Plan(kernel.name, tuple(slots), (call,), (kernel,), kernel.sizes, workspace)


def _attributes(target: Target) -> list[str]:
    """Of every function: without them code generation would keep to the machine's preferred, shorter vectors."""
    width = target.vector_bits
    return [f'"prefer-vector-width"="{width}"', f'"min-legal-vector-width"="{width}"', '"no-trapping-math"="true"']


# ---------------------------------------------------------------------- which kernels work in place


def kernels_in_place(plan: Plan) -> set[str]:
    """Kernels that are somewhere given one piece of memory twice, of which they write one."""
    kernels = {k.name: k for k in plan.kernels}
    found: set[str] = set()

    def walk(body: Sequence[PlanStatement], same: dict[str, str]) -> None:
        for statement in body:
            match statement:
                case Invoke(name, arguments):
                    places = [_place(plan, r, same) for r in arguments]
                    for buffer, place in zip(kernels[name].parameters, places):
                        if buffer.role != "in" and places.count(place) > 1:
                            found.add(name)
                case Repeat():
                    inner = dict(same)
                    for state in statement.states:
                        single = len(state.buffers) == 1
                        inner[state.name] = state.buffers[0].name if single else f"{state.name} as it is"
                        inner[f"{state.name}.next"] = state.buffers[0].name if single else f"{state.name} to be"
                    walk((*statement.body, *statement.test), inner)

    walk(plan.body, {})
    return found


def _place(plan: Plan, reference: Reference, same: dict[str, str]) -> tuple[object, ...]:
    """What tells apart pieces of memory: a workspace offset, or a name."""
    name = reference.name
    while name in same:
        name = same[name]
    slot = next((s for s in plan.slots if s.name == name), None)
    if slot is None:
        return (name,)
    return ("workspace", slot.offset) if slot.place == "workspace" else (slot.place, slot.index, reference.element)


# ---------------------------------------------------------------------- the entry function


class _Entry(Expressions):
    """Writes the entry function. Slots and states are its buffers, so that sizes may read scalars from them."""

    def __init__(self, function: Function, plan: Plan, target: Target) -> None:
        self.known_buffers = {s.name: Buffer(s.name, s.dtype, s.shape, length=s.length) for s in plan.slots}
        registers = Registers(function, {}, self.known_buffers)
        super().__init__(function, target, plan.sizes, self.known_buffers, registers, aliasing=True)
        self.plan = plan
        function.begin_at(next((s for s in map(first_span, plan.kernels) if s is not None), None))
        self.checked = {k.name for k in plan.kernels if any(isinstance(s, Check) for s in statements(k.body))}

    def whole(self) -> None:
        for position, name in enumerate(self.plan.sizes):
            self.axes[name] = self._item("%sizes", "i64", position)
        for slot in self.plan.slots:
            self.pointers[slot.name] = self._slot(slot)
        zero = self.function.module.constant("zero", "i32 0")
        given = self.function.op("icmp ne ptr %interrupt, null")
        self.flag = self.function.op(f"select i1 {given}, ptr %interrupt, ptr {zero}")
        self.statements(self.plan.body)
        self.function.finish("i32 0")

    def _item(self, table: str, kind: str, position: int) -> str:
        return self.function.emit(f"load {kind}, ptr {self.function.offset(table, kind, position)}, align 8")

    def _slot(self, slot: Slot) -> str:
        match slot.place:
            case "input":
                return self._item("%inputs", "ptr", slot.index)
            case "output":
                return self._item("%outputs", "ptr", slot.index)
            case "workspace":
                return self.function.offset("%workspace", "i8", self.number(slot.offset))

    def statements(self, body: Sequence[PlanStatement]) -> None:
        for statement in body:
            self.forget_values()
            match statement:
                case Invoke(span=span):
                    with self.function.at(span):
                        self.invoke(statement)
                case Copy(source, target, dtype, elements):
                    size = self.number(elements * dtype.bytes)
                    pointers = [("ptr", self.pointer(r)) for r in (target, source)]
                    self.function.call(
                        "void", "llvm.memcpy.p0.p0.i64", [*pointers, ("i64", str(size)), ("i1", "false")]
                    )
                    self.forget(self.buffers)
                case Exchange():
                    with self.function.at(statement.node.span):
                        self.exchange(statement)
                case Repeat():
                    self.repeat(statement)

    def exchange(self, exchange: Exchange) -> None:
        """Call back, which may take long."""
        self._stop_if_interrupted()
        source = self.pointer(exchange.source) if exchange.source is not None else "null"
        given = f"i64 {exchange.number}, ptr {source}, ptr {self.pointer(exchange.target)}"
        status = self.function.emit(f"call i32 %exchange({given})")
        self.function.return_if(self.function.op(f"icmp ne i32 {status}, 0"), "i32 -2")
        self.forget(self.buffers)

    def pointer(self, reference: Reference) -> str:
        """The address that a reference means; for a whole list that of its table."""
        pointer = self.pointers[reference.name]
        buffer = self.buffers[reference.name]
        if reference.element is not None:
            entry = self.function.offset(pointer, "ptr", self.number(reference.element))
            pointer = self.function.emit(f"load ptr, ptr {entry}, align 8")
        return self.function.offset(pointer, "i8", self.number(reference.start * buffer.dtype.bytes))

    def _stop_if_interrupted(self) -> None:
        interrupted = self.function.emit(f"load volatile i32, ptr {self.flag}, align 4")
        self.function.return_if(self.function.op(f"icmp ne i32 {interrupted}, 0"), "i32 -1")

    def invoke(self, invoke: Invoke) -> None:
        self._stop_if_interrupted()
        arguments = [f"ptr {self.pointer(r)}" for r in invoke.arguments]
        arguments += [f"i64 {self.number(s)}" for s in invoke.sizes]
        # `noalias` of a parameter holds for one call. Inlined into a loop, LLVM takes it to hold from one turn to the
        # next too, where states change places and one turn reads what the one before it has written.
        given = ", ".join([*arguments, "ptr %record"])
        self.function.do(f"call void @{function_name(invoke.kernel)}({given}) noinline")
        if invoke.kernel in self.checked:
            number = self.function.emit("load i64, ptr %record, align 8")
            status = self.function.op(f"trunc i64 {number} to i32")
            self.function.return_if(self.function.op(f"icmp ne i64 {number}, 0"), f"i32 {status}")
        self.forget(self.buffers)

    def repeat(self, repeat: Repeat) -> None:
        """A loop in which the buffers of each state take turns."""
        lower, upper = self.number(repeat.lower), self.number(repeat.upper)
        turns = [[self.pointer(r) for r in state.buffers] for state in repeat.states]
        initial = [self.pointer(state.initial) for state in repeat.states]
        for state in repeat.states:
            source = self.buffers[state.initial.name]
            for name in (state.name, f"{state.name}.next"):
                self.known_buffers[name] = Buffer(name, source.dtype, source.shape)
        carried = [("i64", str(lower)), *(("ptr", p) for p in initial), *(("ptr", p) for t in turns for p in t)]
        with self.function.while_loop(carried) as loop:
            counter, current = loop.values[0], loop.values[1 : 1 + len(initial)]
            rest = loop.values[1 + len(initial) :]
            now = [[rest.pop(0) for _ in turn] for turn in turns]
            self.axes[repeat.counter] = counter
            self._bind(repeat.states, current, now)
            loop.leave_unless(self.function.compare("slt", counter, upper))
            if repeat.condition is not None:
                self.statements(repeat.test)
                stored = self.function.emit(f"load i8, ptr {self.pointer(repeat.condition)}, align 1")
                loop.leave_unless(self.function.op(f"icmp ne i8 {stored}, 0"))
            self.statements(repeat.body)
            following = [str(self.function.add(counter, 1)), *(turn[0] for turn in now)]
            loop.following = [*following, *(p for turn in now for p in (*turn[1:], turn[0]))]
        self._bind(repeat.states, current, now)
        self.forget(self.buffers)

    def _bind(self, states: tuple[State, ...], current: Sequence[str], turns: Sequence[Sequence[str]]) -> None:
        for state, pointer, turn in zip(states, current, turns):
            self.pointers[state.name] = pointer
            self.pointers[f"{state.name}.next"] = turn[0]
        self.forget(self.buffers)
