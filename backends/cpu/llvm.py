"""Writing LLVM IR as text: modules, functions, blocks, loops.

A `Function` shares and places pure instructions while it writes them, so that the text needs no clean-up passes: an
instruction that was written before gives its old name, and one whose operands do not change in a loop is put before
the loop. Opaque pointers; the syntax of LLVM 22.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from intarsia.backends.cpu.debug import LineTables
from intarsia.ir.errors import Span

Operand: TypeAlias = "int | str"
"""An i64: a number, or the name of a value."""

_NAME = re.compile(r"%[\w.]+")


@dataclass
class Block:
    """A basic block. The terminator is kept apart, so that invariant instructions can still be added before it."""

    label: str
    lines: list[str] = field(default_factory=list)
    terminator: str = "unreachable"

    def text(self) -> str:
        return "\n".join([f"{self.label}:", *(f"  {line}" for line in (*self.lines, self.terminator))])


@dataclass
class _Scope:
    """A stretch of code in which names are visible: the function, the body of a loop, an arm of a branch."""

    block: Block
    is_loop: bool
    shared: dict[str, str] = field(default_factory=dict)


@dataclass
class Loop:
    """A loop that is being written: `index` and `values` hold inside; set `following` there; `results` holds after."""

    index: str
    values: list[str]
    following: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


@dataclass
class WhileLoop(Loop):
    """A loop with its tests at the start: `values` are carried, and hold after it as well."""

    function: Function = field(kw_only=True)
    end_label: str = field(kw_only=True)

    def leave_unless(self, condition: str) -> None:
        stay = self.function.new_label("stay")
        self.function.terminate(f"br i1 {condition}, label %{stay}, label %{self.end_label}")
        self.function.start_block(stay)


class Module:
    """Functions, declarations and constants of one object file.

    `openmp`: the number of threads is asked of the OpenMP runtime, not read from a variable. `has_plain_loops`: some
    function has loops that are left to LLVM's passes.
    """

    def __init__(self, triple: str, attributes: Sequence[str] = (), *, openmp: bool = False) -> None:
        self.triple = triple
        self.openmp = openmp
        self.has_plain_loops = False
        self.line_tables: LineTables | None = None
        self.attributes = ("nounwind", *attributes)
        self.functions: dict[str, str] = {}
        self._declarations: dict[str, str] = {}
        self._globals: dict[str, str] = {}

    def declare(self, name: str, text: str) -> None:
        """Declare a function or an external variable, once."""
        self._declarations.setdefault(name, text)

    def constant(self, hint: str, definition: str) -> str:
        """A private constant; equal ones are one. `definition` is type and value."""
        if definition not in self._globals:
            self._globals[definition] = f"@{hint}.{len(self._globals)}"
        return self._globals[definition]

    def add(self, name: str, text: str) -> None:
        """Add a finished function."""
        assert name not in self.functions, f"{name} is defined twice"
        self.functions[name] = text

    def text(self) -> str:
        declared = [t for n, t in sorted(self._declarations.items()) if n not in self.functions]
        constants = [f"{n} = private unnamed_addr constant {d}, align 64" for d, n in self._globals.items()]
        return "\n".join(
            [
                f'target triple = "{self.triple}"',
                *constants,
                *declared,
                *self.functions.values(),
                f"attributes #0 = {{ {' '.join(self.attributes)} }}",
                "!0 = !{i32 1}",
                "!1 = distinct !{!1, !2, !3}",
                '!2 = !{!"llvm.loop.unroll.disable"}',
                '!3 = !{!"llvm.loop.vectorize.enable", i1 false}',
                *(self.line_tables.lines() if self.line_tables else ()),
                "",
            ]
        )


class Function:
    """A function that is being written. Parameters are (type and attributes, name) pairs."""

    def __init__(
        self, module: Module, name: str, parameters: Sequence[tuple[str, str]], result: str = "void", linkage: str = ""
    ) -> None:
        self.module = module
        self.name = name
        self._head = f"define {linkage + ' ' if linkage else ''}{result} @{name}"
        entry = Block("entry")
        self._blocks = [entry]
        self._scopes = [_Scope(entry, is_loop=False)]
        self._depths: dict[str, int] = {}
        self.set_parameters(parameters)
        self._count = 0
        self._allocas: list[str] = []
        self.plain_loops = False
        """Are loops left to LLVM's passes, to be unrolled and vectorised as they see fit?"""
        self._span: Span | None = None
        self._subprogram = ""
        self._location = ""

    def set_parameters(self, parameters: Sequence[tuple[str, str]]) -> None:
        """Give a function its parameters where they were not known when it was begun."""
        self._parameters = tuple(parameters)
        self._depths.update((f"%{n}", 0) for _, n in parameters)

    # ------------------------------------------------------------------ the user's lines

    def begin_at(self, span: Span | None) -> None:
        """Say where the function comes from, if the module keeps lines."""
        tables = self.module.line_tables
        if tables is not None and span is not None:
            self._span, self._subprogram = span, tables.subprogram(self.name, span)
            self._location = f", !dbg {tables.location(span, self._subprogram, span.source)}"

    @contextmanager
    def at(self, span: Span | None) -> Iterator[None]:
        """Instructions written inside come from `span`."""
        before, tables = self._location, self.module.line_tables
        if tables is not None and span is not None and self._span is not None:
            self._location = f", !dbg {tables.location(span, self._subprogram, self._span.source)}"
        yield
        self._location = before

    # ------------------------------------------------------------------ names and instructions

    @property
    def depth(self) -> int:
        """How many scopes are open around the current instruction, the function itself not counted."""
        return len(self._scopes) - 1

    @property
    def label(self) -> str:
        """The label of the block that is being written, for phis."""
        return self._scopes[-1].block.label

    def depth_of(self, operand: Operand) -> int:
        """The scope in which a value was made; 0 for numbers, constants and parameters."""
        return self._depths.get(operand, 0) if isinstance(operand, str) else 0

    def new_name(self, depth: int | None = None) -> str:
        self._count += 1
        name = f"%v{self._count}"
        self._depths[name] = self.depth if depth is None else depth
        return name

    def new_label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def op(self, text: str) -> str:
        """A pure instruction that cannot trap: shared with an equal earlier one, placed outside loops it does not
        depend on."""
        for scope in reversed(self._scopes):
            if text in scope.shared:
                return scope.shared[text]
        needed = max((self._depths[n] for n in _NAME.findall(text)), default=0)
        target = next((d - 1 for d in range(needed + 1, len(self._scopes)) if self._scopes[d].is_loop), self.depth)
        name = self.new_name(target)
        scope = self._scopes[target]
        scope.block.lines.append(f"{name} = {text}{self._location}")
        scope.shared[text] = name
        return name

    def emit(self, text: str) -> str:
        """An instruction with a result, at this place."""
        name = self.new_name()
        self._scopes[-1].block.lines.append(f"{name} = {text}{self._location}")
        return name

    def do(self, text: str) -> None:
        """An instruction without a result, at this place."""
        self._scopes[-1].block.lines.append(f"{text}{self._location}")

    def call(self, result: str, callee: str, arguments: Sequence[tuple[str, str]], *, pure: bool = True) -> str:
        """Call a declared function or intrinsic; `pure` as for `op`. Returns the result's name ("" for void)."""
        self.module.declare(callee, f"declare {result} @{callee}({', '.join(t for t, _ in arguments)})")
        text = f"call {result} @{callee}({', '.join(f'{t} {v}' for t, v in arguments)})"
        if result == "void":
            self.do(text)
            return ""
        return self.op(text) if pure else self.emit(text)

    def alloca(self, text: str) -> str:
        """Stack memory, made once on entry."""
        name = self.new_name(0)
        self._allocas.append(f"{name} = alloca {text}")
        return name

    def phi(self, type_: str, incoming: Sequence[tuple[str, str]]) -> str:
        """A phi at the head of the current block, from (value, label) pairs."""
        if all(v == incoming[0][0] for v, _ in incoming):
            return incoming[0][0]
        name = self.new_name()
        self.add_phi(name, type_, incoming)
        return name

    def add_phi(self, name: str, type_: str, incoming: Sequence[tuple[str, str]]) -> None:
        """A phi under a name that is in use already, for a loop of one block."""
        pairs = ", ".join(f"[ {v}, %{b} ]" for v, b in incoming)
        self._scopes[-1].block.lines.insert(0, f"{name} = phi {type_} {pairs}")

    # ------------------------------------------------------------------ control flow

    def start_block(self, label: str) -> None:
        """Continue in a new block of the same scope. The last block's terminator must have been set."""
        block = Block(label)
        self._blocks.append(block)
        self._scopes[-1].block = block

    def terminate(self, text: str) -> None:
        self._scopes[-1].block.terminator = f"{text}{self._location}"

    @contextmanager
    def _scope(self, label: str, *, is_loop: bool) -> Iterator[Block]:
        """A new scope that begins with a new block."""
        block = Block(label)
        self._blocks.append(block)
        self._scopes.append(_Scope(block, is_loop))
        yield block
        self._scopes.pop()

    @contextmanager
    def loop(
        self, lower: Operand, upper: Operand, step: int = 1, carried: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Loop]:
        """`for index in lower..upper step step` with loop-carried values, given as (type, initial value) pairs."""
        guarded = not (isinstance(lower, int) and isinstance(upper, int) and lower < upper)
        before, body_label, end_label = self.label, self.new_label("loop"), self.new_label("end")
        if guarded:
            enter = self.op(f"icmp slt i64 {lower}, {upper}")
            self.terminate(f"br i1 {enter}, label %{body_label}, label %{end_label}")
        else:
            self.terminate(f"br label %{body_label}")
        with self._scope(body_label, is_loop=True) as body:
            loop = Loop(self.new_name(), [self.new_name() for _ in carried])
            yield loop
            assert len(loop.following) == len(carried)
            # An exact bound may be passed by the last step, hence slt and not ne; i64 counters do not wrap.
            following = self.emit(f"add nsw i64 {loop.index}, {step}")
            again = self.emit(f"icmp slt i64 {following}, {upper}")
            latch = self.label
            hint = "" if self.plain_loops else ", !llvm.loop !1"
            self.module.has_plain_loops |= self.plain_loops
            self.terminate(f"br i1 {again}, label %{body_label}, label %{end_label}{hint}")
            heads = [("i64", str(lower), loop.index, following)]
            heads += [(t, i, v, n) for (t, i), v, n in zip(carried, loop.values, loop.following)]
            body.lines[:0] = [f"{v} = phi {t} [ {i}, %{before} ], [ {n}, %{latch} ]" for t, i, v, n in heads]
        self.start_block(end_label)
        for (type_, initial), value in zip(carried, loop.following):
            if guarded:
                loop.results.append(self.phi(type_, [(initial, before), (value, latch)]))
            else:
                loop.results.append(value)
                if value in self._depths:
                    self._depths[value] = min(self._depths[value], self.depth)

    @contextmanager
    def while_loop(self, carried: Sequence[tuple[str, str]]) -> Iterator[WhileLoop]:
        """A loop that runs until `leave_unless` is told so; its `values` are valid after it too."""
        before, head_label, end_label = self.label, self.new_label("while"), self.new_label("end")
        self.terminate(f"br label %{head_label}")
        with self._scope(head_label, is_loop=True) as head:
            loop = WhileLoop("", [self.new_name() for _ in carried], function=self, end_label=end_label)
            yield loop
            latch = self.label
            self.terminate(f"br label %{head_label}")
            pairs = zip(carried, loop.values, loop.following)
            head.lines[:0] = [f"{v} = phi {t} [ {i}, %{before} ], [ {n}, %{latch} ]" for (t, i), v, n in pairs]
        self._depths.update((v, self.depth) for v in loop.values)
        self.start_block(end_label)

    def return_if(self, condition: str, value: str) -> None:
        """Return from the function where the condition holds; otherwise go on."""
        leave, stay = self.new_label("return"), self.new_label("stay")
        self.terminate(f"br i1 {condition}, label %{leave}, label %{stay}")
        self._blocks.append(Block(leave, terminator=f"ret {value}"))
        self.start_block(stay)

    def fork(
        self, condition: str, then: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> tuple[str, str]:
        """Branch and join; returns the labels from which the two sides reach the join, for phis."""
        before, then_label, end_label = self.label, self.new_label("then"), self.new_label("join")
        else_label = self.new_label("else") if otherwise else end_label
        self.terminate(f"br i1 {condition}, label %{then_label}, label %{else_label}")
        with self._scope(then_label, is_loop=False):
            then()
            then_end = self.label
            self.terminate(f"br label %{end_label}")
        else_end = before
        if otherwise:
            with self._scope(else_label, is_loop=False):
                otherwise()
                else_end = self.label
                self.terminate(f"br label %{end_label}")
        self.start_block(end_label)
        return then_end, else_end

    def finish(self, value: str = "void") -> None:
        """Return from the function and add it to the module."""
        self.terminate(f"ret {value}")
        self._blocks[0].lines[:0] = self._allocas
        parameters = ", ".join(f"{t} %{n}" for t, n in self._parameters)
        blocks = "\n".join(b.text() for b in self._blocks)
        debug = f" !dbg {self._subprogram}" if self._subprogram else ""
        self.module.add(self.name, f"{self._head}({parameters}) #0{debug} {{\n{blocks}\n}}")

    # ------------------------------------------------------------------ i64 arithmetic on operands

    def add(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if b == 0 or a == 0:
            return a if b == 0 else b
        return self.op(f"add i64 {a}, {b}") if isinstance(a, str) else self.op(f"add i64 {b}, {a}")

    def subtract(self, a: Operand, b: Operand) -> Operand:
        if isinstance(b, int):
            return self.add(a, -b)
        return self.op(f"sub i64 {a}, {b}")

    def multiply(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(a, int):
            a, b = b, a
        if b == 1 or b == 0:
            return a if b == 1 else 0
        return self.op(f"mul i64 {a}, {b}")

    def minimum(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.call("i64", "llvm.smin.i64", [("i64", str(a)), ("i64", str(b))])

    def maximum(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.call("i64", "llvm.smax.i64", [("i64", str(a)), ("i64", str(b))])

    def compare(self, predicate: str, a: Operand, b: Operand) -> str:
        """An i1; `predicate` is slt, sgt, eq, …"""
        return self.op(f"icmp {predicate} i64 {a}, {b}")

    def offset(self, pointer: str, element: str, index: Operand) -> str:
        """The address `index` elements after `pointer`."""
        return pointer if index == 0 else self.op(f"getelementptr {element}, ptr {pointer}, i64 {index}")
