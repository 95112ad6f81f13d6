; The first part of the extension: the structures of CPython and NumPy, and arrays whose memory is used again.
; `extension.py` says what each name stands for, loads this, and tests that the structures below are those of the running
; interpreter.
;
; All of it runs while the interpreter's lock is held, so nothing here needs a lock of its own. No address is written
; here: the linker fills them in.

; ---------------------------------------------------------------- Python and NumPy

%Object = type { i64, ptr }                                     ; references, type
%Array = type { %Object, ptr, i32, ptr, ptr, ptr, ptr, i32 }    ; data, dimensions, shape, strides, base, element, flags
%Method = type { ptr, ptr, i32, ptr }                           ; name, function, convention, documentation

@array_type = external global %Object
@uint8 = external global %Object
@none = external global %Object

declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)
declare ptr @PyCapsule_New(ptr, ptr, ptr)
declare ptr @PyCapsule_GetPointer(ptr, ptr)
declare ptr @PyLong_FromSsize_t(i64)
declare i64 @PyLong_AsSsize_t(ptr)
declare ptr @PyObject_CallFunctionObjArgs(ptr, ...)
declare ptr @PyArray_NewFromDescr(ptr, ptr, i32, ptr, ptr, ptr, i32, ptr)
declare i32 @PyArray_SetBaseObject(ptr, ptr)
declare i64 @llvm.ctlz.i64(i64, i1)
declare i64 @llvm.umax.i64(i64, i64)

@dispatch.name = private constant [9 x i8] c"dispatch\00"
@allocate.name = private constant [9 x i8] c"allocate\00"
@release.name = private constant [8 x i8] c"release\00"

; Conventions: METH_FASTCALL, METH_O, METH_NOARGS.
@methods = global [3 x %Method] [
  %Method { ptr @dispatch.name, ptr @dispatch, i32 128, ptr null },
  %Method { ptr @allocate.name, ptr @allocate, i32 8, ptr null },
  %Method { ptr @release.name, ptr @release, i32 4, ptr null }
]

; ---------------------------------------------------------------- memory that is used again

; A block is a head of 64 bytes and the memory that follows it. Free blocks are linked by size: sizes go up in steps of
; an eighth of a power of two, in lines of 64 bytes.
%Block = type { ptr, i64, i64, ptr }          ; next free one, number of its size, bytes, the array that owns the memory
%Pool = type { i64, i64, [512 x ptr] }        ; most bytes to keep free, bytes that are free, free blocks of each size

@pool = external global %Pool
@new_block = external global %Object          ; a Python function: bytes -> array that begins with the head of a block
@block.name = private constant [15 x i8] c"intarsia block\00"

; A block of at least so many bytes; null, with an exception set, where there is no more memory.
define internal ptr @take(i64 %bytes) {
entry:
  %at.least = call i64 @llvm.umax.i64(i64 %bytes, i64 1)
  %padded = add i64 %at.least, 63
  %lines = lshr i64 %padded, 6
  %zeros = call i64 @llvm.ctlz.i64(i64 %lines, i1 false)
  %exponent = sub i64 63, %zeros
  %large = icmp ugt i64 %exponent, 3
  %above = sub i64 %exponent, 3
  %shift = select i1 %large, i64 %above, i64 0
  %unit = shl i64 1, %shift
  %rest = sub i64 %unit, 1
  %raised = add i64 %lines, %rest
  %units = lshr i64 %raised, %shift                              ; up to 16 of them
  %eights = shl i64 %shift, 3
  %number = add i64 %eights, %units
  %rounded.lines = shl i64 %units, %shift
  %rounded = shl i64 %rounded.lines, 6
  %head = getelementptr %Pool, ptr @pool, i32 0, i32 2, i64 %number
  %block = load ptr, ptr %head
  %empty = icmp eq ptr %block, null
  br i1 %empty, label %allocate, label %reuse

reuse:
  %next.field = getelementptr %Block, ptr %block, i32 0, i32 0
  %next = load ptr, ptr %next.field
  store ptr %next, ptr %head
  %free.field = getelementptr %Pool, ptr @pool, i32 0, i32 1
  %free = load i64, ptr %free.field
  %left = sub i64 %free, %rounded
  store i64 %left, ptr %free.field
  ret ptr %block

allocate:
  %integer = call ptr @PyLong_FromSsize_t(i64 %rounded)
  %no.integer = icmp eq ptr %integer, null
  br i1 %no.integer, label %failed, label %ask

ask:
  %owner = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr @new_block, ptr %integer, ptr null)
  call void @Py_DecRef(ptr %integer)
  %no.owner = icmp eq ptr %owner, null
  br i1 %no.owner, label %failed, label %made

made:
  %data.field = getelementptr %Array, ptr %owner, i32 0, i32 1
  %new = load ptr, ptr %data.field
  %number.field = getelementptr %Block, ptr %new, i32 0, i32 1
  store i64 %number, ptr %number.field
  %bytes.field = getelementptr %Block, ptr %new, i32 0, i32 2
  store i64 %rounded, ptr %bytes.field
  %owner.field = getelementptr %Block, ptr %new, i32 0, i32 3
  store ptr %owner, ptr %owner.field
  ret ptr %new

failed:
  ret ptr null
}

; Keep a block for later use. Where that would be more than the pool may keep, all that is free goes back to the system.
define internal void @give(ptr %block) {
entry:
  %bytes.field = getelementptr %Block, ptr %block, i32 0, i32 2
  %bytes = load i64, ptr %bytes.field
  %free.field = getelementptr %Pool, ptr @pool, i32 0, i32 1
  %free = load i64, ptr %free.field
  %limit = load i64, ptr @pool
  %total = add i64 %free, %bytes
  %too.much = icmp ugt i64 %total, %limit
  br i1 %too.much, label %clear, label %keep

clear:
  call void @clear()
  %alone.too.much = icmp ugt i64 %bytes, %limit
  br i1 %alone.too.much, label %drop, label %keep

drop:
  call void @drop(ptr %block)
  ret void

keep:
  %before = load i64, ptr %free.field
  %now = add i64 %before, %bytes
  store i64 %now, ptr %free.field
  %number.field = getelementptr %Block, ptr %block, i32 0, i32 1
  %number = load i64, ptr %number.field
  %head = getelementptr %Pool, ptr @pool, i32 0, i32 2, i64 %number
  %next = load ptr, ptr %head
  %next.field = getelementptr %Block, ptr %block, i32 0, i32 0
  store ptr %next, ptr %next.field
  store ptr %block, ptr %head
  ret void
}

; Give the memory of a block back to NumPy's allocator.
define internal void @drop(ptr %block) {
  %owner.field = getelementptr %Block, ptr %block, i32 0, i32 3
  %owner = load ptr, ptr %owner.field
  call void @Py_DecRef(ptr %owner)
  ret void
}

; Drop every free block.
define internal void @clear() {
entry:
  br label %size

size:
  %number = phi i64 [ 0, %entry ], [ %following, %next.size ]
  %head = getelementptr %Pool, ptr @pool, i32 0, i32 2, i64 %number
  br label %first

first:
  %block = load ptr, ptr %head
  %none = icmp eq ptr %block, null
  br i1 %none, label %next.size, label %one

one:
  %next.field = getelementptr %Block, ptr %block, i32 0, i32 0
  %next = load ptr, ptr %next.field
  store ptr %next, ptr %head
  %bytes.field = getelementptr %Block, ptr %block, i32 0, i32 2
  %bytes = load i64, ptr %bytes.field
  %free.field = getelementptr %Pool, ptr @pool, i32 0, i32 1
  %free = load i64, ptr %free.field
  %left = sub i64 %free, %bytes
  store i64 %left, ptr %free.field
  call void @drop(ptr %block)
  br label %first

next.size:
  %following = add i64 %number, 1
  %more = icmp ult i64 %following, 512
  br i1 %more, label %size, label %done

done:
  ret void
}

; The end of a capsule, which is the base of an array in a block: the array and its views are gone.
define internal void @end_of_capsule(ptr %capsule) {
  %block = call ptr @PyCapsule_GetPointer(ptr %capsule, ptr @block.name)
  call void @give(ptr %block)
  ret void
}

; An array in the memory of a block, which goes back to the pool with the last view of it; null, with an exception set.
define internal ptr @array_in(ptr %block, ptr %element, i32 %dimensions, ptr %shape) {
entry:
  %data = getelementptr i8, ptr %block, i64 64
  call void @Py_IncRef(ptr %element)                             ; the constructor takes a reference over
  ; 0x501: C-contiguous, aligned, writeable
  %array = call ptr @PyArray_NewFromDescr(ptr @array_type, ptr %element, i32 %dimensions, ptr %shape, ptr null, ptr %data, i32 1281, ptr null)
  %no.array = icmp eq ptr %array, null
  br i1 %no.array, label %no.owner, label %own

own:
  %capsule = call ptr @PyCapsule_New(ptr %block, ptr @block.name, ptr @end_of_capsule)
  %no.capsule = icmp eq ptr %capsule, null
  br i1 %no.capsule, label %no.owner.drop, label %attach

attach:
  %status = call i32 @PyArray_SetBaseObject(ptr %array, ptr %capsule)
  %attached = icmp eq i32 %status, 0
  br i1 %attached, label %done, label %not.attached

done:
  ret ptr %array

no.owner.drop:
  call void @Py_DecRef(ptr %array)
  br label %no.owner

no.owner:
  call void @give(ptr %block)
  ret ptr null

not.attached:                                                    ; the capsule is gone, and has given the block back
  call void @Py_DecRef(ptr %array)
  ret ptr null
}

; allocate(bytes): an array of at least so many bytes, in a block.
define internal ptr @allocate(ptr %self, ptr %argument) {
entry:
  %bytes = call i64 @PyLong_AsSsize_t(ptr %argument)
  %negative = icmp slt i64 %bytes, 0
  br i1 %negative, label %failed, label %go

go:
  %block = call ptr @take(i64 %bytes)
  %no.block = icmp eq ptr %block, null
  br i1 %no.block, label %failed, label %made

made:
  %shape = getelementptr %Block, ptr %block, i32 0, i32 2
  %array = call ptr @array_in(ptr %block, ptr @uint8, i32 1, ptr %shape)
  ret ptr %array

failed:
  ret ptr null
}

; release(): drop every free block.
define internal ptr @release(ptr %self, ptr %unused) {
  call void @clear()
  call void @Py_IncRef(ptr @none)
  ret ptr @none
}
