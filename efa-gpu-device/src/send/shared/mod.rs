//! A send queue that any number of warps and blocks post to.
//!
//! Nobody waits for anybody: [`bell`] says how the doorbell is rung.

mod bell;
mod state;

use super::PostError;
use crate::arch;
use crate::completion::{Entry, Owner};
use crate::time::Deadline;
use crate::warp::{ALL, LANES, Warp};
use bell::{Bell, TOGETHER, before, first_marks};
use core::marker::PhantomData;
use efa_io::{Destination, Limits, Operation, SendRingHandle, SendWqe, WqCursor, Wqe};
use state::{MARKS, RESERVED, ROOM, room};

/// Returns the initial words of the state that all [`SharedSendQueue`]s of a ring have in common. They go to the GPU's
/// own memory, aligned to 128 bytes: with the state in host memory, posters on an H100 waited forever.
pub fn shared_state(handle: &SendRingHandle) -> impl Iterator<Item = u32> + use<> {
    let counters = [(ROOM, handle.max_batch), (ROOM + 1, handle.credits), (RESERVED, handle.producer)];
    let counter = move |word| counters.iter().find(|counter| counter.0 == word).map_or(0, |counter| counter.1);
    (0..MARKS).map(counter).chain(first_marks(handle))
}

/// A send queue that any number of threads, warps and blocks post to, each through a value of its own, all made of the
/// same handle and state.
///
/// A post rings the doorbell, or has another poster ring it. [`PostError::Full`] may be temporary: other posters'
/// requests may fill the batch until they are rung for, or others have asked for more room than there was and have not
/// returned it yet. So try again.
///
/// A single poster is better served by [`WarpSendQueue`](crate::WarpSendQueue), which has its counters in registers.
pub struct SharedSendQueue<const W: usize>
where
    Wqe<W>: SendWqe,
{
    slots: *mut u64,
    bell: Bell,
    owner: Owner,
    req_id_64: bool,
    limits: Limits,
}

impl<const W: usize> SharedSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Makes the queue of `handle`. Returns `None` if its WQEs have another size than `W` words, if the ring has fewer
    /// than 4 of them, or if `max_batch` is less than a warp.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this GPU, and `state` are the words that [`shared_state`] gave
    /// for it, in this GPU's own memory, aligned to 128 bytes, changed by values of this type only. All addresses are
    /// valid here until the launch is over: stores are under way after the queue is gone. Nobody else posts there.
    #[inline(always)]
    pub unsafe fn new(handle: &SendRingHandle, state: *mut u32) -> Option<Self> {
        if handle.wqe_size as usize != <Wqe<W> as SendWqe>::SIZE
            || handle.mask < TOGETHER - 1
            || handle.max_batch < LANES
        {
            return None;
        }
        // SAFETY: the caller's promise; the state is as long as `shared_state` is.
        unsafe {
            super::lend(handle);
            arch::lend(state as u64, (MARKS as u64 + u64::from(handle.mask) + 1) * size_of::<u32>() as u64);
        }
        Some(Self {
            slots: handle.ring as *mut u64,
            bell: Bell { doorbell: handle.doorbell as *mut u32, state, size: handle.size(), shift: handle.shift },
            owner: Owner { qpn: handle.qpn.into(), cq: handle.cq },
            req_id_64: handle.req_id_64 != 0,
            limits: handle.limits,
        })
    }

    /// Posts the requests of all lanes that have one. All lanes of the warp call this together. `req_id` comes back in
    /// a request's completion.
    ///
    /// # Errors
    /// [`PostError::Full`] in every lane, if there is no room for all of them; then none was written.
    /// [`PostError::Encode`] in a lane whose request is invalid; the others' requests are posted.
    #[inline(always)]
    pub fn post_warp(
        &self,
        _: Warp,
        request: Option<(Destination, impl Operation<W>)>,
        req_id: u64,
    ) -> Result<(), PostError> {
        self.place_group(ALL, request, req_id).1
    }

    /// Places the requests of all lanes that have one, and rings when the [`Placed`] is dropped, by all lanes together.
    /// What others post in the meantime waits behind it, so do not take long.
    ///
    /// Returns `None` in all lanes if nothing was placed; the errors are those of [`post_warp`](Self::post_warp).
    #[inline(always)]
    pub fn place_warp(
        &self,
        _: Warp,
        request: Option<(Destination, impl Operation<W>)>,
        req_id: u64,
    ) -> (Option<Placed<'_, W>>, Result<(), PostError>) {
        self.place_group(ALL, request, req_id)
    }

    /// Posts a request of this thread alone, whatever the other lanes of its warp do.
    ///
    /// # Errors
    /// No room, or an invalid request; nothing was written.
    #[inline(always)]
    pub fn post(&self, to: Destination, request: &impl Operation<W>, req_id: u64) -> Result<(), PostError> {
        self.place_group(1 << arch::lane(), Some((to, request)), req_id).1
    }

    /// Posts a request of this thread alone, and tries again while there is no room. Another thread has to poll
    /// completions and [release](Self::release) them.
    ///
    /// # Errors
    /// As [`post`](Self::post); [`PostError::TimedOut`] if there was still no room when the deadline passed.
    #[inline(always)]
    pub fn post_until(
        &self,
        to: Destination,
        request: &impl Operation<W>,
        req_id: u64,
        deadline: Deadline,
    ) -> Result<(), PostError> {
        loop {
            match self.post(to, request, req_id) {
                Err(PostError::Full) if deadline.passed() => {
                    return Err(super::no_room(self.owner.qpn, self.room(), 1));
                }
                Err(PostError::Full) => arch::nanosleep(200),
                answer => return answer,
            }
        }
    }

    /// Places the requests of the lanes of `group`, which come here together.
    #[inline(always)]
    fn place_group(
        &self,
        group: u32,
        request: Option<(Destination, impl Operation<W>)>,
        req_id: u64,
    ) -> (Option<Placed<'_, W>>, Result<(), PostError>) {
        let checked =
            request.as_ref().map_or(Ok(()), |(_, request)| request.check(&self.limits)).map_err(PostError::Encode);
        let lanes = arch::ballot(group, request.is_some() && checked.is_ok());
        if lanes == 0 {
            return (None, checked);
        }
        let Some(first) = self.reserve(group, lanes.count_ones()) else {
            arch::rarely();
            return (None, checked.and(Err(PostError::Full)));
        };
        // The leader has acquired what those did who released room; from here on the other lanes have, too.
        arch::sync_warp(group);
        let has_one = lanes >> arch::lane() & 1 != 0;
        let at = first.wrapping_add(before(lanes));
        if let (Some((to, request)), true) = (request, has_one) {
            let at = WqCursor::new(self.bell.size, at);
            let phase = Wqe::<W>::phase_bit(at.phase());
            let wqe = request.wqe(to);
            let wqe = if self.req_id_64 { wqe.stamp_64(req_id, phase) } else { wqe.stamp(req_id as u16, phase) };
            // SAFETY: a slot is inside the ring, which `new`'s contract keeps valid, and this lane has reserved this
            // one.
            unsafe { arch::store_entry(self.slots.add(at.slot() as usize * W), wqe.words()) };
        }
        (Some(Placed { bell: self.bell, group, at, has_one, _queue: PhantomData }), checked)
    }

    /// Reserves `count` slots and returns the number of the first, if there is room for all.
    #[inline(always)]
    fn reserve(&self, group: u32, count: u32) -> Option<u32> {
        let leader = group.trailing_zeros();
        let (mut first, mut granted) = (0, false);
        if arch::lane() == leader {
            granted = self.take_room(count);
            if granted {
                // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
                first = unsafe { arch::fetch_add_relaxed_gpu(self.bell.state.add(RESERVED), count) };
            }
        }
        let granted = arch::ballot(group, granted) != 0;
        granted.then(|| arch::shuffle(group, first, leader))
    }

    /// Takes room for `count` requests, in the ring and in the batch.
    #[inline(always)]
    fn take_room(&self, count: u32) -> bool {
        // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
        // An acquire: who takes room sees what those did who released it.
        unsafe {
            let [ring, batch] =
                room::split(arch::fetch_add_acquire_gpu_u64(self.room_word(), room::both(count).wrapping_neg()));
            // Below zero while others ask for more than there is.
            let granted = ring >= count as i32 && batch >= count as i32;
            if !granted {
                arch::rarely();
                arch::fetch_add_relaxed_gpu_u64(self.room_word(), room::both(count));
            }
            granted
        }
    }

    #[inline(always)]
    fn room_word(&self) -> *mut u64 {
        self.bell.state.wrapping_add(ROOM).cast()
    }

    /// Releases the room of a completed request. Returns `Some(done)` unchanged if it belongs to another queue, or is a
    /// receive's.
    #[inline(always)]
    pub fn release(&self, done: Entry) -> Option<Entry> {
        if !done.is_send_of(self.owner) {
            return Some(done);
        }
        // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
        unsafe { arch::fetch_add_gpu_u64(self.room_word(), room::in_ring(1)) };
        None
    }

    /// Releases the room of a warp's completed requests: each lane's, or none. All lanes call this together. A lane
    /// gets `Some(done)` back unchanged if its completion belongs to another queue, or is a receive's.
    #[inline(always)]
    pub fn release_warp(&self, _: Warp, done: Option<Entry>) -> Option<Entry> {
        let is_ours = done.as_ref().is_some_and(|done| done.is_send_of(self.owner));
        let count = arch::ballot(ALL, is_ours).count_ones();
        if count != 0 {
            // Each lane's completion was an acquire: the NIC has read its slot. The barrier orders that before lane 0
            // releases the slots to other posters. A ballot would order nothing.
            arch::sync_warp(ALL);
        }
        if count != 0 && arch::lane() == 0 {
            // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
            unsafe { arch::fetch_add_gpu_u64(self.room_word(), room::in_ring(count)) };
        }
        if is_ours { None } else { done }
    }

    /// Returns the number of requests that could be posted at the moment.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
        let [ring, _] = room::split(unsafe { arch::load_gpu_u64(self.room_word()) });
        ring.max(0) as u32
    }

    /// Returns the number of requests posted since the ring's creation. It is final when nobody posts any more.
    #[inline(always)]
    pub fn posted(&self) -> u32 {
        // SAFETY: a word of the queue's state, which the contract of `new` keeps valid.
        unsafe { arch::load_gpu(self.bell.state.add(RESERVED)) }
    }

    /// Releases the room of all requests that were rung for since `rung`, without their completions, and moves `rung`
    /// on.
    ///
    /// # Safety
    /// Nobody reads the ring: this is for measurements. A NIC's ring may overflow.
    #[doc(hidden)]
    #[inline(always)]
    pub unsafe fn forget(&self, rung: &mut u32) {
        // SAFETY: the doorbell, and a word of the queue's state, which the contract of `new` keeps valid.
        unsafe {
            let now = arch::load_doorbell(self.bell.doorbell);
            if now != *rung {
                arch::fetch_add_relaxed_gpu_u64(self.room_word(), room::in_ring(now.wrapping_sub(*rung)));
                *rung = now;
            }
        }
    }
}

/// Requests in the ring of a [`SharedSendQueue`] that no doorbell has announced. Dropping this announces them.
#[must_use = "dropped at once it is a post"]
pub struct Placed<'q, const W: usize>
where
    Wqe<W>: SendWqe,
{
    bell: Bell,
    group: u32,
    /// Number of this lane's request, if `has_one`.
    at: u32,
    has_one: bool,
    _queue: PhantomData<&'q SharedSendQueue<W>>,
}

impl<const W: usize> Placed<'_, W>
where
    Wqe<W>: SendWqe,
{
    /// Announces the requests now.
    #[inline(always)]
    pub fn ring(self) {}
}

impl<const W: usize> Drop for Placed<'_, W>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn drop(&mut self) {
        self.bell.publish(self.group, self.at, self.has_one);
    }
}
