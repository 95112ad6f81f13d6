"""Results in the form that the program gives them, structs as mappings and lists of structs as lists, and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import F32, I64, Array, DType, of_numpy


def in_form(labels: Sequence[str], results: Sequence[Any]) -> Any:
    """Results by the labels of their graph: one, a tuple of several, and mappings where a label names a field.

    `1.layer.*.up` is of the result 1 the field `layer`, a list, of whose items the field `up` is a row of the tensor.
    An argument of the struct's type can be given in this form.
    """
    if not labels:
        return results[0] if len(results) == 1 else tuple(results)
    tree: dict[str, Any] = {}
    for label, result in zip(labels, results):
        before, star, after = label.partition("*")
        *path, last = before.rstrip(".").split(".") if before else [""]
        around = tree
        for name in path:
            around = around.setdefault(name, {})
        if not star:
            around[last] = result
            continue
        records = around.setdefault(last, [{} for _ in range(len(result))])
        *path, last = after.lstrip(".").split(".")
        for record, row in zip(records, _rows(result)):
            for name in path:
                record = record.setdefault(name, {})
            record[last] = row
    if labels[0][0].isdecimal():
        return tuple(tree[number] for number in sorted(tree, key=int))
    return tree.get("", tree)


def named(labels: Sequence[str], results: Sequence[Array]) -> list[tuple[str, Array, int]]:
    """Results by dotted name, as a file holds them, and of which result each is.

    `layer.0.up` is the row of a list's tensor; `result` or `result0` is one that is no struct, and stands in front of
    the names of one of several structs.
    """
    if not labels:
        names = ["result"] if len(results) == 1 else [f"result{n}" for n in range(len(results))]
        return list(zip(names, results, range(len(results))))
    found: list[tuple[str, Array, int]] = []
    for position, (label, result) in enumerate(zip(labels, results)):
        name = f"result{label}" if label[0].isdecimal() else label
        rows = enumerate(_rows(result)) if "*" in name else [(0, result)]
        found += [(name.replace("*", str(n)), row, position) for n, row in rows]
    return found


def _rows(stacked: Any) -> list[Any]:
    """The tensors of a list that are one; scalars stay tensors."""
    return [stacked[n, ...] for n in range(len(stacked))]


def format_array(name: str, array: Array, dtype: DType | None = None) -> str:
    """A result as `run` shows it: name, type, and values, shortened where there are many.

    dtype: needed for types that come as codes because NumPy has no such type.
    """
    element = dtype or of_numpy(array.dtype)
    assert element is not None
    text = f"{element}[{', '.join(map(str, array.shape))}]" if array.shape else str(element)
    shown = array if element.kind == "bool" or not element.is_narrow else convert(array, element, _shown_as(element))
    digits = min(8, math.ceil(element.mantissa * math.log10(2)) + 1)
    if element.is_float and element.bits < 32:
        shown = shown.astype(np.float32)
    values = np.array2string(shown, precision=digits, threshold=100, edgeitems=3, max_line_width=100)
    if array.shape:
        return f"{name}: {text}\n{values}"
    return f"{name}: {text} = {values}{'0' if values.endswith('.') else ''}"


def _shown_as(element: DType) -> DType:
    return F32 if element.is_float else I64
