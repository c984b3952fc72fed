//! Handles: plain data by which a host hands a ring over to a GPU kernel, or to code behind a C ABI.
//!
//! A handle describes a ring, with addresses that are valid *for the one who drives it* (a GPU's mapping differs from
//! the host's). It owns nothing and checks nothing. All handles are `Pod`; assertions below fix their layouts.

use crate::limits::Limits;
use crate::ring::RingSize;
use static_assertions::const_assert_eq;

/// The handle of a send ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SendRingHandle {
    /// Address of slot 0. Write-only: on hardware this is device memory.
    pub ring: u64,
    /// Address of the 32-bit doorbell register.
    pub doorbell: u64,
    /// Entries minus one.
    pub mask: u32,
    /// log2 of the entries.
    pub shift: u32,
    /// Bytes of an entry: 64 or 128.
    pub wqe_size: u16,
    /// Queue pair number, as completions name it.
    pub qpn: u16,
    /// Tag of the completion queue where its requests complete ([`CompletionRingHandle::tag`]).
    pub cq: u32,
    /// Most WQEs between two doorbells.
    pub max_batch: u32,
    /// Producer counter at the time of the hand-over.
    pub producer: u32,
    /// Most work requests that may be outstanding: entries, or less where the completion queue holds less.
    pub credits: u32,
    /// 1 if request ids have 64 bits, else 0.
    pub req_id_64: u32,
    /// Limits of the requests.
    pub limits: Limits,
}

/// The handle of a receive ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RecvRingHandle {
    /// Address of slot 0.
    pub ring: u64,
    /// Address of the 32-bit doorbell register.
    pub doorbell: u64,
    /// Entries (descriptors) minus one.
    pub mask: u32,
    /// log2 of the entries.
    pub shift: u32,
    /// Most descriptors between two doorbells.
    pub max_batch: u32,
    /// Producer counter at the time of the hand-over, in descriptors.
    pub producer: u32,
    /// Most receives that may be outstanding.
    pub credits: u32,
    /// Most buffers of one receive.
    pub max_bufs: u16,
    /// Queue pair number, as completions name it.
    pub qpn: u16,
    /// Tag of the completion queue where its receives complete ([`CompletionRingHandle::tag`]).
    pub cq: u32,
    /// Receives posted at the time of the hand-over.
    pub posted: u32,
}

/// The handle of a completion ring, or of one of its sub-queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CompletionRingHandle {
    /// Address of slot 0.
    pub ring: u64,
    /// Address of the 32-bit doorbell register, which arms events; 0 if there is none. If there is one, the reader has
    /// to report after polling how many entries it has taken
    /// ([`CqDoorbell::consumed`](crate::ring::CqDoorbell::consumed)): the device drops completions for which it knows
    /// of no room.
    pub doorbell: u64,
    /// Entries minus one.
    pub mask: u32,
    /// log2 of the entries.
    pub shift: u16,
    /// Bytes of an entry: 16 or 32.
    pub cqe_size: u16,
    /// Consumer counter at the time of the hand-over.
    pub consumer: u32,
    /// A number that no other completion queue of the process has ([`unique_tag`]).
    ///
    /// A queue pair number alone does not identify the owner of a completion: queue pairs of two devices may have the
    /// same one. The tag and the number do, since a number is not reused as long as the completion queue may hold
    /// completions of its previous owner.
    pub tag: u32,
}

/// Returns a number that no other completion queue of this process has, from 1 on. 0 belongs to no queue.
#[cfg(target_has_atomic = "32")]
pub fn unique_tag() -> u32 {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    // It repeats after 2^32 queues, each of which takes a call into a driver.
    match NEXT.fetch_add(1, Relaxed) {
        0 => unique_tag(),
        tag => tag,
    }
}

/// The handle of a completion counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CounterHandle {
    /// Address of the 64-bit number of successful completions. After 2^31 - 1 comes 0.
    pub completions: u64,
    /// Address of the 64-bit number of completions with an error status. After 2^31 - 1 comes 0.
    pub errors: u64,
}

const_assert_eq!(size_of::<Limits>(), 16);
const_assert_eq!(size_of::<CounterHandle>(), 16);
const_assert_eq!(size_of::<SendRingHandle>(), 64);
const_assert_eq!(size_of::<RecvRingHandle>(), 48);
const_assert_eq!(size_of::<CompletionRingHandle>(), 32);

macro_rules! size_of_ring {
    ($($handle:ty),*) => {$(
        impl $handle {
            /// Returns the ring's size. Like everything in a handle it is not checked.
            #[inline(always)]
            pub const fn size(&self) -> RingSize {
                RingSize::from_mask(self.mask)
            }
        }
    )*};
}

size_of_ring!(SendRingHandle, RecvRingHandle, CompletionRingHandle);
