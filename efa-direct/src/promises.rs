//! The entries of a completion queue that are promised to rings, and the queue pair numbers that may still be in it.
//!
//! Each ring that completes in a queue has a share of its entries, so that the queue cannot overflow. And a completion
//! names its queue pair by number alone, which a device may give to another queue pair once the first is gone. Both
//! outlive the queue pair, since its completions may still be in the queue unpolled. So share and number become free
//! when the reader finds the queue empty *after* the queue pair was destroyed: from then on the device writes no
//! completion of it.
//!
//! ```text
//! alive ──begin_destroy──▶ dying ──finish_destroy──▶ gone ──the reader finds the ring empty──▶ free
//!        before the call            after the call
//! ```
//!
//! The device may reuse the number as soon as it destroys the queue pair, in the middle of this. A new queue pair that
//! gets the number too early is refused ([`QueuePair::new`](crate::qp::QueuePair)). A number counts as *dying* before
//! the device is called, so that no other thread can be given it in between.

use crate::error::SetupError;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// The promises of one completion queue.
pub(crate) struct Promises {
    /// Entries of each sub-queue.
    entries: u32,
    state: Mutex<State>,
    /// Length of `State::gone`. The reader loads it each time that it finds the ring empty, so it is outside the lock.
    gone: AtomicU32,
}

#[derive(Default)]
struct State {
    /// Entries that are promised to rings, including rings of queue pairs that are gone.
    reserved: u32,
    /// Numbers of queue pairs that are being destroyed, once for each of their rings in this queue.
    dying: Vec<u16>,
    /// Rings of destroyed queue pairs, in the order of their destruction.
    gone: Vec<Gone>,
}

struct Gone {
    qpn: u16,
    entries: u32,
}

impl Promises {
    pub(crate) fn new(entries: u32) -> Self {
        Self { entries, state: Mutex::default(), gone: AtomicU32::new(0) }
    }

    /// Promises entries to a ring.
    ///
    /// # Errors
    /// [`SetupError::CompletionQueueTooSmall`].
    pub(crate) fn reserve(&self, asked: u32) -> Result<(), SetupError> {
        let reserved = &mut self.state.lock().reserved;
        // The device chooses the sub-queue that a ring completes in, so each sub-queue must have room for all rings.
        match reserved.checked_add(asked).filter(|&sum| sum <= self.entries) {
            Some(sum) => *reserved = sum,
            None => {
                return Err(SetupError::CompletionQueueTooSmall { entries: self.entries, reserved: *reserved, asked });
            }
        }
        Ok(())
    }

    /// Takes a promise back from a ring that never completed a request.
    pub(crate) fn release(&self, entries: u32) {
        self.state.lock().reserved -= entries;
    }

    /// Notes that the device is about to be asked to destroy a queue pair.
    pub(crate) fn begin_destroy(&self, qpn: u16) {
        self.state.lock().dying.push(qpn);
    }

    /// Notes that the queue pair is destroyed: the device writes no more completions of its ring, which had so many
    /// entries.
    pub(crate) fn finish_destroy(&self, qpn: u16, entries: u32) {
        let mut state = self.state.lock();
        if let Some(at) = state.dying.iter().position(|&dying| dying == qpn) {
            state.dying.swap_remove(at);
        }
        state.gone.push(Gone { qpn, entries });
        self.gone.store(state.gone.len() as u32, Release);
    }

    /// Returns `true` if completions of an earlier queue pair with this number may be in the ring, or still arrive.
    pub(crate) fn may_hold_completions_of(&self, qpn: u16) -> bool {
        let state = self.state.lock();
        state.dying.contains(&qpn) || state.gone.iter().any(|gone| gone.qpn == qpn)
    }

    /// Returns the number of rings that are gone. The reader takes it *before* it looks at the ring.
    #[inline(always)]
    pub(crate) fn gone(&self) -> u32 {
        self.gone.load(Acquire)
    }

    /// Forgets the first `count` rings that are gone. The reader calls this after it found the ring empty, with the
    /// number that [`gone`](Self::gone) returned before it looked.
    #[cold]
    pub(crate) fn found_empty(&self, count: u32) {
        let mut state = self.state.lock();
        let count = (count as usize).min(state.gone.len());
        let entries: u32 = state.gone.drain(..count).map(|gone| gone.entries).sum();
        state.reserved -= entries;
        self.gone.store(state.gone.len() as u32, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_entries_are_free_once_the_ring_was_empty_after_the_queue_pair_was_gone() {
        let promises = Promises::new(8);
        promises.reserve(8).unwrap();
        assert!(!promises.may_hold_completions_of(5));
        promises.begin_destroy(5);
        let before = promises.gone();
        assert!(promises.may_hold_completions_of(5), "the device may give the number out before it has answered");
        promises.finish_destroy(5, 8);
        promises.found_empty(before);
        assert!(promises.may_hold_completions_of(5), "that the ring was empty before says nothing");
        assert!(promises.reserve(1).is_err());
        promises.found_empty(promises.gone());
        assert!(!promises.may_hold_completions_of(5));
        promises.reserve(8).unwrap();
    }

    #[test]
    fn a_queue_pair_with_both_rings_in_one_queue_is_remembered_until_both_are_forgotten() {
        let promises = Promises::new(8);
        promises.reserve(4).unwrap();
        promises.reserve(2).unwrap();
        promises.begin_destroy(5);
        promises.begin_destroy(5);
        promises.finish_destroy(5, 4);
        let one = promises.gone();
        promises.finish_destroy(5, 2);
        promises.found_empty(one);
        assert!(promises.may_hold_completions_of(5));
        promises.found_empty(promises.gone());
        assert!(!promises.may_hold_completions_of(5));
        promises.reserve(8).unwrap();
    }
}
