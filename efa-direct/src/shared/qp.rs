//! What the parts of a queue pair share: its shares of completion queues, and its end.

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

/// What all parts of a queue pair keep alive.
pub(crate) struct QpShared {
    pub(crate) domain: Arc<DomainShared>,
    pub(crate) qpn: u16,
    pub(crate) ledgers: Arc<QpLedgers>,
    pub(crate) send: Share,
    pub(crate) recv: Share,
    /// It was active at some time, and so may have completed something.
    pub(crate) activated: AtomicBool,
    /// What is attached to it.
    pub(crate) counters: Mutex<Vec<Arc<CounterShared>>>,
}

/// Entries of a completion queue that are promised to a ring.
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
        // What was never active has completed nothing: its share and its number are free at once.
        let activated = *self.activated.get_mut();
        let mut entries = [0; 2];
        if activated {
            // Taken before the device is called: should that unwind, they stay promised.
            entries = shares.each_mut().map(|share| std::mem::take(&mut share.entries));
            shares.iter().for_each(|share| share.cq.promises.leaves(qpn));
        }
        self.domain.provider.destroy_qp(qpn);
        for (share, entries) in shares.iter().zip(entries) {
            share.cq.forget(ledgers);
            if activated {
                share.cq.promises.left(qpn, entries);
            }
        }
    }
}

/// A queue pair that the provider has created, and destroys again unless this is forgotten.
pub(crate) struct Unwanted<'p> {
    provider: &'p dyn Provider,
    qpn: u16,
}

impl Drop for Unwanted<'_> {
    fn drop(&mut self) {
        self.provider.destroy_qp(self.qpn);
    }
}

/// Has the provider create a queue pair whose number is free in both completion queues: a device may give out that of
/// one which is gone while completions of it lie unpolled. Such a queue pair is put aside until there is one of another
/// number.
pub(crate) fn create_with_free_number<'p>(
    provider: &'p dyn Provider,
    request: QpAttributes,
    cqs: [&CqShared; 2],
) -> Result<(RawQp, Unwanted<'p>), SetupError> {
    let mut aside: Vec<(RawQp, Unwanted<'p>)> = Vec::new();
    loop {
        let raw = match provider.create_qp(request) {
            Ok(raw) => raw,
            Err(source) if aside.is_empty() => return Err(source),
            Err(source) => {
                let numbers = aside.iter().map(|(raw, _)| raw.qpn).collect();
                return Err(SetupError::NumbersInUse { numbers, source: Box::new(source) });
            }
        };
        let unwanted = Unwanted { provider, qpn: raw.qpn };
        if !cqs.iter().any(|cq| cq.promises.remembers(raw.qpn)) {
            return Ok((raw, unwanted));
        }
        tracing::debug!(qpn = raw.qpn, "completions of an earlier queue pair of this number may lie unpolled");
        aside.push((raw, unwanted));
    }
}
