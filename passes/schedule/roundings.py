"""What becomes of the results of kernels: are they rounded to a type of 16 bits in the end, whatever they are now?

The factors of a product may be rounded to 16 bits where all that is made of it is (`backends/gpu/products.py`). What a
gradient needs of the forward part passes from kernel to kernel in f32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from intarsia.ir.dtypes import BF16, F16, F32, DType
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Call, Loop, Reshape
from intarsia.ir.types import TensorType


def with_roundings(module: Module) -> Module:
    """The module with those results of its kernels marked that are rounded in the end, wherever these are called."""
    found: dict[str, list[tuple[DType | None, ...]]] = {}
    for kernel, types in _results_of_calls(module.graph.body):
        found.setdefault(kernel, []).append(types)
    return replace(module, kernels=tuple(_marked(k, found.get(k.name, [])) for k in module.kernels))


def _marked(kernel: Kernel, calls: list[tuple[DType | None, ...]]) -> Kernel:
    """A kernel with its results marked that are rounded to one type in all calls."""
    types = {b.name: {*own} for b, own in zip(kernel.outputs, zip(*calls))}
    marked = {
        name: kind
        for name, own in types.items()
        if len(own) == 1 and (kind := next(iter(own))) and kernel.buffers()[name].dtype == F32
    }
    return replace(kernel, parameters=tuple(replace(b, rounded=marked.get(b.name)) for b in kernel.parameters))


def _results_of_calls(region: Region) -> Iterator[tuple[str, tuple[DType | None, ...]]]:
    """The kernels that a region calls, and what each result of a call is rounded to."""
    users: dict[Value, list[Node]] = {}
    for node in region.nodes:
        for value in dict.fromkeys(node.inputs):
            users.setdefault(value, []).append(node)
    types: dict[Value, DType | None] = {}
    for node in reversed(region.nodes):
        for value in node.values:
            own = users.get(value, [])
            passed = value not in region.results and all(isinstance(n, (Call, Reshape)) for n in own)
            types[value] = _type_of(value, {types[v] for n in own for v in n.values} if passed else set())
        if isinstance(node, Call):
            yield node.kernel, tuple(types[v] for v in node.values)
        elif isinstance(node, Loop):
            yield from _results_of_calls(node.body)
            yield from _results_of_calls(node.condition) if node.condition is not None else ()


def _type_of(value: Value, made: set[DType | None]) -> DType | None:
    """The type of 16 bits to which a value is rounded if what is made of it is rounded to these types."""
    if not isinstance(value.type, TensorType):
        return None
    if value.dtype in (F16, BF16):
        return value.dtype
    return next(iter(made)) if value.dtype == F32 and len(made) == 1 else None
