//! Completion entries: one fence for all that a warp has done.

use crate::lookup::Tables;
use efa_gpu_device::warp::{self, ALL, Warp};
use efa_gpu_device::{mem, thread};
use efa_io::{Completion, Cqe32, Event, Status};

/// An entry without its phase, and the index of the queue that it goes to.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    cq: u32,
    cqe: Cqe32,
}

impl Entry {
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

impl Tables<'_> {
    /// Writes the entries of all lanes, up to two of each. What the lanes have stored before is seen by whoever sees an entry.
    #[inline(always)]
    pub(crate) fn complete(self, warp: Warp, receive: Option<Entry>, send: Option<Entry>) {
        // SAFETY: a whole warp.
        if unsafe { warp::warp_vote_ballot(ALL, receive.is_some() || send.is_some()) } == 0 {
            return;
        }
        let receive = self.write(warp, receive);
        let send = self.write(warp, send);
        // All lanes' bytes before each lane's fence: some were copied together.
        // SAFETY: a whole warp.
        unsafe { warp::sync_warp(ALL) };
        thread::system_fence();
        // Not in a loop, whose array would be in memory.
        if let Some(entry) = receive {
            entry.publish();
        }
        if let Some(entry) = send {
            entry.publish();
        }
    }

    /// Writes all but the first word of the lanes' entries.
    #[inline(always)]
    fn write(self, warp: Warp, entry: Option<Entry>) -> Option<Unpublished> {
        let counter = self.reserve(warp, entry.map(|entry| entry.cq));
        let Entry { cq, cqe } = entry?;
        let row = self.completion_queue(cq);
        // SAFETY: a row of the table, of which these do not change.
        let (ring, mask, shift) = unsafe { ((*row).ring as *mut u64, (*row).mask, (*row).shift) };
        let words = *cqe.with_phase(counter >> shift & 1 == 0).words();
        let at = ring.wrapping_add((counter & mask) as usize * 4);
        // SAFETY: a reserved entry of the ring.
        unsafe {
            mem::store_pair(at.add(2), [words[2], words[3]]);
            mem::store_relaxed_system(at.add(1), words[1]);
        }
        Some(Unpublished { at, first: words[0] })
    }

    /// Reserves an entry for each lane that has a queue; gives its counter. Lanes with the same queue do it in one addition.
    #[inline(always)]
    fn reserve(self, _: Warp, cq: Option<u32>) -> u32 {
        let mut counter = 0;
        // SAFETY: a whole warp.
        let mut left = unsafe { warp::warp_vote_ballot(ALL, cq.is_some()) };
        while left != 0 {
            let leader = left.trailing_zeros();
            // SAFETY: a whole warp; the counter is a word of a row, only accessed atomically.
            unsafe {
                let which = warp::warp_shuffle_idx(ALL, cq.unwrap_or_default(), leader);
                let group = warp::warp_vote_ballot(ALL, cq == Some(which));
                let mut first = 0;
                if warp::lane_id() == leader {
                    let producer = &raw mut (*self.completion_queue(which)).producer;
                    first = mem::fetch_add_device(producer, group.count_ones());
                }
                first = warp::warp_shuffle_idx(ALL, first, leader);
                if cq == Some(which) {
                    let before = group & ((1u32 << warp::lane_id()) - 1);
                    counter = first.wrapping_add(before.count_ones());
                }
                left &= !group;
            }
        }
        counter
    }
}
