; The second part of the extension, which follows the first in one module: a function object that checks the arguments of
; a call and makes it. The interpreter's lock is held throughout, but for the compiled program in @run.

@float_type = external global %Object
@int_type = external global %Object
@not_implemented = external global %Object
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare i64 @PyLong_AsLongLongAndOverflow(ptr, ptr)
declare double @PyFloat_AsDouble(ptr)
declare ptr @PyTuple_GetItem(ptr, i64)
declare ptr @PyTuple_New(i64)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare i64 @llvm.abs.i64(i64, i1)
declare double @llvm.fabs.f64(double)
declare float @llvm.fabs.f32(float)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; A call that was made before, and what the arguments must be for it to be made again. `dispatch.py` fills these in.
%Call = type {
  ptr,        ;  0 the entry function, as ir/plan.py has it
  i64,        ;  1 bytes of its workspace
  ptr,        ;  2 its sizes
  i64,        ;  3 its inputs: how many
  ptr,        ;  4    their addresses, where bound; those of arguments are filled in
  i64,        ;  5 arguments: how many
  ptr,        ;  6    %Tensor of each
  i64,        ;  7 results: how many
  ptr,        ;  8    %Tensor of each
  i64         ;  9 whether other threads of Python may run meanwhile
}
; For an argument the number is the place among the inputs, for a result the bytes to take from the pool, or 0. The kind
; is 0 for an array, else one of Python's numbers: 1 a float for f64, 2 for f32, 3 an int for i64, 4 for i32, 5 for f64,
; 6 for f32.
%Tensor = type { ptr, i64, ptr, i64, i64 }    ; element type, dimensions, shape, number, kind

; dispatch(*arguments), where `self` is a tuple whose first item is an array of the addresses of calls, null at the end:
; makes the first call that the arguments fit; NotImplemented where there is none, and where the call failed.
define internal ptr @dispatch(ptr %self, ptr %arguments, i64 %count) {
entry:
  %table = call ptr @PyTuple_GetItem(ptr %self, i64 0)
  %table.field = getelementptr %Array, ptr %table, i32 0, i32 1
  %calls = load ptr, ptr %table.field
  %numbers = alloca i64, i64 %count
  br label %look

look:
  %place = phi ptr [ %calls, %entry ], [ %next, %compare ]
  %call = load ptr, ptr %place
  %next = getelementptr ptr, ptr %place, i64 1
  %end = icmp eq ptr %call, null
  br i1 %end, label %none, label %compare

compare:
  %fits = call i1 @fits(ptr %call, ptr %arguments, i64 %count, ptr %numbers)
  br i1 %fits, label %found, label %look

found:
  %result = call ptr @run(ptr %call, ptr %arguments, ptr %numbers)
  ret ptr %result

none:
  call void @Py_IncRef(ptr @not_implemented)
  ret ptr @not_implemented
}

; Are these exactly the arguments that a call is for: arrays of NumPy, dense, of these element types and shapes, and
; numbers that its parameters hold? Numbers are stored at their places in %numbers.
define internal i1 @fits(ptr %call, ptr %arguments, i64 %count, ptr %numbers) {
entry:
  %count.field = getelementptr %Call, ptr %call, i32 0, i32 5
  %wanted.count = load i64, ptr %count.field
  %as.many = icmp eq i64 %count, %wanted.count
  %tensors.field = getelementptr %Call, ptr %call, i32 0, i32 6
  %tensors = load ptr, ptr %tensors.field
  br i1 %as.many, label %argument, label %no

argument:
  %i = phi i64 [ 0, %entry ], [ %i.next, %last.size ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %one, label %yes

one:
  %argument.field = getelementptr ptr, ptr %arguments, i64 %i
  %array = load ptr, ptr %argument.field
  %kind.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 4
  %kind = load i64, ptr %kind.field
  %wants.array = icmp eq i64 %kind, 0
  br i1 %wants.array, label %type, label %number

number:
  %number.place = getelementptr i64, ptr %numbers, i64 %i
  %held = call i1 @convert(ptr %array, i64 %kind, ptr %number.place)
  br i1 %held, label %last.size, label %no

type:
  %type.field = getelementptr %Object, ptr %array, i32 0, i32 1
  %type.found = load ptr, ptr %type.field
  %is.array = icmp eq ptr %type.found, @array_type
  br i1 %is.array, label %element, label %no

element:
  %element.field = getelementptr %Array, ptr %array, i32 0, i32 6
  %element.found = load ptr, ptr %element.field
  %element.wanted.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 0
  %element.wanted = load ptr, ptr %element.wanted.field
  %same.element = icmp eq ptr %element.found, %element.wanted
  br i1 %same.element, label %dimensions, label %no

dimensions:
  %dimensions.field = getelementptr %Array, ptr %array, i32 0, i32 2
  %dimensions.found = load i32, ptr %dimensions.field
  %dimensions.long = zext i32 %dimensions.found to i64
  %dimensions.wanted.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 1
  %dimensions.wanted = load i64, ptr %dimensions.wanted.field
  %same.dimensions = icmp eq i64 %dimensions.long, %dimensions.wanted
  br i1 %same.dimensions, label %dense, label %no

dense:                                                           ; 0x101: C-contiguous, aligned
  %flags.field = getelementptr %Array, ptr %array, i32 0, i32 7
  %flags = load i32, ptr %flags.field
  %density = and i32 %flags, 257
  %is.dense = icmp eq i32 %density, 257
  %shape.field = getelementptr %Array, ptr %array, i32 0, i32 3
  %shape = load ptr, ptr %shape.field
  %shape.wanted.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 2
  %shape.wanted = load ptr, ptr %shape.wanted.field
  br i1 %is.dense, label %size, label %no

size:
  %d = phi i64 [ 0, %dense ], [ %d.next, %same.size ]
  %sized = icmp ult i64 %d, %dimensions.wanted
  br i1 %sized, label %same.size, label %last.size

same.size:
  %size.field = getelementptr i64, ptr %shape, i64 %d
  %size.found = load i64, ptr %size.field
  %size.wanted.field = getelementptr i64, ptr %shape.wanted, i64 %d
  %size.wanted = load i64, ptr %size.wanted.field
  %d.next = add i64 %d, 1
  %equal = icmp eq i64 %size.found, %size.wanted
  br i1 %equal, label %size, label %no

last.size:
  %i.next = add i64 %i, 1
  br label %argument

yes:
  ret i1 true

no:
  ret i1 false
}

; Store one of Python's numbers as an element of the type that a kind of %Tensor says; false where it is none or does
; not fit. An int is taken for a float only where it is small enough for every float to hold it.
define internal i1 @convert(ptr %object, i64 %kind, ptr %place) {
entry:
  %overflow = alloca i32
  %type.field = getelementptr %Object, ptr %object, i32 0, i32 1
  %type = load ptr, ptr %type.field
  %is.float = icmp eq ptr %type, @float_type
  %is.int = icmp eq ptr %type, @int_type
  %wants.float = icmp ule i64 %kind, 2
  br i1 %wants.float, label %float, label %int

float:
  br i1 %is.float, label %read.float, label %no

read.float:
  %double = call double @PyFloat_AsDouble(ptr %object)
  %wants.double = icmp eq i64 %kind, 1
  br i1 %wants.double, label %store.double, label %shorten

store.double:
  %stored.double = phi double [ %double, %read.float ], [ %double.of.int, %float.of.int ]
  store double %stored.double, ptr %place
  ret i1 true

shorten:
  %single = fptrunc double %double to float
  %size = call double @llvm.fabs.f64(double %double)
  %finite = fcmp one double %size, 0x7FF0000000000000
  %single.size = call float @llvm.fabs.f32(float %single)
  %became.infinite = fcmp oeq float %single.size, 0x7FF0000000000000
  %lost = and i1 %finite, %became.infinite
  br i1 %lost, label %no, label %store.single

store.single:
  %stored.single = phi float [ %single, %shorten ], [ %single.of.int, %float.of.int ]
  store float %stored.single, ptr %place
  ret i1 true

int:
  br i1 %is.int, label %read.int, label %no

read.int:
  %long = call i64 @PyLong_AsLongLongAndOverflow(ptr %object, ptr %overflow)
  %overflowed = load i32, ptr %overflow
  %fits.long = icmp eq i32 %overflowed, 0
  br i1 %fits.long, label %range, label %no

range:
  switch i64 %kind, label %no [
    i64 3, label %store.long
    i64 4, label %short
    i64 5, label %exact
    i64 6, label %exact
  ]

store.long:
  store i64 %long, ptr %place
  ret i1 true

short:
  %short.int = trunc i64 %long to i32
  %back = sext i32 %short.int to i64
  %fits.short = icmp eq i64 %back, %long
  store i32 %short.int, ptr %place
  ret i1 %fits.short

exact:
  %magnitude = call i64 @llvm.abs.i64(i64 %long, i1 false)
  %small = icmp ule i64 %magnitude, 16777216                     ; 2 ** 24
  br i1 %small, label %float.of.int, label %no

float.of.int:
  %double.of.int = sitofp i64 %long to double
  %single.of.int = sitofp i64 %long to float
  %to.double = icmp eq i64 %kind, 5
  br i1 %to.double, label %store.double, label %store.single

no:
  ret i1 false
}

; A new array for a result: small ones in NumPy's memory, which it keeps at hand, others in a block.
define internal ptr @new_result(ptr %tensor) {
entry:
  %element = load ptr, ptr %tensor
  %dimensions.field = getelementptr %Tensor, ptr %tensor, i32 0, i32 1
  %dimensions.long = load i64, ptr %dimensions.field
  %dimensions = trunc i64 %dimensions.long to i32
  %shape.field = getelementptr %Tensor, ptr %tensor, i32 0, i32 2
  %shape = load ptr, ptr %shape.field
  %bytes.field = getelementptr %Tensor, ptr %tensor, i32 0, i32 3
  %bytes = load i64, ptr %bytes.field
  %small = icmp eq i64 %bytes, 0
  br i1 %small, label %from.numpy, label %from.pool

from.numpy:
  call void @Py_IncRef(ptr %element)                             ; the constructor takes a reference over
  %array = call ptr @PyArray_NewFromDescr(ptr @array_type, ptr %element, i32 %dimensions, ptr %shape, ptr null, ptr null, i32 0, ptr null)
  ret ptr %array

from.pool:
  %block = call ptr @take(i64 %bytes)
  %no.block = icmp eq ptr %block, null
  br i1 %no.block, label %failed, label %made

made:
  %pooled = call ptr @array_in(ptr %block, ptr %element, i32 %dimensions, ptr %shape)
  ret ptr %pooled

failed:
  ret ptr null
}

; Make a call on arguments that fit it. Gives the result, or a tuple of several; NotImplemented where the program
; reports a failed check, for the caller to make the call again and to say what was wrong; null where memory ran out.
define internal ptr @run(ptr %call, ptr %arguments, ptr %numbers) {
entry:
  %inputs.count.field = getelementptr %Call, ptr %call, i32 0, i32 3
  %inputs.count = load i64, ptr %inputs.count.field
  %inputs.field = getelementptr %Call, ptr %call, i32 0, i32 4
  %inputs.known = load ptr, ptr %inputs.field
  %inputs.bytes = shl i64 %inputs.count, 3
  %inputs = alloca ptr, i64 %inputs.count
  call void @llvm.memcpy.p0.p0.i64(ptr %inputs, ptr %inputs.known, i64 %inputs.bytes, i1 false)
  %count.field = getelementptr %Call, ptr %call, i32 0, i32 5
  %count = load i64, ptr %count.field
  %tensors.field = getelementptr %Call, ptr %call, i32 0, i32 6
  %tensors = load ptr, ptr %tensors.field
  %results.count.field = getelementptr %Call, ptr %call, i32 0, i32 7
  %results.count = load i64, ptr %results.count.field
  %results.field = getelementptr %Call, ptr %call, i32 0, i32 8
  %results.wanted = load ptr, ptr %results.field
  %results = alloca ptr, i64 %results.count
  %outputs = alloca ptr, i64 %results.count
  %record = alloca [16 x i64]
  call void @llvm.memset.p0.i64(ptr %record, i8 0, i64 128, i1 false)
  br label %argument

argument:
  %i = phi i64 [ 0, %entry ], [ %i.next, %addressed ]
  %more.arguments = icmp ult i64 %i, %count
  br i1 %more.arguments, label %address, label %result

address:
  %argument.field = getelementptr ptr, ptr %arguments, i64 %i
  %array = load ptr, ptr %argument.field
  %kind.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 4
  %kind = load i64, ptr %kind.field
  %is.array = icmp eq i64 %kind, 0
  %data.field = getelementptr %Array, ptr %array, i32 0, i32 1
  %number = getelementptr i64, ptr %numbers, i64 %i
  %place.field = getelementptr %Tensor, ptr %tensors, i64 %i, i32 3
  %place = load i64, ptr %place.field
  %input = getelementptr ptr, ptr %inputs, i64 %place
  br i1 %is.array, label %of.array, label %of.number

of.array:
  %data = load ptr, ptr %data.field
  store ptr %data, ptr %input
  br label %addressed

of.number:
  store ptr %number, ptr %input
  br label %addressed

addressed:
  %i.next = add i64 %i, 1
  br label %argument

result:
  %r = phi i64 [ 0, %argument ], [ %r.next, %made ]
  %more.results = icmp ult i64 %r, %results.count
  br i1 %more.results, label %make, label %workspace

make:
  %wanted = getelementptr %Tensor, ptr %results.wanted, i64 %r
  %new = call ptr @new_result(ptr %wanted)
  %not.made = icmp eq ptr %new, null
  br i1 %not.made, label %failed, label %made

made:
  %result.place = getelementptr ptr, ptr %results, i64 %r
  store ptr %new, ptr %result.place
  %new.data.field = getelementptr %Array, ptr %new, i32 0, i32 1
  %new.data = load ptr, ptr %new.data.field
  %output = getelementptr ptr, ptr %outputs, i64 %r
  store ptr %new.data, ptr %output
  %r.next = add i64 %r, 1
  br label %result

workspace:
  %workspace.field = getelementptr %Call, ptr %call, i32 0, i32 1
  %workspace.bytes = load i64, ptr %workspace.field
  %needs.none = icmp eq i64 %workspace.bytes, 0
  br i1 %needs.none, label %ready, label %take.workspace

take.workspace:
  %block = call ptr @take(i64 %workspace.bytes)
  %no.block = icmp eq ptr %block, null
  br i1 %no.block, label %failed, label %ready

ready:
  %scratch = phi ptr [ null, %workspace ], [ %block, %take.workspace ]
  %scratch.memory = getelementptr i8, ptr %scratch, i64 64
  %entry.function = load ptr, ptr %call
  %sizes.field = getelementptr %Call, ptr %call, i32 0, i32 2
  %sizes = load ptr, ptr %sizes.field
  %let.others.field = getelementptr %Call, ptr %call, i32 0, i32 9
  %let.others = load i64, ptr %let.others.field
  %alone = icmp eq i64 %let.others, 0
  br i1 %alone, label %held, label %released

held:
  %status.held = call i32 %entry.function(ptr %inputs, ptr %outputs, ptr %sizes, ptr %scratch.memory, ptr %record, ptr null)
  br label %ran

released:
  %thread = call ptr @PyEval_SaveThread()
  %status.released = call i32 %entry.function(ptr %inputs, ptr %outputs, ptr %sizes, ptr %scratch.memory, ptr %record, ptr null)
  call void @PyEval_RestoreThread(ptr %thread)
  br label %ran

ran:
  %status = phi i32 [ %status.held, %held ], [ %status.released, %released ]
  %no.scratch = icmp eq ptr %scratch, null
  br i1 %no.scratch, label %checked, label %give.workspace

give.workspace:
  call void @give(ptr %scratch)
  br label %checked

checked:
  %good = icmp eq i32 %status, 0
  br i1 %good, label %return, label %refused

refused:
  call void @drop_references(ptr %results, i64 %results.count)
  call void @Py_IncRef(ptr @not_implemented)
  ret ptr @not_implemented

failed:                                                          ; after %r results were made
  call void @drop_references(ptr %results, i64 %r)
  ret ptr null

return:
  %single = icmp eq i64 %results.count, 1
  br i1 %single, label %one, label %several

one:
  %only = load ptr, ptr %results
  ret ptr %only

several:
  %tuple = call ptr @PyTuple_New(i64 %results.count)
  %no.tuple = icmp eq ptr %tuple, null
  br i1 %no.tuple, label %failed, label %fill

fill:
  %t = phi i64 [ 0, %several ], [ %t.next, %put ]
  %more.items = icmp ult i64 %t, %results.count
  br i1 %more.items, label %put, label %filled

put:
  %item.place = getelementptr ptr, ptr %results, i64 %t
  %item = load ptr, ptr %item.place
  %put.status = call i32 @PyTuple_SetItem(ptr %tuple, i64 %t, ptr %item)
  %t.next = add i64 %t, 1
  br label %fill

filled:
  ret ptr %tuple
}

define internal void @drop_references(ptr %objects, i64 %count) {
entry:
  br label %look

look:
  %i = phi i64 [ 0, %entry ], [ %next, %drop ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %drop, label %done

drop:
  %place = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %place
  call void @Py_DecRef(ptr %object)
  %next = add i64 %i, 1
  br label %look

done:
  ret void
}
