"""Compiled code with what is needed to call it, as bytes for the cache and as something to run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from intarsia.ir.dtypes import Array, DType, dtype
from intarsia.ir.errors import CompileError, Source, Span
from intarsia.ir.sizes import Size
from intarsia.runtime import buffers
from intarsia.runtime.dispatch import NativeCall, TensorGuard
from intarsia.runtime.native import ErrorRecord, NativeFunction, address_of, native_symbols, pointer_table
from intarsia.runtime.threads import PARALLEL
from intarsia.signature import size_of


@dataclass(frozen=True)
class TensorLayout:
    """An argument or result of compiled code; `shape` and `length` are over the sizes that stayed open. A result that
    `takes` an input, by its number, is the memory of it."""

    label: str
    dtype: DType
    shape: tuple[Size, ...]
    length: Size | None = None
    takes: int = -1

    def concrete_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(s.constant if s.constant is not None else s.evaluate(sizes) for s in self.shape)

    def to_json(self) -> list[Any]:
        length = None if self.length is None else str(self.length)
        return [self.label, self.dtype.name, [str(s) for s in self.shape], length, self.takes]

    @staticmethod
    def from_json(data: Sequence[Any]) -> TensorLayout:
        label, name, shape, length, takes = data
        element = dtype(name)
        assert element is not None
        extents = tuple(map(size_of, shape))
        return TensorLayout(label, element, extents, None if length is None else size_of(length), takes)


@dataclass(frozen=True)
class CheckText:
    """A run-time check: the diagnostic that a failure becomes.

    `message` has a `{}` for each recorded value. The user's place is kept as the line's text, so that it can be shown
    without reading the program again.
    """

    code: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    length: int = 0
    text: str = ""

    @staticmethod
    def of(code: str, message: str, span: Span | None) -> CheckText:
        if span is None:
            return CheckText(code, message)
        text = span.source.line(span.line)
        return CheckText(code, message, span.source.name, span.line, span.column, span.end - span.start, text)

    @property
    def summary(self) -> str:
        """One line with a `{}` for each recorded value."""
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else ""
        return f"{self.code}: {place.replace('{', '{{').replace('}', '}}')}{self.message}"

    def error(self, values: Sequence[int]) -> CompileError:
        """The error for the values that a failed check recorded."""
        span = None
        if self.line:
            start = self.line - 1 + self.column - 1
            source = Source(self.file, "\n" * (self.line - 1) + self.text)
            span = Span(source, start, min(start + self.length, len(source.text)))
        return CompileError(self.code, self.message.format(*values), span)


@dataclass(frozen=True, eq=False)
class Executable:
    """Machine code of one program for one set of types.

    inputs and outputs are in the order of the entry function; `sizes` are the names passed at run time. labels: those
    of the graph's results, where some are tensors of structs. checks: what
    the run-time checks of the code mean, by their numbers. interruptible: it may take long, and there are several
    kernels, or a loop over kernels, so that the code can stop between two of them. brief: it takes some microseconds.
    preparation: what computes the inputs that the entry function takes after `inputs` from some of these, once.
    """

    entry: str
    pieces: tuple[bytes, ...]
    inputs: tuple[TensorLayout, ...]
    outputs: tuple[TensorLayout, ...]
    sizes: tuple[str, ...]
    workspace: Size
    checks: Mapping[int, CheckText] = field(default_factory=dict)
    interruptible: bool = True
    brief: bool = False
    preparation: Executable | None = None
    labels: tuple[str, ...] = ()
    _prepared: dict[tuple[int, ...], PreparedCall] = field(default_factory=dict, repr=False)

    def to_bytes(self) -> bytes:
        """The form in the cache: length of a JSON head, the head, the pieces of object code; then
        the preparation in the same form."""
        head = json.dumps(
            {
                "entry": self.entry,
                "inputs": [t.to_json() for t in self.inputs],
                "outputs": [t.to_json() for t in self.outputs],
                "sizes": self.sizes,
                "workspace": str(self.workspace),
                "checks": {number: list(vars(c).values()) for number, c in self.checks.items()},
                "interruptible": self.interruptible,
                "brief": self.brief,
                "labels": self.labels,
                "pieces": [len(piece) for piece in self.pieces],
            }
        ).encode()
        preparation = b"" if self.preparation is None else self.preparation.to_bytes()
        return struct.pack("<I", len(head)) + head + b"".join(self.pieces) + preparation

    @staticmethod
    def from_bytes(data: bytes) -> Executable:
        (length,) = struct.unpack_from("<I", data)
        head = json.loads(data[4 : 4 + length])
        ends = list(accumulate(head["pieces"], initial=4 + length))
        return Executable(
            head["entry"],
            tuple(data[start:end] for start, end in pairwise(ends)),
            tuple(TensorLayout.from_json(t) for t in head["inputs"]),
            tuple(TensorLayout.from_json(t) for t in head["outputs"]),
            tuple(head["sizes"]),
            size_of(head["workspace"]),
            {int(number): CheckText(*c) for number, c in head["checks"].items()},
            head["interruptible"],
            head["brief"],
            Executable.from_bytes(data[ends[-1] :]) if len(data) > ends[-1] else None,
            tuple(head["labels"]),
        )

    @cached_property
    def native(self) -> NativeFunction:
        """The entry function in this process."""
        from intarsia.backends.cpu.machine import load

        parallel = any(PARALLEL.encode() in piece for piece in self.pieces)  # the symbol's name, if it is referred to
        loaded = load(self.pieces, self.entry, native_symbols(parallel=parallel))
        prepared = 0 if self.preparation is None else len(self.preparation.outputs)
        inputs = len(self.inputs) + prepared
        return NativeFunction(loaded.address, inputs, len(self.outputs), len(self.sizes), owner=loaded)

    def prepared(self, inputs: Sequence[Array | Sequence[Array]], sizes: Mapping[str, int]) -> list[Array]:
        """What is computed from the constants among the inputs, for any number of calls with them."""
        if (once := self.preparation) is None:
            return []
        given = {layout.label: value for layout, value in zip(self.inputs, inputs)}
        return once.run([given[layout.label] for layout in once.inputs], sizes)

    def prepare(self, sizes: Mapping[str, int]) -> PreparedCall:
        """Everything about calls with these sizes that can be known before."""
        values = tuple(sizes[name] for name in self.sizes)
        if (found := self._prepared.get(values)) is None:
            if len(self._prepared) >= 1024:  # a stream of ever new sizes
                self._prepared.clear()
            found = self._prepared.setdefault(values, PreparedCall(self, dict(zip(self.sizes, values))))
        return found

    def run(
        self,
        inputs: Sequence[Array | Sequence[Array]],
        sizes: Mapping[str, int],
        prepared: Sequence[Array] | None = None,
    ) -> list[Array]:
        """Run on arrays that match `inputs` in dtype and shape, C order; gives new arrays, but for results that take
        inputs, which are these. What the method `prepared` gave for the constants among them is given if it was kept.

        Raises CompileError where a run-time check fails, KeyboardInterrupt on Ctrl-C.
        """
        if prepared is None:
            prepared = self.prepared(inputs, sizes)
        tables = [i if isinstance(i, np.ndarray) else pointer_table(i) for i in (*inputs, *prepared)]
        taken = {n: tables[t.takes] for n, t in enumerate(self.outputs) if t.takes >= 0}
        return self.prepare(sizes)([address_of(t) for t in tables], taken)


class PreparedCall:
    """An executable for concrete sizes: what a call takes beside the addresses of its inputs is made once."""

    def __init__(self, executable: Executable, sizes: Mapping[str, int]) -> None:
        self._executable = executable
        self._native = executable.native
        self._sizes = tuple(sizes.values())
        self._workspace = int(executable.workspace.evaluate(sizes))
        self._outputs = [(t.concrete_shape(sizes), t.dtype.numpy) for t in executable.outputs]

    @property
    def workspace(self) -> int:
        """Bytes that a run needs beside inputs and results."""
        return self._workspace

    def __call__(self, inputs: Sequence[int], taken: Mapping[int, Array] | None = None) -> list[Array]:
        """Run on the addresses of the inputs, which the caller keeps alive; gives new arrays, and those `taken` for
        results of some numbers.

        Raises CompileError where a run-time check fails, KeyboardInterrupt on Ctrl-C.
        """
        taken = taken or {}
        outputs = [taken[n] if n in taken else buffers.empty(*own) for n, own in enumerate(self._outputs)]
        workspace = buffers.lease(self._workspace) if self._workspace else None
        self.into(inputs, [address_of(o) for o in outputs], address_of(workspace) if workspace is not None else 0)
        return outputs

    def into(self, inputs: Sequence[int], outputs: Sequence[int], workspace: int) -> None:
        """The same with the addresses of all memory given, that of results and of the workspace aligned to 64 bytes."""
        checks = self._executable.checks
        record = ErrorRecord() if checks else None
        status = self._native.call(
            inputs,
            outputs,
            self._sizes,
            workspace,
            record.address if record is not None else 0,
            interruptible=self._executable.interruptible,
        )
        if status:
            assert record is not None
            raise checks[status].error(record.values[: record.count])

    def dispatched(
        self, inputs: Sequence[int], arguments: Sequence[TensorGuard], owners: Sequence[object]
    ) -> NativeCall | None:
        """The same call for a dispatcher, with the arguments that are filled in; None if it should be interruptible, or
        gives structs.

        `owners` keep the other inputs alive.
        """
        if self._executable.interruptible or self._executable.labels:
            return None
        results = [TensorGuard(dtype, shape) for shape, dtype in self._outputs]
        return NativeCall(
            self._native.address,
            tuple(inputs),
            self._sizes,
            self._workspace,
            tuple(arguments),
            tuple(results),
            self._executable.brief,
            (self._native, *owners),
        )
