//! Send queues: one ring, one owner.
//!
//! A [`SendQueue`] is a ring that nobody posts to. [`into_cpu`](SendQueue::into_cpu) and
//! [`into_gpu`](SendQueue::into_gpu) consume it: CPU and GPU keep separate producer counters, and a ring with two
//! producers is corrupt. The way back needs the ring to be drained, and carries its counter over.
//!
//! # Batches
//!
//! A device takes at most `max_batch` WQEs between two doorbells, as they arrive there. Where the ring is mapped
//! write-combining, WQEs of the next batch may overtake a doorbell until a store fence stands between them: libefa puts
//! one behind each (`mmio_wc_start` in `efa_post_send`). The fence in front of doorbell k + 1 has doorbell k behind it
//! as well, so here a batch is counted from the last doorbell that some fence is behind, and another fence is spent
//! only where the requests since then would exceed `max_batch`: never, as long as two batches together do not.

use crate::error::{HandOverError, PostError, Refused};
use crate::ledger::{Credits, Ledger, QpLedgers};
use crate::op::{Bounds, Request, foreign};
use crate::peer::Peer;
use crate::provider::RawQp;
use crate::ring::RawRing;
use crate::shared::qp::QpShared;
use efa_io::{Doorbell, SendRingHandle, SendWqe, Wqe};
use std::marker::PhantomData;
use std::sync::Arc;

/// A send ring that nobody posts to.
pub struct SendQueue<const W: usize>
where
    Wqe<W>: SendWqe,
{
    ring: RawRing,
    bounds: Bounds,
    max_batch: u32,
    credits: Credits,
    /// Producer counter; a [`CpuSendQueue`] keeps its own and carries it over here.
    producer: u32,
    req_id_64: bool,
    /// Those of `qp`, one step nearer to a post.
    ledgers: Arc<QpLedgers>,
    qp: Arc<QpShared>,
    _wqe: PhantomData<[u64; W]>,
}

/// A send ring that this value's owner posts to, from the CPU.
///
/// Nothing is sent before [`ring`](Self::ring), except that a full batch rings by itself.
pub struct CpuSendQueue<const W: usize>
where
    Wqe<W>: SendWqe,
{
    queue: SendQueue<W>,
    /// Producer counter at the last doorbell.
    rung: u32,
    /// Producer counter at the last doorbell that every WQE stored from now on is behind; a batch is counted from here.
    ordered: u32,
    /// Completions seen so far; refreshed when the ring seems full.
    completed: u32,
    /// Offset of the place of the next WQE in the ring, in bytes.
    at: usize,
    /// The offset at which posting has to look around: the ring seems full, or the batch is full, or the lap ends.
    stop: usize,
    /// Producer counter at the lap's first place.
    lap: u32,
    /// Phase of the lap, as a bit of the WQE's first word.
    phase: u64,
    domain: u32,
}

/// A send ring that a GPU posts to. The CPU cannot: there is no method for it.
pub struct GpuSendQueue<const W: usize>
where
    Wqe<W>: SendWqe,
{
    queue: SendQueue<W>,
}

impl<const W: usize> SendQueue<W>
where
    Wqe<W>: SendWqe,
{
    pub(crate) fn new(qp: Arc<QpShared>, raw: &RawQp, credits: Credits) -> Self {
        Self {
            ring: raw.send.clone(),
            bounds: Bounds::new(raw.limits),
            max_batch: raw.send_max_batch.max(1),
            credits,
            producer: 0,
            req_id_64: raw.req_id_64,
            ledgers: qp.ledgers.clone(),
            qp,
            _wqe: PhantomData,
        }
    }

    /// Hands the ring to the CPU.
    pub fn into_cpu(self) -> CpuSendQueue<W> {
        self.qp.ledgers.send.hand_over(false, self.producer);
        let (rung, completed, domain) = (self.producer, self.producer, self.qp.domain.tag);
        let slot = self.ring.size().slot(self.producer);
        let (at, lap) = (CpuSendQueue::<W>::offset(slot), self.producer.wrapping_sub(slot));
        CpuSendQueue { queue: self, rung, ordered: rung, completed, at, stop: at, lap, phase: 0, domain }
    }

    /// Hands the ring to a GPU, or to anyone else who drives it through a [`SendRingHandle`].
    pub fn into_gpu(self) -> GpuSendQueue<W> {
        self.qp.ledgers.send.hand_over(true, self.producer);
        GpuSendQueue { queue: self }
    }
}

impl<const W: usize> SendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Adds what depends on when the WQE is posted: phase and request id. `req_id` gives the latter where it has 16
    /// bits.
    #[inline(always)]
    fn stamp(&self, wqe: Wqe<W>, wr_id: u64, phase: u64, req_id: impl FnOnce(&Ledger) -> u16) -> Wqe<W> {
        if self.req_id_64 { wqe.stamp_64(wr_id, phase) } else { wqe.stamp(req_id(&self.ledgers.send), phase) }
    }
}

impl<const W: usize> CpuSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Writes a request into the ring. `wr_id` comes back in its completion.
    ///
    /// # Errors
    /// A [`PostError`]; nothing was written.
    #[inline]
    pub fn post(&mut self, peer: &Peer, request: impl Request<W>, wr_id: u64) -> Result<(), PostError> {
        let mut at = self.at;
        if at == self.stop {
            at = self.refill()?;
        }
        let wqe = self.encode(peer, request)?;
        let wqe = self.queue.stamp(wqe, wr_id, self.phase, |ledger| ledger.assign(Self::slot(at), wr_id));
        self.queue.ring.store(at, wqe.words());
        self.at = at + <Wqe<W> as SendWqe>::SIZE;
        if self.at == self.stop {
            self.ring_if_due();
        }
        Ok(())
    }

    #[inline(always)]
    fn encode(&self, peer: &Peer, request: impl Request<W>) -> Result<Wqe<W>, PostError> {
        if peer.domain != self.domain {
            return Err(foreign("peer", peer.domain, self.domain));
        }
        request.encode(self.domain, &self.queue.bounds, peer)
    }

    /// Rings for a full batch.
    #[cold]
    #[inline(never)]
    fn ring_if_due(&mut self) {
        if self.producer().wrapping_sub(self.rung) == self.queue.max_batch {
            self.ring();
        }
    }

    const fn offset(slot: u32) -> usize {
        slot as usize * <Wqe<W> as SendWqe>::SIZE
    }

    #[inline(always)]
    const fn slot(at: usize) -> u32 {
        (at / <Wqe<W> as SendWqe>::SIZE) as u32
    }

    #[inline(always)]
    fn producer(&self) -> u32 {
        self.lap.wrapping_add(Self::slot(self.at))
    }

    /// Does what is not due at every post: looks for room, starts a lap. Gives the next WQE's place.
    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> Result<usize, PostError> {
        let (producer, size) = (self.producer(), self.queue.ring.size());
        if producer.wrapping_sub(self.completed) >= self.queue.credits.limit() {
            self.completed = self.queue.ledgers.send.completed();
            self.queue.credits.check(self.queue.credits.outstanding(producer, self.completed))?;
        }
        if producer.wrapping_sub(self.ordered) >= self.queue.max_batch {
            // Everything since is rung for: `ring_if_due` sees to that, unless a doorbell came in between and this is
            // about that one.
            self.queue.ring.order_doorbell();
            self.ordered = self.rung;
        }
        let slot = size.slot(producer);
        (self.at, self.lap) = (Self::offset(slot), producer.wrapping_sub(slot));
        self.phase = Wqe::<W>::phase_bit(size.wq_phase(producer));
        self.plan(producer);
        Ok(self.at)
    }

    /// Works out how far posting may go on without a refill.
    #[inline(always)]
    fn plan(&mut self, producer: u32) {
        let credits = self.queue.credits;
        let room = credits.limit() - credits.outstanding(producer, self.completed);
        let batch = self.queue.max_batch - producer.wrapping_sub(self.ordered);
        let stop = producer.wrapping_sub(self.lap) + room.min(batch);
        self.stop = Self::offset(stop.min(self.queue.ring.size().entries()));
    }

    /// Rings the doorbell for everything posted since the last time.
    #[inline]
    pub fn ring(&mut self) {
        let producer = self.producer();
        if producer != self.rung {
            let orders_the_last_one = self.queue.ring.ring(Doorbell::new(producer).value());
            self.ordered = if orders_the_last_one { self.rung } else { producer };
            self.rung = producer;
            self.plan(producer);
        }
    }

    /// Work requests posted and not yet seen to complete.
    pub fn outstanding(&self) -> u32 {
        self.queue.credits.outstanding(self.producer(), self.queue.ledgers.send.completed())
    }

    /// Requests that can be posted now.
    pub fn room(&self) -> u32 {
        self.queue.credits.limit() - self.outstanding()
    }

    /// Most WQEs between two doorbells; the queue rings by itself when there are so many.
    pub fn max_batch(&self) -> u32 {
        self.queue.max_batch
    }

    /// The doorbell's value: the low 16 bits of the producer counter at the last ring.
    pub fn doorbell(&self) -> Doorbell {
        Doorbell::new(self.rung)
    }

    /// The WQE that posting `request` now would write. For people who want to look at it: the ring itself cannot be
    /// read. In a full ring the request id is a guess.
    ///
    /// # Errors
    /// As [`post`](Self::post), but for fullness, which is not looked at.
    pub fn preview(&self, peer: &Peer, request: impl Request<W>, wr_id: u64) -> Result<Wqe<W>, PostError> {
        let wqe = self.encode(peer, request)?;
        let (producer, size) = (self.producer(), self.queue.ring.size());
        Ok(self.queue.stamp(wqe, wr_id, Wqe::<W>::phase_bit(size.wq_phase(producer)), |ledger| ledger.req_id(producer)))
    }

    /// Takes the ring back from the CPU, once everything posted has completed and been polled.
    ///
    /// # Errors
    /// Work requests are outstanding. What was posted and never rung is rung now.
    #[expect(clippy::result_large_err, reason = "the queue goes back whole, and rarely")]
    pub fn into_idle(mut self) -> Result<SendQueue<W>, Refused<Self>> {
        self.ring();
        self.queue.producer = self.producer();
        match self.outstanding() {
            0 => Ok(self.queue),
            outstanding => Err(Refused { value: self, error: HandOverError::Outstanding { outstanding } }),
        }
    }
}

impl<const W: usize> GpuSendQueue<W>
where
    Wqe<W>: SendWqe,
{
    #[cfg(feature = "cuda")]
    pub(crate) fn raw_ring(&self) -> &RawRing {
        &self.queue.ring
    }

    /// What whoever drives the ring needs to know. Addresses are those of this process.
    pub fn handle(&self) -> SendRingHandle {
        let queue = &self.queue;
        let size = queue.ring.size();
        SendRingHandle {
            ring: queue.ring.addr(),
            doorbell: queue.ring.doorbell_addr(),
            mask: size.mask(),
            shift: size.log2(),
            wqe_size: queue.ring.entry_size() as u16,
            qpn: queue.qp.qpn,
            cq: queue.qp.send_cq().tag,
            max_batch: queue.max_batch,
            producer: queue.producer,
            credits: queue.credits.limit(),
            req_id_64: queue.req_id_64.into(),
            limits: queue.bounds.limits,
        }
    }

    /// Takes the ring back, given what its driver says it did: how many WQEs it posted and rang, and how many
    /// completions it (or whoever polls the completion queue) took, both counted from the ring's creation.
    ///
    /// # Errors
    /// The two differ: work requests are outstanding.
    ///
    /// # Safety
    /// The driver has stopped and posts no more by any handle, and the numbers are true. Of a GPU's ring the host sees
    /// nothing: with other numbers the next owner overwrites WQEs that the device has not read yet.
    #[expect(clippy::result_large_err, reason = "the queue goes back whole, and rarely")]
    pub unsafe fn into_idle(mut self, producer: u32, completed: u32) -> Result<SendQueue<W>, Refused<Self>> {
        match producer.wrapping_sub(completed) {
            0 => {
                self.queue.producer = producer;
                Ok(self.queue)
            }
            outstanding => Err(Refused { value: self, error: HandOverError::Outstanding { outstanding } }),
        }
    }
}

macro_rules! debug {
    ($($queue:ident),*) => {$(
        impl<const W: usize> std::fmt::Debug for $queue<W>
        where
            Wqe<W>: SendWqe,
        {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($queue), "<{}>"), W)
            }
        }
    )*};
}

debug!(SendQueue, CpuSendQueue, GpuSendQueue);

#[cfg(all(test, feature = "soft"))]
mod tests {
    use crate::*;

    /// Every word of the send ring, which only a software device lets one read.
    fn ring_words(sq: &CpuSendQueue<8>) -> Vec<[u64; 8]> {
        let ring = &sq.queue.ring;
        (0..ring.size().entries()).filter_map(|slot| ring.load_if(slot, |_| true)).collect()
    }

    #[test]
    fn a_write_combining_ring_never_has_more_than_max_batch_before_the_device() -> Result<(), Error> {
        for (max_batch, every) in [(4, 1), (4, 2), (4, 3), (4, 4), (4, 100), (2, 1), (1, 1)] {
            let device = Device::open("soft41")?;
            let pd = device.alloc_pd()?;
            let cq = device.create_cq(CqConfig::new(512))?;
            let qp = pd.create_qp(&cq, &cq, QpConfig::new(256, 1))?.activate(1)?;
            let nobody = pd.peer(&Endpoint { gid: Gid::local(99), qpn: 1, qkey: 1 })?;
            let mut sq = qp.send.into_cpu();
            sq.queue.ring.pretend_write_combining();
            sq.queue.max_batch = max_batch;
            let mut fences = 0;
            for i in 0..200 {
                let (rung, ordered) = (sq.rung, sq.ordered);
                sq.post(&nobody, SendInline::new(b"x"), i)?;
                fences += u32::from(sq.rung == rung && sq.ordered != ordered);
                // All of these may be there when the doorbell behind `ordered` arrives.
                assert!(sq.producer().wrapping_sub(sq.ordered) <= max_batch);
                if (i + 1) % every == 0 {
                    sq.ring();
                }
            }
            let two_batches_fit = 2 * every <= max_batch.into();
            assert!(fences == 0 || !two_batches_fit, "{every} of at most {max_batch} took {fences} fences more");
        }
        Ok(())
    }

    #[test]
    fn a_refused_request_leaves_every_byte_of_the_ring_as_it_was() -> Result<(), Error> {
        let device = Device::open("soft40")?;
        let (pd, other) = (device.alloc_pd()?, device.alloc_pd()?);
        let cq = device.create_cq(CqConfig::new(64))?;
        let qp = pd.create_qp(&cq, &cq, QpConfig::new(4, 1))?.activate(1)?;
        let there = Endpoint { gid: Gid::local(99), qpn: 1, qkey: 1 };
        let (peer, foreign_peer) = (pd.peer(&there)?, other.peer(&there)?);
        let max = u64::from(device.attributes().max_rdma_bytes);
        let region = pd.allocate(max as usize + 1, Access::ALL)?; // never touched, so never backed by memory
        let foreign = other.allocate(64, Access::ALL)?;
        let remote = RemoteRegion { addr: 0, rkey: 1, len: max + 1 };
        let mut sq = qp.send.into_cpu();

        let attempts = |sq: &mut CpuSendQueue<8>| -> Result<Vec<PostError>, Error> {
            let slice = region.slice(..8)?;
            let too_long = RdmaWrite::new(region.slice(..)?, remote.slice(..)?);
            let foreign = [foreign.slice(..)?];
            Ok([
                sq.post(&peer, too_long, 1),
                sq.post(&peer, SendInline::new(&[0; 33]), 1),
                sq.post(&peer, Send::new(&[slice; 3]), 1),
                sq.post(&peer, Send::new(&foreign).imm(1), 1),
                sq.post(&foreign_peer, SendInline::new(b"x"), 1),
                sq.post(&peer, RdmaRead::new(slice, remote.slice(..9)?), 1),
            ]
            .into_iter()
            .filter_map(Result::err)
            .collect())
        };
        assert_eq!(attempts(&mut sq)?.len(), 6);
        assert_eq!(ring_words(&sq), [[0; 8]; 4]);
        for wr_id in 0..4 {
            sq.post(&peer, SendInline::new(b"x"), wr_id)?;
        }
        let full = ring_words(&sq);
        assert!(full.iter().all(|words| words[0] != 0));
        assert_eq!(attempts(&mut sq)?.len(), 6);
        assert_eq!(sq.post(&peer, SendInline::new(b"y"), 4), Err(PostError::RingFull { entries: 4, outstanding: 4 }));
        assert_eq!(ring_words(&sq), full);
        Ok(())
    }
}
