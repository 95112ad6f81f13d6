"""Compiled code with what is needed to call it, as bytes for the cache and as something to run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from intarsia.ir.dtypes import Array, DType, dtype
from intarsia.ir.errors import CompileError
from intarsia.ir.plan import Plan
from intarsia.ir.sizes import Size
from intarsia.runtime import buffers
from intarsia.runtime.native import NativeFunction
from intarsia.signature import size_of

if TYPE_CHECKING:
    from intarsia.backends.cpu.compile import Compiled


@dataclass(frozen=True)
class TensorLayout:
    """An argument or result of compiled code; `shape` and `length` are over the sizes that stayed open."""

    label: str
    dtype: DType
    shape: tuple[Size, ...]
    length: Size | None = None

    def concrete_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(s.constant if s.constant is not None else s.evaluate(sizes) for s in self.shape)

    def to_json(self) -> list[Any]:
        return [
            self.label,
            self.dtype.name,
            [str(s) for s in self.shape],
            None if self.length is None else str(self.length),
        ]

    @staticmethod
    def from_json(data: Sequence[Any]) -> TensorLayout:
        label, name, shape, length = data
        element = dtype(name)
        assert element is not None
        return TensorLayout(label, element, tuple(map(size_of, shape)), None if length is None else size_of(length))


@dataclass(frozen=True)
class CheckText:
    """A run-time check: the diagnostic it becomes. `message` may have a `{}` for each recorded value."""

    code: str
    message: str
    place: str = ""


@dataclass(frozen=True, eq=False)
class Executable:
    """Machine code of one program for one set of types.

    inputs and outputs are in the order of the entry function; `sizes` are the names passed at run time.
    """

    entry: str
    object_code: bytes
    inputs: tuple[TensorLayout, ...]
    outputs: tuple[TensorLayout, ...]
    sizes: tuple[str, ...]
    workspace: Size
    checks: tuple[CheckText, ...] = ()

    @staticmethod
    def of(plan: Plan, code: Compiled, checks: Sequence[CheckText] = ()) -> Executable:
        """From a plan and its code; the layouts are those of its input and output slots."""

        def layouts(place: str) -> tuple[TensorLayout, ...]:
            slots = sorted((s for s in plan.slots if s.place == place), key=lambda s: s.index)
            return tuple(TensorLayout(s.name, s.dtype, s.shape, s.length) for s in slots)

        return Executable(
            code.entry,
            code.object_code,
            layouts("input"),
            layouts("output"),
            plan.sizes,
            plan.workspace_bytes,
            tuple(checks),
        )

    def to_bytes(self) -> bytes:
        """The form in the cache: length of a JSON head, the head, the object code."""
        head = json.dumps(
            {
                "entry": self.entry,
                "inputs": [t.to_json() for t in self.inputs],
                "outputs": [t.to_json() for t in self.outputs],
                "sizes": self.sizes,
                "workspace": str(self.workspace),
                "checks": [[c.code, c.message, c.place] for c in self.checks],
            }
        ).encode()
        return struct.pack("<I", len(head)) + head + self.object_code

    @staticmethod
    def from_bytes(data: bytes) -> Executable:
        (length,) = struct.unpack_from("<I", data)
        head = json.loads(data[4 : 4 + length])
        return Executable(
            head["entry"],
            data[4 + length :],
            tuple(TensorLayout.from_json(t) for t in head["inputs"]),
            tuple(TensorLayout.from_json(t) for t in head["outputs"]),
            tuple(head["sizes"]),
            size_of(head["workspace"]),
            tuple(CheckText(*c) for c in head["checks"]),
        )

    @cached_property
    def _function(self) -> NativeFunction:
        from intarsia.backends.cpu.compile import load
        from intarsia.runtime.native import native_symbols

        loaded = load(self.object_code, self.entry, native_symbols())
        return NativeFunction(loaded.address, len(self.inputs), len(self.outputs), len(self.sizes), owner=loaded)

    @cached_property
    def _static_outputs(self) -> tuple[tuple[tuple[int, ...], Any], ...] | None:
        """Shape and NumPy dtype of each result, where no size is open."""
        if self.sizes:
            return None
        return tuple((t.concrete_shape({}), t.dtype.numpy) for t in self.outputs)

    def allocate(self, sizes: Mapping[str, int]) -> list[Array]:
        """Fresh results, uninitialised, from the pool."""
        if self._static_outputs is not None:
            return [buffers.empty(shape, d) for shape, d in self._static_outputs]
        return [buffers.empty(t.concrete_shape(sizes), t.dtype.numpy) for t in self.outputs]

    def workspace_bytes(self, sizes: Mapping[str, int]) -> int:
        constant = self.workspace.constant
        return constant if constant is not None else self.workspace.evaluate(sizes)

    def run(self, inputs: Sequence[Array | Sequence[Array]], sizes: Mapping[str, int]) -> list[Array]:
        """Run on arrays that match `inputs` in dtype and shape, C order; gives new arrays.

        Raises CompileError where a run-time check fails, KeyboardInterrupt on Ctrl-C.
        """
        outputs = self.allocate(sizes)
        values = [sizes[name] for name in self.sizes]
        failure = self._function.run(inputs, outputs, values, self.workspace_bytes(sizes))
        if failure is not None:
            check = self.checks[failure.number - 1]
            hint = f"at {check.place}" if check.place else ""
            raise CompileError(check.code, check.message.format(*failure.values), hint=hint)
        return outputs
