//! Credits and request ids that the poster of a ring and the poller of its completion queue exchange.
//!
//! The poster and the poller may be different threads, and both are on the fast path. So each word here has exactly one
//! writer, and a plain store publishes it: there is no read-modify-write and no lock between a post and its completion.
//!
//! On devices with 16-bit request ids, the ledger also keeps the caller's 64-bit ids. A request id is an index into
//! `wr_ids`. Completions come in any order, so indices become free in any order, and the poller returns them through
//! the ring `free`. This ring is as long as the work ring, so it is never full. The bits of a request id above the
//! index are the queue pair's generation: they reveal a completion of an earlier queue pair with the same number (as in
//! libefa, `efa_cqe_is_valid_req_id_qp_gen`).

use crate::error::PostError;
use efa_io::RingSize;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::*};

/// The number of work requests that a ring may have outstanding, so that neither the ring nor its completion queue
/// overflows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credits {
    limit: u32,
    /// `true` if the ring's share of the completion queue, not its size, is the limit.
    by_share: bool,
}

impl Credits {
    /// Returns the credits of a ring of `entries` requests that has `share` entries of a completion queue.
    pub(crate) fn new(entries: u32, share: u32) -> Self {
        Self { limit: entries.min(share), by_share: share < entries }
    }

    #[inline(always)]
    pub(crate) fn limit(self) -> u32 {
        self.limit
    }

    /// Returns the number of posted requests that have not completed. A device that reports more completions than there
    /// were posts is broken. The ring then counts as full, so that it cannot overflow.
    #[inline(always)]
    pub(crate) fn outstanding(self, posted: u32, completed: u32) -> u32 {
        posted.wrapping_sub(completed).min(self.limit)
    }

    /// Checks that there is room for one more request.
    #[inline]
    pub(crate) fn check(self, outstanding: u32) -> Result<(), PostError> {
        match (outstanding < self.limit, self.by_share) {
            (true, _) => Ok(()),
            (false, true) => Err(PostError::CompletionQueueFull { share: self.limit, outstanding }),
            (false, false) => Err(PostError::RingFull { entries: self.limit, outstanding }),
        }
    }
}

/// The part of one work ring that poster and poller share.
pub(crate) struct Ledger {
    /// Number of entries of the ring minus 1: the bits of a request id that are an index.
    mask: u32,
    generation: u16,
    /// `true` if request ids are the caller's own 64 bits.
    wide_ids: bool,
    /// `true` if somebody else drives the ring, and chooses the request ids.
    foreign: AtomicBool,
    /// Work requests whose completion was polled. Only the poller writes it.
    completed: AtomicU32,
    /// The caller's ids by index. Only the poster writes them.
    wr_ids: Box<[AtomicU64]>,
    /// Free request ids, in the order in which requests completed. Only the poller writes them.
    free: Box<[AtomicU16]>,
}

impl Ledger {
    pub(crate) fn new(size: RingSize, generation: u16, wide_ids: bool) -> Self {
        let entries = if wide_ids { 0 } else { size.entries() };
        let generation = if size.log2() >= 16 { 0 } else { generation << size.log2() };
        Self {
            mask: size.mask(),
            generation,
            wide_ids,
            foreign: AtomicBool::new(false),
            completed: AtomicU32::new(0),
            wr_ids: (0..entries).map(|_| AtomicU64::new(0)).collect(),
            free: (0..entries).map(|i| AtomicU16::new(i as u16 | generation)).collect(),
        }
    }

    /// Returns the number of work requests whose completion was polled.
    #[inline(always)]
    pub(crate) fn completed(&self) -> u32 {
        self.completed.load(Acquire)
    }

    /// Poster: returns the request id for request number `producer`, which there must be room for.
    #[inline(always)]
    pub(crate) fn req_id(&self, producer: u32) -> u16 {
        self.free.get((producer & self.mask) as usize).map_or(0, |free| free.load(Relaxed))
    }

    /// Poster: takes the request id for request number `producer`, and notes that the caller calls this request
    /// `wr_id`.
    #[inline(always)]
    pub(crate) fn assign(&self, producer: u32, wr_id: u64) -> u16 {
        let req_id = self.req_id(producer);
        if let Some(place) = self.wr_ids.get((u32::from(req_id) & self.mask) as usize) {
            place.store(wr_id, Relaxed);
        }
        req_id
    }

    /// Poller: returns `true` if a completion with this request id belongs to this queue pair, not to an earlier one of
    /// its number.
    #[inline(always)]
    fn is_ours(&self, req_id: u16) -> bool {
        u32::from(req_id ^ self.generation) & !self.mask == 0
    }

    /// Poller: releases the credit of a completed request, and returns the caller's id of it. Returns `None`, and
    /// releases nothing, if the request belongs to an earlier queue pair.
    #[inline(always)]
    pub(crate) fn complete(&self, req_id: u64) -> Option<u64> {
        let completed = self.completed.load(Relaxed);
        let wr_id = if self.wide_ids || self.foreign.load(Relaxed) {
            req_id
        } else {
            if !self.is_ours(req_id as u16) {
                return None;
            }
            self.free.get((completed & self.mask) as usize)?.store(req_id as u16, Relaxed);
            self.wr_ids.get((req_id as u32 & self.mask) as usize)?.load(Relaxed)
        };
        // Released, so that a poster that sees this count also sees the index freed above.
        self.completed.store(completed.wrapping_add(1), Release);
        Some(wr_id)
    }

    /// Prepares for the ring's new owner, who chooses request ids if `foreign`. The ring must be drained, with
    /// `counter` requests posted and completed.
    pub(crate) fn hand_over(&self, foreign: bool, counter: u32) {
        self.foreign.store(foreign, Relaxed);
        self.completed.store(counter, Relaxed);
        for (i, _) in self.free.iter().enumerate() {
            let slot = (counter.wrapping_add(i as u32) & self.mask) as usize;
            self.free[slot].store(i as u16 | self.generation, Relaxed);
        }
    }
}

/// Both ledgers of a queue pair, which its completion queues look up by its number.
pub(crate) struct QpLedgers {
    pub(crate) qpn: u16,
    pub(crate) send: Ledger,
    pub(crate) recv: Ledger,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_in_whatever_order_requests_complete_and_are_never_given_twice() {
        let size = RingSize::new(8).unwrap();
        let ledger = Ledger::new(size, 5, false);
        let mut rng = 12345u32;
        let (mut outstanding, mut posted) = (Vec::new(), 0u32);
        for _ in 0..10_000 {
            rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if posted.wrapping_sub(ledger.completed()) < 8 && rng >> 31 == 0 {
                let wr_id = u64::from(posted) << 32 | 7;
                let req_id = ledger.assign(posted, wr_id);
                assert!(outstanding.iter().all(|&(other, _)| other != req_id));
                outstanding.push((req_id, wr_id));
                posted += 1;
            } else if !outstanding.is_empty() {
                let (req_id, wr_id) = outstanding.swap_remove(rng as usize % outstanding.len());
                assert_eq!(ledger.complete(req_id.into()), Some(wr_id));
            }
        }
        assert!(posted > 1000);
    }

    #[test]
    fn a_ring_whose_device_completed_more_than_was_posted_is_full() {
        let credits = Credits::new(16, 16);
        assert_eq!(credits.outstanding(3, 1), 2);
        assert_eq!(credits.outstanding(0, 1), 16);
        assert!(credits.check(credits.outstanding(0, 1)).is_err());
    }

    #[test]
    fn a_completion_of_an_earlier_queue_pair_is_not_ours() {
        let size = RingSize::new(8).unwrap();
        let (old, new) = (Ledger::new(size, 1, false), Ledger::new(size, 2, false));
        let req_id = old.assign(0, 77);
        assert_eq!(new.complete(req_id.into()), None);
        assert_eq!(new.completed(), 0);
        assert_eq!(old.complete(req_id.into()), Some(77));
    }
}
