//! Kernels that measure the queues: how long posting takes, by who posts.
//!
//! Nothing is behind the rings, so the kernels settle without a completion what they post: they count on the host for rings that may be
//! overwritten.

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, stdarch_nvptx))]

pub mod nic;

use efa_gpu_device::warp::{self, Warp};
use efa_gpu_device::{CompletionQueue, ThreadSendQueue, WarpSendQueue, globaltimer, kernel, thread};
use efa_io::{CompletionRingHandle, Destination, Hints, Lkey, LocalBuf, RdmaWrite, RemoteBuf, SendRingHandle};

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the kernel with an error.
    unsafe { core::arch::nvptx::trap() }
}

/// What is posted, and where to, in words that host and kernel agree on.
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

    /// Request `i`, which differs from those around it, so that nothing is computed once and for all.
    #[inline(always)]
    fn request(&self, i: u32) -> RdmaWrite {
        let at = u64::from(i) * 64;
        let lkey = Lkey::new(self.lkey).unwrap_or_default();
        let local = LocalBuf { addr: self.local + at, lkey, length: self.length };
        let remote = RemoteBuf { addr: self.remote + at, rkey: self.rkey };
        RdmaWrite { local, remote, imm: None, hints: Hints::NONE }
    }
}

/// Each thread posts `count` writes, `batch` to a doorbell, with or without the fence that the NIC needs; nanoseconds to `elapsed`, by thread.
///
/// # Safety
/// Handles of queues that are each thread's own, by thread, and valid pointers.
#[kernel]
pub unsafe fn post_thread(
    handles: *const SendRingHandle,
    work: *const Work,
    count: u32,
    batch: u32,
    unfenced: u32,
    elapsed: *mut u64,
) {
    let thread = thread::index_1d() as usize;
    // SAFETY: the caller's promise.
    let (handle, work) = unsafe { (&*handles.add(thread), *work) };
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { ThreadSendQueue::<8>::new(handle) }) else { return };
    let start = globaltimer();
    let (mut i, mut failed) = (0, false);
    while i < count && !failed {
        let posted = sq.post_many(batch, |ahead| {
            // Not the same for all threads, as far as the compiler knows: real requests are not.
            let number = i + ahead + thread as u32;
            (work.to(), work.request(number), u64::from(number))
        });
        failed = posted.is_err();
        i += batch;
        if unfenced != 0 {
            // SAFETY: nobody reads the ring.
            unsafe { sq.ring_unfenced() };
        } else {
            sq.ring();
        }
        // SAFETY: nobody reads the ring.
        unsafe { sq.forget(batch) };
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed.add(thread) = if failed { 0 } else { globaltimer() - start } };
}

/// A warp posts `count` writes in each lane, `rounds` of them to a doorbell; nanoseconds to `elapsed`, by block.
///
/// # Safety
/// One warp in each block, with handles of queues that are its own, by block, and valid pointers.
#[kernel]
pub unsafe fn post_warp(handles: *const SendRingHandle, work: *const Work, count: u32, rounds: u32, elapsed: *mut u64) {
    let block = thread::block_idx_x() as usize;
    // SAFETY: the caller's promise.
    let (handle, work) = unsafe { (&*handles.add(block), *work) };
    // SAFETY: the caller's promise.
    let Some(mut sq) = (unsafe { WarpSendQueue::<8>::new(handle) }) else { return };
    let start = globaltimer();
    let (mut i, mut failed) = (0, 0);
    while i < count {
        let end = i + rounds;
        while i < end {
            let number = i * warp::LANES + warp::lane_id();
            let write = work.request(number);
            failed += u32::from(sq.post(Some((work.to(), &write)), u64::from(number)).is_err());
            i += 1;
        }
        sq.ring();
        // SAFETY: nobody reads the ring.
        unsafe { sq.forget(rounds * warp::LANES) };
    }
    if warp::lane_id() == 0 {
        // SAFETY: the caller's promise.
        unsafe { *elapsed.add(block) = if failed == 0 { globaltimer() - start } else { 0 } };
    }
}

/// One thread polls `count` completions; nanoseconds to `elapsed`.
///
/// # Safety
/// A single thread, with a handle of a queue that is its own, and valid pointers.
#[kernel]
pub unsafe fn poll_thread(handle: *const CompletionRingHandle, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&*handle) }) else { return };
    let start = globaltimer();
    let (mut taken, mut good) = (0, 0);
    while taken < count {
        let Some(entry) = cq.poll() else { break };
        good += u32::from(entry.status().is_ok());
        taken += 1;
    }
    // SAFETY: the caller's promise.
    unsafe { *elapsed = if good == count { globaltimer() - start } else { 0 } };
}

/// A warp polls `count` completions; nanoseconds to `elapsed`.
///
/// # Safety
/// One warp, with a handle of a queue that is its own, and valid pointers.
#[kernel]
pub unsafe fn poll_warp(handle: *const CompletionRingHandle, count: u32, elapsed: *mut u64) {
    // SAFETY: the caller's promise.
    let Some(mut cq) = (unsafe { CompletionQueue::new(&*handle) }) else { return };
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
