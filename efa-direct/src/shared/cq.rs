//! The state that a completion queue's readers share with the queue pairs that complete in it.

use crate::ledger::QpLedgers;
use crate::promises::Promises;
use crate::provider::{EventSource, Provider};
use crate::ring::RawRing;
use efa_io::handle::unique_tag;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// A completion queue that queue pairs can complete in, whoever reads it. Sealed: implemented by the completion queues
/// of this crate.
#[expect(private_bounds, reason = "sealed")]
pub trait CompletionTarget: HasCq {}

/// Seals [`CompletionTarget`].
pub(crate) trait HasCq {
    fn shared(&self) -> &Arc<CqShared>;
}

/// The shared state of a completion queue. It keeps the device's object alive.
pub(crate) struct CqShared {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) cqn: u32,
    /// A number that no other completion queue of the process has. Kernels compare it, to find that a queue pair
    /// completes in the queue that they poll.
    pub(crate) tag: u32,
    /// Entries of each sub-queue.
    pub(crate) entries: u32,
    pub(crate) promises: Promises,
    /// By sub-queue; empty if this process cannot access them.
    pub(crate) rings: Box<[RawRing]>,
    /// Where events arrive, if they were asked for.
    pub(crate) events: Option<Box<dyn EventSource>>,
    /// Ledgers of the living queue pairs that complete here.
    pub(crate) ledgers: Mutex<Vec<Arc<QpLedgers>>>,
    /// Changes with `ledgers`. Readers compare it, to know when their own table is out of date.
    pub(crate) version: AtomicU32,
}

impl Drop for CqShared {
    fn drop(&mut self) {
        self.events = None; // before the queue: a software device's source removes its waker from it
        self.provider.destroy_cq(self.cqn);
    }
}

impl CqShared {
    pub(crate) fn new(provider: Arc<dyn Provider>, cqn: u32, entries: u32) -> Self {
        Self {
            provider,
            cqn,
            tag: unique_tag(),
            entries,
            promises: Promises::new(entries),
            rings: Box::default(),
            events: None,
            ledgers: Mutex::default(),
            version: AtomicU32::new(1),
        }
    }

    pub(crate) fn add_ledgers(&self, ledgers: &Arc<QpLedgers>) {
        self.ledgers.lock().push(ledgers.clone());
        self.version.fetch_add(1, Release);
    }

    pub(crate) fn remove_ledgers(&self, ledgers: &Arc<QpLedgers>) {
        self.ledgers.lock().retain(|other| !Arc::ptr_eq(other, ledgers));
        self.version.fetch_add(1, Release);
    }
}
