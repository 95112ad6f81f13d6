"""From a parsed program to signatures as plain data."""

from __future__ import annotations

from intarsia.dsl.library import Library
from intarsia.dsl.semantics.types import PackName, StructPattern, leaves
from intarsia.signature import ParameterForm, SignatureForm, TensorForm


def signature_form(library: Library, name: str | None) -> SignatureForm:
    """The signature of a function of a parsed program. Raises CompileError where there is no such function."""
    signature = library.signature(name)
    parameters: list[ParameterForm] = []
    for parameter in signature.parameters:
        declaration = parameter.declaration
        tensors: tuple[TensorForm, ...] = ()
        if parameter.pattern is not None:
            tensors = tuple(
                TensorForm(
                    label,
                    pattern.element.name,
                    tuple(f"..{d.name}" if isinstance(d, PackName) else str(d).replace("?", "") for d in pattern.dims),
                    None if length is None else str(length).replace("?", ""),
                )
                for label, pattern, length in leaves(parameter.name, parameter.pattern)
            )
        parameters.append(
            ParameterForm(
                parameter.name,
                tensors,
                is_struct=isinstance(parameter.pattern, StructPattern),
                is_static=parameter.pattern is None,
                is_constant=declaration.is_const,
                has_default=declaration.default is not None,
                default=None if declaration.default is None else library.default(signature, parameter.name),
            )
        )
    return SignatureForm(signature.name, tuple(parameters), signature.dimensions, signature.explicit)
