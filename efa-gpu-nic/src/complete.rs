//! Completion entries: one fence for everything that a warp has done.

use crate::lookup::Lookup;
use efa_gpu_device::warp::{self, ALL, Warp};
use efa_gpu_device::{mem, thread};
use efa_io::{Completion, CqCursor, Cqe32, Event, RingSize, Status};

/// An entry without its phase, and the index of its completion queue.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    cq: u32,
    cqe: Cqe32,
}

impl Entry {
    /// A placeholder for a lane without an entry.
    pub(crate) const NONE: Self = Self { cq: 0, cqe: Cqe32::from_words([0; 4]) };

    #[inline(always)]
    pub(crate) fn new(cq: u32, req_id: u64, status: Status, qpn: u16, event: Event) -> Self {
        let completion = Completion { req_id, status, qpn, phase: false, event };
        // An entry of 32 bytes holds any completion.
        Self { cq, cqe: completion.encode().unwrap_or(Cqe32::from_words([0; 4])) }
    }
}

/// An entry that is written except for its first word, which contains the phase: nobody reads it yet.
struct Unpublished {
    at: *mut u64,
    first: u64,
}

impl Unpublished {
    #[inline(always)]
    fn publish(self) {
        // SAFETY: the first word of an entry that this lane has reserved, in a ring that `run`'s caller keeps valid.
        unsafe { mem::store_relaxed_system(self.at, self.first) };
    }
}

impl Lookup<'_> {
    /// Writes the entries of the lanes in `receives`, and those of the lanes in `sends`. A reader that sees an entry
    /// sees what the lanes have stored before.
    #[inline(always)]
    pub(crate) fn complete(self, warp: Warp, receives: u32, receive: Entry, sends: u32, send: Entry) {
        if receives | sends == 0 {
            return;
        }
        let receive = self.write(warp, receives, receive);
        let send = self.write(warp, sends, send);
        // All lanes' bytes come before each lane's fence: lanes have copied for each other.
        // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to.
        unsafe { warp::sync_warp(ALL) };
        thread::system_fence();
        // A loop would need an array, which would be in memory.
        if has(receives) {
            receive.publish();
        }
        if has(sends) {
            send.publish();
        }
    }

    /// Writes all but the first word of the entries of the lanes in `lanes`.
    #[inline(always)]
    fn write(self, warp: Warp, lanes: u32, Entry { cq, cqe }: Entry) -> Unpublished {
        let counter = self.reserve(warp, lanes, cq);
        if !has(lanes) {
            return Unpublished { at: core::ptr::null_mut(), first: 0 };
        }
        let row = self.completion_queue(cq);
        // SAFETY: a row of the table, which `run`'s caller keeps valid; these words do not change.
        let (ring, mask) = unsafe { ((*row).ring as *mut u64, (*row).mask) };
        let at = CqCursor::new(RingSize::from_mask(mask), counter);
        let words = *cqe.with_phase(at.phase()).words();
        let at = ring.wrapping_add(at.slot() as usize * 4);
        // SAFETY: an entry of the ring that this lane has reserved; `run`'s caller keeps rings valid.
        unsafe {
            mem::store_pair(at.add(2), [words[2], words[3]]);
            mem::store_relaxed_system(at.add(1), words[1]);
        }
        Unpublished { at, first: words[0] }
    }

    /// Reserves an entry for each lane in `lanes`, in its queue `cq`, and returns its number. Lanes with the same queue
    /// share one addition.
    #[inline(always)]
    fn reserve(self, _: Warp, lanes: u32, cq: u32) -> u32 {
        let (mut counter, mut left) = (0, lanes);
        while left != 0 {
            let leader = left.trailing_zeros();
            // SAFETY: all lanes of a whole warp come here together: `left` is the same for them. The counter is a word
            // of a row, which `run`'s caller keeps valid, and which is only accessed atomically.
            unsafe {
                let which = warp::warp_shuffle_idx(ALL, cq, leader);
                let group = warp::warp_vote_ballot(ALL, cq == which) & lanes;
                let mut first = 0;
                if warp::lane_id() == leader {
                    let producer = &raw mut (*self.completion_queue(which)).producer;
                    first = mem::fetch_add_device(producer, group.count_ones());
                }
                first = warp::warp_shuffle_idx(ALL, first, leader);
                if has(group) {
                    let before = group & ((1u32 << warp::lane_id()) - 1);
                    counter = first.wrapping_add(before.count_ones());
                }
                left &= !group;
            }
        }
        counter
    }
}

/// Returns `true` if this lane is one of `lanes`.
///
/// After a ballot a lane takes its own vote from the answer, not from the condition that it voted with. Otherwise the
/// compiler, which does not know what a ballot is, may put a ballot into each branch of the condition, and the lanes
/// meet in different places.
#[inline(always)]
pub(crate) fn has(lanes: u32) -> bool {
    lanes >> warp::lane_id() & 1 != 0
}
