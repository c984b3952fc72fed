//! A send queue that a warp posts to.

use super::{PostError, Ring, no_room};
use crate::arch;
use crate::completion::{CompletionQueue, Entry};
use crate::time::Deadline;
use crate::warp::{ALL, LANES, Warp};
use efa_io::{Destination, Operation, SendRingHandle, SendWqe, Wqe};

/// A send queue that a whole warp posts to, each lane a request or none.
///
/// Every lane has this value, with the same counters in it: all lanes make the same calls, with their own requests. So there is one reservation, a fence
/// that all lanes execute at once, and one doorbell.
///
/// That fence orders the doorbell before it as well, for every lane: lane 0 stored that one, then all lanes met at the barrier in front of the fence, and
/// causality order is transitive. So a lane's WQE behind the fence reaches the device after it.
pub struct WarpSendQueue<const W: usize> {
    ring: Ring<W>,
}

impl<const W: usize> WarpSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// The queue of `handle`; `None` if its WQEs have another size than `W` words, or if a batch is less than a warp.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this warp, and to nobody else; its addresses are valid here
    /// until the launch is over: stores are under way after the queue is gone. All lanes of the warp call this
    /// together, and every method after it, with the same handle, numbers and deadlines.
    #[inline(always)]
    pub unsafe fn new(handle: &SendRingHandle) -> Option<Self> {
        // SAFETY: the caller's promise.
        let ring = unsafe { Ring::new(handle) }?;
        (ring.max_batch >= LANES).then_some(Self { ring })
    }

    /// Places the requests of all lanes that have one. `req_id` comes back in a request's completion.
    ///
    /// # Errors
    /// In every lane, if there is no room for all of them, and then none was written. A lane whose request cannot be gets that error alone;
    /// the others' are placed.
    #[inline(always)]
    pub fn post(&mut self, request: Option<(Destination, impl Operation<W>)>, req_id: u64) -> Result<(), PostError> {
        let checked = request.as_ref().map_or(Ok(()), |(_, request)| request.check(&self.ring.limits));
        let lanes = arch::ballot(ALL, request.is_some() && checked.is_ok());
        let count = lanes.count_ones();
        self.ring.make_room(count, ring, fence)?;
        if let (Some((to, request)), Ok(())) = (request, checked) {
            let before = lanes & ((1u32 << arch::lane()) - 1);
            self.ring.store(before.count_ones(), request.wqe(to), req_id);
        }
        self.placed(count);
        checked.map_err(PostError::Encode)
    }

    /// Places `count` requests of each lane, which `request` gives by number, with their destinations and ids. Room is looked for once, so this takes
    /// fewer instructions than [`post`](Self::post) as often.
    ///
    /// # Errors
    /// In every lane, if there is no room for all of them in one batch, and then nothing was written; or if a request of one lane cannot be, and then those
    /// of smaller numbers are placed, of all lanes. That lane gets its own error, the others [`PostError::OtherLane`].
    #[inline(always)]
    pub fn post_many<O: Operation<W>>(
        &mut self,
        count: u32,
        mut request: impl FnMut(u32) -> (Destination, O, u64),
    ) -> Result<(), PostError> {
        self.ring.make_room(count.min(u32::MAX / LANES) * LANES, ring, fence)?;
        let lane = arch::lane();
        let mut i = 0;
        while i < count {
            let (to, request, id) = request(i);
            let checked = request.check(&self.ring.limits);
            if arch::ballot(ALL, checked.is_ok()) != ALL {
                arch::rarely();
                return checked.map_err(PostError::Encode).and(Err(PostError::OtherLane));
            }
            self.ring.store(lane, request.wqe(to), id);
            self.placed(LANES);
            i += 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn placed(&mut self, count: u32) {
        self.ring.placed.advance(count);
        self.ring.left -= count;
    }

    /// Rings the doorbell for everything placed; does nothing if that is rung for.
    ///
    /// What the lanes stored before, in whatever memory, the NIC sees before it acts.
    #[inline(always)]
    pub fn ring(&mut self) {
        ring(&mut self.ring);
    }

    /// Requests that can be posted before other completions are released.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        self.ring.room()
    }

    /// Polls until `count` requests can be posted, by all lanes together. `each` gets every lane's completion, or none, and gives back what it wants
    /// to be released: all those of this queue, once it has looked at them.
    ///
    /// # Errors
    /// [`PostError::TimedOut`], in all lanes: the deadline has passed, there is no room, and what completes next is not of
    /// this queue, or nothing does. What came meanwhile is released.
    #[inline(always)]
    pub fn wait_for_room(
        &mut self,
        cq: &mut CompletionQueue,
        count: u32,
        deadline: Deadline,
        mut each: impl FnMut(Option<Entry>) -> Option<Entry>,
    ) -> Result<(), PostError> {
        // What is not rung for never completes.
        self.ring();
        // SAFETY: `new`'s contract.
        let warp = unsafe { Warp::whole() };
        while self.room() < count {
            let before = self.room();
            let done = each(cq.poll_warp(warp));
            self.release(done);
            // Other queues' completions may come for ever.
            if self.room() == before && arch::ballot(ALL, deadline.passed()) != 0 {
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

    /// Takes back the room of the requests that are done: each lane's completion, or none. A lane whose completion is of something else gets it back.
    #[inline(always)]
    pub fn release(&mut self, done: Option<Entry>) -> Option<Entry> {
        let is_ours = done.as_ref().is_some_and(|done| done.is_send_of(self.ring.owner));
        let outstanding = self.ring.credits - self.ring.room();
        let count = arch::ballot(ALL, is_ours).count_ones().min(outstanding);
        self.ring.released = self.ring.released.wrapping_add(count);
        if is_ours { None } else { done }
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
}

#[inline(always)]
fn ring<const W: usize>(ring: &mut Ring<W>)
where
    Wqe<W>: SendWqe,
{
    if ring.unrung() == 0 {
        return;
    }
    // All lanes' stores before the fence of the lane that rings.
    arch::sync_warp(ALL);
    arch::fence_system();
    ring.fenced();
    if arch::lane() == 0 {
        ring.store_doorbell();
    }
    ring.rung = ring.placed.counter();
}

/// Lane 0's doorbell before its fence, and that before what any lane stores behind the barrier.
#[inline(always)]
fn fence() {
    arch::fence_system();
    arch::sync_warp(ALL);
}
