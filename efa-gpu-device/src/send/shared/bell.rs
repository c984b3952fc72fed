//! The doorbell of a shared send queue: one poster rings for all that are ready (flat combining).
//!
//! Each slot has a mark. A poster that has stored a WQE exchanges its slot's mark for [`READY`]. While nobody rings,
//! one mark in the ring is [`COMBINE`]: it lies at the first slot that is not rung for. A poster that finds it in place
//! of its slot's old mark becomes the *combiner*. The combiner rings as far as every slot is ready, and again while
//! more have become ready in the meantime. Then it exchanges the mark of the first slot that was not ready for
//! `COMBINE`. If that slot has become ready just now, the exchange returns `READY`, and the combiner goes on.
//!
//! So nobody waits for a slot that is not ready: neither the poster of a slot behind it nor the combiner. One doorbell
//! serves as many posters as come while one is rung. And no slot stays unrung: of the two exchanges that meet at a mark
//! one comes second, and it sees the other.
//!
//! To keep one poster from ringing for all others forever, a combiner asks for relief after some doorbells. The next
//! poster to come by waits until the doorbell that is just being rung is rung, and is the combiner from then on.
//!
//! # Why the device sees every WQE that a doorbell announces
//!
//! By causality order (PTX ISA, "Memory Consistency Model"), from a WQE to the doorbell that announces it. Each row
//! comes before the next:
//!
//! | who | what | which is |
//! | --- | --- | --- |
//! | poster | stores its WQE | |
//! | poster | `fence.acq_rel.gpu`, then exchanges the mark | a release pattern |
//! | lane that looks | reads or exchanges the mark, then `fence.acq_rel.gpu` | an acquire pattern |
//! | lane that looks, lane that rings | `bar.warp.sync` | a barrier |
//! | lane that rings | `fence.acq_rel.sys`, then stores the doorbell | a release pattern |
//!
//! In one thread that is program order. A release pattern is a fence and then a strong write; an acquire pattern is a
//! strong read and then a fence, *both of one thread*. Such a pair synchronizes where the read observes the write and
//! the fences' scopes include each other's thread ("Release and Acquire Patterns", "Memory synchronization"). A barrier
//! synchronizes those who meet there.
//!
//! Base causality order is transitive over all of these ("Causality order"), so what a fence orders need not have been
//! stored by its own thread. A ballot or a shuffle is no link of such a chain: they carry values and order nothing. A
//! fence behind the barrier alone would not be enough, since only the lane that rings is ordered by its fence, and the
//! marks were read by others. A group of one lane needs only the last fence, which is behind its own looks.
//!
//! In the same way one combiner's doorbell comes before the next one's: it comes before a fence and the exchange that
//! leaves `COMBINE`, or the store that hands over, and the next combiner reads that. And requests that were rung for
//! count as part of the batch until a fence of system scope is behind their doorbell: then the device has the doorbell
//! before the first WQE of the next batch.

use super::state::{MARKS, RELIEF, ROOM, room};
use crate::arch;
use efa_io::{RingSize, SendRingHandle};

/// The low bits of a mark: the slot holds a WQE; whoever posts here is the combiner. The other bits are the slot's lap,
/// so that a mark of an earlier lap is neither.
const READY: u32 = 1;
const COMBINE: u32 = 2;
/// Laps that a mark tells apart: as many as a 30-bit number has values.
const LAP: u32 = u32::MAX << 2;

/// The values of the word for relief: nobody asks for it; the combiner does; a poster waits to become the combiner; it
/// is the combiner, and the next two words hold the first slot that is not rung for and the requests owed to the batch.
const NOBODY: u32 = 0;
const WANTED: u32 = 1;
const CLAIMED: u32 = 2;
const HANDED: u32 = 3;
/// Doorbells after which a combiner asks for relief; on the host so few that tests come by here.
const PATIENCE: u32 = if cfg!(target_arch = "nvptx64") { 16 } else { 2 };

/// Marks that a lane loads at once, and how many such loads it makes before it asks what the others have seen.
pub(super) const TOGETHER: u32 = 4;
const LOOKS: u32 = 2;
/// Ready slots after which nobody looks for more: the fence serves for so many.
const MOST: u32 = 1024;

/// The doorbell of a shared queue, and the marks of its slots.
///
/// The addresses are valid, and the marks and the word for relief are written only here, by atomic accesses: the
/// contract of [`SharedSendQueue::new`](super::SharedSendQueue::new), whose caller keeps it. Every `SAFETY` comment of
/// this file that names the state relies on that.
#[derive(Clone, Copy)]
pub(super) struct Bell {
    pub(super) doorbell: *mut u32,
    pub(super) state: *mut u32,
    pub(super) size: RingSize,
    /// log2 of the entries, for the laps of marks. Counted from the mask at every look, it makes the kernel
    /// `send_by_many` 35 instructions longer (PTX for sm_90).
    pub(super) shift: u32,
}

/// Returns the marks of a ring at the hand-over, by slot.
pub(super) fn first_marks(handle: &SendRingHandle) -> impl ExactSizeIterator<Item = u32> + use<> {
    let (size, shift, producer) = (handle.size(), handle.shift, handle.producer);
    (0..size.entries()).map(move |slot| {
        // Those before the producer's have been posted to in this lap, the others in the one before.
        let at = producer.wrapping_sub(size.entries()).wrapping_add(size.slot(slot.wrapping_sub(producer)));
        if slot == size.slot(producer) { lap(producer, shift) | COMBINE } else { lap(at, shift) | READY }
    })
}

#[inline(always)]
fn lap(at: u32, shift: u32) -> u32 {
    at >> shift << 2 & LAP
}

impl Bell {
    /// Announces the WQE that each lane of `group` stored at `at`, if it `has_one`: rings, or leaves that to the
    /// combiner. The lanes come here together.
    #[inline(always)]
    pub(super) fn publish(self, group: u32, at: u32, has_one: bool) {
        // Whoever sees the mark sees the WQE and all that this lane stored before, and lets the device see it.
        arch::fence_gpu();
        let lap = lap(at, self.shift);
        // SAFETY: the word for relief, of the queue's state, which its creator keeps valid.
        let relief = unsafe { arch::load_gpu(self.relief()) };
        let mut was = 0;
        if has_one {
            // SAFETY: the mark of a slot, of the queue's state; `mark` masks the number.
            unsafe { was = arch::exchange_relaxed_gpu(self.mark(at), lap | READY) };
        }
        let finder = arch::ballot(group, has_one && was == lap | COMBINE);
        if finder != 0 {
            arch::rarely();
            let at = arch::shuffle(group, at, finder.trailing_zeros());
            self.ring_from(group, at, at.wrapping_add(1), 0);
        } else if arch::ballot(group, relief == WANTED) != 0 {
            arch::rarely();
            self.relieve(group);
        }
    }

    /// Becomes the combiner in the place of one that asks for relief, unless somebody else does.
    #[inline(always)]
    fn relieve(self, group: u32) {
        let leader = group.trailing_zeros();
        let (mut claimed, mut at, mut owed) = (false, 0, 0);
        if arch::lane() == leader {
            // SAFETY: the words for relief, of the queue's state, which its creator keeps valid.
            unsafe {
                claimed = arch::compare_exchange_gpu(self.relief(), WANTED, CLAIMED) == WANTED;
                // Until the doorbell that is being rung is rung.
                while claimed && arch::load_gpu(self.relief()) != HANDED {}
                if claimed {
                    // The other one's doorbells before this one's, and before the two words.
                    arch::fence_gpu();
                    at = arch::load_gpu(self.relief().add(1));
                    owed = arch::load_gpu(self.relief().add(2));
                    arch::store_gpu(self.relief(), NOBODY);
                }
            }
        }
        if arch::ballot(group, claimed) != 0 {
            let at = arch::shuffle(group, at, leader);
            self.ring_from(group, at, at, owed);
        }
    }

    /// Combines: rings from slot `at` on as far as every slot is ready, which all before `end` are, then leaves
    /// `COMBINE` behind. Only one group at a time is here. `owed` requests were rung for by the leader and still count
    /// as part of the batch: the next batch may begin when it is certain that the device gets the doorbell first.
    #[inline(always)]
    fn ring_from(self, group: u32, mut at: u32, mut end: u32, mut owed: u32) {
        let leader = group.trailing_zeros();
        let mut doorbells = 0;
        loop {
            end = end.wrapping_add(self.ready_from(group, end));
            if end != at {
                if group & (group - 1) != 0 {
                    // The WQEs whose marks each lane saw come before the fence of the lane that rings.
                    arch::fence_gpu();
                    arch::sync_warp(group);
                }
                arch::fence_system();
                if arch::lane() == leader {
                    self.give_back(owed);
                    // SAFETY: the ring's doorbell, which the queue's creator keeps valid.
                    unsafe { arch::store_doorbell(self.doorbell, end) };
                }
                owed = end.wrapping_sub(at);
                at = end;
                doorbells += 1;
                if doorbells < PATIENCE {
                    continue;
                }
                if arch::lane() == leader && doorbells == PATIENCE {
                    // SAFETY: the word for relief, of the queue's state, which its creator keeps valid.
                    unsafe { arch::store_gpu(self.relief(), WANTED) };
                }
                // SAFETY: as above.
                let claimed = arch::lane() == leader && unsafe { arch::load_gpu(self.relief()) } == CLAIMED;
                if arch::ballot(group, claimed) != 0 {
                    return self.hand_over(group, at, owed);
                }
                continue;
            }
            let (mut claimed, mut left) = (false, false);
            if arch::lane() == leader {
                let lap = lap(at, self.shift);
                // SAFETY: the word for relief and the mark of a slot, of the queue's state, which its creator keeps
                // valid.
                unsafe {
                    claimed = doorbells >= PATIENCE && arch::exchange_relaxed_gpu(self.relief(), NOBODY) == CLAIMED;
                    if !claimed {
                        if owed != 0 {
                            // The device gets the doorbell before the next batch, and before the next combiner's
                            // doorbell.
                            arch::fence_system();
                        }
                        self.give_back(owed);
                        left = arch::exchange_relaxed_gpu(self.mark(at), lap | COMBINE) != lap | READY;
                    }
                }
            }
            if arch::ballot(group, claimed) != 0 {
                return self.hand_over(group, at, owed);
            }
            if arch::ballot(group, left) != 0 {
                return;
            }
            (end, doorbells, owed) = (at.wrapping_add(1), 0, 0);
        }
    }

    /// Takes `count` requests out of the batch. A fence of system scope is behind their doorbell.
    #[inline(always)]
    fn give_back(self, count: u32) {
        if count != 0 {
            // SAFETY: the word for room, of the queue's state, which its creator keeps valid.
            unsafe { arch::fetch_add_relaxed_gpu_u64(self.state.add(ROOM).cast(), room::in_batch(count)) };
        }
    }

    /// Hands over to the poster that waits to become the combiner.
    #[inline(always)]
    fn hand_over(self, group: u32, at: u32, owed: u32) {
        if arch::lane() == group.trailing_zeros() {
            // SAFETY: the words for relief, of the queue's state, which its creator keeps valid.
            unsafe {
                arch::store_gpu(self.relief().add(1), at);
                arch::store_gpu(self.relief().add(2), owed);
                // Both words, and the doorbell, before what the next combiner does.
                arch::fence_gpu();
                arch::store_gpu(self.relief(), HANDED);
            }
        }
    }

    /// Returns how many slots in a row are ready from `start` on, as far as it looks.
    #[inline(always)]
    fn ready_from(self, group: u32, start: u32) -> u32 {
        // From a multiple of 4 on: what is before `start` was ready.
        let base = start & !(TOGETHER - 1);
        let (lanes, mine) = (group.count_ones(), base.wrapping_add(before(group) * TOGETHER));
        let mut ready = 0;
        loop {
            // All loads before the first vote.
            let marks = core::array::from_fn::<_, { LOOKS as usize }, _>(|look| {
                let at = mine.wrapping_add(ready + look as u32 * lanes * TOGETHER);
                // SAFETY: the marks of four slots side by side in one lap, of the queue's state, aligned to 16 bytes:
                // the number of entries is a power of two by the handle, and `SharedSendQueue::new` refuses less than
                // four.
                (lap(at, self.shift) | READY, at, unsafe { arch::load_four_gpu(self.mark(at)) })
            });
            for (wanted, at, marks) in marks {
                let is_ready =
                    |i: u32| marks[i as usize] == wanted || (at.wrapping_add(i).wrapping_sub(start) as i32) < 0;
                let mut count = 0;
                let mut run = true;
                let mut i = 0;
                while i < TOGETHER {
                    run &= is_ready(i);
                    count += u32::from(run);
                    i += 1;
                }
                let missing = group & !arch::ballot(group, count == TOGETHER);
                if missing != 0 {
                    let lane = missing.trailing_zeros();
                    ready += (group & ((1 << lane) - 1)).count_ones() * TOGETHER + arch::shuffle(group, count, lane);
                    return base.wrapping_add(ready).wrapping_sub(start);
                }
                ready += lanes * TOGETHER;
            }
            if ready >= MOST {
                return base.wrapping_add(ready).wrapping_sub(start);
            }
        }
    }

    #[inline(always)]
    fn relief(self) -> *mut u32 {
        self.state.wrapping_add(RELIEF)
    }

    #[inline(always)]
    fn mark(self, at: u32) -> *mut u32 {
        self.state.wrapping_add(MARKS + self.size.slot(at) as usize)
    }
}

/// Returns the number of lanes of `group` before this one.
#[inline(always)]
pub(super) fn before(group: u32) -> u32 {
    (group & ((1 << arch::lane()) - 1)).count_ones()
}
