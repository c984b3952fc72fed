//! Kernels that measure how long posting and polling take.
//!
//! No device is behind the rings, so the kernels release requests without a completion. The host must give them rings
//! that may be overwritten.

use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{
    CompletionQueue, SharedSendQueue, ThreadSendQueue, WarpSendQueue, globaltimer, kernel, mem, thread,
};
use efa_io::{CompletionRingHandle, Destination, Hints, Lkey, LocalBuf, RdmaWrite, RemoteBuf, SendRingHandle};

/// The requests to post and their destination, as a host passes them to a kernel.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Work {
    /// Destination: address handle, queue pair, qkey.
    pub ah: u32,
    /// See `ah`.
    pub qpn: u32,
    /// See `ah`.
    pub qkey: u32,
    /// Keys of the two regions.
    pub lkey: u32,
    /// See `lkey`.
    pub rkey: u32,
    /// Bytes of a write.
    pub length: u32,
    /// Address of the first write's source; the next ones' are 64 bytes on each.
    pub local: u64,
    /// Address of the first write's target, likewise.
    pub remote: u64,
}

impl Work {
    #[inline(always)]
    fn to(&self) -> Destination {
        Destination { ah: self.ah as u16, qpn: self.qpn as u16, qkey: self.qkey }
    }

    /// Returns request `i`, which differs from its neighbours, so that the compiler cannot compute it once for all.
    #[inline(always)]
    fn request(&self, i: u32) -> RdmaWrite {
        let at = u64::from(i) * 64;
        let lkey = Lkey::new(self.lkey).unwrap_or_default();
        let local = LocalBuf { addr: self.local + at, lkey, length: self.length };
        let remote = RemoteBuf { addr: self.remote + at, rkey: self.rkey };
        RdmaWrite { local, remote, imm: None, hints: Hints::NONE }
    }
}

/// One thread posts `count` writes, `batch` to a doorbell. It stores the nanoseconds that this took in `elapsed`.
///
/// # Safety
/// A single thread, with the handle of a queue that is its own and whose ring nobody reads, and valid pointers.
#[kernel]
pub unsafe fn post_thread(handle: SendRingHandle, work: *const Work, count: u32, batch: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { *elapsed = thread_posts(&handle, *work, count, batch, ThreadSendQueue::ring) };
}

/// [`post_thread`] without the fence that the NIC needs.
///
/// # Safety
/// As [`post_thread`].
#[kernel]
pub unsafe fn post_unfenced(handle: SendRingHandle, work: *const Work, count: u32, batch: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise, of which it is a part that nobody reads the ring.
    unsafe { *elapsed = thread_posts(&handle, *work, count, batch, |sq| sq.ring_unfenced()) };
}

/// Posts, and returns the nanoseconds that it took; 0 if a request was refused.
///
/// # Safety
/// As [`post_thread`].
#[inline(always)]
unsafe fn thread_posts(
    handle: &SendRingHandle,
    work: Work,
    count: u32,
    batch: u32,
    ring: impl Fn(&mut ThreadSendQueue<8>),
) -> u64 {
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { ThreadSendQueue::<8>::new(handle) }) else { return 0 };
    let start = globaltimer();
    let (mut i, mut failed) = (0, false);
    while i < count && !failed {
        let posted = sq.post_many(batch, |ahead| {
            // Real requests differ between threads, so the compiler must not know that these do not.
            let number = i + ahead + thread::thread_idx_x();
            (work.to(), work.request(number), u64::from(number))
        });
        failed = posted.is_err();
        i += batch;
        ring(&mut sq);
        // SAFETY: the caller's promise: nobody reads the ring.
        unsafe { sq.forget(batch) };
    }
    if failed { 0 } else { globaltimer() - start }
}

/// One thread posts `count` writes, a doorbell for each. It stores the nanoseconds that this took in `elapsed`.
///
/// # Safety
/// A single thread, with the handle of a queue that is its own and whose ring nobody reads, and valid pointers.
#[kernel]
pub unsafe fn post_one(handle: SendRingHandle, work: *const Work, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let work = unsafe { *work };
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { ThreadSendQueue::<8>::new(&handle) }) else { return };
    let start = globaltimer();
    let (mut i, mut failed) = (0, 0);
    while i < count {
        let number = i + thread::thread_idx_x();
        failed += u32::from(sq.post(work.to(), &work.request(number), number.into()).is_err());
        sq.ring();
        // SAFETY: the caller's promise: nobody reads the ring.
        unsafe { sq.forget(1) };
        i += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed = if failed == 0 { globaltimer() - start } else { 0 } };
}

/// A warp posts `count` writes in each lane, `rounds` of them to a doorbell. It stores the nanoseconds that this took
/// in `elapsed`.
///
/// # Safety
/// One warp, with the handle of a queue that is its own and whose ring nobody reads, and valid pointers.
#[kernel]
pub unsafe fn post_warp(handle: SendRingHandle, work: *const Work, count: u32, rounds: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { warp_posts(&handle, *work, count, rounds, elapsed) };
}

/// Many warps post as in [`post_warp`], each to a queue of its own.
///
/// # Safety
/// One warp in each block, with handles of queues that are its own and whose rings nobody reads, by block, and valid
/// pointers, `elapsed` by block, too.
#[kernel]
pub unsafe fn post_warps(
    handles: *const SendRingHandle,
    work: *const Work,
    count: u32,
    rounds: u32,
    elapsed: *mut u64,
) {
    let block = thread::block_idx_x() as usize;
    // SAFETY: the caller's promise.
    unsafe { warp_posts(&*handles.add(block), *work, count, rounds, elapsed.add(block)) };
}

/// # Safety
/// As [`post_warp`].
#[inline(always)]
unsafe fn warp_posts(handle: &SendRingHandle, work: Work, count: u32, rounds: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { WarpSendQueue::<8>::new(handle) }) else { return };
    let start = globaltimer();
    let (mut i, mut failed) = (0, 0);
    while i < count {
        let posted = sq.post_many(rounds, |ahead| {
            let number = (i + ahead) * warp::LANES + warp::lane_id();
            (work.to(), work.request(number), u64::from(number))
        });
        failed += u32::from(posted.is_err());
        i += rounds;
        sq.ring();
        // SAFETY: the caller's promise: nobody reads the ring.
        unsafe { sq.forget(rounds * warp::LANES) };
    }
    if warp::lane_id() == 0 {
        // SAFETY: the caller's promise.
        unsafe { *elapsed = if failed == 0 { globaltimer() - start } else { 0 } };
    }
}

/// Many warps post `count` writes in each lane to one queue, and store when each began and ended in `times`, by warp.
/// The last block posts nothing: in the place of a poller it releases the room of what is rung for.
///
/// # Safety
/// Full warps, a handle and the state of its queue, which nobody else posts to and whose ring nobody reads, and valid
/// pointers.
#[kernel]
pub unsafe fn post_shared(
    handle: SendRingHandle,
    state: *mut u32,
    work: *const Work,
    count: u32,
    times: *mut [u64; 2],
) {
    // SAFETY: the caller's promise.
    let work = unsafe { *work };
    // SAFETY: the caller's promise.
    let whole = unsafe { Warp::whole() };
    // SAFETY: the caller's promise.
    let Some(sq) = (unsafe { SharedSendQueue::<8>::new(&handle, state) }) else { return };
    let (posters, number) = (thread::grid_dim_x() - 1, thread::index_1d() / warp::LANES);
    if thread::block_idx_x() == posters {
        let mut rung = 0;
        let all = posters * thread::block_dim_x() * count;
        let deadline = efa_gpu_device::Deadline::after(PATIENCE);
        while thread::thread_idx_x() == 0 && rung < all && !deadline.passed() {
            // SAFETY: the caller's promise: nobody reads the ring.
            unsafe { sq.forget(&mut rung) };
        }
        return;
    }
    let deadline = efa_gpu_device::Deadline::after(PATIENCE);
    let start = globaltimer();
    let mut i = 0;
    while i < count {
        let request = (number * count + i) * warp::LANES + warp::lane_id();
        let write = work.request(request);
        while sq.post_warp(whole, Some((work.to(), write)), u64::from(request)).is_err() {
            if deadline.passed() {
                return;
            }
            thread::nanosleep(50);
        }
        i += 1;
    }
    if warp::lane_id() == 0 {
        // SAFETY: the caller's promise.
        unsafe { *times.add(number as usize) = [start, globaltimer()] };
    }
}

/// One thread posts a write and waits for its completion, `count` times. It stores the nanoseconds that this took in
/// `elapsed`.
///
/// # Safety
/// A single thread, with handles of queues that are its own, and valid pointers.
#[kernel]
pub unsafe fn post_and_wait(
    handle: SendRingHandle,
    cq: CompletionRingHandle,
    work: *const Work,
    count: u32,
    elapsed: *mut u64,
) {
    // SAFETY: the caller's promise.
    let work = unsafe { *work };
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { ThreadSendQueue::<8>::new(&handle) }) else { return };
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&cq) }) else { return };
    let deadline = efa_gpu_device::Deadline::after(PATIENCE);
    let start = globaltimer();
    let (mut i, mut good) = (0, 0);
    while i < count {
        if sq.post(work.to(), &work.request(0), i.into()).is_ok() {
            sq.ring();
            let Ok(entry) = cq.wait(deadline) else { break };
            good += u32::from(entry.status().is_ok());
            sq.release(entry);
        }
        i += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed = if good == count { globaltimer() - start } else { 0 } };
}

/// Time limit of each kernel that waits, in nanoseconds.
const PATIENCE: u64 = 1_000_000_000;

/// Words of a place in the queue between a kernel and a proxy: 64 bytes. The first word is the number of the request in
/// it, plus 1.
pub const FIFO_WORDS: usize = 8;

/// One thread posts writes through a proxy: a thread of the host takes requests from a queue in host memory and posts
/// them. The kernel hands over `batch` requests and waits for their completions, which the proxy counts in `completed`.
///
/// # Safety
/// A single thread; `fifo` has `mask + 1` places, all zero, that a proxy reads.
#[kernel]
pub unsafe fn proxy_and_wait(
    fifo: *mut u64,
    mask: u32,
    completed: *const u32,
    work: *const Work,
    count: u32,
    batch: u32,
    elapsed: *mut u64,
) {
    // SAFETY: the caller's promise.
    let work = unsafe { *work };
    let deadline = efa_gpu_device::Deadline::after(PATIENCE);
    let start = globaltimer();
    let (mut i, mut late) = (0, false);
    while i < count && !late {
        let end = i + batch;
        while i < end {
            let RdmaWrite { local, remote, .. } = work.request(i);
            // SAFETY: the caller's promise; the mask keeps this among the queue's places.
            unsafe {
                let place = fifo.add((i & mask) as usize * FIFO_WORDS);
                mem::store_pair(place.add(2), [u64::from(work.ah) | u64::from(work.qpn) << 32, work.qkey.into()]);
                mem::store_pair(place.add(4), local.words());
                mem::store_pair(place.add(6), remote.words(local.length));
                mem::store_release_system(place, u64::from(i) + 1);
            }
            i += 1;
        }
        // SAFETY: the caller's promise.
        while !late && unsafe { mem::load_acquire_system_u32(completed) } < i {
            late = deadline.passed();
        }
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed = if late { 0 } else { globaltimer() - start } };
}

/// A kernel that only computes: [`dormant`] without its posting call, whose cost is the difference.
///
/// # Safety
/// `data` holds a number of each thread.
#[kernel]
pub unsafe fn compute(data: *mut f32, steps: u32) {
    // SAFETY: the caller's promise.
    unsafe { *data.add(thread::index_1d() as usize) = iterate(*data.add(thread::index_1d() as usize), steps) };
}

/// A kernel that computes and posts a write where `post` says so.
///
/// # Safety
/// As [`compute`]; with `post`, as [`post_one`].
#[kernel]
pub unsafe fn dormant(data: *mut f32, steps: u32, post: u32, handle: SendRingHandle, work: *const Work) {
    // SAFETY: the caller's promise.
    unsafe {
        let result = iterate(*data.add(thread::index_1d() as usize), steps);
        *data.add(thread::index_1d() as usize) = result;
        if post != 0 && thread::first() {
            let work = &*work;
            if let Some(mut sq) = ThreadSendQueue::<8>::new(&handle) {
                let _ = sq.post(work.to(), &work.request(0), 0);
                sq.ring();
            }
        }
    }
}

/// Computes sixteen numbers that depend on one another, which needs registers.
#[inline(always)]
fn iterate(seed: f32, steps: u32) -> f32 {
    let mut x: [f32; 16] = core::array::from_fn(|i| seed + i as f32);
    let mut step = 0;
    while step < steps {
        x = core::array::from_fn(|i| x[i] * x[(i + 1) % 16] + x[(i + 5) % 16]);
        step += 1;
    }
    x.iter().sum()
}

/// One thread polls `count` completions. It stores the nanoseconds that this took in `elapsed`.
///
/// # Safety
/// A single thread, with a handle of a queue that is its own, and valid pointers.
#[kernel]
pub unsafe fn poll_thread(handle: CompletionRingHandle, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&handle) }) else { return };
    let start = globaltimer();
    let (mut taken, mut good) = (0, 0);
    while taken < count {
        let fresh = cq.poll_many(count, |entry| good += u32::from(entry.status().is_ok()));
        if fresh == 0 {
            break;
        }
        taken += fresh;
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed = if good == count { globaltimer() - start } else { 0 } };
}

/// A warp polls `count` completions. It stores the nanoseconds that this took in `elapsed`.
///
/// # Safety
/// One warp, with a handle of a queue that is its own, and valid pointers.
#[kernel]
pub unsafe fn poll_warp(handle: CompletionRingHandle, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&handle) }) else { return };
    let start = globaltimer();
    let (mut taken, mut good) = (0, 0);
    while taken < count {
        // SAFETY: the caller's promise; the loop is the same for all lanes.
        let [fresh, fine] = unsafe {
            let entry = cq.poll_warp(Warp::whole());
            let fresh = warp::warp_vote_ballot(warp::ALL, entry.is_some());
            [fresh, warp::warp_vote_ballot(warp::ALL, entry.is_some_and(|entry| entry.status().is_ok()))]
        }
        .map(u32::count_ones);
        good += fine;
        if fresh == 0 {
            break;
        }
        taken += fresh;
    }
    if warp::lane_id() == 0 {
        // SAFETY: the caller's promise.
        unsafe { *elapsed = if good >= count { globaltimer() - start } else { 0 } };
    }
}

/// A warp polls `count` completions, 256 at a time. It stores the nanoseconds that this took in `elapsed`.
///
/// # Safety
/// As [`poll_warp`].
#[kernel]
pub unsafe fn poll_warp_many(handle: CompletionRingHandle, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&handle) }) else { return };
    let start = globaltimer();
    let (mut taken, mut bad) = (0, 0);
    while taken < count {
        // SAFETY: the caller's promise; the loop is the same for all lanes.
        let whole = unsafe { Warp::whole() };
        let fresh = cq.poll_many_warp::<8>(whole, |entry| {
            bad += u32::from(entry.is_some_and(|entry| !entry.status().is_ok()));
        });
        if fresh == 0 {
            break;
        }
        taken += fresh;
    }
    // SAFETY: the caller's promise is one warp, and the loop ended for all its lanes.
    let bad = unsafe { warp::warp_vote_ballot(warp::ALL, bad != 0) };
    if warp::lane_id() == 0 {
        // SAFETY: the caller's promise.
        unsafe { *elapsed = if taken >= count && bad == 0 { globaltimer() - start } else { 0 } };
    }
}
