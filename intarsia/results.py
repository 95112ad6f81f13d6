"""Results in the form that the program gives them: structs as mappings, lists of structs as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intarsia.ir.dtypes import Array


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
