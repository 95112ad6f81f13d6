"""Functions of programs as custom operators of PyTorch, so that `torch.compile` keeps them in its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from intarsia.backends.gpu.torch_types import torch_type
from intarsia.function import Function
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Graph
from intarsia.ir.types import TensorType
from intarsia.program import Program


def torch_op(function: Function, name: str | None = None) -> Callable[..., Any]:
    """A function of a program as an operator of PyTorch, `intarsia::NAME`, from tensors to tensors.

    It runs where its arguments lie, on the CPU or on a GPU. Its result is known to `torch.compile` before it runs: the
    types come from the signature, so that these must not depend on more than sizes. It has no gradient. Raises
    CompileError E1703 where PyTorch is not installed, E1715 where the signature is of another form.
    """
    try:
        import torch
    except ImportError:
        raise CompileError("E1703", "PyTorch is not installed beside Intarsia", hint="pip install torch") from None
    graph = _open_graph(function)
    _, tensors = function.split(function.bound)
    bound = {label: value.shape for label, value in tensors.items() if not isinstance(value, tuple)}
    names = [p.label for p in graph.parameters if p.label not in tensors]
    results = ["Tensor" for _ in graph.results]
    gives = results[0] if len(results) == 1 else f"({', '.join(results)})"
    schema = f"({', '.join(f'Tensor {n}' for n in names)}) -> {gives}"

    own: dict[bool, Function] = {}

    def run(*tensors: Any) -> Any:
        on_gpu = any(t.is_cuda for t in tensors)
        if on_gpu not in own:
            own[on_gpu] = _for_device(function, on_gpu)
        return own[on_gpu](*[t.detach() for t in tensors])

    def fake(*tensors: Any) -> Any:
        shapes = result_shapes(graph, names, [t.shape for t in tensors], bound)
        device = tensors[0].device if tensors else None
        made = [
            torch.empty(shape, dtype=getattr(torch, torch_type(v.dtype).removeprefix("torch.")), device=device)
            for shape, v in zip(shapes, graph.results)
        ]
        return made[0] if len(made) == 1 else tuple(made)

    op: Any = torch.library.custom_op(f"intarsia::{name or graph.name}", run, mutates_args=(), schema=schema)
    op.register_fake(fake)
    found: Callable[..., Any] = op
    return found


def _for_device(function: Function, on_gpu: bool) -> Function:
    """The function as code for the place where its arguments lie."""
    options = function.program.options
    if (options.target or "cpu").startswith("gpu") == on_gpu:
        return function
    program = Program(
        function.program.source,
        replace(options, target="gpu" if on_gpu else None),
        use_cache=function.program.cache.enabled,
    )
    return Function(program, function.name, function.bound)


def result_shapes(
    graph: Graph, names: Sequence[str], shapes: Sequence[Sequence[Any]], bound: Mapping[str, tuple[int, ...]]
) -> list[tuple[Any, ...]]:
    """The shapes of results for the shapes of arguments, which may be numbers that PyTorch does not know yet."""
    given = dict(zip(names, shapes))
    given.update(bound)
    sizes: dict[str, Any] = {}
    for parameter in graph.parameters:
        if not isinstance(parameter.type, TensorType):
            continue  # a list, which is bound
        for extent, number in zip(parameter.type.shape, given[parameter.label]):
            if (symbol := extent.as_name) is not None:
                sizes.setdefault(symbol, number)
    return [tuple(extent.evaluate(sizes) for extent in value.tensor.shape) for value in graph.results]


def _open_graph(function: Function) -> Graph:
    """The function with its sizes as names. Raises CompileError E1715 where its signature leaves more open."""
    form = function.form
    where = f"{form.function} cannot be an operator of PyTorch"
    others = [p.name for p in form.parameters if p.name not in function.bound and (p.is_struct or not p.tensors)]
    if others:
        hint = f"bind it: {form.function}.bind({others[0]}=…)"
        raise CompileError("E1715", f"{where}: {', '.join(others)} is not one tensor", hint=hint)
    for tensor in form.tensors:
        if tensor.dtype is None or any(d.startswith("..") for d in tensor.dims):
            hint = "write a function with a type for each parameter that calls it"
            raise CompileError("E1715", f"{where}: the type of {tensor.label} depends on the call", hint=hint)
    if form.explicit:
        hint = "write a function that fixes them"
        raise CompileError("E1715", f"{where}: no argument decides {', '.join(form.explicit)}", hint=hint)
    statics, _ = function.split(function.bound)
    graph = function.compilation_of_types(None, statics, {}).source_module.graph
    if graph.labels:
        hint = "write a function that gives its tensors: return p.weight, p.bias"
        raise CompileError("E1715", f"{where}: it gives a struct", hint=hint)
    shown = {e.as_name for p in graph.parameters if isinstance(p.type, TensorType) for e in p.type.shape}
    for value in graph.results:
        missing = sorted(s for e in value.tensor.shape for s in e.symbols if s not in shown)
        if missing:
            raise CompileError("E1715", f"{where}: no argument shows the size {missing[0]}")
    return graph
