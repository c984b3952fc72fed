//! A send queue that one thread posts to.

use super::{PostError, Ring, no_room};
use crate::arch;
use crate::completion::{CompletionQueue, Entry};
use crate::time::Deadline;
use efa_io::{Destination, EncodeError, Operation, SendRingHandle, SendWqe, Wqe};

/// A send queue that one thread posts to: its counters are that thread's.
///
/// Nothing is sent before [`ring`](Self::ring), except that a full batch rings by itself. A doorbell costs a fence, about half a microsecond; so
/// place several requests, do something else, then ring.
pub struct ThreadSendQueue<const W: usize> {
    ring: Ring<W>,
}

impl<const W: usize> ThreadSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// The queue of `handle`; `None` if its WQEs have another size than `W` words.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this thread, and to nobody else; its addresses are valid here
    /// until the launch is over: stores are under way after the queue is gone.
    #[inline(always)]
    pub unsafe fn new(handle: &SendRingHandle) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Ring::new(handle) }.map(|ring| Self { ring })
    }

    /// Places a request in the ring. `req_id` comes back in its completion: 64 bits of it, or 16, as the queue has them.
    ///
    /// # Errors
    /// No room, or a request that cannot be; nothing was written.
    #[inline(always)]
    pub fn post(&mut self, to: Destination, request: &impl Operation<W>, req_id: u64) -> Result<(), PostError> {
        if let Err(error) = request.check(&self.ring.limits) {
            arch::rarely();
            return Err(PostError::Encode(error));
        }
        self.ring.make_room(1, ring, arch::fence_system)?;
        self.ring.store(0, request.wqe(to), req_id);
        self.ring.placed.advance(1);
        self.ring.left -= 1;
        Ok(())
    }

    /// Places `count` requests, which `request` gives by number, with their destinations and ids. Room is looked for once, so this takes fewer
    /// instructions than [`post`](Self::post) as often.
    ///
    /// # Errors
    /// No room for all of them in one batch ([`PostError::Full`], always if the device's `max_batch` is less), and then nothing was written; or a request
    /// that cannot be, and then those before it are placed.
    #[inline(always)]
    pub fn post_many<O: Operation<W>>(
        &mut self,
        count: u32,
        mut request: impl FnMut(u32) -> (Destination, O, u64),
    ) -> Result<(), PostError> {
        self.ring.make_room(count, ring, arch::fence_system)?;
        // Before `request` runs, which is the caller's code and may unwind: a count that is too small refuses, one that is too large overflows.
        self.ring.left -= count;
        let mut i = 0;
        // Two at a time: what one waits for, the other fills.
        while i + 1 < count {
            let [(to, one, id), (other_to, other, other_id)] = [request(i), request(i + 1)];
            if let Err(error) = one.check(&self.ring.limits) {
                arch::rarely();
                return self.stop_short(count - i, error);
            }
            if let Err(error) = other.check(&self.ring.limits) {
                arch::rarely();
                self.ring.store(0, one.wqe(to), id);
                self.ring.placed.advance(1);
                return self.stop_short(count - i - 1, error);
            }
            let (one, other) = (one.wqe(to), other.wqe(other_to));
            self.ring.store(0, one, id);
            self.ring.store(1, other, other_id);
            self.ring.placed.advance(2);
            i += 2;
        }
        if i < count {
            let (to, one, id) = request(i);
            if let Err(error) = one.check(&self.ring.limits) {
                arch::rarely();
                return self.stop_short(1, error);
            }
            self.ring.store(0, one.wqe(to), id);
            self.ring.placed.advance(1);
        }
        Ok(())
    }

    /// The end of many requests of which so many were not placed.
    #[inline(always)]
    fn stop_short(&mut self, missing: u32, error: EncodeError) -> Result<(), PostError> {
        self.ring.left += missing;
        Err(PostError::Encode(error))
    }

    /// Rings the doorbell for everything placed; does nothing if that is rung for.
    ///
    /// What this thread stored before, in whatever memory, the NIC sees before it acts.
    #[inline(always)]
    pub fn ring(&mut self) {
        ring(&mut self.ring);
    }

    /// Requests that can be posted before another completion is released.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        self.ring.room()
    }

    /// Polls until `count` requests can be posted. `each` gets every completion on its way, and gives back what it wants to be released: all those of
    /// this queue, once it has looked at them.
    ///
    /// # Errors
    /// [`PostError::TimedOut`]: the deadline has passed, there is no room, and what completes next is not of this queue, or
    /// nothing does. What came meanwhile is released.
    #[inline(always)]
    pub fn wait_for_room(
        &mut self,
        cq: &mut CompletionQueue,
        count: u32,
        deadline: Deadline,
        mut each: impl FnMut(Entry) -> Option<Entry>,
    ) -> Result<(), PostError> {
        // What is not rung for never completes.
        self.ring();
        while self.room() < count {
            let before = self.room();
            if let Some(done) = cq.poll().and_then(&mut each) {
                self.release(done);
            }
            // Other queues' completions may come for ever.
            if self.room() == before && deadline.passed() {
                return Err(no_room(self.ring.owner.qpn, before, count));
            }
        }
        Ok(())
    }

    /// Requests rung for since the ring's creation: what the host asks for when it takes the ring back.
    #[inline(always)]
    pub fn posted(&self) -> u32 {
        self.ring.rung
    }

    /// Takes back the room of a request that is done. A completion of something else is given back.
    #[inline(always)]
    pub fn release(&mut self, done: Entry) -> Option<Entry> {
        if !done.is_send_of(self.ring.owner) || self.ring.room() == self.ring.credits {
            return Some(done);
        }
        self.ring.released = self.ring.released.wrapping_add(1);
        None
    }

    /// Forgets `count` outstanding requests without their completions.
    ///
    /// # Safety
    /// Nobody reads the ring: this is for measurements. A NIC's ring may overflow.
    #[doc(hidden)]
    #[inline(always)]
    pub unsafe fn forget(&mut self, count: u32) {
        self.ring.released = self.ring.released.wrapping_add(count);
    }

    /// Rings without ordering anything before it: the floor that measurements are compared with.
    ///
    /// # Safety
    /// Nobody reads the ring. A NIC may find the doorbell's value before the WQEs.
    #[doc(hidden)]
    #[inline(always)]
    pub unsafe fn ring_unfenced(&mut self) {
        self.ring.store_doorbell();
        self.ring.rung = self.ring.placed.counter();
    }
}

#[inline(always)]
fn ring<const W: usize>(ring: &mut Ring<W>)
where
    Wqe<W>: SendWqe,
{
    if ring.unrung() != 0 {
        arch::fence_system();
        ring.fenced();
        ring.store_doorbell();
        ring.rung = ring.placed.counter();
    }
}
