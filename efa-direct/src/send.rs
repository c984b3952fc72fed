//! Send queues: one ring, one owner.
//!
//! A [`SendQueue`] is a ring that nobody posts to. [`into_cpu`](SendQueue::into_cpu) and
//! [`into_gpu`](SendQueue::into_gpu) consume it, because CPU and GPU keep separate producer counters, and two producers
//! would corrupt the ring. The way back needs a drained ring, and carries its counter over.
//!
//! # The fast path
//!
//! [`CpuSendQueue::post`] asks one question about the ring: has the next WQE's offset reached `refill_at`? It asks
//! before it stores the WQE, to find room, and afterwards, to ring for a full batch. `refill` and `plan_refill` have
//! answered all other questions before: how many WQEs fit until the ring or its share of the completion queue is full,
//! until the batch is full, and until the ring wraps. In between, the phase is constant and the offset counts up.
//!
//! # Batches
//!
//! A device takes at most `max_batch` WQEs between two doorbells, in the order in which they arrive at it. If the ring
//! is mapped write-combining, WQEs of the next batch may overtake a doorbell until a store fence stands between them.
//! libefa puts a fence behind each doorbell (`mmio_wc_start` in `efa_post_send`). But the fence in front of doorbell
//! k + 1 is behind doorbell k as well. So this queue counts a batch from the last doorbell that has any fence behind
//! it, and spends another fence only if the requests since then would exceed `max_batch`. As long as two batches
//! together do not, this never happens.

use crate::error::{HandOverError, PostError, Refused};
use crate::ledger::{Credits, Ledger, QpLedgers};
use crate::op::{Bounds, Request, foreign};
use crate::peer::Peer;
use crate::provider::RawQp;
use crate::ring::RawRing;
use crate::shared::qp::QpShared;
use efa_io::{Doorbell, SendRingHandle, SendWqe, WqCursor, Wqe};
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
    /// Producer counter at the last hand-over. A [`CpuSendQueue`] counts on by itself, and stores its counter here in
    /// the end.
    producer: u32,
    req_id_64: bool,
    /// The ledgers of `qp`: a copy of the pointer, which saves each post a load.
    ledgers: Arc<QpLedgers>,
    qp: Arc<QpShared>,
    _wqe: PhantomData<[u64; W]>,
}

/// A send ring that the owner of this value posts to, from the CPU.
///
/// The device sends nothing before [`ring`](Self::ring), except that the queue rings by itself when a batch is full.
pub struct CpuSendQueue<const W: usize>
where
    Wqe<W>: SendWqe,
{
    queue: SendQueue<W>,
    /// Producer counter at the last doorbell.
    rung: u32,
    /// Producer counter at the last doorbell that no later WQE can overtake. Batches are counted from here.
    ordered: u32,
    /// Completions seen so far. Loaded again when the ring seems full.
    completed: u32,
    /// Offset of the next WQE's slot in the ring, in bytes.
    ///
    /// This, `refill_at`, `lap` and `phase` stand for a [`WqCursor`], whose slot and phase every post would compute
    /// anew. So a post takes 62 instructions, with 64-bit request ids (`results/post_poll.md`).
    at: usize,
    /// Offset at which `post` calls `refill`: the ring seems full, or the batch is full, or the ring wraps.
    refill_at: usize,
    /// Producer counter at offset 0 of the current lap.
    lap: u32,
    /// Phase of the current lap, as a bit of the WQE's first word.
    phase: u64,
    domain: u32,
}

/// A send ring that a GPU posts to. The CPU cannot post: this type has no method for it.
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
        CpuSendQueue { queue: self, rung, ordered: rung, completed, at, refill_at: at, lap, phase: 0, domain }
    }

    /// Hands the ring to a GPU, or to another program that drives it through a [`SendRingHandle`].
    pub fn into_gpu(self) -> GpuSendQueue<W> {
        self.qp.ledgers.send.hand_over(true, self.producer);
        GpuSendQueue { queue: self }
    }
}

impl<const W: usize> SendQueue<W>
where
    Wqe<W>: SendWqe,
{
    /// Adds the phase and the request id, which depend on when the WQE is posted. `req_id` is called for the latter if
    /// request ids have 16 bits.
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
    /// A [`PostError`]. The ring is unchanged.
    #[inline]
    pub fn post(&mut self, peer: &Peer, request: impl Request<W>, wr_id: u64) -> Result<(), PostError> {
        let mut at = self.at;
        if at == self.refill_at {
            at = self.refill()?;
        }
        let wqe = self.encode(peer, request)?;
        let wqe = self.queue.stamp(wqe, wr_id, self.phase, |ledger| ledger.assign(Self::slot(at), wr_id));
        self.queue.ring.store(at, wqe.words());
        self.at = at + <Wqe<W> as SendWqe>::SIZE;
        if self.at == self.refill_at {
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

    /// Rings the doorbell if the batch is full.
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

    /// Does the work that not every post needs: looks for room, and begins a lap or a batch. Returns the next WQE's
    /// offset.
    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> Result<usize, PostError> {
        let (producer, size) = (self.producer(), self.queue.ring.size());
        if producer.wrapping_sub(self.completed) >= self.queue.credits.limit() {
            self.completed = self.queue.ledgers.send.completed();
            self.queue.credits.check(self.queue.credits.outstanding(producer, self.completed))?;
        }
        if producer.wrapping_sub(self.ordered) >= self.queue.max_batch {
            // Exactly one doorbell has come since `ordered`, the one at `rung`: if no other, then that of the full
            // batch (`ring_if_due`). The fence orders it before the WQEs that follow.
            self.queue.ring.order_doorbell();
            self.ordered = self.rung;
        }
        let next = WqCursor::new(size, producer);
        (self.at, self.lap) = (Self::offset(next.slot()), producer.wrapping_sub(next.slot()));
        self.phase = Wqe::<W>::phase_bit(next.phase());
        self.plan_refill(producer);
        Ok(self.at)
    }

    /// Sets `refill_at` to the offset that posting reaches without another `refill`.
    #[inline(always)]
    fn plan_refill(&mut self, producer: u32) {
        let credits = self.queue.credits;
        let room = credits.limit() - credits.outstanding(producer, self.completed);
        let batch = self.queue.max_batch - producer.wrapping_sub(self.ordered);
        let slots = producer.wrapping_sub(self.lap) + room.min(batch);
        self.refill_at = Self::offset(slots.min(self.queue.ring.size().entries()));
    }

    /// Rings the doorbell for all WQEs that were posted since the last time.
    #[inline]
    pub fn ring(&mut self) {
        let producer = self.producer();
        if producer != self.rung {
            let orders_the_last_one = self.queue.ring.ring(Doorbell::new(producer).value());
            self.ordered = if orders_the_last_one { self.rung } else { producer };
            self.rung = producer;
            self.plan_refill(producer);
        }
    }

    /// Returns the number of work requests whose completion was not polled yet.
    pub fn outstanding(&self) -> u32 {
        self.queue.credits.outstanding(self.producer(), self.queue.ledgers.send.completed())
    }

    /// Returns the number of requests that can be posted now.
    pub fn room(&self) -> u32 {
        self.queue.credits.limit() - self.outstanding()
    }

    /// Returns the most WQEs that the device takes between two doorbells. The queue rings by itself when so many are
    /// posted.
    pub fn max_batch(&self) -> u32 {
        self.queue.max_batch
    }

    /// Returns the doorbell's value: the low 16 bits of the producer counter at the last ring.
    pub fn doorbell(&self) -> Doorbell {
        Doorbell::new(self.rung)
    }

    /// Returns the WQE that posting `request` now would write, for inspection: the ring itself cannot be read. In a
    /// full ring the request id may differ from the one that a later post gets.
    ///
    /// # Errors
    /// As for [`post`](Self::post), except that the ring may be full.
    pub fn preview(&self, peer: &Peer, request: impl Request<W>, wr_id: u64) -> Result<Wqe<W>, PostError> {
        let wqe = self.encode(peer, request)?;
        let producer = self.producer();
        let next = WqCursor::new(self.queue.ring.size(), producer);
        Ok(self.queue.stamp(wqe, wr_id, Wqe::<W>::phase_bit(next.phase()), |ledger| ledger.req_id(producer)))
    }

    /// Takes the ring back from the CPU, once all requests have completed and been polled.
    ///
    /// # Errors
    /// [`HandOverError::Outstanding`], with this queue. Requests that were posted but not rung are rung first.
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

    /// Returns what the ring's driver needs to know. Addresses are those of this process.
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

    /// Takes the ring back. `producer` is the number of WQEs that its driver posted and rang, `completed` the number of
    /// completions that it (or the poller of the completion queue) took. Both count from the ring's creation.
    ///
    /// # Errors
    /// [`HandOverError::Outstanding`], with this queue, if the two numbers differ.
    ///
    /// # Safety
    /// The driver has stopped, posts no more through any handle, and the numbers are correct. The host cannot see what
    /// a GPU did with the ring: with wrong numbers the next owner would overwrite WQEs that the device has not read.
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

    /// Returns every word of the send ring, which only a software device makes readable.
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
                // All of these WQEs may reach the device before the doorbell behind `ordered`.
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
