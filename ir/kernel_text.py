"""The text of a kernel, and its reader: `read_kernel(print_kernel(k)) == k`.

    kernel gemm(a: f32[M, 64], b: f32[64, 64], out c: f32[M, 64])[sizes M] {
      parallel i in 0..M step 16 {
        alloc acc: f32[16, 64] register
        unroll i.0 in 0..16 { … }
        acc[i.0, j] += a[i + i.0, k] * b[k, j] where i + i.0 < M
        c[i, j] = acc[i, j] !nt
        prefetch a[i + 16, 0] L1
        if i + 15 < M { … } else { … }
        check 3: a[i, 0] < 1.0 (index(i))
        call sort(a[i]) -> c[i] length 64
      }
    }

Lines mean nothing; every statement begins with a keyword or with `name[`. Parameters are inputs unless `out`, `inout`
or `temp` stands before them, `const` before an input says that it does not change between calls; temporaries are
`global` unless another memory is named. Errors are E1502 to E1504, as
for `ir/scalar_text.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from intarsia.ir.dtypes import BOOL
from intarsia.ir.errors import Source
from intarsia.ir.kernel import (
    Alloc,
    Buffer,
    Call,
    Check,
    For,
    If,
    Kernel,
    LoopKind,
    Memory,
    Prefetch,
    Put,
    PutOperator,
    Role,
    Statement,
)
from intarsia.ir.scalar import expression_text, mask_text
from intarsia.ir.scalar_text import ScalarReader, Token
from intarsia.ir.sizes import Size

_KINDS: dict[str, LoopKind] = {"for" if kind == "seq" else kind: kind for kind in get_args(LoopKind)}
_MEMORIES: tuple[Memory, ...] = get_args(Memory)
_ROLES: tuple[Role, ...] = ("out", "inout", "temp")
_OPERATORS: dict[tuple[str, ...], PutOperator] = {
    ("=",): "=",
    ("+=",): "+=",
    ("*=",): "*=",
    ("max", "="): "max=",
    ("min", "="): "min=",
    ("and", "="): "and=",
    ("or", "="): "or=",
}
_MARKS = {"nt": "nontemporal", "atomic": "atomic", "numbers": "numbers"}
"""What may stand behind a write after `!`, and the field that says so."""
_LAUNCH = ("warps", "stages", "programs")
"""Fields of a kernel that are numbers, in the order in which they stand behind its parameters."""


# ---------------------------------------------------------------------- printing


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel, without a newline at its end."""
    parameters = ", ".join(f"{_role(b)}{b.name}: {b}{_notes(b)}" for b in kernel.parameters)
    sizes = f"[sizes {', '.join(kernel.sizes)}]" if kernel.sizes else ""
    launch = "".join(f" {word} {count}" for word in _LAUNCH if (count := getattr(kernel, word)))
    head = f"kernel {kernel.name}({parameters}){sizes}{launch} {{"
    return "\n".join((head, *_lines(kernel.body, 1), "}"))


def _role(buffer: Buffer) -> str:
    """What stands before the name of a parameter."""
    if buffer.role == "in":
        return "const " if buffer.constant else ""
    return f"{buffer.role} "


def _notes(buffer: Buffer) -> str:
    """What stands behind the type of a buffer."""
    rounded = f" rounded {buffer.rounded}" if buffer.rounded else ""
    return (" described" if buffer.described else "") + rounded


def print_statement(statement: Statement) -> str:
    """The text of one statement, for messages and tests."""
    return "\n".join(_lines((statement,), 0))


def _lines(body: tuple[Statement, ...], depth: int) -> Iterator[str]:
    margin = "  " * depth
    for statement in body:
        match statement:
            case For(axis, lower, upper, inner, kind, step):
                keyword = "for" if kind == "seq" else kind
                by = f" step {step}" if step != 1 else ""
                yield f"{margin}{keyword} {axis} in {lower}..{upper}{by} {{"
                yield from _lines(inner, depth + 1)
                yield f"{margin}}}"
            case If(condition, then, otherwise):
                yield f"{margin}if {mask_text(condition)} {{"
                yield from _lines(then, depth + 1)
                if otherwise:
                    yield f"{margin}}} else {{"
                    yield from _lines(otherwise, depth + 1)
                yield f"{margin}}}"
            case _:
                yield margin + _leaf(statement)


def _leaf(statement: Statement) -> str:
    match statement:
        case Put(buffer, indices, operator, value, mask):
            where = f" where {mask_text(mask)}" if mask else ""
            marks = "".join(f" !{word}" for word, name in _MARKS.items() if getattr(statement, name))
            return f"{_element(buffer, indices)} {operator} {expression_text(value)}{where}{marks}"
        case Alloc(buffer):
            memory = "" if buffer.memory == "global" else f" {buffer.memory}"
            return f"alloc {buffer.name}: {buffer}{memory}{_notes(buffer)}"
        case Prefetch(buffer, indices, level, write):
            return f"prefetch {_element(buffer, indices)} L{level}{' write' if write else ''}"
        case Check(number, condition, values):
            shown = f" ({', '.join(map(expression_text, values))})" if values else ""
            return f"check {number}: {expression_text(condition)}{shown}"
        case Call(routine, reads, writes, length):
            given, made = (", ".join(_element(b, i) for b, i in rows) for rows in (reads, writes))
            return f"call {routine}({given}) -> {made} length {length}"
    raise AssertionError(f"{statement} is no statement")


def _element(buffer: str, indices: tuple[Size, ...]) -> str:
    return f"{buffer}[{', '.join(map(str, indices))}]"


# ---------------------------------------------------------------------- reading


def read_kernel(source: Source) -> Kernel:
    """The kernel that a text holds. Raises CompileError E1502 to E1504 where the text is no kernel."""
    reader = KernelReader(source)
    kernel = reader.kernel()
    reader.expect_kind("end", "the end of the text")
    return kernel


class KernelReader(ScalarReader):
    """Reads kernels from the tokens of one source. A reader of modules calls `kernel` at the word `kernel`, after
    setting `position`."""

    def kernel(self) -> Kernel:
        start = self.expect("kernel")
        name = self.name("the name of a kernel")
        self.buffers = {}
        self.expect("(")
        parameters: list[Buffer] = []
        while not self.at(")"):
            parameters.append(self._parameter())
            if not self.accept(","):
                break
        self.expect(")")
        sizes: tuple[str, ...] = ()
        if self.accept("["):
            self.expect("sizes")
            sizes = self._names("]")
        launch = {word: self.integer() for word in _LAUNCH if self.accept(word)}
        body = self._block()
        return Kernel(name, tuple(parameters), body, sizes, self.span(start), **launch)

    def _names(self, closing: str) -> tuple[str, ...]:
        found = [self.name()]
        while self.accept(","):
            found.append(self.name())
        self.expect(closing)
        return tuple(found)

    def _parameter(self) -> Buffer:
        if self.at("const") and self.peek().kind == "name":
            self.next()
            return self._buffer("global", "in", constant=True)
        role: Role = "in"
        for word in _ROLES:
            if self.at(word) and self.peek().kind == "name":
                self.next()
                role = word
                break
        return self._buffer("global", role)

    def _buffer(self, memory: Memory, role: Role, *, constant: bool = False) -> Buffer:
        name = self.name("the name of a buffer")
        self.expect(":")
        length: Size | None = None
        if self.accept("list"):
            self.expect("[")
            (length,) = self.sizes("]")
        dtype = self.dtype()
        shape = self.sizes("]") if self.accept("[") else ()
        if role == "temp":
            memory = next((m for m in _MEMORIES if self.accept(m)), memory)
        self.buffers[name] = dtype
        described = self.accept("described")
        rounded = self.dtype() if self.accept("rounded") else None
        return Buffer(name, dtype, shape, memory, role, length, constant, described, rounded)

    def _block(self) -> tuple[Statement, ...]:
        self.expect("{")
        body: list[Statement] = []
        while not self.accept("}"):
            body.append(self._statement())
        return tuple(body)

    def _statement(self) -> Statement:
        token = self.token
        if token.kind != "name":
            raise self.unexpected("a statement")
        if self.peek().text == "[":
            return self._put()
        if token.text in _KINDS:
            return self._loop(_KINDS[self.next().text])
        match token.text:
            case "if":
                return self._if()
            case "alloc":
                self.next()
                return Alloc(self._buffer("global", "temp"))
            case "prefetch":
                return self._prefetch()
            case "check":
                return self._check()
            case "call":
                return self._call_statement()
        raise self.unexpected("a statement")

    def _loop(self, kind: LoopKind) -> For:
        axis = self.name("the name of an axis")
        self.expect("in")
        lower = self.size()
        self.expect("..")
        upper = self.size()
        step = self.integer("a step") if self.accept("step") else 1
        return For(axis, lower, upper, self._block(), kind, step)

    def _if(self) -> If:
        self.expect("if")
        condition = self.mask()
        then = self._block()
        return If(condition, then, self._block() if self.accept("else") else ())

    def _put(self) -> Put:
        start = self.token
        buffer, indices = self._element()
        operator = next((o for words, o in _OPERATORS.items() if self._accept_all(words)), None)
        if operator is None:
            raise self.unexpected("'=' or an accumulating operator such as '+='")
        value = self.expression()
        if value.dtype != self.buffers[buffer]:
            message = f"{buffer} is {self.buffers[buffer]}, the value {value} is {value.dtype}"
            raise self.error("E1504", message, start)
        mask = self.mask() if self.accept("where") else ()
        marks = set()
        while self.accept("!"):
            marks.add(self.name(", ".join(_MARKS)))
        given = {name: word in marks for word, name in _MARKS.items()}
        return Put(buffer, indices, operator, value, mask, **given, span=self.span(start))

    def _accept_all(self, words: tuple[str, ...]) -> bool:
        if any(self.peek(ahead).text != word for ahead, word in enumerate(words)):
            return False
        for word in words:
            self.accept(word)
        return True

    def _element(self) -> tuple[str, tuple[Size, ...]]:
        """`name[i, j]`: a buffer and subscripts of it."""
        token = self.token
        name = self.name("the name of a buffer")
        if name not in self.buffers:
            raise self.error("E1503", f"nothing is named '{name}' here", token)
        self.expect("[")
        return name, self.sizes("]")

    def _elements(self, closing: str) -> tuple[tuple[str, tuple[Size, ...]], ...]:
        found = [self._element()]
        while self.accept(","):
            found.append(self._element())
        self.expect(closing)
        return tuple(found)

    def _prefetch(self) -> Prefetch:
        self.expect("prefetch")
        buffer, indices = self._element()
        level: Token = self.expect_kind("name", "L1, L2 or L3")
        if level.text not in ("L1", "L2", "L3"):
            raise self.error("E1502", f"{level.text} is no cache level: write L1, L2 or L3", level)
        return Prefetch(buffer, indices, int(level.text[1:]), self.accept("write"))

    def _check(self) -> Check:
        start = self.expect("check")
        number = self.integer("the number of a check")
        self.expect(":")
        condition = self.expression()
        if condition.dtype != BOOL:
            raise self.error("E1504", f"the condition {condition} is {condition.dtype}, not bool", start)
        values = []
        if self.accept("("):
            values = [self.expression()]
            while self.accept(","):
                values.append(self.expression())
            self.expect(")")
        return Check(number, condition, tuple(values), self.span(start))

    def _call_statement(self) -> Call:
        self.expect("call")
        routine = self.name("the name of a routine")
        self.expect("(")
        reads = self._elements(")")
        self.expect("->")
        writes = self._elements("length")
        return Call(routine, reads, writes, self.size())
