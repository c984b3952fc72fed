//! What a completion queue has promised to whom, and for how long.
//!
//! Each ring that completes in a queue has a share of its entries, so that it cannot overflow. And each queue pair is
//! known there by its number alone, which a device gives out again once the queue pair is gone. Both outlive the queue
//! pair: its completions may lie in the ring unpolled. So share and number come free when the reader has found the ring
//! empty *after* the queue pair was destroyed, since from then on the device writes nothing more of it.
//!
//! ```text
//! living ──leaves──▶ leaving ──left──▶ gone ──the reader found the ring empty──▶ free
//!         before the          after the
//!         device is told      device has destroyed it
//! ```
//!
//! The device may give the number out again from the middle of this on; a queue pair that gets it too early is refused
//! ([`QueuePair::new`](crate::qp::QueuePair)). A number is *leaving* before the device is told, lest another thread be
//! given it in between.

use crate::error::SetupError;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// The promises of one completion queue.
pub(crate) struct Promises {
    /// Entries of each sub-queue.
    entries: u32,
    state: Mutex<State>,
    /// How many are gone, which the reader asks each time that it finds the ring empty.
    gone: AtomicU32,
}

#[derive(Default)]
struct State {
    /// Entries promised to rings, of queue pairs that are gone, too.
    reserved: u32,
    /// Numbers of queue pairs that are being destroyed; once for each ring.
    leaving: Vec<u16>,
    /// Rings of queue pairs that are destroyed, in the order of that.
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
    pub(crate) fn reserve(&self, asked: u32) -> Result<(), SetupError> {
        let reserved = &mut self.state.lock().reserved;
        // Which sub-queue a ring completes in is the device's choice: what one of them holds has to be enough for all.
        match reserved.checked_add(asked).filter(|&sum| sum <= self.entries) {
            Some(sum) => *reserved = sum,
            None => {
                return Err(SetupError::CompletionQueueTooSmall { entries: self.entries, reserved: *reserved, asked });
            }
        }
        Ok(())
    }

    /// Takes a promise back from a ring that never completed anything.
    pub(crate) fn release(&self, entries: u32) {
        self.state.lock().reserved -= entries;
    }

    /// A queue pair is about to be destroyed.
    pub(crate) fn leaves(&self, qpn: u16) {
        self.state.lock().leaving.push(qpn);
    }

    /// It is destroyed: the device writes nothing more of its ring, which had so many entries.
    pub(crate) fn left(&self, qpn: u16, entries: u32) {
        let mut state = self.state.lock();
        if let Some(at) = state.leaving.iter().position(|&leaving| leaving == qpn) {
            state.leaving.swap_remove(at);
        }
        state.gone.push(Gone { qpn, entries });
        self.gone.store(state.gone.len() as u32, Release);
    }

    /// Whether completions of an earlier queue pair of this number may lie in the ring, or still come.
    pub(crate) fn remembers(&self, qpn: u16) -> bool {
        let state = self.state.lock();
        state.leaving.contains(&qpn) || state.gone.iter().any(|gone| gone.qpn == qpn)
    }

    /// Reader, before it looks at the ring: how many are gone.
    #[inline(always)]
    pub(crate) fn gone(&self) -> u32 {
        self.gone.load(Acquire)
    }

    /// Reader, once it has found the ring empty after `count` were gone: those are forgotten.
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
        assert!(!promises.remembers(5));
        promises.leaves(5);
        let before = promises.gone();
        assert!(promises.remembers(5), "the device may give it out before it has answered");
        promises.left(5, 8);
        promises.found_empty(before);
        assert!(promises.remembers(5), "what was seen empty before says nothing");
        assert!(promises.reserve(1).is_err());
        promises.found_empty(promises.gone());
        assert!(!promises.remembers(5));
        promises.reserve(8).unwrap();
    }

    #[test]
    fn a_queue_pair_with_both_rings_in_one_queue_is_remembered_until_both_are_forgotten() {
        let promises = Promises::new(8);
        promises.reserve(4).unwrap();
        promises.reserve(2).unwrap();
        promises.leaves(5);
        promises.leaves(5);
        promises.left(5, 4);
        let one = promises.gone();
        promises.left(5, 2);
        promises.found_empty(one);
        assert!(promises.remembers(5));
        promises.found_empty(promises.gone());
        assert!(!promises.remembers(5));
        promises.reserve(8).unwrap();
    }
}
