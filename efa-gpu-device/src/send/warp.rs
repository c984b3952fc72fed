//! A send queue that a warp posts to.

use super::{PostError, Ring, no_room};
use crate::arch;
use crate::completion::{CompletionQueue, Entry};
use crate::time::Deadline;
use crate::warp::{ALL, LANES, Warp};
use efa_io::{Destination, Operation, SendRingHandle, SendWqe, Wqe};

/// A send queue that a whole warp posts to, each lane a request or none.
///
/// Every lane has this value, with the same counters in it. All lanes make the same calls, with their own requests. So
/// there is one reservation, one fence that all lanes execute at once, and one doorbell.
///
/// That fence also orders the previous doorbell, for every lane: lane 0 stored it, then all lanes met at the barrier in
/// front of the fence, and causality order is transitive. So a lane's WQE behind the fence reaches the device after
/// that doorbell.
pub struct WarpSendQueue<const W: usize> {
    ring: Ring<W>,
}

impl<const W: usize> WarpSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Makes the queue of `handle`. Returns `None` if its WQEs have another size than `W` words, or if `max_batch` is
    /// less than a warp.
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
    /// [`PostError::Full`] in every lane, if there is no room for all of them; then none was written.
    /// [`PostError::Encode`] in a lane whose request is invalid; the others' requests are placed.
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

    /// Places `count` requests of each lane. `request` returns each by its number, with its destination and id. Room is
    /// made once, so this takes fewer instructions than `count` calls of [`post`](Self::post).
    ///
    /// # Errors
    /// [`PostError::Full`] in every lane, if there is no room for all of them in one batch; then nothing was written.
    /// [`PostError::Encode`] in a lane whose request is invalid, and [`PostError::OtherLane`] in the others; then the
    /// requests of smaller numbers are placed, of all lanes.
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
    /// The NIC sees what the lanes stored before, in whatever memory, before it acts.
    #[inline(always)]
    pub fn ring(&mut self) {
        ring(&mut self.ring);
    }

    /// Returns the number of requests that can be posted before other completions are released.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        self.ring.room()
    }

    /// Polls until `count` requests can be posted, by all lanes together. `each` gets each lane's completion, or none,
    /// and returns those of this queue once it has looked at them, so that they are released.
    ///
    /// # Errors
    /// [`PostError::TimedOut`], in all lanes: the deadline has passed, there is no room, and the next completion does
    /// not belong to this queue, or there is none. Completions polled until then are released.
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
        // SAFETY: `new`'s contract: its caller has all lanes of the warp make every call together.
        let warp = unsafe { Warp::whole() };
        while self.room() < count {
            let before = self.room();
            let done = each(cq.poll_warp(warp));
            self.release(done);
            // Other queues' completions may come forever.
            if self.room() == before && arch::ballot(ALL, deadline.passed()) != 0 {
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

    /// Releases the room of completed requests: each lane's, or none. A lane gets `Some(done)` back unchanged if its
    /// completion belongs to another queue, or is a receive's.
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

/// Orders the last doorbell before what any lane stores from here on: lane 0's doorbell comes before its fence, and
/// that before the barrier.
#[inline(always)]
fn fence() {
    arch::fence_system();
    arch::sync_warp(ALL);
}
