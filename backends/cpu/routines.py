"""Pieces with control flow of their own: sorting of rows, and atomic updates.

Sorting is a bottom-up merge sort (Knuth, The Art of Computer Programming, volume 3, section 5.2.4): stable, n log n in
every case, and its inner loop has selections in place of branches that nobody can predict. NaN comes last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intarsia.backends.cpu.llvm import Module
from intarsia.backends.cpu.values import Value, element_type, storage_type
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
    name = f"{statement.routine}.{keys.name}"
    if name not in module.functions:
        module.add(name, _merge_sort(module, name, keys, items))
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


def _merge_sort(module: Module, name: str, keys: DType, items: DType) -> str:
    """`void @name(ptr keys, ptr target, ptr scratch, i64 n)`. The items are the keys themselves, or their indices."""
    module.declare("llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    module.declare("llvm.smin.i64", "declare i64 @llvm.smin.i64(i64, i64)")
    item, size = storage_type(items), items.bytes
    by_index = keys != items or name.startswith("argsort")
    return f"""define internal void @{name}(ptr noalias %keys, ptr noalias %target, ptr noalias %scratch, i64 %n) #0 {{
entry:
  %bytes = mul i64 %n, {size}
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %fill, label %end
fill:
{_first_items(by_index, item)}
  br label %pass
pass:
  %from = phi ptr [ %target, %filled ], [ %to, %passed ]
  %to = phi ptr [ %scratch, %filled ], [ %from, %passed ]
  %width = phi i64 [ 1, %filled ], [ %double, %passed ]
  %unsorted = icmp slt i64 %width, %n
  br i1 %unsorted, label %run, label %sorted
run:
  %low = phi i64 [ 0, %pass ], [ %high, %merged ]
  %low.1 = add i64 %low, %width
  %middle = call i64 @llvm.smin.i64(i64 %low.1, i64 %n)
  %middle.1 = add i64 %middle, %width
  %high = call i64 @llvm.smin.i64(i64 %middle.1, i64 %n)
  %last.a = add i64 %middle, -1
  %last.b = add i64 %high, -1
  br label %merge
merge:
  %i = phi i64 [ %low, %run ], [ %i.next, %merge ]
  %j = phi i64 [ %middle, %run ], [ %j.next, %merge ]
  %k = phi i64 [ %low, %run ], [ %k.next, %merge ]
  %i.in = call i64 @llvm.smin.i64(i64 %i, i64 %last.a)
  %j.in = call i64 @llvm.smin.i64(i64 %j, i64 %last.b)
  %p.a = getelementptr {item}, ptr %from, i64 %i.in
  %p.b = getelementptr {item}, ptr %from, i64 %j.in
  %a = load {item}, ptr %p.a, align {size}
  %b = load {item}, ptr %p.b, align {size}
{_comparable("a", keys, by_index)}
{_comparable("b", keys, by_index)}
{_is_less(keys)}
  %a.left = icmp slt i64 %i, %middle
  %b.left = icmp slt i64 %j, %high
  %a.gone = xor i1 %a.left, true
  %b.first = or i1 %a.gone, %less
  %take.b = and i1 %b.left, %b.first
  %chosen = select i1 %take.b, {item} %b, {item} %a
  %p.k = getelementptr {item}, ptr %to, i64 %k
  store {item} %chosen, ptr %p.k, align {size}
  %step.b = zext i1 %take.b to i64
  %step.a = sub i64 1, %step.b
  %i.next = add i64 %i, %step.a
  %j.next = add i64 %j, %step.b
  %k.next = add i64 %k, 1
  %more = icmp slt i64 %k.next, %high
  br i1 %more, label %merge, label %merged
merged:
  %again = icmp slt i64 %high, %n
  br i1 %again, label %run, label %passed
passed:
  %double = shl i64 %width, 1
  br label %pass
sorted:
  %elsewhere = icmp ne ptr %from, %target
  br i1 %elsewhere, label %copy, label %end
copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %from, i64 %bytes, i1 false)
  br label %end
end:
  ret void
}}"""


def _first_items(by_index: bool, item: str) -> str:
    if not by_index:
        return """  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %keys, i64 %bytes, i1 false)
  br label %filled
filled:"""
    return f"""  %index = phi i64 [ 0, %entry ], [ %index.next, %fill ]
  %p.index = getelementptr {item}, ptr %target, i64 %index
  store {item} %index, ptr %p.index, align 8
  %index.next = add i64 %index, 1
  %filling = icmp slt i64 %index.next, %n
  br i1 %filling, label %fill, label %filled
filled:"""


def _comparable(name: str, keys: DType, by_index: bool) -> str:
    """The key of an item in a form that can be compared."""
    stored, lines, key = storage_type(keys), [], f"%{name}"
    if by_index:
        lines += [f"%p.{name}.key = getelementptr {stored}, ptr %keys, i64 %{name}"]
        lines += [f"%{name}.key = load {stored}, ptr %p.{name}.key, align {keys.bytes}"]
        key = f"%{name}.key"
    if keys == BF16:
        lines += [f"%{name}.wide = zext i16 {key} to i32", f"%{name}.high = shl i32 %{name}.wide, 16"]
        lines += [f"%{name}.value = bitcast i32 %{name}.high to float"]
    else:
        lines += [f"%{name}.value = bitcast {stored} {key} to {stored}"]
    return "\n".join(f"  {line}" for line in lines)


def _is_less(keys: DType) -> str:
    """Does b come before a? NaN comes after all numbers."""
    kind = "float" if keys == BF16 else storage_type(keys)
    if not keys.is_float:
        return f"  %less = icmp {'slt' if keys.kind == 'int' else 'ult'} {kind} %b.value, %a.value"
    return f"""  %below = fcmp olt {kind} %b.value, %a.value
  %a.nan = fcmp uno {kind} %a.value, %a.value
  %b.number = fcmp ord {kind} %b.value, %b.value
  %before.nan = and i1 %a.nan, %b.number
  %less = or i1 %below, %before.nan"""
