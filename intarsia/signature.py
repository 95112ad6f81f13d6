"""What a function takes and gives, as plain data: what binding arguments needs, kept in the cache as JSON so that a
program that was compiled before runs without the parser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intarsia.arguments import Leaf
from intarsia.ir.dtypes import DType, dtype
from intarsia.ir.errors import Source
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class TensorForm:
    """A tensor of a parameter: its label (`p.layer.up.weight`), element type or generic, and dims as text.

    A pack is `..S`; `length` is the text of the list's length for a tensor of a list of structs.
    """

    label: str
    element: str
    dims: tuple[str, ...]
    length: str | None = None

    @property
    def dtype(self) -> DType | None:
        """The element type, unless the call decides it."""
        return dtype(self.element)

    def expanded(self, rank: int) -> tuple[str, ...]:
        """The dims of a tensor of `rank` dimensions: a pack `..S` becomes `S_0`, `S_1`, …; none where it cannot fit."""
        pack = next((i for i, d in enumerate(self.dims) if d.startswith("..")), None)
        if pack is None:
            return self.dims if rank == len(self.dims) else ()
        name, count = self.dims[pack][2:], rank - len(self.dims) + 1
        if count < 0:
            return ()
        return (*self.dims[:pack], *(f"{name}_{i}" for i in range(count)), *self.dims[pack + 1 :])

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(self.dims)}]" if self.dims else self.element


@dataclass(frozen=True)
class ParameterForm:
    """One parameter. A static one has no tensors; a struct has one for each leaf. One with a default may be left out:
    the compiler then puts the default in its place."""

    name: str
    tensors: tuple[TensorForm, ...]
    is_struct: bool = False
    is_static: bool = False
    is_constant: bool = False
    has_default: bool = False

    @property
    def leaves(self) -> list[Leaf]:
        """The leaves by their names below the parameter."""
        return [Leaf(t.label[len(self.name) :].lstrip("."), t.length is not None) for t in self.tensors]


@dataclass(frozen=True)
class SignatureForm:
    """A function: parameters in order, dimension names, and those that only a keyword or `--dim` can give; the mesh
    that its program declares, or nothing; and the axes over which parameters are split."""

    function: str
    parameters: tuple[ParameterForm, ...]
    dimensions: tuple[str, ...]
    explicit: tuple[str, ...]
    mesh: str = ""
    axes: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        return tuple(t for p in self.parameters for t in p.tensors)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all parameters, and of the tensors of those that have several."""
        return tuple(dict.fromkeys((*(p.name for p in self.parameters), *(t.label for t in self.tensors))))

    def parameter(self, name: str) -> ParameterForm | None:
        return next((p for p in self.parameters if p.name == name), None)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SignatureForm:
        parameters = tuple(
            ParameterForm(
                **{**p, "tensors": tuple(TensorForm(**{**t, "dims": tuple(t["dims"])}) for t in p["tensors"])}
            )
            for p in data["parameters"]
        )
        names = tuple(data["dimensions"]), tuple(data["explicit"])
        return SignatureForm(data["function"], parameters, *names, data["mesh"], tuple(data["axes"]))


def size_of(text: str) -> Size:
    """The integer expression of a dim's text."""
    if text.isdecimal() or text.isidentifier():
        return Size.of(int(text) if text.isdecimal() else text)
    from intarsia.ir.scalar_text import ScalarReader

    return ScalarReader(Source("dim", text)).size()


def known_sizes(
    form: SignatureForm, shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int], dims: Mapping[str, int]
) -> dict[str, int]:
    """Dimension names that the shapes of arguments decide, and those that are given.

    This is a help for filling in arguments that have no shape of their own, not a check: the compiler checks.
    """
    found: dict[str, int] = dict(dims)
    pending: list[tuple[Size, int]] = []
    for tensor in form.tensors:
        if tensor.length is not None and tensor.label in lengths:
            pending.append((size_of(tensor.length), lengths[tensor.label]))
        shape = shapes.get(tensor.label, ())
        pending += [(size_of(d), n) for d, n in zip(tensor.expanded(len(shape)), shape)]
    pending.sort(key=lambda item: item[0].as_name is None)
    progress = True
    while progress:
        progress = False
        for size, number in pending:
            unknown = sorted(size.symbols - found.keys())
            if len(unknown) == 1 and (factor := size.coefficient(unknown[0])):
                rest = size - Size.of(unknown[0]) * factor
                if not (rest.symbols - found.keys()):
                    found[unknown[0]] = (number - rest.evaluate(found)) // factor
                    progress = True
    return found
