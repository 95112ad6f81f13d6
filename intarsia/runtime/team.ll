; The threads that share the parallel loops of compiled programs. `team.py` says why they are not OpenMP's, and puts
; what differs between systems in place of the words in capitals.
;
; One team works on one job at a time. The thread that calls @team_parallel opens the job, takes part in it, closes it,
; and waits for those helpers that have joined: one that comes late finds the job closed and never sees its data. So a
; helper that the system lets sleep, or whose core is taken by another process, holds nobody up.

@busy = internal global i32 0                 ; 1 while a job is under way
; A number that goes up by one when a job is opened and by one more when it is closed, so that it is odd in between,
; times 65536; and how many helpers have joined the job.
@job = internal global i64 0
@body = internal global ptr null
@data = internal global ptr null
@room = internal global i64 0                 ; how many helpers may join
@finished = internal global i64 0             ; how many of them are done
@helpers = internal global i64 0              ; how many there are
@sleeping = internal global i64 0             ; how many of them wait for a signal
@handles = internal global [1023 x i64] zeroinitializer
@lock = internal global [128 x i8] zeroinitializer, align 64
@signal = internal global [128 x i8] zeroinitializer, align 64

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @sched_yield()
declare i32 @sigfillset(ptr)
declare i32 @sigdelset(ptr, i32)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i64 @llvm.umin.i64(i64, i64)

; As OpenMP's GOMP_parallel: runs the body on up to so many threads, this one among them; the body shares out the work.
define void @team_parallel(ptr %body, ptr %data, i32 %threads, i32 %flags) {
entry:
  %was.busy = atomicrmw xchg ptr @busy, i32 1 acquire
  %other.job = icmp ne i32 %was.busy, 0
  br i1 %other.job, label %alone, label %prepare

alone:                                        ; another thread of Python has the team
  call void %body(ptr %data)
  ret void

prepare:
  %threads.long = zext i32 %threads to i64
  %more = sub i64 %threads.long, 1
  %wanted = call i64 @llvm.umin.i64(i64 %more, i64 1023)
  %hired = call i64 @hire(i64 %wanted)
  call void @place(i64 %hired)
  store atomic i64 %wanted, ptr @room monotonic, align 8
  store ptr %body, ptr @body
  store ptr %data, ptr @data
  store i64 0, ptr @finished
  %before = load i64, ptr @job
  %opened = add i64 %before, 65536
  store atomic i64 %opened, ptr @job seq_cst, align 8
  %asleep = load atomic i64, ptr @sleeping seq_cst, align 8
  %to.wake = call i64 @llvm.umin.i64(i64 %asleep, i64 %wanted)
  call void @wake(i64 %to.wake)
  call void %body(ptr %data)
  %unjoined = and i64 %opened, -65536
  %closed = add i64 %unjoined, 65536
  %last = atomicrmw xchg ptr @job, i64 %closed acq_rel
  %joined = and i64 %last, 65535
  br label %wait

wait:
  %turn = phi i64 [ 0, %prepare ], [ %next.turn, %again ]
  %done = load atomic i64, ptr @finished acquire, align 8
  %all.done = icmp eq i64 %done, %joined
  br i1 %all.done, label %end, label %not.yet

not.yet:
  %next.turn = add i64 %turn, 1
  %patient = icmp ult i64 %turn, 1000
  br i1 %patient, label %pause, label %yield

pause:
  call void asm sideeffect "PAUSE", "~{memory}"()
  br label %again

yield:                                        ; the helper may wait for this very core
  %ignored = call i32 @sched_yield()
  br label %again

again:
  br label %wait

end:
  store atomic i32 0, ptr @busy release, align 4
  ret void
}

; Have at least so many helpers, if the system allows it; gives how many of the wanted there are. The team is busy.
define internal i64 @hire(i64 %wanted) {
entry:
  %there = load i64, ptr @helpers
  %first = icmp eq i64 %there, 0
  br i1 %first, label %initialise, label %count

initialise:
  %lock.status = call i32 @pthread_mutex_init(ptr @lock, ptr null)
  %signal.status = call i32 @pthread_cond_init(ptr @signal, ptr null)
  br label %count

count:
  %number = load i64, ptr @helpers
  %enough = icmp uge i64 %number, %wanted
  br i1 %enough, label %done, label %one

one:
  %handle = getelementptr [1023 x i64], ptr @handles, i64 0, i64 %number
  %status = call i32 @pthread_create(ptr %handle, ptr null, ptr @help, ptr null)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %done, label %hired

hired:
  %thread = load i64, ptr %handle
  %detached = call i32 @pthread_detach(i64 %thread)
  %larger = add i64 %number, 1
  store i64 %larger, ptr @helpers
  br label %count

done:
  %found = load i64, ptr @helpers
  %usable = call i64 @llvm.umin.i64(i64 %found, i64 %wanted)
  ret i64 %usable
}

; Wake so many helpers that sleep.
define internal void @wake(i64 %count) {
entry:
  %nobody = icmp eq i64 %count, 0
  br i1 %nobody, label %done, label %begin

begin:
  %locked = call i32 @pthread_mutex_lock(ptr @lock)
  br label %one

one:
  %i = phi i64 [ 0, %begin ], [ %next, %one ]
  %signalled = call i32 @pthread_cond_signal(ptr @signal)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %one, label %unlock

unlock:
  %unlocked = call i32 @pthread_mutex_unlock(ptr @lock)
  br label %done

done:
  ret void
}

; May a helper that took part in the job of number %last join the job that @job describes?
define internal i1 @is_open(i64 %job, i64 %last) {
  %number = lshr i64 %job, 16
  %odd = and i64 %number, 1
  %open = icmp eq i64 %odd, 1
  %new = icmp ne i64 %number, %last
  %joined = and i64 %job, 65535
  %room = load atomic i64, ptr @room monotonic, align 8
  %has.room = icmp ult i64 %joined, %room
  %open.new = and i1 %open, %new
  %may = and i1 %open.new, %has.room
  ret i1 %may
}

; Leave signals to Python's threads, whose sleeping calls they have to end; but for faults, which are a thread's own.
define internal void @leave_signals() {
  %set = alloca [128 x i8], align 16
  %filled = call i32 @sigfillset(ptr %set)
  %access = call i32 @sigdelset(ptr %set, i32 SIGSEGV)
  %bus = call i32 @sigdelset(ptr %set, i32 SIGBUS)
  %illegal = call i32 @sigdelset(ptr %set, i32 SIGILL)
  %arithmetic = call i32 @sigdelset(ptr %set, i32 SIGFPE)
  %masked = call i32 @pthread_sigmask(i32 SIG_BLOCK, ptr %set, ptr null)
  ret void
}

; The life of a helper: look for a job for a while, then sleep until there is one.
define internal ptr @help(ptr %unused) {
entry:
  call void @leave_signals()
  br label %look

look:
  %last = phi i64 [ 0, %entry ], [ %last, %pause ], [ %last, %join ], [ %number, %work ], [ %last, %slept ]
  %turn = phi i64 [ 0, %entry ], [ %next.turn, %pause ], [ 0, %join ], [ 0, %work ], [ 0, %slept ]
  %job = load atomic i64, ptr @job acquire, align 8
  %may = call i1 @is_open(i64 %job, i64 %last)
  br i1 %may, label %join, label %none

join:
  %joined = add i64 %job, 1
  %exchange = cmpxchg ptr @job, i64 %job, i64 %joined acq_rel monotonic
  %success = extractvalue { i64, i1 } %exchange, 1
  br i1 %success, label %work, label %look

work:
  %number = lshr i64 %job, 16
  %body = load ptr, ptr @body
  %data = load ptr, ptr @data
  call void %body(ptr %data)
  %ignored = atomicrmw add ptr @finished, i64 1 release
  br label %look

none:
  %next.turn = add i64 %turn, 1
  %patient = icmp ult i64 %turn, 10000
  br i1 %patient, label %pause, label %sleep

pause:
  call void asm sideeffect "PAUSE", "~{memory}"()
  br label %look

sleep:
  %locked = call i32 @pthread_mutex_lock(ptr @lock)
  %one.more = atomicrmw add ptr @sleeping, i64 1 seq_cst
  br label %check

check:
  %now = load atomic i64, ptr @job seq_cst, align 8
  %awake = call i1 @is_open(i64 %now, i64 %last)
  br i1 %awake, label %slept, label %wait

wait:
  %waited = call i32 @pthread_cond_wait(ptr @signal, ptr @lock)
  br label %check

slept:
  %one.less = atomicrmw sub ptr @sleeping, i64 1 seq_cst
  %unlocked = call i32 @pthread_mutex_unlock(ptr @lock)
  br label %look
}
