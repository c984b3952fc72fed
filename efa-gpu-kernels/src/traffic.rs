//! Kernels that post a list of jobs, and record what completes and what arrives. One launch posts and completes one
//! list.
//!
//! Request ids are the jobs' numbers, so that 16 bits tell them apart: a list has at most 65536.

use bytemuck::{Pod, Zeroable};
use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{
    CompletionQueue, Entry, PostError, RecvQueue, SharedSendQueue, ThreadSendQueue, TimedOut, TimeoutReport,
    WarpSendQueue, Watchdog, WatchdogHandle, kernel, thread,
};
use efa_io::op::{Bufs, OpCode};
use efa_io::{
    CompletionRingHandle, Destination, Event, Hints, Lkey, LocalBuf, Operation, RdmaRead, RdmaWrite, RecvRingHandle,
    RemoteBuf, Send, SendInline, SendRingHandle, SendWqe, Wqe,
};

/// A request to post.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Job {
    /// One of the constants of this type.
    pub kind: u32,
    /// Immediate data, if the kind has it.
    pub imm: u32,
    /// Bytes.
    pub length: u32,
    /// Key of the local region.
    pub lkey: u32,
    /// Key of the remote region, if the kind has one.
    pub rkey: u32,
    /// Bytes of the first buffer of a send in two. The second follows it in memory.
    pub split: u32,
    /// Address of the first local byte; of an inline message, in memory that the kernel reads.
    pub local: u64,
    /// Address of the first remote byte.
    pub remote: u64,
}

impl Job {
    /// A send.
    pub const SEND: u32 = 0;
    /// A send with immediate.
    pub const SEND_IMM: u32 = 1;
    /// An inline send.
    pub const INLINE: u32 = 2;
    /// A write.
    pub const WRITE: u32 = 3;
    /// A write with immediate.
    pub const WRITE_IMM: u32 = 4;
    /// A read.
    pub const READ: u32 = 5;
    /// Number of kinds.
    pub const KINDS: u32 = 6;
}

/// The argument of a kernel that posts.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Sending {
    /// The queue.
    pub send: SendRingHandle,
    /// The completion queue.
    pub cq: CompletionRingHandle,
    /// The time limit.
    pub watchdog: WatchdogHandle,
    /// Address of the state of a shared queue.
    pub state: u64,
    /// Address of the jobs.
    pub jobs: u64,
    /// Address of a word for each job, zero at first. It becomes the status plus 1 of a completed job, or
    /// [`REFUSED`](Self::REFUSED).
    pub statuses: u64,
    /// Address of a [`Sent`].
    pub outcome: u64,
    /// Number of jobs.
    pub count: u32,
    /// Jobs for a doorbell, if one thread posts.
    pub batch: u32,
    /// Destination: address handle, queue pair.
    pub ah: u32,
    /// See `ah`.
    pub qpn: u32,
    /// Queue key of the destination.
    pub qkey: u32,
    /// Zero.
    pub reserved: u32,
}

impl Sending {
    /// The queue refused the job, which is a failure.
    pub const REFUSED: u32 = 1000;
}

/// The queues' counters at the end of a kernel that posts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Sent {
    /// Requests posted since the ring's creation.
    pub posted: u32,
    /// Completions taken since the queue's creation.
    pub consumed: u32,
}

/// The argument of a kernel that receives.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Receiving {
    /// The queue.
    pub recv: RecvRingHandle,
    /// The completion queue.
    pub cq: CompletionRingHandle,
    /// The time limit.
    pub watchdog: WatchdogHandle,
    /// Address of the first buffer; the others follow.
    pub buffers: u64,
    /// Address of an [`Arrival`] for each message.
    pub arrivals: u64,
    /// Address of a [`Taken`].
    pub outcome: u64,
    /// Key of the buffers' region.
    pub lkey: u32,
    /// Bytes of a buffer.
    pub stride: u32,
    /// Number of messages to receive, and of receives to post.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// A message that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Arrival {
    /// Number of the receive that took it.
    pub receive: u32,
    /// Its status.
    pub status: u32,
    /// Bytes.
    pub length: u32,
    /// Its immediate.
    pub imm: u32,
    /// 1 if there is an immediate.
    pub has_imm: u32,
    /// 1 if it was a write, 0 if a send.
    pub write: u32,
    /// Queue pair that sent it.
    pub src_qpn: u32,
    /// Zero.
    pub reserved: u32,
}

/// The queues' counters at the end of a kernel that receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Taken {
    /// Descriptors rung for, receives posted, and receives completed, all since the ring's creation.
    pub counters: [u32; 3],
    /// Completions taken since the queue's creation.
    pub consumed: u32,
}

impl Job {
    fn local(&self) -> LocalBuf {
        LocalBuf { addr: self.local, lkey: Lkey::new(self.lkey).unwrap_or_default(), length: self.length }
    }

    fn remote(&self) -> RemoteBuf {
        RemoteBuf { addr: self.remote, rkey: self.rkey }
    }

    fn imm(&self) -> Option<u32> {
        matches!(self.kind, Self::SEND_IMM | Self::WRITE_IMM).then_some(self.imm)
    }

    fn is_send(&self) -> bool {
        matches!(self.kind, Self::SEND | Self::SEND_IMM)
    }

    fn is_write(&self) -> bool {
        matches!(self.kind, Self::WRITE | Self::WRITE_IMM)
    }

    /// Returns the job as a send, whatever its kind. An empty send has no buffer.
    fn send(&self) -> Send {
        let first = LocalBuf { length: self.split, ..self.local() };
        let addr = self.local + u64::from(self.split);
        let rest = LocalBuf { addr, length: self.length - self.split, ..self.local() };
        let bufs = if self.split != 0 { Bufs::new(&[first, rest]) } else { Bufs::new(&[rest]) };
        Send { bufs: bufs.unwrap_or_default(), imm: self.imm(), hints: Hints::NONE }
    }

    /// Returns the job as an inline send, empty if it is of another kind.
    fn inline(&self) -> SendInline<'_> {
        let length = if self.kind == Self::INLINE { self.length as usize } else { 0 };
        let data = if length == 0 { core::ptr::dangling() } else { self.local as *const u8 };
        // SAFETY: jobs are read by kernels alone, whose callers promise that an inline message is memory they read.
        SendInline::new(unsafe { core::slice::from_raw_parts(data, length) })
    }

    /// Returns the job as a write, whatever its kind.
    fn write(&self) -> RdmaWrite {
        RdmaWrite { local: self.local(), remote: self.remote(), imm: self.imm(), hints: Hints::NONE }
    }

    /// Returns the job as a read, whatever its kind.
    fn read(&self) -> RdmaRead {
        RdmaRead::new(self.local(), self.remote())
    }
}

impl Sending {
    fn to(&self) -> Destination {
        Destination { ah: self.ah as u16, qpn: self.qpn as u16, qkey: self.qkey }
    }

    /// # Safety
    /// `number` is less than `count`.
    unsafe fn job(&self, number: u32) -> Job {
        // SAFETY: the caller's promise.
        unsafe { *(self.jobs as *const Job).add(number as usize) }
    }

    /// Records the status of the job that this completes.
    fn note(&self, done: &Entry) {
        let Ok(completion) = done.completion() else { return };
        let number = completion.req_id as u32;
        if matches!(completion.event, Event::Send { .. }) && number < self.count {
            // SAFETY: a word of the statuses, of which there are `count`: the promise of the kernel's caller.
            unsafe { *(self.statuses as *mut u32).add(number as usize) = u32::from(done.status().code()) + 1 };
        }
    }

    /// Records that the queue refused job `number`, which exists.
    fn refuse(&self, number: u32) {
        // SAFETY: a word of the statuses, as in `note`.
        unsafe { *(self.statuses as *mut u32).add(number as usize) = Self::REFUSED };
    }

    fn finish(&self, posted: u32, consumed: u32) {
        // SAFETY: the outcome, which is the promise of the kernel's caller.
        unsafe { *(self.outcome as *mut Sent) = Sent { posted, consumed } };
    }
}

/// One thread posts the jobs, in order, `batch` to a doorbell, and takes their completions. After one that failed it
/// posts no more.
///
/// # Safety
/// A single thread, with empty queues of its own; every address is valid for what its field says.
#[kernel]
pub unsafe fn send_by_thread(args: Sending) {
    // SAFETY: the caller's promise.
    unsafe { by_thread::<8>(&args) };
}

/// One thread posts the jobs to a queue with 128-byte WQEs, otherwise as in [`send_by_thread`].
///
/// # Safety
/// As [`send_by_thread`].
#[kernel]
pub unsafe fn send_by_thread_128(args: Sending) {
    // SAFETY: the caller's promise.
    unsafe { by_thread::<16>(&args) };
}

/// # Safety
/// As [`send_by_thread`].
#[inline(always)]
unsafe fn by_thread<const W: usize>(args: &Sending)
where
    Wqe<W>: SendWqe,
    Send: Operation<W>,
    for<'a> SendInline<'a>: Operation<W>,
    RdmaWrite: Operation<W>,
    RdmaRead: Operation<W>,
{
    // SAFETY: the caller's promise.
    let (sq, cq, watchdog) = unsafe {
        (ThreadSendQueue::<W>::new(&args.send), CompletionQueue::new(&args.cq), Watchdog::new(&args.watchdog))
    };
    let (Some(mut sq), Some(mut cq)) = (sq, cq) else { return };
    let (to, deadline) = (args.to(), watchdog.deadline());
    let (mut number, mut failed) = (0, false);
    while number < args.count && !failed {
        let waited = sq.wait_for_room(&mut cq, 1, deadline, |entry| {
            args.note(&entry);
            failed |= !entry.status().is_ok();
            Some(entry)
        });
        if let Err(PostError::TimedOut(waited)) = waited {
            return watchdog.report(waited);
        }
        // SAFETY: `number` is less than `count`.
        let (job, id) = unsafe { (args.job(number), number.into()) };
        let posted = match job.kind {
            Job::SEND | Job::SEND_IMM => sq.post(to, &job.send(), id),
            Job::INLINE => sq.post(to, &job.inline(), id),
            Job::READ => sq.post(to, &job.read(), id),
            _ => sq.post(to, &job.write(), id),
        };
        if posted.is_err() {
            args.refuse(number);
        }
        number += 1;
        if args.batch != 0 && number % args.batch == 0 {
            sq.ring();
        }
    }
    let everything = args.send.credits;
    let waited = sq.wait_for_room(&mut cq, everything, deadline, |entry| {
        args.note(&entry);
        Some(entry)
    });
    if let Err(PostError::TimedOut(waited)) = waited {
        watchdog.report(waited);
    }
    args.finish(sq.posted(), cq.consumed());
}

/// A warp posts the jobs, up to 32 at a time, and takes their completions.
///
/// # Safety
/// As [`send_by_thread`], but for a warp.
#[kernel]
pub unsafe fn send_by_warp(args: Sending) {
    // SAFETY: the caller's promise.
    let (sq, cq, watchdog) =
        unsafe { (WarpSendQueue::<8>::new(&args.send), CompletionQueue::new(&args.cq), Watchdog::new(&args.watchdog)) };
    let (Some(mut sq), Some(mut cq)) = (sq, cq) else { return };
    let (to, deadline) = (args.to(), watchdog.deadline());
    let note = |entry: Option<Entry>| {
        if let Some(entry) = &entry {
            args.note(entry);
        }
        entry
    };
    let mut first = 0;
    while first < args.count {
        if let Err(PostError::TimedOut(waited)) = sq.wait_for_room(&mut cq, warp::LANES, deadline, note) {
            return watchdog.report(waited);
        }
        let number = first + warp::lane_id();
        // SAFETY: it is asked for if `number` is less than `count`.
        let job =
            if number < args.count { unsafe { args.job(number) } } else { Job { kind: Job::KINDS, ..Job::default() } };
        let id = number.into();
        let refused = sq.post(job.is_send().then_some((to, job.send())), id).is_err()
            | sq.post((job.kind == Job::INLINE).then_some((to, job.inline())), id).is_err()
            | sq.post(job.is_write().then_some((to, job.write())), id).is_err()
            | sq.post((job.kind == Job::READ).then_some((to, job.read())), id).is_err();
        if number < args.count && refused {
            args.refuse(number);
        }
        sq.ring();
        first += warp::LANES;
    }
    if let Err(PostError::TimedOut(waited)) = sq.wait_for_room(&mut cq, args.send.credits, deadline, note) {
        watchdog.report(waited);
    }
    if warp::lane_id() == 0 {
        args.finish(sq.posted(), cq.consumed());
    }
}

/// Many warps post the jobs to one queue: all but the last warp of the grid take turns, half of them lane by lane. The
/// last warp takes the completions.
///
/// # Safety
/// Two full warps at least, with empty queues and the queue's state; otherwise as [`send_by_thread`].
#[kernel]
pub unsafe fn send_by_many(args: Sending) {
    // SAFETY: the caller's promise.
    let (sq, watchdog, whole) = unsafe {
        (SharedSendQueue::<8>::new(&args.send, args.state as *mut u32), Watchdog::new(&args.watchdog), Warp::whole())
    };
    let Some(sq) = sq else { return };
    let warps = thread::grid_dim_x() * thread::block_dim_x() / warp::LANES;
    let this = thread::index_1d() / warp::LANES;
    if this + 1 == warps {
        // SAFETY: the caller's promise.
        return unsafe { take_for_many(&args, &sq, &watchdog, whole) };
    }
    let mut first = this * warp::LANES;
    while first < args.count {
        let number = first + warp::lane_id();
        let mut pending = number < args.count;
        // SAFETY: as `pending` says, `number` is less than `count`.
        let job = if pending { unsafe { args.job(number) } } else { Job { kind: Job::KINDS, ..Job::default() } };
        // SAFETY: full warps, and `first` and `count` are the same for all lanes.
        while unsafe { warp::warp_vote_ballot(warp::ALL, pending) } != 0 {
            let answer = if this % 2 == 0 {
                post_together(&sq, whole, &args, &job, number, pending)
            } else if pending {
                post_alone(&sq, &args, &job, number)
            } else {
                Answer::Posted
            };
            if answer == Answer::Refused {
                args.refuse(number);
            }
            pending &= answer == Answer::NoRoom;
            // SAFETY: as above.
            if unsafe { warp::warp_vote_ballot(warp::ALL, watchdog.deadline().passed()) } != 0 {
                let (what, seen) = (TimeoutReport::SEND_ROOM, sq.room());
                return watchdog.report(TimedOut(TimeoutReport {
                    what,
                    number: args.send.qpn.into(),
                    seen,
                    wanted: 1,
                }));
            }
        }
        first += (warps - 1) * warp::LANES;
    }
}

/// The result of posting a lane's job.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Posted,
    NoRoom,
    Refused,
}

impl Answer {
    #[inline(always)]
    fn of(posted: Result<(), PostError>) -> Self {
        match posted {
            Ok(()) => Self::Posted,
            Err(PostError::Full) => Self::NoRoom,
            Err(_) => Self::Refused,
        }
    }
}

/// Posts the jobs of all lanes that have one, kind by kind: there is room for all lanes of a kind, or for none.
#[inline(always)]
fn post_together(
    sq: &SharedSendQueue<8>,
    whole: Warp,
    args: &Sending,
    job: &Job,
    number: u32,
    pending: bool,
) -> Answer {
    let (to, id) = (args.to(), number.into());
    let mut answer = Answer::Posted;
    let mut note = |this_kind: bool, posted: Result<(), PostError>| {
        if this_kind && pending {
            answer = Answer::of(posted);
        }
    };
    let [send, write] = [job.is_send(), job.is_write()].map(|kind| kind && pending);
    let [inline, read] = [Job::INLINE, Job::READ].map(|kind| job.kind == kind && pending);
    note(send, sq.post_warp(whole, send.then_some((to, job.send())), id));
    note(inline, sq.post_warp(whole, inline.then_some((to, job.inline())), id));
    note(write, sq.post_warp(whole, write.then_some((to, job.write())), id));
    note(read, sq.post_warp(whole, read.then_some((to, job.read())), id));
    answer
}

/// Posts a job from this lane alone.
#[inline(always)]
fn post_alone(sq: &SharedSendQueue<8>, args: &Sending, job: &Job, number: u32) -> Answer {
    let (to, id) = (args.to(), number.into());
    Answer::of(match job.kind {
        Job::SEND | Job::SEND_IMM => sq.post(to, &job.send(), id),
        Job::INLINE => sq.post(to, &job.inline(), id),
        Job::READ => sq.post(to, &job.read(), id),
        _ => sq.post(to, &job.write(), id),
    })
}

/// Takes the completions of all jobs.
///
/// # Safety
/// As [`send_by_many`].
#[inline(always)]
unsafe fn take_for_many(args: &Sending, sq: &SharedSendQueue<8>, watchdog: &Watchdog, whole: Warp) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&args.cq) }) else { return };
    let mut taken = 0;
    while taken < args.count {
        let entry = cq.poll_warp(whole);
        if let Some(entry) = &entry {
            args.note(entry);
        }
        // SAFETY: a full warp, for which `taken` is the same.
        let fresh = unsafe { warp::warp_vote_ballot(warp::ALL, entry.is_some()) }.count_ones();
        sq.release_warp(whole, entry);
        taken += fresh;
        // SAFETY: as above.
        if fresh == 0 && unsafe { warp::warp_vote_ballot(warp::ALL, watchdog.deadline().passed()) } != 0 {
            let (what, seen) = (TimeoutReport::COMPLETION, cq.consumed());
            watchdog.report(TimedOut(TimeoutReport { what, number: 0, seen, wanted: seen + 1 }));
            break;
        }
    }
    if warp::lane_id() == 0 {
        args.finish(sq.posted(), cq.consumed());
    }
}

/// One thread posts receives, and waits for as many messages.
///
/// # Safety
/// A single thread, with empty queues of its own; every address is valid for what its field says.
#[kernel]
pub unsafe fn receive(args: Receiving) {
    // SAFETY: the caller's promise.
    let (mut rq, cq, watchdog) =
        unsafe { (RecvQueue::new(&args.recv), CompletionQueue::new(&args.cq), Watchdog::new(&args.watchdog)) };
    let Some(mut cq) = cq else { return };
    let lkey = Lkey::new(args.lkey).unwrap_or_default();
    let mut number = 0;
    while number < args.count {
        let addr = args.buffers + u64::from(number) * u64::from(args.stride);
        if rq.post(&[LocalBuf { addr, lkey, length: args.stride }], number as u16).is_err() {
            break;
        }
        number += 1;
    }
    rq.ring();
    let mut taken = 0;
    while taken < number {
        let entry = match cq.wait(watchdog.deadline()) {
            Ok(entry) => entry,
            Err(waited) => {
                watchdog.report(waited);
                break;
            }
        };
        if let Ok(completion) = entry.completion()
            && let Event::Receive(message) = completion.event
        {
            let arrival = Arrival {
                receive: completion.req_id as u32,
                status: entry.status().code().into(),
                length: message.length,
                imm: message.imm.unwrap_or(0),
                has_imm: message.imm.is_some().into(),
                write: (message.op == OpCode::RdmaWrite).into(),
                src_qpn: message.src_qpn.into(),
                reserved: 0,
            };
            // SAFETY: the caller's promise; `taken` is less than `count`.
            unsafe { *(args.arrivals as *mut Arrival).add(taken as usize) = arrival };
        }
        rq.release(entry);
        taken += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { *(args.outcome as *mut Taken) = Taken { counters: rq.counters(), consumed: cq.consumed() } };
}
