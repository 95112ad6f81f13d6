"""Kernels that go through the same matrix one after the other become one kernel, if that can go through it once.

    %0 = call @f_matmul(%a, %x)          kernel f_matmul.0(a, x, out y, out y.0) {
    %1 = call @f_matmul_1(%a, %0)   =>     … y[i] += a[i, k] * x[k] …
                                           … y.0[k] += a[i, k] * y[i] … }
                                         %0:2 = call @f_matmul.0(%a, %x)

A product with a matrix and one with its transpose are no group of `fuse`: their rows differ. Where the matrix is larger
than what a cache keeps from one kernel to the next, a few of its rows at a time can serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.kernel import Alloc, Buffer, Kernel, Put, Statement, walk
from intarsia.ir.ops import Call
from intarsia.ir.scalar import Const
from intarsia.ir.target import Target
from intarsia.ir.types import TensorType
from intarsia.passes.lower import kernels_called
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.one_pass import go_through_once, is_large
from intarsia.passes.schedule.tree import NameSource, copy_body, rename_buffers


@dataclass(frozen=True)
class Join(Pass):
    """Two calls in a row that read one large matrix become one call, where a schedule goes through that matrix once.

    Before:  %0 = call @f_matmul(%a, %x); %1 = call @f_matmul_1(%a, %0)
    After:   %0, %1 = call @f_matmul.0(%a, %x)

    Keeps: values, bit for bit. Needs: `lower`. Leaves: fewer kernels.
    """

    name: ClassVar[str] = "join"
    exact: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> Module:
        if context.target.kind != "cpu" or context.pinned_schedule is not None:
            return module
        kernels = {kernel.name: kernel for kernel in module.kernels}
        body = _joined_region(module.graph.body, kernels, context)
        if body is module.graph.body:
            return module
        called = frozenset(kernels_called(body))
        return replace(module.with_body(body), kernels=tuple(k for k in kernels.values() if k.name in called))


def _joined_region(region: Region, kernels: dict[str, Kernel], context: Context) -> Region:
    """The region with calls joined; itself if none are. New kernels are added to `kernels`."""
    values: dict[Value, Value] = {}
    nodes: list[Node] = []
    joined = False
    for old in region.nodes:
        node = old.with_operands(values)
        values.update(zip(old.values, node.values, strict=True))
        before = nodes[-1] if nodes else None
        both = None
        if isinstance(before, Call) and isinstance(node, Call):
            both = _join(before, node, kernels, context.target)
        if both is None or before is None:
            nodes.append(node)
            continue
        kernel, call = both
        kernels[kernel.name] = kernel
        nodes[-1] = call
        made = dict(zip((*before.values, *node.values), call.values, strict=True))
        values = {v: made.get(new, new) for v, new in values.items()}
        joined = True
    return (
        Region(region.parameters, tuple(nodes), tuple(values.get(v, v) for v in region.results)) if joined else region
    )


def _join(first: Call, second: Call, kernels: Mapping[str, Kernel], target: Target) -> tuple[Kernel, Call] | None:
    """Two calls as one, if that goes through a matrix once that both go through."""
    one, two = kernels[first.kernel], kernels[second.kernel]
    shared = {*first.arguments, *first.values} & {*second.arguments}
    is_plain = all(b.role in ("in", "out") and b.length is None for b in (*one.parameters, *two.parameters))
    if one.sizes or two.sizes or not is_plain or not any(map(partial(_is_large, target=target), shared)):
        return None
    if any(len(around) > 2 for kernel in (one, two) for _, around in walk(kernel.body)):
        return None  # what uses the elements again, as a product of matrices does, goes through them in tiles
    names = NameSource(one)
    known = dict(zip((*first.arguments, *first.values), (*one.inputs, *one.outputs)))
    renamed: dict[str, str] = {}
    added: list[Buffer] = []
    arguments = list(first.arguments)
    for buffer, value in (*zip(two.inputs, second.arguments), *((b, None) for b in two.outputs)):
        if value in known:
            renamed[buffer.name] = known[value].name
        else:
            renamed[buffer.name] = names.derived(buffer.name)
            added.append(replace(buffer, name=renamed[buffer.name]))
            arguments += [] if value is None else [value]
    body = rename_buffers(copy_body(one, two.body, names), renamed)
    name = next(n for n in (f"{one.name}.{i}" for i in range(len(kernels))) if n not in kernels)
    parameters = (*one.parameters, *added)
    kernel = replace(one, name=name, parameters=parameters, body=_initial_first((*one.body, *body)))
    if not go_through_once(Builder(kernel, target)):
        return None
    return kernel, Call(name, tuple(arguments), (*first.types, *second.types))


def _is_large(value: Value, target: Target) -> bool:
    return isinstance(value.type, TensorType) and is_large(value.type.shape, value.dtype, target)


def _initial_first(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Temporaries and nests that write numbers come first: what lies between two nests keeps them apart."""

    def is_initial(statement: Statement) -> bool:
        puts = [s for s, _ in walk((statement,)) if isinstance(s, Put)]
        return isinstance(statement, Alloc) or all(p.operator == "=" and isinstance(p.value, Const) for p in puts)

    return (*(s for s in body if is_initial(s)), *(s for s in body if not is_initial(s)))
