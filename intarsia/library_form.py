"""From a parsed program to signatures as plain data."""

from __future__ import annotations

import re
from itertools import groupby

from intarsia.dsl.library import Library, ParameterEntry
from intarsia.signature import ParameterForm, SignatureForm, TensorForm


def signature_form(library: Library, name: str | None) -> SignatureForm:
    """The signature of a function of a parsed program. Raises CompileError where there is no such function."""
    entry = library.signature(name)
    parameters = tuple(_parameter(own, list(items)) for own, items in groupby(entry.parameters, lambda e: e.parameter))
    return SignatureForm(entry.name, parameters, entry.dims, entry.explicit_dims, library.mesh, entry.axes)


def _parameter(name: str, entries: list[ParameterEntry]) -> ParameterForm:
    first = entries[0]
    return ParameterForm(
        name,
        tuple(_tensor(e.label, e.type) for e in entries if e.type is not None),
        is_struct=first.label != name,
        is_static=first.is_static,
        is_constant=first.const,
        has_default=first.default is not None,
    )


def _tensor(label: str, text: str) -> TensorForm:
    """Read `list[L] f32[N, 2 * K]`."""
    length = None
    if found := re.fullmatch(r"list\[(.*?)\] (.*)", text):
        length, text = found.groups()
    element, _, rest = text.partition("[")
    dims = [d.strip() for d in _split(rest.rpartition("]")[0])] if rest else []
    return TensorForm(label, element, tuple(re.sub(r"@.*", "", d) for d in dims), length)


def _split(text: str) -> list[str]:
    """Pieces between commas outside brackets."""
    return re.split(r",(?![^(]*\))", text)
