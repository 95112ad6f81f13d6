; Where helpers run, on Linux: anywhere but on the core of the thread that they help. The scheduler often puts a thread
; that is woken on the core of the one that wakes it, to wait there until that has done all the work by itself.

@core = internal global i32 -1                ; that the helpers keep away from
@placed = internal global i64 0               ; how many of them do

declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @pthread_setaffinity_np(i64, i64, ptr)

; Keep so many helpers away from the core that this thread runs on. The team is busy.
define internal void @place(i64 %wanted) {
entry:
  %mask = alloca [16 x i64], align 16                            ; 1024 cores; larger systems leave helpers as they are
  %core = call i32 @sched_getcpu()
  %before = load i32, ptr @core
  %same = icmp eq i32 %core, %before
  %placed = load i64, ptr @placed
  %enough = icmp ule i64 %wanted, %placed
  %settled = and i1 %same, %enough
  %unknown = icmp ugt i32 %core, 1023
  %leave = or i1 %settled, %unknown
  br i1 %leave, label %done, label %look

look:
  %bytes = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mask)
  %failed = icmp slt i32 %bytes, 0
  br i1 %failed, label %done, label %remove

remove:
  %long = zext i32 %core to i64
  %word = lshr i64 %long, 6
  %bit = and i64 %long, 63
  %one = shl i64 1, %bit
  %others = xor i64 %one, -1
  %place = getelementptr i64, ptr %mask, i64 %word
  %cores = load i64, ptr %place
  %rest = and i64 %cores, %others
  store i64 %rest, ptr %place
  store i32 %core, ptr @core
  store i64 %wanted, ptr @placed
  br label %helper

helper:
  %i = phi i64 [ 0, %remove ], [ %next, %set ]
  %more = icmp ult i64 %i, %wanted
  br i1 %more, label %set, label %done

set:                                                             ; refused where no core would be left
  %handle.place = getelementptr [1023 x i64], ptr @handles, i64 0, i64 %i
  %handle = load i64, ptr %handle.place
  %ignored = call i32 @pthread_setaffinity_np(i64 %handle, i64 128, ptr %mask)
  %next = add i64 %i, 1
  br label %helper

done:
  ret void
}
