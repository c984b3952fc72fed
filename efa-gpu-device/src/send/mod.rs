//! Send queues, by who posts to them.
//!
//! # Batches
//!
//! A device takes at most `max_batch` WQEs between two doorbells, *as they arrive there*. A doorbell is a store like
//! any other: without a fence behind it the WQEs of the next batch may overtake it, and then both batches are in front
//! of the device at once. efa-dp-direct fences on both sides of each doorbell, libefa starts a new write-combining
//! section behind each (`mmio_wc_start` in `efa_post_send`, rdma-core).
//!
//! A fence is most of what a post costs, so these queues pay once per doorbell: the fence in front of doorbell k + 1
//! also has doorbell k behind it. A batch is therefore counted from the last doorbell that some fence is behind,
//! [`Ring::ordered`], and a fence of its own is spent only where the requests since then would exceed `max_batch`:
//! never, as long as two batches together do not.
//!
//! Why that is enough (PTX ISA, "Memory consistency model"): a system fence between the doorbell's store and a WQE's
//! store, in one thread's program order, puts the first before the second in causality order for every observer of
//! system scope, the device among them. In a warp the doorbell is lane 0's: what orders it for the other lanes is said
//! at [`WarpSendQueue`].

mod shared;
mod thread;
mod warp;

pub use shared::{Placed, SharedSendQueue, shared_state};
pub use thread::ThreadSendQueue;
pub use warp::WarpSendQueue;

use crate::arch;
use crate::completion::Owner;
use crate::watchdog::{TimedOut, TimeoutReport};
use efa_io::{EncodeError, Limits, SendRingHandle, SendWqe, WqCursor, Wqe};

/// Why a request was not posted. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// As many requests are outstanding as the ring, or its completion queue, holds. Poll completions and release them.
    /// Of a [`SharedSendQueue`] also: a batch is full until other posters' requests are rung for. Try again.
    Full,
    /// As many requests are outstanding as the ring, or its completion queue, holds, and none completed in time.
    TimedOut(TimedOut),
    /// The request is invalid.
    Encode(EncodeError),
    /// A request of another lane is invalid.
    OtherLane,
    /// More buffers than a receive takes, or none.
    ReceiveBuffers {
        /// Buffers given.
        given: u32,
        /// Most that the queue pair was created for.
        max: u32,
    },
    /// A receive buffer that is too long for its descriptor: 65535 bytes are the most.
    ReceiveTooLong {
        /// Bytes of the buffer.
        given: u32,
    },
}

impl From<EncodeError> for PostError {
    #[inline(always)]
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

/// A send ring, and its counters.
struct Ring<const W: usize> {
    /// Slot 0.
    slots: *mut u64,
    doorbell: *mut u32,
    max_batch: u32,
    /// Most requests outstanding.
    credits: u32,
    /// Requests placed, rung for, and released, since the ring's creation.
    placed: WqCursor,
    rung: u32,
    released: u32,
    /// Requests rung for by a doorbell that a fence is behind: what is stored from here on reaches the device after it.
    ordered: u32,
    /// Requests that can be placed before [`refill`](Self::refill): there is room for them, and they fit the batch.
    left: u32,
    owner: Owner,
    req_id_64: bool,
    limits: Limits,
}

impl<const W: usize> Ring<W>
where
    Wqe<W>: SendWqe,
{
    /// Makes the ring of `handle`. Returns `None` if its entries have another size.
    ///
    /// # Safety
    /// The addresses in `handle` are those of a ring and its doorbell, valid here until the launch is over; nobody else
    /// posts there.
    #[inline(always)]
    unsafe fn new(handle: &SendRingHandle) -> Option<Self> {
        if handle.wqe_size as usize != <Wqe<W> as SendWqe>::SIZE {
            return None;
        }
        // SAFETY: the caller's promise.
        unsafe { lend(handle) };
        // The assembler cannot know that this adds zero, so what every post needs stays in registers.
        let nothing = arch::opaque_zero();
        let producer = handle.producer + nothing;
        Some(Self {
            slots: (handle.ring + u64::from(nothing)) as *mut u64,
            doorbell: handle.doorbell as *mut u32,
            max_batch: handle.max_batch,
            credits: handle.credits,
            placed: WqCursor::new(handle.size(), producer),
            rung: producer,
            released: producer,
            // A ring changes hands when everything has completed, so earlier doorbells have arrived.
            ordered: producer,
            left: 0,
            owner: Owner { qpn: handle.qpn.into(), cq: handle.cq },
            req_id_64: handle.req_id_64 != 0,
            limits: handle.limits,
        })
    }

    /// Returns the number of requests that may be placed before others are released.
    #[inline(always)]
    fn room(&self) -> u32 {
        self.credits - self.placed.since(self.released)
    }

    /// Returns the number of requests placed and not rung for.
    #[inline(always)]
    fn unrung(&self) -> u32 {
        self.placed.since(self.rung)
    }

    /// Returns the number of requests that may be placed before a doorbell has to be ordered.
    #[inline(always)]
    fn batch(&self) -> u32 {
        self.max_batch - self.placed.since(self.ordered)
    }

    /// Returns `true` if `count` requests need a doorbell first: more than `max_batch` would be unrung.
    #[inline(always)]
    fn needs_doorbell(&self, count: u32) -> bool {
        self.unrung() != 0 && self.max_batch - self.unrung() < count
    }

    /// Returns `true` if `count` requests need a fence first, behind the last doorbell.
    #[inline(always)]
    fn needs_fence(&self, count: u32) -> bool {
        self.batch() < count && self.rung != self.ordered
    }

    /// Notes that a fence of system scope, executed just now, is behind the last doorbell.
    #[inline(always)]
    fn fenced(&mut self) {
        self.ordered = self.rung;
    }

    /// Makes room for `count` requests in one batch. `ring` rings for everything placed, `fence` is a fence of system
    /// scope behind the last doorbell, for everybody who posts here.
    #[inline(always)]
    fn make_room(&mut self, count: u32, ring: impl FnOnce(&mut Self), fence: impl FnOnce()) -> Result<(), PostError> {
        if self.left < count {
            arch::rarely();
            if self.needs_doorbell(count) {
                ring(self);
            }
            if self.needs_fence(count) {
                fence();
                self.fenced();
            }
            self.refill(count)?;
        }
        Ok(())
    }

    /// Works out how many requests are [`left`](Self::left).
    ///
    /// # Errors
    /// [`PostError::Full`] if they are fewer than `count`.
    #[inline(always)]
    fn refill(&mut self, count: u32) -> Result<(), PostError> {
        let (room, batch) = (self.room(), self.batch());
        self.left = if room < batch { room } else { batch };
        if self.left >= count { Ok(()) } else { Err(PostError::Full) }
    }

    /// Places a WQE `ahead` slots from here. The caller has made room for it.
    #[inline(always)]
    fn store(&self, ahead: u32, wqe: Wqe<W>, req_id: u64) {
        let at = self.placed.ahead(ahead);
        let phase = Wqe::<W>::phase_bit(at.phase());
        let wqe = if self.req_id_64 { wqe.stamp_64(req_id, phase) } else { wqe.stamp(req_id as u16, phase) };
        // SAFETY: a slot is inside the ring, which `new`'s contract keeps valid, and this one is free: `make_room`.
        unsafe { arch::store_entry(self.slots.add(at.slot() as usize * W), wqe.words()) };
    }

    /// Rings for everything placed. The caller has ordered what was stored before this.
    #[inline(always)]
    fn store_doorbell(&self) {
        // SAFETY: the ring's doorbell, which `new`'s contract keeps valid.
        unsafe { arch::store_doorbell(self.doorbell, self.placed.counter()) };
    }
}

/// Tells the host's executor that a ring and its doorbell stay until the launch is over.
///
/// # Safety
/// They do, and are only accessed atomically.
#[inline(always)]
unsafe fn lend(handle: &SendRingHandle) {
    // SAFETY: the caller's promise.
    unsafe {
        arch::lend(handle.ring, (u64::from(handle.mask) + 1) * u64::from(handle.wqe_size));
        arch::lend(handle.doorbell, size_of::<u32>() as u64);
    }
}

/// The error of a wait for room: there is room for `seen` requests of queue pair `number`, and `wanted` was asked.
#[inline(always)]
fn no_room(number: u32, seen: u32, wanted: u32) -> PostError {
    PostError::TimedOut(TimedOut(TimeoutReport { what: TimeoutReport::SEND_ROOM, number, seen, wanted }))
}
