"""Checkpoints as GPTQ and AWQ tools write them, read into block formats.

A layer of such a file is `qweight`, `qzeros` and `scales`, and in GPTQ perhaps `g_idx`: codes in words of 32 bits, zero
points in the same way, a scale for each group of inputs. GPTQ packs codes along the inputs, element after element from
the low bits on, so 32 codes of 3 bits fill three words; its zero points, packed along the outputs, are stored less one.
AWQ packs both along the outputs, with eight codes of 4 bits in a word in the order 0 2 4 6 1 3 5 7.
What comes out is a tensor (code - zero) * scale of shape [inputs, outputs], which changes no number.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np

from intarsia.files import ArrayFile, open_arrays
from intarsia.ir.conversion import from_codes
from intarsia.ir.dtypes import Array, DType, dtype, of_numpy
from intarsia.ir.errors import CompileError
from intarsia.ir.packing import unpack

Packing = Literal["gptq", "gptq-v2", "awq"]
"""How a checkpoint is packed; `gptq-v2` stores zero points as they are."""

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ each of its eight columns lies."""


@dataclass(frozen=True)
class PackedLayer:
    """A layer that was packed: its format as a declaration says it, its tensors and their types by name, and the inputs
    in the order of the rows, None where that is their own."""

    name: str
    format: str
    tensors: dict[str, Array]
    types: dict[str, DType]
    order: Array | None

    def named(self, ordered: bool) -> tuple[dict[str, Array], dict[str, DType]]:
        """Tensors and types by their full names: `NAME.weight.codes`, …, and if asked for `NAME.order`."""
        front = f"{self.name}." if self.name else ""
        arrays = {f"{front}weight.{part}": array for part, array in self.tensors.items()}
        types = {f"{front}weight.{part}": element for part, element in self.types.items()}
        if ordered:
            inputs = np.arange(len(self.tensors["codes"]), dtype=np.int32)
            arrays[f"{front}order"] = inputs if self.order is None else self.order
        return arrays, types


def read_gptq(path: str | Path, zeros_less_one: bool = True) -> dict[str, Array]:
    """The tensors of a GPTQ checkpoint: layers in a block format, as `LAYER.weight.codes` …, others as they are.

    Where rows were quantized in another order than that of the inputs, `LAYER.order` says which input a row is for.

    zeros_less_one: False for checkpoints of the second version, whose zero points are stored as they are.
    Raises CompileError E0711 for a file that is none, E0701 to E0707 for one that cannot be read.
    """
    return _tensors(open_arrays(path), "gptq" if zeros_less_one else "gptq-v2")


def read_awq(path: str | Path) -> dict[str, Array]:
    """The same of an AWQ checkpoint."""
    return _tensors(open_arrays(path), "awq")


def _tensors(file: ArrayFile, packing: Packing) -> dict[str, Array]:
    layers = [read_layer(file, name, packing) for name in layer_names(file)]
    found = {name: file.read(name) for name in other_names(file)}
    ordered = any(layer.order is not None for layer in layers)
    for layer in layers:
        found |= layer.named(ordered)[0]
    return found


def layer_names(file: ArrayFile) -> list[str]:
    """The layers of a checkpoint, "" for one without a name. Raises CompileError E0711 where there are none."""
    names = [n.removesuffix("qweight").removesuffix(".") for n in file.names if n.split(".")[-1] == "qweight"]
    if not names:
        raise CompileError("E0711", f"{file.path} has no tensor named 'qweight'", hint="is it packed at all?")
    return names


def other_names(file: ArrayFile) -> list[str]:
    """The tensors of a checkpoint that are not parts of packed layers."""
    layers = set(layer_names(file))
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return [n for n in file.names if n.rpartition(".")[2] not in parts or n.rpartition(".")[0] not in layers]


def read_layer(file: ArrayFile, name: str, packing: Packing) -> PackedLayer:
    """One layer of a checkpoint. Raises CompileError E0711 where its tensors do not fit together."""
    return _Layer(file, name, packing).unpacked()


@dataclass(frozen=True)
class _Layer:
    """A layer as it lies in the file."""

    file: ArrayFile
    name: str
    packing: Packing

    def unpacked(self) -> PackedLayer:
        words, zero_words, scales = self._part("qweight"), self._part("qzeros"), self._part("scales")
        element = of_numpy(scales.dtype)
        if element is None or not element.is_float or scales.ndim != 2 or not np.isfinite(scales).all():
            raise self._wrong("scales are no matrix of finite floats", scales)
        groups, outputs = scales.shape
        bits = self._bits(zero_words, groups, outputs)
        stored = dtype(f"u{bits}")
        assert stored is not None
        codes = self._codes(words, bits, outputs)
        zeros = self._along_outputs(zero_words, bits)
        if self.packing == "gptq":  # a zero point is the code of 0, and so less than 2^bits: 0 less one is all ones
            zeros = zeros + np.uint8(1) & np.uint8((1 << bits) - 1)
        order, group = self._order(len(codes), groups)
        if order is not None:
            codes = codes[order]
        size = "none" if groups == 1 else str(group)
        return PackedLayer(
            self.name,
            f"quant({stored}, scale={element}, zero={stored}, group={size}, axis=0)",
            {"codes": from_codes(codes, stored), "scale": scales, "zero": from_codes(zeros, stored)},
            {"codes": stored, "scale": element, "zero": stored},
            order,
        )

    def _bits(self, zero_words: Array, groups: int, outputs: int) -> int:
        """The bits of a code, as the zero points of all outputs take so many words."""
        self._require_words("qzeros", zero_words)
        rows, count = zero_words.shape
        bits, rest = divmod(32 * count, outputs) if outputs else (0, 1)
        known = (4,) if self.packing == "awq" else (2, 3, 4, 8)
        if rows != groups or rest or bits not in known:
            wanted = ", ".join(map(str, known))
            reason = f"qzeros do not hold a code of {wanted} bits for each of {groups} x {outputs} scales"
            raise self._wrong(reason, zero_words)
        return bits

    def _codes(self, words: Array, bits: int, outputs: int) -> Array:
        """The codes, one to a byte, a row for each input."""
        self._require_words("qweight", words)
        rows, columns = words.shape
        if self.packing == "awq":
            if columns * 32 != outputs * bits:
                raise self._wrong(f"qweight has no codes of {bits} bits for {outputs} outputs", words)
            return self._along_outputs(words, bits)
        inputs, rest = divmod(rows * 32, bits)
        if columns != outputs or rest:
            raise self._wrong(f"qweight has no codes of {bits} bits for {outputs} outputs", words)
        return np.ascontiguousarray(_unpacked(words.T, bits, inputs).T)

    def _along_outputs(self, words: Array, bits: int) -> Array:
        codes = _unpacked(words, bits, words.shape[1] * 32 // bits)
        if self.packing != "awq":
            return codes
        return np.ascontiguousarray(codes.reshape(len(codes), -1, 8)[:, :, _AWQ_PLACES]).reshape(codes.shape)

    def _order(self, inputs: int, groups: int) -> tuple[Array | None, int]:
        """The inputs group by group, None if that is their order; and the size of a group."""
        if self.packing == "awq" or self._label("g_idx") not in self.file.names:
            if groups == 0 or inputs % groups:
                raise self._wrong(f"{inputs} inputs are no {groups} groups of one size", self._part("scales"))
            return None, inputs // groups
        of_input = self._part("g_idx")
        valid = of_input.dtype.kind in "iu" and of_input.shape == (inputs,)
        if not valid or (inputs and not 0 <= int(of_input.min()) <= int(of_input.max()) < groups):
            raise self._wrong(f"g_idx is no group below {groups} for each of {inputs} inputs", of_input)
        sizes = np.bincount(of_input, minlength=groups)
        group = int(sizes.max(initial=0))
        if (sizes[:-1] != group).any() or not sizes[-1:].all() or groups != ceil(inputs / max(1, group)):
            raise self._wrong("g_idx has groups of several sizes, and not only the last one is shorter", of_input)
        order = np.argsort(of_input, kind="stable").astype(np.int32)
        return (None if (np.diff(of_input) >= 0).all() else order), group

    def _label(self, part: str) -> str:
        return f"{self.name}.{part}" if self.name else part

    def _part(self, part: str) -> Array:
        label = self._label(part)
        if label not in self.file.names:
            raise CompileError("E0711", f"{self.file.path} has {self._label('qweight')}, and no {label}")
        return self.file.read(label)

    def _require_words(self, part: str, words: Array) -> None:
        if words.ndim != 2 or words.dtype.kind not in "iu" or words.dtype.itemsize != 4:
            raise self._wrong(f"{part} is no matrix of words of 32 bits", words)

    def _wrong(self, reason: str, array: Array) -> CompileError:
        found = f"{of_numpy(array.dtype) or array.dtype}[{', '.join(map(str, array.shape))}]"
        hint = f"it is {found}; is it packed as {self.packing}?"
        return CompileError("E0711", f"{self.file.path}: {self.name or 'the layer'}: {reason}", hint=hint)


def _unpacked(words: Array, bits: int, count: int) -> Array:
    """The codes of each row of words, from the low bits on; a row holds `count` of them, without a rest."""
    stream = np.ascontiguousarray(words).astype("<u4").view(np.uint8).reshape(-1)
    return unpack(stream, bits, len(words) * count).reshape(len(words), count)
