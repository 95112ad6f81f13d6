"""Sorting a row: by distribution, a byte of the key at a time, from the lowest (Knuth, The Art of Computer Programming,
volume 3, section 5.2.5); a short row by insertion (section 5.2.1). Stable, and linear in the length of a long row.

Keys are compared as unsigned integers. Those of floats order numbers as numbers: -0 as 0, and NaN after all others. One
pass counts every byte of every key; bytes that all keys share take no pass of their own.
"""

from __future__ import annotations

from intarsia.backends.cpu.llvm import Module
from intarsia.ir.dtypes import I64, DType

SHORT = 32
"""Items up to which insertion is faster than counting."""


def add_sort(module: Module, keys: DType, by_index: bool) -> str:
    """The name of `void @name(ptr keys, ptr target, ptr scratch, i64 n)`, which writes the keys in order, or with
    `by_index` their indices (i64). `scratch` has room for as many items as `target`."""
    name = f"{'argsort' if by_index else 'sort'}.{keys.name}"
    if name not in module.functions:
        module.declare("llvm.memcpy.p0.p0.i64", "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        module.declare("llvm.memset.p0.i64", "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        module.add(name, _function(name, keys, by_index))
    return name


def _function(name: str, keys: DType, by_index: bool) -> str:
    item = "i64" if by_index else f"i{8 * keys.bytes}"
    size, key = (I64.bytes if by_index else keys.bytes), f"i{8 * keys.bytes}"
    passes = keys.bytes
    return f"""define internal void @{name}(ptr noalias %keys, ptr noalias %target, ptr noalias %scratch, i64 %n) #0 {{
entry:
  %counts = alloca [{256 * passes} x i64], align 64
  %is.long = icmp sgt i64 %n, {SHORT}
  br i1 %is.long, label %clear, label %insert
{_insertion(key, item, size, keys, by_index)}
clear:
  call void @llvm.memset.p0.i64(ptr align 64 %counts, i8 0, i64 {2048 * passes}, i1 false)
  %bytes = mul i64 %n, {size}
  br label %count
count:
  %i = phi i64 [ 0, %clear ], [ %i.next, %count ]
  %p.first = getelementptr {key}, ptr %keys, i64 %i
  %first = load {key}, ptr %p.first, align {keys.bytes}
  %p.item = getelementptr {item}, ptr %target, i64 %i
  store {item} {"%i" if by_index else "%first"}, ptr %p.item, align {size}
{_ordered(keys, "first")}
{_counted(key, passes)}
  %i.next = add i64 %i, 1
  %counting = icmp slt i64 %i.next, %n
  br i1 %counting, label %count, label %pass
pass:
  %place = phi {key} [ 0, %count ], [ %place.next, %passed ]
  %own = phi ptr [ %counts, %count ], [ %own.next, %passed ]
  %from = phi ptr [ %target, %count ], [ %from.next, %passed ]
  %to = phi ptr [ %scratch, %count ], [ %to.next, %passed ]
  %any.byte = lshr {key} %first.key, %place
  %any = and {key} %any.byte, 255
  %any.place = {_widen(key, "any")}
  %p.any = getelementptr i64, ptr %own, i64 %any.place
  %alike = load i64, ptr %p.any, align 8
  %is.shared = icmp eq i64 %alike, %n
  br i1 %is.shared, label %passed, label %starts
starts:
  %byte = phi i64 [ 0, %pass ], [ %byte.next, %starts ]
  %start = phi i64 [ 0, %pass ], [ %start.next, %starts ]
  %p.start = getelementptr i64, ptr %own, i64 %byte
  %number = load i64, ptr %p.start, align 8
  store i64 %start, ptr %p.start, align 8
  %start.next = add i64 %start, %number
  %byte.next = add i64 %byte, 1
  %starting = icmp ult i64 %byte.next, 256
  br i1 %starting, label %starts, label %move
move:
  %k = phi i64 [ 0, %starts ], [ %k.next, %move ]
  %p.from = getelementptr {item}, ptr %from, i64 %k
  %moved = load {item}, ptr %p.from, align {size}
{_key_of_item(key, keys, by_index, "moved", "found")}
{_ordered(keys, "found")}
  %found.byte = lshr {key} %found.key, %place
  %digit = and {key} %found.byte, 255
  %digit.place = {_widen(key, "digit")}
  %p.own = getelementptr i64, ptr %own, i64 %digit.place
  %position = load i64, ptr %p.own, align 8
  %position.next = add i64 %position, 1
  store i64 %position.next, ptr %p.own, align 8
  %p.to = getelementptr {item}, ptr %to, i64 %position
  store {item} %moved, ptr %p.to, align {size}
  %k.next = add i64 %k, 1
  %moving = icmp slt i64 %k.next, %n
  br i1 %moving, label %move, label %passed
passed:
  %from.next = phi ptr [ %from, %pass ], [ %to, %move ]
  %to.next = phi ptr [ %to, %pass ], [ %from, %move ]
  %own.next = getelementptr i64, ptr %own, i64 256
  %place.next = add {key} %place, 8
  %p.last = getelementptr i64, ptr %counts, i64 {256 * passes}
  %is.over = icmp eq ptr %own.next, %p.last
  br i1 %is.over, label %sorted, label %pass
sorted:
  %elsewhere = icmp ne ptr %from.next, %target
  br i1 %elsewhere, label %copy, label %end
copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %from.next, i64 %bytes, i1 false)
  br label %end
end:
  ret void
}}"""


def _insertion(key: str, item: str, size: int, keys: DType, by_index: bool) -> str:
    """Put item after item into the target, before those that come after it."""
    bytes_ = keys.bytes
    return f"""insert:
  %j = phi i64 [ 0, %entry ], [ %j.next, %placed ]
  %inserting = icmp slt i64 %j, %n
  br i1 %inserting, label %take, label %end
take:
  %p.new = getelementptr {key}, ptr %keys, i64 %j
  %new = load {key}, ptr %p.new, align {bytes_}
{_ordered(keys, "new")}
  br label %look
look:
  %free = phi i64 [ %j, %take ], [ %before, %shift ]
  %before = sub i64 %free, 1
  %is.first = icmp eq i64 %free, 0
  br i1 %is.first, label %placed, label %compare
compare:
  %p.before = getelementptr {item}, ptr %target, i64 %before
  %old = load {item}, ptr %p.before, align {size}
{_key_of_item(key, keys, by_index, "old", "stored")}
{_ordered(keys, "stored")}
  %is.after = icmp ugt {key} %stored.key, %new.key
  br i1 %is.after, label %shift, label %placed
shift:
  %p.shifted = getelementptr {item}, ptr %target, i64 %free
  store {item} %old, ptr %p.shifted, align {size}
  br label %look
placed:
  %p.placed = getelementptr {item}, ptr %target, i64 %free
  store {item} {"%j" if by_index else "%new"}, ptr %p.placed, align {size}
  %j.next = add i64 %j, 1
  br label %insert"""


def _widen(key: str, name: str) -> str:
    """A byte of a key as an index."""
    return f"add i64 %{name}, 0" if key == "i64" else f"zext {key} %{name} to i64"


def _counted(key: str, passes: int) -> str:
    """Count each byte of the key `%first.key`."""
    lines: list[str] = []
    for p in range(passes):
        lines += [
            f"%shifted.{p} = lshr {key} %first.key, {8 * p}",
            f"%low.{p} = and {key} %shifted.{p}, 255",
            f"%low.place.{p} = {_widen(key, f'low.{p}')}",
            f"%p.count.{p} = getelementptr [{passes} x [256 x i64]], ptr %counts, i64 0, i64 {p}, i64 %low.place.{p}",
            f"%count.{p} = load i64, ptr %p.count.{p}, align 8",
            f"%count.next.{p} = add i64 %count.{p}, 1",
            f"store i64 %count.next.{p}, ptr %p.count.{p}, align 8",
        ]
    return "\n".join(f"  {line}" for line in lines)


def _key_of_item(key: str, keys: DType, by_index: bool, item: str, name: str) -> str:
    """The stored key `%name` of the item `%item`."""
    if not by_index:
        return f"  %{name} = add {key} %{item}, 0"
    return f"""  %p.{name} = getelementptr {key}, ptr %keys, i64 %{item}
  %{name} = load {key}, ptr %p.{name}, align {keys.bytes}"""


def _ordered(keys: DType, name: str) -> str:
    """`%name.key`: an unsigned integer that is less where the stored key `%name` comes before."""
    bits, key = 8 * keys.bytes, f"i{8 * keys.bytes}"
    sign = -(1 << (bits - 1))
    if not keys.is_float:
        return f"  %{name}.key = xor {key} %{name}, {sign if keys.kind == 'int' else 0}"
    infinity = ((1 << keys.exponent) - 1) << keys.mantissa
    return f"""  %{name}.magnitude = and {key} %{name}, {(1 << (bits - 1)) - 1}
  %{name}.zero = icmp eq {key} %{name}.magnitude, 0
  %{name}.plain = select i1 %{name}.zero, {key} 0, {key} %{name}
  %{name}.below = ashr {key} %{name}.plain, {bits - 1}
  %{name}.flip = or {key} %{name}.below, {sign}
  %{name}.number = xor {key} %{name}.plain, %{name}.flip
  %{name}.nan = icmp ugt {key} %{name}.magnitude, {infinity}
  %{name}.key = select i1 %{name}.nan, {key} -1, {key} %{name}.number"""
