//! Queue pairs: their configuration, creation and activation.

use crate::error::SetupError;
use crate::ledger::{Credits, Ledger, QpLedgers};
use crate::peer::Endpoint;
use crate::provider::RawQp;
use crate::recv::RecvQueue;
use crate::send::SendQueue;
use crate::shared::counter::AttachableCounter;
use crate::shared::cq::CqShared;
use crate::shared::domain::DomainShared;
use crate::shared::qp::{QpShared, Share, create_with_free_number};
use efa_io::{SendWqe, Wqe};
use efa_types::{CounterOps, QpAttributes, Transport};
use parking_lot::Mutex;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The configuration of a queue pair. `W` is the size of its WQEs in 64-bit words: 8, or 16 after
/// [`wqe_128`](Self::wqe_128).
#[derive(Clone, Copy, Debug)]
pub struct QpConfig<const W: usize = 8> {
    send_entries: u32,
    recv_entries: u32,
    recv_bufs: u16,
    unsolicited_write_recv: bool,
    transport: Transport,
    rnr_retry: Option<u8>,
    send_share: Option<u32>,
    recv_share: Option<u32>,
}

impl QpConfig<8> {
    /// Returns the configuration of an SRD queue pair with 64-byte WQEs that may have this many sends and receives
    /// outstanding.
    pub const fn new(send_entries: u32, recv_entries: u32) -> Self {
        Self {
            send_entries,
            recv_entries,
            recv_bufs: 1,
            unsolicited_write_recv: false,
            transport: Transport::Srd,
            rnr_retry: None,
            send_share: None,
            recv_share: None,
        }
    }

    /// Selects 128-byte WQEs, with up to 80 bytes inline and inline RDMA writes. Only newer devices have them.
    pub const fn wqe_128(self) -> QpConfig<16> {
        QpConfig {
            send_entries: self.send_entries,
            recv_entries: self.recv_entries,
            recv_bufs: self.recv_bufs,
            unsolicited_write_recv: self.unsolicited_write_recv,
            transport: self.transport,
            rnr_retry: self.rnr_retry,
            send_share: self.send_share,
            recv_share: self.recv_share,
        }
    }
}

impl<const W: usize> QpConfig<W> {
    /// Sets the most buffers of a receive (1 by default).
    pub const fn recv_bufs(mut self, bufs: u16) -> Self {
        self.recv_bufs = bufs;
        self
    }

    /// Lets RDMA writes with immediate consume no receive. The receive completion queue then needs room for as many of
    /// them as peers may send before it is polled, because nothing on this side can hold them back.
    pub const fn unsolicited_write_recv(mut self) -> Self {
        self.unsolicited_write_recv = true;
        self
    }

    /// Selects unreliable datagrams (UD) instead of SRD: sends only, of one packet each, which may be lost without
    /// notice. A send completes once it has left. A receive needs [`UD_PREFIX`](crate::UD_PREFIX) bytes more than the
    /// message, in front of it, and its length counts them.
    pub const fn unreliable(mut self) -> Self {
        self.transport = Transport::Ud;
        self
    }

    /// Sets how often a message is offered again to a receiver that has no receive posted: 0 to 6 times, after which it
    /// fails with [`Status::RemoteRnr`](efa_io::Status::RemoteRnr), or 7 for no limit, which is the default.
    pub const fn rnr_retry(mut self, retry: u8) -> Self {
        self.rnr_retry = Some(retry);
        self
    }

    /// Sets the number of entries of the send completion queue that this queue pair has. The default is the number of
    /// sends that it may have outstanding. With fewer, posting stops early, so that the completion queue cannot
    /// overflow.
    pub const fn send_share(mut self, entries: u32) -> Self {
        self.send_share = Some(entries);
        self
    }

    /// Sets the number of entries of the receive completion queue that this queue pair has. The default is the number
    /// of receives that it may have outstanding.
    pub const fn recv_share(mut self, entries: u32) -> Self {
        self.recv_share = Some(entries);
        self
    }
}

/// A queue pair that is not active yet: [`activate`](Self::activate) it to post.
pub struct QueuePair<const W: usize> {
    /// Dropped first. Its rings keep the provider's object alive, which would outlive [`QpShared`] and complete
    /// requests that nobody expects any more.
    raw: RawQp,
    inner: Arc<QpShared>,
    recv_bufs: u16,
    send_credits: Credits,
    recv_credits: Credits,
    _wqe: PhantomData<[u64; W]>,
}

/// An active queue pair, in parts. Each ring has exactly one owner. The queue pair lives as long as any part.
#[non_exhaustive]
pub struct ActiveQueuePair<const W: usize>
where
    Wqe<W>: SendWqe,
{
    /// The queue pair's address, for its peers.
    pub endpoint: Endpoint,
    /// The send ring, which nobody owns yet.
    pub send: SendQueue<W>,
    /// The receive ring, which nobody owns yet.
    pub recv: RecvQueue,
    /// The handle that changes its state.
    pub control: QpControl,
}

/// A handle that changes the state of an active queue pair.
pub struct QpControl {
    inner: Arc<QpShared>,
}

impl<const W: usize> QueuePair<W>
where
    Wqe<W>: SendWqe,
{
    pub(crate) fn new(
        domain: Arc<DomainShared>,
        send_cq: &Arc<CqShared>,
        recv_cq: &Arc<CqShared>,
        config: QpConfig<W>,
    ) -> Result<Self, SetupError> {
        let provider = domain.provider.clone();
        if [send_cq, recv_cq].iter().any(|cq| !Arc::ptr_eq(&cq.provider, &provider)) {
            return Err(SetupError::ForeignCompletionQueue);
        }
        let wide = <Wqe<W> as SendWqe>::SIZE > 64;
        let attributes = provider.attributes();
        let inline_bytes = if wide { attributes.inline_bytes_ex } else { attributes.inline_bytes };
        let send = Share::of(send_cq, config.send_share.unwrap_or(config.send_entries))?;
        let recv = Share::of(recv_cq, config.recv_share.unwrap_or(config.recv_entries))?;
        let is_srd = config.transport == Transport::Srd;
        let request = QpAttributes {
            transport: config.transport,
            rnr_retry: config.rnr_retry,
            pd: domain.pd,
            send_cq: send_cq.cqn,
            recv_cq: recv_cq.cqn,
            send_entries: config.send_entries,
            recv_entries: config.recv_entries,
            recv_sge: config.recv_bufs,
            inline_bytes,
            inline_write: wide && attributes.rdma_write && is_srd,
            unsolicited_write_recv: config.unsolicited_write_recv,
        };
        let (raw, guard) = create_with_free_number(&*provider, request, [send_cq, recv_cq])?;
        let send_credits = Credits::new(config.send_entries, send.entries);
        let recv_credits = Credits::new(config.recv_entries, recv.entries);
        let (asked, found) = (<Wqe<W> as SendWqe>::SIZE, raw.send.entry_size());
        if asked != found {
            return Err(SetupError::WqeSize { asked, found });
        }
        let ledgers = Arc::new(QpLedgers {
            qpn: raw.qpn,
            send: Ledger::new(raw.send.size(), raw.generation, raw.req_id_64),
            recv: Ledger::new(raw.recv.size(), raw.generation, false),
        });
        let inner = Arc::new(QpShared {
            domain,
            qpn: raw.qpn,
            ledgers,
            send,
            recv,
            activated: AtomicBool::new(false),
            counters: Mutex::default(),
        });
        guard.keep(); // from here on `inner` destroys it
        send_cq.add_ledgers(&inner.ledgers);
        if !Arc::ptr_eq(send_cq, recv_cq) {
            recv_cq.add_ledgers(&inner.ledgers);
        }
        let recv_bufs = config.recv_bufs.max(1);
        Ok(Self { raw, inner, recv_bufs, send_credits, recv_credits, _wqe: PhantomData })
    }

    /// Returns the queue pair's number.
    pub fn qpn(&self) -> u16 {
        self.inner.qpn
    }

    /// Attaches a counter, which then counts the queue pair's completions of these kinds for as long as the queue pair
    /// lives.
    ///
    /// # Errors
    /// [`SetupError::ForeignCounter`], or the device refused: it has no counters, one of the kinds has a counter
    /// already, or `ops` is empty.
    pub fn attach_counter(&self, counter: &impl AttachableCounter, ops: CounterOps) -> Result<(), SetupError> {
        let provider = &self.inner.domain.provider;
        let counter = counter.inner();
        if !Arc::ptr_eq(&counter.provider, provider) {
            return Err(SetupError::ForeignCounter);
        }
        provider.attach_counter(self.inner.qpn, counter.id, ops)?;
        self.inner.counters.lock().push(counter.clone());
        Ok(())
    }

    /// Takes the queue pair through its states until it sends and receives, and returns its rings. Peers must name
    /// `qkey`.
    ///
    /// # Errors
    /// The device refused.
    pub fn activate(self, qkey: u32) -> Result<ActiveQueuePair<W>, SetupError> {
        let Self { inner, raw, recv_bufs, send_credits, recv_credits, _wqe } = self;
        let provider = &inner.domain.provider;
        inner.activated.store(true, Ordering::Relaxed);
        provider.activate_qp(inner.qpn, qkey)?;
        Ok(ActiveQueuePair {
            endpoint: Endpoint { gid: provider.attributes().gid, qpn: inner.qpn, qkey },
            send: SendQueue::new(inner.clone(), &raw, send_credits),
            recv: RecvQueue::new(inner.clone(), &raw, recv_bufs, recv_credits),
            control: QpControl { inner },
        })
    }
}

impl QpControl {
    /// Puts the queue pair into the error state: all requests that are outstanding, or are posted from now on, complete
    /// as [`Status::Flushed`](efa_io::Status::Flushed).
    ///
    /// # Errors
    /// The device refused.
    pub fn fail(&self) -> Result<(), SetupError> {
        self.inner.domain.provider.fail_qp(self.inner.qpn)
    }
}
