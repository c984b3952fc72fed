//! A send queue that one thread posts to.

use super::{PostError, Ring, no_room};
use crate::arch;
use crate::completion::{CompletionQueue, Entry};
use crate::time::Deadline;
use efa_io::{Destination, EncodeError, Operation, SendRingHandle, SendWqe, Wqe};

/// A send queue that one thread posts to, its counters in that thread's registers.
///
/// Nothing is sent before [`ring`](Self::ring), except that a full batch rings by itself. A doorbell costs a fence,
/// about half a microsecond. So place several requests, do something else, then ring.
pub struct ThreadSendQueue<const W: usize> {
    ring: Ring<W>,
}

impl<const W: usize> ThreadSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Makes the queue of `handle`. Returns `None` if its WQEs have another size than `W` words.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this thread, and to nobody else; its addresses are valid here
    /// until the launch is over: stores are under way after the queue is gone.
    #[inline(always)]
    pub unsafe fn new(handle: &SendRingHandle) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Ring::new(handle) }.map(|ring| Self { ring })
    }

    /// Places a request in the ring. `req_id` comes back in its completion: all 64 bits or the low 16, depending on the
    /// queue.
    ///
    /// # Errors
    /// No room, or an invalid request; nothing was written.
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

    /// Places `count` requests. `request` returns each by its number, with its destination and id. Room is made once,
    /// so this takes fewer instructions than `count` calls of [`post`](Self::post).
    ///
    /// # Errors
    /// [`PostError::Full`] if there is no room for all of them in one batch, as always if the device's `max_batch` is
    /// less; then nothing was written. [`PostError::Encode`] for an invalid request; then those before it are placed.
    #[inline(always)]
    pub fn post_many<O: Operation<W>>(
        &mut self,
        count: u32,
        mut request: impl FnMut(u32) -> (Destination, O, u64),
    ) -> Result<(), PostError> {
        self.ring.make_room(count, ring, arch::fence_system)?;
        // Before `request` runs, which is the caller's code and may unwind: a count that is too small refuses, one that
        // is too large overflows.
        self.ring.left -= count;
        let mut i = 0;
        // Two at a time: the instructions of one fill the waits of the other.
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

    /// Returns the error of an invalid request, of which `missing` were not placed.
    #[inline(always)]
    fn stop_short(&mut self, missing: u32, error: EncodeError) -> Result<(), PostError> {
        self.ring.left += missing;
        Err(PostError::Encode(error))
    }

    /// Rings the doorbell for everything placed; does nothing if that is rung for.
    ///
    /// The NIC sees what this thread stored before, in whatever memory, before it acts.
    #[inline(always)]
    pub fn ring(&mut self) {
        ring(&mut self.ring);
    }

    /// Returns the number of requests that can be posted before another completion is released.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        self.ring.room()
    }

    /// Polls until `count` requests can be posted. `each` gets every completion that is polled, and returns those of
    /// this queue once it has looked at them, so that they are released.
    ///
    /// # Errors
    /// [`PostError::TimedOut`]: the deadline has passed, there is no room, and the next completion does not belong to
    /// this queue, or there is none. Completions polled until then are released.
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
            // Other queues' completions may come forever.
            if self.room() == before && deadline.passed() {
                return Err(no_room(self.ring.owner.qpn, before, count));
            }
        }
        Ok(())
    }

    /// Returns the number of requests rung for since the ring's creation, which the host needs to take the ring back.
    #[inline(always)]
    pub fn posted(&self) -> u32 {
        self.ring.rung
    }

    /// Releases the room of a completed request. Returns `Some(done)` unchanged if it belongs to another queue, is a
    /// receive's, or if no request is outstanding.
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

    /// Rings without ordering anything before the doorbell: the floor that measurements are compared with.
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
