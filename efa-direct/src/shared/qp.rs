//! The state that the parts of a queue pair share: its ledgers, its shares of completion queues, and its end.

use crate::error::SetupError;
use crate::ledger::QpLedgers;
use crate::provider::{Provider, RawQp};
use crate::shared::counter::CounterShared;
use crate::shared::cq::CqShared;
use crate::shared::domain::DomainShared;
use efa_types::QpAttributes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The shared state of a queue pair. It keeps the device's object alive.
pub(crate) struct QpShared {
    pub(crate) domain: Arc<DomainShared>,
    pub(crate) qpn: u16,
    pub(crate) ledgers: Arc<QpLedgers>,
    pub(crate) send: Share,
    pub(crate) recv: Share,
    /// `true` if the queue pair was ever active: then it may have completed something.
    pub(crate) activated: AtomicBool,
    /// The counters that are attached to the queue pair.
    pub(crate) counters: Mutex<Vec<Arc<CounterShared>>>,
}

/// Entries of a completion queue that are promised to a ring, until this is dropped.
#[must_use = "the entries are free again when this is dropped"]
pub(crate) struct Share {
    cq: Arc<CqShared>,
    pub(crate) entries: u32,
}

impl Share {
    pub(crate) fn of(cq: &Arc<CqShared>, entries: u32) -> Result<Self, SetupError> {
        cq.promises.reserve(entries)?;
        Ok(Self { cq: cq.clone(), entries })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.cq.promises.release(std::mem::take(&mut self.entries));
    }
}

impl QpShared {
    pub(crate) fn send_cq(&self) -> &CqShared {
        &self.send.cq
    }

    pub(crate) fn recv_cq(&self) -> &CqShared {
        &self.recv.cq
    }
}

impl Drop for QpShared {
    fn drop(&mut self) {
        let (qpn, ledgers) = (self.qpn, &self.ledgers);
        let mut shares = [&mut self.send, &mut self.recv];
        // A queue pair that was never active has completed nothing, so its shares and its number are free at once.
        let activated = *self.activated.get_mut();
        let mut entries = [0; 2];
        if activated {
            // Taken before the device is called: if that unwinds, the entries stay promised, which is safe.
            entries = shares.each_mut().map(|share| std::mem::take(&mut share.entries));
            shares.iter().for_each(|share| share.cq.promises.begin_destroy(qpn));
        }
        self.domain.provider.destroy_qp(qpn);
        for (share, entries) in shares.iter().zip(entries) {
            share.cq.remove_ledgers(ledgers);
            if activated {
                share.cq.promises.finish_destroy(qpn, entries);
            }
        }
    }
}

/// A queue pair that the provider has created. Dropping this destroys it, unless it is [kept](Self::keep).
#[must_use = "the queue pair is destroyed when this is dropped"]
pub(crate) struct QpGuard<'p> {
    provider: &'p dyn Provider,
    qpn: u16,
}

impl QpGuard<'_> {
    /// Leaves the queue pair to another owner.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for QpGuard<'_> {
    fn drop(&mut self) {
        self.provider.destroy_qp(self.qpn);
    }
}

/// Creates a queue pair whose number is free in both completion queues.
///
/// A device may reuse the number of a queue pair that is gone while completions of that one are unpolled. Such a queue
/// pair is set aside, which keeps the device from offering its number again, until the device offers a free one. Those
/// set aside are destroyed in the end.
///
/// # Errors
/// The device refused; or [`SetupError::NumbersInUse`] if it offered numbers, but no free one.
pub(crate) fn create_with_free_number<'p>(
    provider: &'p dyn Provider,
    request: QpAttributes,
    cqs: [&CqShared; 2],
) -> Result<(RawQp, QpGuard<'p>), SetupError> {
    let mut aside: Vec<(RawQp, QpGuard<'p>)> = Vec::new();
    loop {
        let raw = match provider.create_qp(request) {
            Ok(raw) => raw,
            Err(source) if aside.is_empty() => return Err(source),
            Err(source) => {
                let numbers = aside.iter().map(|(raw, _)| raw.qpn).collect();
                return Err(SetupError::NumbersInUse { numbers, source: Box::new(source) });
            }
        };
        let guard = QpGuard { provider, qpn: raw.qpn };
        if !cqs.iter().any(|cq| cq.promises.may_hold_completions_of(raw.qpn)) {
            return Ok((raw, guard));
        }
        tracing::debug!(qpn = raw.qpn, "completions of an earlier queue pair with this number may be unpolled");
        aside.push((raw, guard));
    }
}
