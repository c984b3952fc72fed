//! A send queue that any number of warps and blocks post to.
//!
//! Nobody waits for anybody. A poster takes room and slots with one addition each, stores its WQEs, tags their slots as ready, and adds itself
//! to the number of those who want the doorbell rung. Who finds that number at zero rings, as far as everything is ready, and goes on
//! until nobody was added meanwhile; all others are done: somebody rings for them. So one doorbell serves as many posters as come while one is
//! rung.
//!
//! Why no slot stays unrung: a poster's addition comes after its tags, and all additions to one word have an order. A poster that does not find
//! zero has added before the ringer takes its leave with an addition of its own, which thus tells the ringer to look again. A slot that is ready behind one that is
//! not, is rung for by who completes the row.
//!
//! Why the device sees every WQE that it is told of: a poster's stores come before its fence and its tag, the ringer's look at the tag before its
//! fence and the doorbell. The first fence reaches as far as the ringer, the second as far as the device, and causality order is transitive (PTX
//! ISA, "Memory consistency model", "Causality order").
//!
//! ```text
//! state   room │ reserved │ wanted │ rung │ a tag for each slot: the lap in which it was ready last, plus 1, modulo 256
//!          └──── each on a line of its own, 128 bytes
//! ```

use super::PostError;
use crate::arch;
use crate::completion::Entry;
use crate::time::Deadline;
use crate::warp::{ALL, Warp};
use efa_io::{Destination, Limits, Operation, SendRingHandle, SendWqe, Wqe};

/// Words from one of the state's counters to the next: a line of 128 bytes.
const LINE: usize = 32;
const ROOM: usize = 0;
const RESERVED: usize = LINE;
const WANTED: usize = 2 * LINE;
const RUNG: usize = 3 * LINE;
const TAGS: usize = 4 * LINE;
/// Slots whose tags one lane looks at together.
const TOGETHER: u32 = 16;

/// The words that [`SharedSendQueue`]s of this ring have in common, as they are in the beginning. They go to memory of the GPU, or that a GPU
/// reaches, aligned to 128 bytes.
pub fn shared_state(handle: &SendRingHandle) -> impl ExactSizeIterator<Item = u32> + use<> {
    let SendRingHandle { mask, shift, producer, credits, .. } = *handle;
    let tags = (mask + 1).div_ceil(4);
    let (lap, next) = (producer >> shift, producer & mask);
    (0..TAGS as u32 + tags).map(move |word| match word as usize {
        ROOM => credits,
        RESERVED | RUNG => producer,
        // Slots before the producer's have been posted to in this lap, the others in the one before.
        word if word >= TAGS => {
            let slot = (word - TAGS) as u32 * 4;
            u32::from_le_bytes([0, 1, 2, 3].map(|i| (lap + u32::from(slot + i < next)) as u8))
        }
        _ => 0,
    })
}

/// A send queue that any number of threads, warps and blocks post to, each through a value of its own, all made of the same handle and state.
///
/// A post is rung for without further ado, and what it says of room is what it found: [`PostError::Full`] may be due to another poster that asked
/// for more than there was and gave it back. A lone poster is better served by [`WarpSendQueue`](crate::WarpSendQueue), which has its counters
/// in registers.
pub struct SharedSendQueue<const W: usize> {
    slots: *mut u64,
    doorbell: *mut u32,
    state: *mut u32,
    mask: u32,
    shift: u32,
    max_batch: u32,
    qpn: u32,
    req_id_64: bool,
    limits: Limits,
}

impl<const W: usize> SharedSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// The queue of `handle`; `None` if its WQEs have another size than `W` words, or if it has fewer than 16 of them.
    ///
    /// # Safety
    /// The handle is of a queue that was handed over to this GPU, and `state` are the words that [`shared_state`] gave for it, which nobody has changed
    /// but values of this type; both addresses are valid here for as long as the queue is used. Nobody else posts there.
    #[inline(always)]
    pub unsafe fn new(handle: &SendRingHandle, state: *mut u32) -> Option<Self> {
        if handle.wqe_size as usize != <Wqe<W> as SendWqe>::SIZE || handle.mask < TOGETHER - 1 {
            return None;
        }
        Some(Self {
            slots: handle.ring as *mut u64,
            doorbell: handle.doorbell as *mut u32,
            state,
            mask: handle.mask,
            shift: handle.shift,
            max_batch: handle.max_batch,
            qpn: handle.qpn,
            req_id_64: handle.req_id_64 != 0,
            limits: handle.limits,
        })
    }

    /// Posts the requests of all lanes that have one: all lanes of the warp call this together. `req_id` comes back in a request's completion.
    ///
    /// # Errors
    /// In every lane, if there is no room for all of them, and then none was written. A lane whose request cannot be gets that error alone;
    /// the others' are posted.
    #[inline(always)]
    pub fn post_warp(
        &self,
        _: Warp,
        request: Option<(Destination, &impl Operation<W>)>,
        req_id: u64,
    ) -> Result<(), PostError> {
        self.place_group(ALL, request, req_id).1
    }

    /// The same, but for the doorbell: that is rung for when the [`Placed`] is dropped, by all lanes together. What others post meanwhile waits
    /// behind it, so do not take long.
    ///
    /// It is `None` in all lanes if nothing was placed; the errors are those of [`post_warp`](Self::post_warp).
    #[inline(always)]
    pub fn place_warp(
        &self,
        _: Warp,
        request: Option<(Destination, &impl Operation<W>)>,
        req_id: u64,
    ) -> (Option<Placed<'_, W>>, Result<(), PostError>) {
        self.place_group(ALL, request, req_id)
    }

    /// Posts a request of this thread alone, whatever the other lanes of its warp do.
    ///
    /// # Errors
    /// No room, or a request that cannot be; nothing was written.
    #[inline(always)]
    pub fn post(&self, to: Destination, request: &impl Operation<W>, req_id: u64) -> Result<(), PostError> {
        self.place_group(1 << arch::lane(), Some((to, request)), req_id).1
    }

    /// The same, and tries again while there is no room: somebody polls completions and [settles](Self::settle) them.
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
                Err(PostError::Full) if deadline.passed() => return Err(super::no_room(self.qpn, self.room(), 1)),
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
        request: Option<(Destination, &impl Operation<W>)>,
        req_id: u64,
    ) -> (Option<Placed<'_, W>>, Result<(), PostError>) {
        let checked = request.map_or(Ok(()), |(_, request)| request.check(&self.limits)).map_err(PostError::Encode);
        let lanes = arch::ballot(group, request.is_some() && checked.is_ok());
        if lanes == 0 {
            return (None, checked);
        }
        let Some(first) = self.reserve(group, lanes.count_ones()) else {
            arch::rarely();
            return (None, checked.and(Err(PostError::Full)));
        };
        // The leader has seen what was done by those who gave room back; now the others have.
        arch::sync_warp(group);
        let has_one = lanes >> arch::lane() & 1 != 0;
        let at = first.wrapping_add(before(lanes));
        if let (Some((to, request)), true) = (request, has_one) {
            let phase = Wqe::<W>::phase_bit(at & (self.mask + 1) != 0);
            let wqe = request.wqe(to);
            let wqe = if self.req_id_64 { wqe.stamp_64(req_id, phase) } else { wqe.stamp(req_id as u16, phase) };
            // SAFETY: the slot is inside the ring, and reserved.
            unsafe { arch::store_entry(self.slots.add((at & self.mask) as usize * W), wqe.words()) };
        }
        (Some(Placed { queue: self, group, at, has_one }), checked)
    }

    /// The first of `count` slots, if there is room for all.
    #[inline(always)]
    fn reserve(&self, group: u32, count: u32) -> Option<u32> {
        let leader = group.trailing_zeros();
        let (mut first, mut granted) = (0, false);
        if arch::lane() == leader {
            // SAFETY: words of the state. Who takes room sees what was done by those who gave it back.
            unsafe {
                let room = arch::fetch_add_acquire_gpu(self.state.add(ROOM), count.wrapping_neg());
                // Below zero while others ask for more than there is.
                granted = room as i32 >= count as i32;
                if granted {
                    first = arch::fetch_add_relaxed_gpu(self.state.add(RESERVED), count);
                } else {
                    arch::fetch_add_relaxed_gpu(self.state.add(ROOM), count);
                }
            }
        }
        let granted = arch::ballot(group, granted) != 0;
        granted.then(|| arch::shuffle(group, first, leader))
    }

    /// Has the doorbell rung for what this group has tagged, by itself or by who is at it.
    #[inline(always)]
    fn want_doorbell(&self, group: u32) {
        // All lanes' tags before the leader's addition.
        arch::sync_warp(group);
        let leader = group.trailing_zeros();
        let add = |count: u32| {
            let mut was = 0;
            if arch::lane() == leader {
                // SAFETY: a word of the state.
                was = unsafe { arch::fetch_add_gpu(self.state.add(WANTED), count) };
            }
            arch::shuffle(group, was, leader)
        };
        if add(1) != 0 {
            return;
        }
        arch::rarely();
        let mut served = 1;
        loop {
            self.ring_for_ready(group);
            let wanted = add(u32::wrapping_neg(served));
            if wanted == served {
                return;
            }
            served = wanted - served;
        }
    }

    /// Rings as far as every slot is ready. Only one group at a time is here.
    #[inline(always)]
    fn ring_for_ready(&self, group: u32) {
        let leader = group.trailing_zeros();
        // SAFETY: a word of the state, which only who is here writes; the leader has seen what the last one wrote.
        let mut rung = if arch::lane() == leader { unsafe { arch::load_gpu(self.state.add(RUNG)) } } else { 0 };
        rung = arch::shuffle(group, rung, leader);
        loop {
            let ready = self.ready_from(group, rung).min(self.max_batch);
            if ready == 0 {
                return;
            }
            rung = rung.wrapping_add(ready);
            // The WQEs that the tags told of, before the doorbell.
            arch::fence_system();
            arch::sync_warp(group);
            if arch::lane() == leader {
                // SAFETY: the ring's doorbell; a word of the state.
                unsafe {
                    arch::store_doorbell(self.doorbell, rung);
                    arch::store_gpu(self.state.add(RUNG), rung);
                }
            }
        }
    }

    /// How many slots in a row are ready, from `start` on, as far as the group looks at once.
    #[inline(always)]
    fn ready_from(&self, group: u32, start: u32) -> u32 {
        // From the multiple of 16 before `start`. What is rung for counts as ready, whatever its tag is: it may have completed, and be ready in the next
        // lap already.
        let base = start & !(TOGETHER - 1);
        let ahead = before(group) * TOGETHER;
        let at = base.wrapping_add(ahead);
        let behind = if ahead == 0 { start & (TOGETHER - 1) } else { 0 };
        // SAFETY: 16 tags of the state: a lap is a multiple of as many.
        let tags = unsafe { arch::load_bytes_gpu(self.tags().add((at & self.mask) as usize)) };
        let ready = matching(tags, self.tag(at), behind);
        let full = arch::ballot(group, ready == TOGETHER);
        // The lane, of those in the group, that has the first slot which is not ready; the last if all are.
        let lane = (group & !full).trailing_zeros();
        let (lanes, rest) = if lane < 32 {
            ((group & ((1 << lane) - 1)).count_ones(), arch::shuffle(group, ready, lane))
        } else {
            (group.count_ones(), 0)
        };
        base.wrapping_add(lanes * TOGETHER + rest).wrapping_sub(start)
    }

    /// What stands in the tag of a slot when the WQE of this number is ready.
    #[inline(always)]
    fn tag(&self, at: u32) -> u8 {
        (at >> self.shift).wrapping_add(1) as u8
    }

    #[inline(always)]
    fn tags(&self) -> *mut u8 {
        self.state.wrapping_add(TAGS).cast()
    }

    /// Takes back the room of a request that is done. A completion of something else is given back.
    #[inline(always)]
    pub fn settle(&self, done: Entry) -> Option<Entry> {
        if !done.is_send_of(self.qpn) {
            return Some(done);
        }
        // SAFETY: a word of the state.
        unsafe { arch::fetch_add_gpu(self.state.add(ROOM), 1) };
        None
    }

    /// The same for a warp: each lane's completion, or none. All lanes call this together.
    #[inline(always)]
    pub fn settle_warp(&self, _: Warp, done: Option<Entry>) -> Option<Entry> {
        let is_ours = done.as_ref().is_some_and(|done| done.is_send_of(self.qpn));
        let count = arch::ballot(ALL, is_ours).count_ones();
        if count != 0 && arch::lane() == 0 {
            // SAFETY: a word of the state.
            unsafe { arch::fetch_add_gpu(self.state.add(ROOM), count) };
        }
        if is_ours { None } else { done }
    }

    /// Requests that could be posted at the moment.
    #[inline(always)]
    pub fn room(&self) -> u32 {
        // SAFETY: a word of the state.
        unsafe { arch::load_gpu(self.state.add(ROOM)) as i32 }.max(0) as u32
    }

    /// Requests posted since the ring's creation. Final only when nobody posts any more.
    #[inline(always)]
    pub fn posted(&self) -> u32 {
        // SAFETY: a word of the state.
        unsafe { arch::load_gpu(self.state.add(RESERVED)) }
    }

    /// Forgets `count` outstanding requests without their completions.
    ///
    /// # Safety
    /// Nobody reads the ring: this is for measurements. A NIC's ring may overflow.
    #[doc(hidden)]
    #[inline(always)]
    pub unsafe fn forget(&self, count: u32) {
        // SAFETY: a word of the state.
        unsafe { arch::fetch_add_relaxed_gpu(self.state.add(ROOM), count) };
    }
}

/// Requests in the ring of a [`SharedSendQueue`] that the device has not been told of. Dropping this tells it.
#[must_use = "dropped at once it is a post"]
pub struct Placed<'q, const W: usize>
where
    Wqe<W>: SendWqe,
{
    queue: &'q SharedSendQueue<W>,
    group: u32,
    /// Number of this lane's request, if it has one.
    at: u32,
    has_one: bool,
}

impl<const W: usize> Placed<'_, W>
where
    Wqe<W>: SendWqe,
{
    /// Has the doorbell rung.
    #[inline(always)]
    pub fn ring(self) {}
}

impl<const W: usize> Drop for Placed<'_, W>
where
    Wqe<W>: SendWqe,
{
    #[inline(always)]
    fn drop(&mut self) {
        let Self { queue, group, at, has_one } = *self;
        // Whoever sees the tag sees the WQE and all that this lane stored before, and lets the device see it.
        arch::fence_gpu();
        if has_one {
            // SAFETY: the tag of a slot.
            unsafe { arch::store_byte_gpu(queue.tags().add((at & queue.mask) as usize), queue.tag(at)) };
        }
        queue.want_doorbell(group);
    }
}

/// Lanes of `group` before this one.
#[inline(always)]
fn before(group: u32) -> u32 {
    (group & ((1 << arch::lane()) - 1)).count_ones()
}

/// How many bytes from the first on are `tag`, where the first `behind` of them, fewer than 16, count as such.
#[inline(always)]
fn matching(bytes: [u64; 2], tag: u8, behind: u32) -> u32 {
    let [low, high] = bytes.map(|eight| eight ^ u64::from_ne_bytes([tag; 8]));
    let low = (low & u64::MAX.checked_shl(8 * behind).unwrap_or(0)).trailing_zeros() / 8;
    let high = (high & u64::MAX << (8 * behind.saturating_sub(8))).trailing_zeros() / 8;
    if low < 8 { low } else { 8 + high }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_up_to_the_first_that_differs() {
        for n in 0..=16 {
            let bytes: [u8; 16] = std::array::from_fn(|i| if i < n { 7 } else { 6 });
            let words = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
            assert_eq!(matching(words, 7, 0), n as u32);
            for behind in 0..16 {
                // Those behind may have any tag.
                let bytes: [u8; 16] = std::array::from_fn(|i| if i < behind { 8 } else { bytes[i] });
                let words = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
                assert_eq!(matching(words, 7, behind as u32), n.max(behind) as u32);
            }
        }
    }
}
