//! What the readers of a completion queue and the queue pairs that complete in it share.

use crate::ledger::QpLedgers;
use crate::promises::Promises;
use crate::provider::{EventSource, Provider};
use crate::ring::RawRing;
use efa_io::handle::unique_tag;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// A completion queue that queue pairs can complete in, whoever reads it. Sealed: the three kinds of this module.
#[expect(private_bounds, reason = "sealed")]
pub trait CompletionTarget: Target {}

/// What seals [`CompletionTarget`].
pub(crate) trait Target {
    fn shared(&self) -> &Arc<CqShared>;
}

/// What a completion queue's readers, and the queue pairs that complete in it, share.
pub(crate) struct CqShared {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) cqn: u32,
    /// Tells it from every other one of the process.
    pub(crate) tag: u32,
    /// Entries of each sub-queue.
    pub(crate) entries: u32,
    pub(crate) promises: Promises,
    /// By sub-queue; none if this process cannot touch them.
    pub(crate) rings: Box<[RawRing]>,
    pub(crate) events: Option<Box<dyn EventSource>>,
    pub(crate) ledgers: Mutex<Vec<Arc<QpLedgers>>>,
    /// Moves on with every change of `ledgers`.
    pub(crate) version: AtomicU32,
}

impl Drop for CqShared {
    fn drop(&mut self) {
        self.events = None;
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

    pub(crate) fn announce(&self, ledgers: &Arc<QpLedgers>) {
        self.ledgers.lock().push(ledgers.clone());
        self.version.fetch_add(1, Release);
    }

    pub(crate) fn forget(&self, ledgers: &Arc<QpLedgers>) {
        self.ledgers.lock().retain(|other| !Arc::ptr_eq(other, ledgers));
        self.version.fetch_add(1, Release);
    }
}
