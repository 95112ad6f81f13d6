"""The ops of the Graph as tables, made from their classes and samples: for documentation and `intarsia list`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import NOT_OWN, OPS, Node, Structured
from intarsia.ir.ops.elementwise import Elementwise
from intarsia.ir.ops.index import Compute
from intarsia.ir.samples import samples
from intarsia.ir.text_printer import node_text

_HIDDEN = ("parameter", "elementwise")


@dataclass(frozen=True)
class OpRow:
    """One op: its fields, the first sentence of its docstring, a sample as text, and that sample as a space."""

    name: str
    operands: str
    attributes: str
    description: str
    sample: str = ""
    space: str = ""


def op_rows() -> tuple[OpRow, ...]:
    """Every op but the elementwise functions, by name."""
    first: dict[str, Node] = {}
    for node in samples():
        first.setdefault(node.name, node)
    return tuple(_row(cls, first.get(name)) for name, cls in sorted(OPS.items()) if name not in _HIDDEN)


def function_rows() -> tuple[OpRow, ...]:
    """The elementwise functions, by name; `attributes` says which dtypes they take."""
    rows: list[OpRow] = []
    for f in sorted(FUNCTIONS.values(), key=lambda f: f.name):
        result = f" -> {f.result_dtype}" if f.result_dtype else ""
        rows.append(OpRow(f.name, ", ".join("xyz"[: f.arity]), f.domain + result, f.description))
    return tuple(rows)


def markdown() -> str:
    """Both tables."""
    lines = ["| op | operands | attributes | meaning | example | as a space |", "|---|---|---|---|---|---|"]
    for row in op_rows():
        sample, space = (f"`{text}`" if text else "" for text in (row.sample, row.space))
        lines.append(f"| `{row.name}` | {row.operands} | {row.attributes} | {row.description} | {sample} | {space} |")
    lines += ["", "| function | arguments | dtypes | meaning |", "|---|---|---|---|"]
    lines += [f"| `{r.name}` | {r.operands} | {r.attributes} | {r.description} |" for r in function_rows()]
    return "\n".join(lines) + "\n"


def _row(cls: type[Node], sample: Node | None) -> OpRow:
    fields = [f for f in dataclasses.fields(cls) if f.name not in NOT_OWN]
    operands = [f.name for f in fields if "Value" in str(f.type)]
    regions = [f.name for f in fields if "Region" in str(f.type)]
    attributes = [f.name for f in fields if f.name not in (*operands, *regions)]
    description = " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")
    space = ""
    if isinstance(sample, Structured) and not isinstance(sample, Elementwise):
        space = _right_side(Compute(sample.operands, sample.space))
    text = _right_side(sample) if sample is not None else ""
    return OpRow(cls.name, ", ".join((*operands, *regions)), ", ".join(attributes), description, text, space)


def _right_side(node: Node) -> str:
    """The text of a node without its own name; operands are `%0`, `%1`, …"""
    return node_text(node).split(" = ", 1)[1]
