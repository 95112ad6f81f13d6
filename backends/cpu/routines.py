"""Pieces with control flow of their own: sorting of rows, and atomic updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.backends.cpu.sorting import add_sort
from intarsia.backends.cpu.values import Value, element_type
from intarsia.ir.dtypes import BF16, BOOL, I64, DType
from intarsia.ir.kernel import PUT_FUNCTIONS, Call, Put
from intarsia.ir.sizes import Size

if TYPE_CHECKING:
    from intarsia.backends.cpu.emit import Emitter
    from intarsia.backends.cpu.expressions import Expressions


def call(emitter: Emitter, statement: Call) -> None:
    """Run a routine on one row: `sort` gives the elements in order, `argsort` their indices (i64)."""
    assert statement.routine in ("sort", "argsort"), f"no routine is named {statement.routine}"
    function, module = emitter.function, emitter.function.module
    ((source, source_indices),), ((target, target_indices),) = statement.reads, statement.writes
    keys = emitter.buffers[source].dtype
    items = keys if statement.routine == "sort" else I64
    name = add_sort(module, keys, by_index=statement.routine == "argsort")
    zero = Size.of(0)
    rows = [emitter.address(n, (*i, zero)).pointer for n, i in ((source, source_indices), (target, target_indices))]
    length = emitter.number(statement.length)
    scratch = emitter.new_memory(statement.length * items.bytes)
    function.do(f"call void @{name}(ptr {rows[0]}, ptr {rows[1]}, ptr {scratch}, i64 {length})")
    function.call("void", "free", [("ptr", scratch)])
    emitter.forget([target])


def atomic_update(emitter: Expressions, put: Put) -> None:
    """`buffer[indices] op= value` that other threads may do at the same time, by compare-and-swap."""
    function, dtype = emitter.function, put.value.dtype
    value = emitter.value(put.value)
    pointer = emitter.address(put.buffer, put.indices).pointer
    bits = f"i{dtype.bits}"
    first = function.emit(f"load atomic {bits}, ptr {pointer} monotonic, align {dtype.bytes}")
    before, again, end = function.label, function.new_label("retry"), function.new_label("updated")
    function.terminate(f"br label %{again}")
    function.start_block(again)
    old, seen = function.new_name(), function.new_name()
    merged = emitter.arithmetic.apply(PUT_FUNCTIONS[put.operator], (value, _from_bits(emitter, old, dtype)))
    pair = function.emit(f"cmpxchg ptr {pointer}, {bits} {old}, {bits} {_to_bits(emitter, merged)} monotonic monotonic")
    function.do(f"{seen} = extractvalue {{ {bits}, i1 }} {pair}, 0")
    done = function.emit(f"extractvalue {{ {bits}, i1 }} {pair}, 1")
    function.terminate(f"br i1 {done}, label %{end}, label %{again}")
    function.add_phi(old, bits, [(first, before), (seen, again)])
    function.start_block(end)
    emitter.forget([put.buffer])


def _from_bits(emitter: Expressions, text: str, dtype: DType) -> Value:
    if dtype == BOOL:
        return Value(emitter.function.op(f"icmp ne i8 {text}, 0"), BOOL)
    if dtype.is_float and dtype != BF16:
        text = emitter.function.op(f"bitcast i{dtype.bits} {text} to {element_type(dtype)}")
    return Value(text, dtype)


def _to_bits(emitter: Expressions, value: Value) -> str:
    if value.dtype == BOOL:
        return emitter.function.op(f"zext {value} to i8")
    if value.dtype.is_float and value.dtype != BF16:
        return emitter.function.op(f"bitcast {value} to i{value.dtype.bits}")
    return value.text
