//! Completion entries: one fence for all that a warp has done.

use crate::lookup::Lookup;
use efa_gpu_device::warp::{self, ALL, Warp};
use efa_gpu_device::{mem, thread};
use efa_io::{Completion, CqCursor, Cqe32, Event, RingSize, Status};

/// An entry without its phase, and the index of the queue that it goes to.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    cq: u32,
    cqe: Cqe32,
}

impl Entry {
    /// What stands for no entry, where a mask tells.
    pub(crate) const NONE: Self = Self { cq: 0, cqe: Cqe32::from_words([0; 4]) };

    #[inline(always)]
    pub(crate) fn new(cq: u32, req_id: u64, status: Status, qpn: u16, event: Event) -> Self {
        let completion = Completion { req_id, status, qpn, phase: false, event };
        // An entry of 32 bytes holds any completion.
        Self { cq, cqe: completion.encode().unwrap_or(Cqe32::from_words([0; 4])) }
    }
}

/// An entry that is written but for its first word, without which nobody believes the rest.
struct Unpublished {
    at: *mut u64,
    first: u64,
}

impl Unpublished {
    #[inline(always)]
    fn publish(self) {
        // SAFETY: the first word of a reserved entry.
        unsafe { mem::store_relaxed_system(self.at, self.first) };
    }
}

impl Lookup<'_> {
    /// Writes the entries of the lanes in `receives`, and those of the lanes in `sends`. What the lanes have stored before is seen by whoever sees an
    /// entry.
    #[inline(always)]
    pub(crate) fn complete(self, warp: Warp, receives: u32, receive: Entry, sends: u32, send: Entry) {
        if receives | sends == 0 {
            return;
        }
        let receive = self.write(warp, receives, receive);
        let send = self.write(warp, sends, send);
        // All lanes' bytes before each lane's fence: some were copied together.
        // SAFETY: a whole warp.
        unsafe { warp::sync_warp(ALL) };
        thread::system_fence();
        // Not in a loop, whose array would be in memory.
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
        // SAFETY: a row of the table, of which these do not change.
        let (ring, mask) = unsafe { ((*row).ring as *mut u64, (*row).mask) };
        let at = CqCursor::new(RingSize::from_mask(mask), counter);
        let words = *cqe.with_phase(at.phase()).words();
        let at = ring.wrapping_add(at.slot() as usize * 4);
        // SAFETY: a reserved entry of the ring.
        unsafe {
            mem::store_pair(at.add(2), [words[2], words[3]]);
            mem::store_relaxed_system(at.add(1), words[1]);
        }
        Unpublished { at, first: words[0] }
    }

    /// Reserves an entry for each lane in `lanes`, in its queue `cq`; gives its counter. Lanes with the same queue do it in one addition.
    #[inline(always)]
    fn reserve(self, _: Warp, lanes: u32, cq: u32) -> u32 {
        let (mut counter, mut left) = (0, lanes);
        while left != 0 {
            let leader = left.trailing_zeros();
            // SAFETY: a whole warp; the counter is a word of a row, only accessed atomically.
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

/// Whether this lane is one of `lanes`.
///
/// What a lane has told in a ballot it takes from the answer afterwards, and not from where it came from: else the compiler, which does not know what a
/// ballot is, puts one ballot each into the two ways, and the lanes meet in different places.
#[inline(always)]
pub(crate) fn has(lanes: u32) -> bool {
    lanes >> warp::lane_id() & 1 != 0
}
