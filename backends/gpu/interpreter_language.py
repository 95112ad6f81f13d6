"""Triton's language in NumPy: what `tl.load`, a helper or `x + y` do while a kernel is interpreted.

For the time of a launch Triton's own functions are replaced by those here; afterwards the same kernel can be compiled
in the same process. Only importable where Triton is.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter as stock
from triton.runtime.jit import JITFunction

from intarsia.backends.gpu.interpreter_arithmetic import Builder, Semantic, is_coded, narrow, numpy_dtype, widen
from intarsia.backends.gpu.interpreter_library import FUNCTIONS, TESTS
from intarsia.ir.dtypes import Array

BUILDER = Builder()
SEMANTIC = Semantic(BUILDER)


@contextmanager
def interpreted_language() -> Iterator[None]:
    """Inside, Triton's language computes at once."""
    scope = stock._LangPatchScope()
    try:
        scope.set_attr(stock, "interpreter_builder", BUILDER)
        scope.set_attr(stock, "interpreter_semantic", SEMANTIC)
        scope.set_attr(stock, "_get_np_dtype", numpy_dtype)  # the same, ten times as fast
        for owner, name, replacement in _replacements():
            scope.set_attr(owner, name, replacement)
        scope.set_attr(tl.tensor, "__init__", _make_tensor)
        scope.set_attr(tl.block_type, "__init__", _make_block_type)
        stock._patch_lang_tensor(tl.tensor, scope)
        # 3.6 converts arrays of one element, which NumPy no longer does.
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))
        for language in (tl, tl.core):
            stock._patch_lang_core(language, scope)
        for language in (tl, tl.core):
            scope.set_attr(language, "range", _range)
            scope.set_attr(language, "reduce", _reduce)
            scope.set_attr(language, "associative_scan", _scan)
        scope.set_attr(JITFunction, "__call__", lambda self, *args, **named: interpreted(self)(*args, **named))
        yield
    finally:
        scope.restore()


@functools.cache
def _replacements() -> list[tuple[Any, str, Callable[..., Any]]]:
    """What takes the place of each function of the language: whose it is, its name, and ours."""
    found: list[tuple[Any, str, Callable[..., Any]]] = []
    for owner in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        members = inspect.getmembers(owner, tl.core.is_builtin)
        found += [(owner, name, _bound(member)) for name, member in members]
    names = (name for name, _ in inspect.getmembers(libdevice, inspect.isfunction))
    return found + [(libdevice, name, _library_function(name)) for name in names]


def _bound(member: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the language that uses our rules. A plain function, as methods of tensors are bound as well."""

    def call(*args: Any, **named: Any) -> Any:
        named["_semantic"] = SEMANTIC
        return member(*args, **named)

    return call


def _make_tensor(self: Any, handle: Any, type: Any) -> None:
    """What `tl.tensor` does, without making the same shape again and again."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape(tuple(type.shape) if type.is_block() else ())


@functools.cache
def _shape(extents: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.tuple([tl.constexpr(n) for n in extents]), tl.constexpr(math.prod(extents))


def _make_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """What `tl.block_type` does, likewise."""
    self.element_ty = element_ty
    self.shape, self.numel, written = _extents(tuple(map(_constant, shape)))
    self.name = f"<{written}, {element_ty}>"


@functools.cache
def _extents(extents: tuple[int, ...]) -> tuple[Any, int, str]:
    plain = object.__new__(tl.block_type)
    _PLAIN_BLOCK_TYPE(plain, tl.int1, list(extents))
    return plain.shape, plain.numel, str(plain.shape)


_PLAIN_BLOCK_TYPE = tl.block_type.__init__


# ---------------------------------------------------------------------- functions


def interpreted(function: Any) -> Callable[..., Any]:
    """The Python function that does what a `@triton.jit` function says."""
    return _rewritten(function.fn)  # which is compared by identity, and its wrapper by a digest that takes long


@functools.lru_cache(maxsize=1024)
def _rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as the interpreter can carry it out.

    Its text is that of the kernel but for what Python and Triton read differently: `and`, `or` and `not` of tensors,
    conditions, loops, whose counters are tensors, and numbers assigned to a name that is assigned again, which are
    tensors too.
    """
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    definition.returns = None
    _Rewriting(_assigned_again(definition)).visit(tree)
    ast.fix_missing_locations(ast.increment_lineno(tree, first - 1))
    given = function.__globals__
    names = {**given, "_and": _and, "_or": _or, "_not": _not, "_tensor": _as_tensor, "_truth": _truth}
    if "range" not in given:
        names["range"] = _range
    exec(compile(tree, inspect.getfile(function), "exec"), names)
    found = names[definition.name]
    assert inspect.isfunction(found)
    found.__defaults__ = tuple(map(_constant, found.__defaults__ or ()))
    return found


def _assigned_again(definition: ast.FunctionDef) -> set[str]:
    """Names that are assigned in more than one place; other names of numbers are constants to Triton."""
    places: dict[str, int] = {}
    for node in ast.walk(definition):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            places[node.id] = places.get(node.id, 0) + 1
    return {name for name, count in places.items() if count > 1}


class _Rewriting(ast.NodeTransformer):
    def __init__(self, assigned_again: set[str]) -> None:
        self._assigned_again = assigned_again

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        name = "_and" if isinstance(node.op, ast.And) else "_or"
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        return _call(name, *(ast.Lambda(args=nothing, body=value) for value in node.values))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return _call("_not", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_If(self, node: ast.If) -> ast.If:
        self.generic_visit(node)
        node.test = _call("_truth", node.test)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.IfExp:
        self.generic_visit(node)
        node.test = _call("_truth", node.test)
        return node

    def visit_While(self, node: ast.While) -> ast.While:
        self.generic_visit(node)
        node.test = _call("_truth", node.test)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if names & self._assigned_again:
            node.value = _call("_tensor", node.value)
        return node


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=list(arguments), keywords=[])


def _and(*operands: Callable[[], Any]) -> Any:
    result = operands[0]()
    for operand in operands[1:]:
        if isinstance(result, tl.tensor):
            result = SEMANTIC.logical_and(result, SEMANTIC.to_tensor(operand()))
        elif result:
            result = operand()
    return result


def _or(*operands: Callable[[], Any]) -> Any:
    result = operands[0]()
    for operand in operands[1:]:
        if isinstance(result, tl.tensor):
            result = SEMANTIC.logical_or(result, SEMANTIC.to_tensor(operand()))
        elif not result:
            result = operand()
    return result


def _not(value: Any) -> Any:
    return SEMANTIC.not_(value) if isinstance(value, tl.tensor) else not value


def _truth(value: Any) -> bool:
    """The condition of a branch, which must be one number."""
    if isinstance(value, tl.tensor) and value.type.is_block():
        raise TypeError(f"a condition of {value.type}, not of one number")
    return bool(value)


def _constant(value: Any) -> Any:
    """A constant as Python has it."""
    return value.value if isinstance(value, tl.constexpr) else value


def _as_tensor(value: Any) -> Any:
    value = _constant(value)
    if isinstance(value, (bool, int, float)):
        return SEMANTIC.to_tensor(value)
    return tuple(map(_as_tensor, value)) if type(value) is tuple else value


def _range(start: Any, end: Any = None, step: Any = 1, **_: Any) -> Iterator[Any]:
    """A loop's counters, integers of as many bits as the widest bound."""
    if end is None:
        start, end = 0, start
    bounds = [SEMANTIC.to_tensor(bound) for bound in (start, end, step)]
    wide = any(bound.dtype.primitive_bitwidth > 32 for bound in bounds)
    dtype = tl.int64 if wide else tl.int32
    for value in range(*(int(bound.handle.data.reshape(-1)[0]) for bound in bounds)):
        yield tensor(np.array([value]), dtype)


# ---------------------------------------------------------------------- tensors


def tensor(data: Array, dtype: Any) -> Any:
    """A tensor of an element type; of no dimensions, which the interpreter keeps as one element, a scalar."""
    data = data.astype(numpy_dtype(dtype), copy=False)
    return tl.tensor(stock.TensorHandle(data, dtype), dtype)


def _block(data: Array, dtype: Any) -> Any:
    if data.shape == ():
        return tl.tensor(stock.TensorHandle(data.reshape(1), dtype), dtype)
    return tl.tensor(stock.TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def _reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: bool = False, **_: Any) -> Any:
    """`tl.reduce` along an axis, or over all elements: neighbours are combined until one is left."""
    if not isinstance(input, tuple):
        return _reduce((input,), axis, combine_fn, keep_dims)[0]
    arrays, dtypes = [t.handle.data for t in input], [t.dtype.scalar for t in input]
    shape = arrays[0].shape
    position = _constant(axis)
    if position is None:
        arrays, position = [a.reshape(-1) for a in arrays], 0
    parts = [np.moveaxis(a, position, 0) for a in arrays]
    at_once = _whole_reduction(combine_fn)
    if at_once is not None and not is_coded(dtypes[0]):
        results = [at_once(parts[0])]
    else:
        while len(parts[0]) > 1:
            pairs = [*(a[0::2] for a in parts), *(a[1::2] for a in parts)]
            parts = _combined(combine_fn, pairs, dtypes)
        results = [a[0] for a in parts]
    if _constant(keep_dims):
        kept = [1 if axis is None or d == position % len(shape) else n for d, n in enumerate(shape)]
        results = [np.reshape(a, kept) for a in results]
    return tuple(_block(np.asarray(a), dtype) for a, dtype in zip(results, dtypes))


def _whole_reduction(combine_fn: Any) -> Callable[[Array], Array] | None:
    """NumPy's reduction with the function, if it has it: only to be faster."""
    standard = tl.standard
    for known, ufunc in (
        (standard._sum_combine, np.add),
        (standard._elementwise_max, np.fmax),
        (standard._elementwise_min, np.fmin),
    ):
        if combine_fn is known:
            return functools.partial(_reduced, ufunc)
    return None


def _reduced(ufunc: np.ufunc, array: Array) -> Array:
    return np.asarray(ufunc.reduce(array, axis=0, dtype=array.dtype))


def _combined(combine_fn: Any, operands: list[Array], dtypes: list[Any]) -> list[Array]:
    tensors = [_block(np.ascontiguousarray(a), dtype) for a, dtype in zip(operands, [*dtypes, *dtypes])]
    found = interpreted(combine_fn)(*tensors)
    found = found if isinstance(found, tuple) else (found,)
    shape = operands[0].shape
    results = [SEMANTIC.cast(SEMANTIC.to_tensor(f), dtype).handle.data for f, dtype in zip(found, dtypes)]
    return [np.broadcast_to(a, shape) for a in results]


def _scan(input: Any, axis: Any, combine_fn: Any, reverse: bool = False, **_: Any) -> Any:
    """`tl.associative_scan` in steps that double what each element has taken in (Hillis and Steele, 1986)."""
    if not isinstance(input, tuple):
        return _scan((input,), axis, combine_fn, reverse)[0]
    axis, backward = _constant(axis), _constant(reverse)
    dtypes = [t.dtype.scalar for t in input]
    parts = [np.moveaxis(t.handle.data, axis, 0) for t in input]
    parts = [a[::-1] for a in parts] if backward else parts
    if combine_fn is tl.standard._sum_combine and not is_coded(dtypes[0]):
        parts = [np.cumsum(parts[0], axis=0, dtype=parts[0].dtype)]
    else:
        distance = 1
        while distance < len(parts[0]):
            # Whole tensors, as Triton has none of other lengths; what comes before the first is not used.
            before = [np.roll(a, distance, axis=0) for a in parts]
            taken = _combined(combine_fn, [*before, *parts], dtypes)
            parts = [np.concatenate([a[:distance], b[distance:]]) for a, b in zip(parts, taken)]
            distance *= 2
    parts = [a[::-1] for a in parts] if backward else parts
    return tuple(_block(np.ascontiguousarray(np.moveaxis(a, 0, axis)), dtype) for a, dtype in zip(parts, dtypes))


def _library_function(name: str) -> Callable[..., Any]:
    """A function of libdevice on tensors of one float type."""
    function = FUNCTIONS.get(name) or TESTS.get(name)

    def call(*args: Any) -> Any:
        if function is None:
            raise NotImplementedError(f"libdevice.{name} is not interpreted")
        tensors = [SEMANTIC.to_tensor(arg) for arg in args]
        for other in tensors[1:]:
            tensors[0], _ = SEMANTIC.broadcast_impl_value(tensors[0], other)
        tensors = [SEMANTIC.broadcast_impl_value(t, tensors[0])[0] for t in tensors]
        dtype = tensors[0].dtype.scalar
        if dtype not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice.{name} of {dtype}")
        values = function(*(widen(t.handle).astype(np.float64) for t in tensors))
        given = tl.int1 if name in TESTS else dtype
        handle = narrow(np.asarray(values), given)
        return tl.tensor(handle, tensors[0].type.with_element_ty(given) if tensors[0].type.is_block() else given)

    return call
