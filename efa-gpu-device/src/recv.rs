//! Receive queues.

use crate::arch;
use crate::completion::{Entry, Owner};
use crate::send::PostError;
use efa_io::rx::RxBuf;
use efa_io::{LocalBuf, RecvRingHandle, RxDesc, WqCursor};

/// A receive queue that one thread posts to.
///
/// Nothing is offered to the device before [`ring`](Self::ring), except that a full batch rings by itself.
pub struct RecvQueue {
    slots: *mut u64,
    doorbell: *mut u32,
    max_batch: u32,
    max_bufs: u32,
    /// Most receives outstanding.
    credits: u32,
    /// Descriptors placed, and rung for.
    placed: WqCursor,
    rung: u32,
    /// Receives placed, and released.
    posted: u32,
    released: u32,
    owner: Owner,
}

impl RecvQueue {
    /// Makes the queue of `handle`.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this thread, and to nobody else; its addresses are valid here
    /// until the launch is over: stores are under way after the queue is gone.
    #[inline(always)]
    pub unsafe fn new(handle: &RecvRingHandle) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            arch::lend(handle.ring, (u64::from(handle.mask) + 1) * RxDesc::SIZE as u64);
            arch::lend(handle.doorbell, size_of::<u32>() as u64);
        }
        Self {
            slots: handle.ring as *mut u64,
            doorbell: handle.doorbell as *mut u32,
            max_batch: handle.max_batch,
            max_bufs: handle.max_bufs.into(),
            credits: handle.credits,
            placed: WqCursor::new(handle.size(), handle.producer),
            rung: handle.producer,
            posted: handle.posted,
            released: handle.posted,
            owner: Owner { qpn: handle.qpn.into(), cq: handle.cq },
        }
    }

    /// Places a receive in the ring: a message fills `bufs` one after the other. `req_id` comes back in its completion.
    ///
    /// # Errors
    /// No room, or invalid buffers; nothing was written.
    #[inline(always)]
    pub fn post(&mut self, bufs: &[LocalBuf], req_id: u16) -> Result<(), PostError> {
        let count = bufs.len() as u32;
        if count == 0 || count > self.max_bufs {
            return Err(PostError::ReceiveBuffers { given: count, max: self.max_bufs });
        }
        for buf in bufs {
            if buf.length > u32::from(u16::MAX) {
                return Err(PostError::ReceiveTooLong { given: buf.length });
            }
        }
        if self.room() == 0 {
            return Err(PostError::Full);
        }
        // A batch never ends inside a receive.
        if self.placed.since(self.rung) + count > self.max_batch {
            self.ring();
        }
        for (i, buf) in bufs.iter().enumerate() {
            let (first, last) = (i == 0, i as u32 + 1 == count);
            let (addr, lkey, length) = (buf.addr, buf.lkey, buf.length as u16);
            // Only the first descriptor carries the id.
            let req_id = if first { req_id } else { 0 };
            let desc = RxDesc::new(RxBuf { req_id, addr, lkey, length, first, last });
            // SAFETY: a slot is inside the ring, which `new`'s contract keeps valid, and this one is free: the ring has
            // room for `credits` receives of `max_bufs` buffers each, and both limits were checked above.
            unsafe { arch::store_pair(self.slots.add(self.placed.slot() as usize * 2), *desc.words()) };
            self.placed.advance(1);
        }
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Rings the doorbell for everything placed; does nothing if that is rung for.
    #[inline(always)]
    pub fn ring(&mut self) {
        let placed = self.placed.counter();
        if placed != self.rung {
            arch::fence_system();
            // SAFETY: the ring's doorbell, which `new`'s contract keeps valid.
            unsafe { arch::store_doorbell(self.doorbell, placed) };
            self.rung = placed;
        }
    }

    /// Returns the number of receives that can be posted before another completion is released.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        self.credits - self.posted.wrapping_sub(self.released)
    }

    /// Releases the room of a completed receive. Returns `Some(done)` unchanged if it belongs to another queue, is a
    /// send's, is an unsolicited receive's, which took no room, or if no receive is outstanding.
    #[inline(always)]
    pub fn release(&mut self, done: Entry) -> Option<Entry> {
        if !done.is_receive_of(self.owner) || self.room() == self.credits {
            return Some(done);
        }
        self.released = self.released.wrapping_add(1);
        None
    }

    /// Returns the numbers of descriptors rung for, receives posted, and receives released, all since the ring's
    /// creation. The host needs them to take the ring back.
    #[inline(always)]
    pub fn counters(&self) -> [u32; 3] {
        [self.rung, self.posted, self.released]
    }
}
