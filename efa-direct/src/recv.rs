//! Receive queues: one ring, one owner.
//!
//! The types change hands as those of send queues do (`send.rs`). A receive takes one descriptor for each of its
//! buffers, so descriptors and receives are counted separately: doorbells and batches count descriptors, credits and
//! completions count receives.

use crate::error::{HandOverError, PostError, Refused};
use crate::ledger::Credits;
use crate::provider::RawQp;
use crate::region::LocalSlice;
use crate::ring::RawRing;
use crate::shared::qp::QpShared;
use efa_io::rx::RxBuf;
use efa_io::{Doorbell, RecvRingHandle, RxDesc};
use std::sync::Arc;

/// A receive ring that nobody posts to.
pub struct RecvQueue {
    ring: RawRing,
    max_batch: u32,
    max_bufs: u16,
    credits: Credits,
    /// Producer counter in descriptors; a receive of several buffers takes several of them.
    producer: u32,
    /// Producer counter in receives.
    posted: u32,
    qp: Arc<QpShared>,
}

/// A receive ring that the owner of this value posts to, from the CPU.
pub struct CpuRecvQueue {
    queue: RecvQueue,
    /// Producer counter at the last doorbell.
    rung: u32,
    /// Completions seen so far, in receives.
    completed: u32,
    domain: u32,
}

/// A receive ring that a GPU posts to. The CPU cannot post: this type has no method for it.
pub struct GpuRecvQueue {
    queue: RecvQueue,
}

impl RecvQueue {
    pub(crate) fn new(qp: Arc<QpShared>, raw: &RawQp, max_bufs: u16, credits: Credits) -> Self {
        assert_eq!(raw.recv.entry_size(), RxDesc::SIZE, "the provider made a ring of other descriptors");
        let max_batch = raw.recv_max_batch.max(1);
        Self { ring: raw.recv.clone(), max_batch, max_bufs, credits, producer: 0, posted: 0, qp }
    }

    /// Hands the ring to the CPU.
    pub fn into_cpu(self) -> CpuRecvQueue {
        self.qp.ledgers.recv.hand_over(false, self.posted);
        let (rung, completed, domain) = (self.producer, self.posted, self.qp.domain.tag);
        CpuRecvQueue { queue: self, rung, completed, domain }
    }

    /// Hands the ring to a GPU, or to another program that drives it through a [`RecvRingHandle`].
    pub fn into_gpu(self) -> GpuRecvQueue {
        self.qp.ledgers.recv.hand_over(true, self.posted);
        GpuRecvQueue { queue: self }
    }
}

impl CpuRecvQueue {
    /// Writes a receive into the ring: a message fills `bufs` one after the other. `wr_id` comes back in the
    /// completion.
    ///
    /// # Errors
    /// A [`PostError`]. The ring is unchanged.
    pub fn post(&mut self, bufs: &[LocalSlice<'_>], wr_id: u64) -> Result<(), PostError> {
        let queue = &mut self.queue;
        let max = usize::from(queue.max_bufs);
        if bufs.is_empty() || bufs.len() > max {
            return Err(PostError::ReceiveBuffers { given: bufs.len(), max });
        }
        for slice in bufs {
            if slice.domain != self.domain {
                return Err(PostError::ForeignDomain { what: "region", given: slice.domain, own: self.domain });
            }
            if slice.len() > u16::MAX.into() {
                return Err(PostError::ReceiveTooLong { given: slice.len().into() });
            }
        }
        if queue.posted.wrapping_sub(self.completed) >= queue.credits.limit() {
            self.completed = queue.qp.ledgers.recv.completed();
            queue.credits.check(queue.credits.outstanding(queue.posted, self.completed))?;
        }
        // A doorbell must not cut a receive in two, so a batch that has no room for all of it ends before it.
        if queue.producer.wrapping_sub(self.rung) + bufs.len() as u32 > queue.max_batch {
            self.ring();
        }
        let queue = &mut self.queue;
        let req_id = queue.qp.ledgers.recv.assign(queue.posted, wr_id);
        for (i, slice) in bufs.iter().enumerate() {
            let (first, last) = (i == 0, i + 1 == bufs.len());
            let desc = RxDesc::new(RxBuf {
                // libefa sets the request id in the first descriptor only (`efa_post_recv`).
                req_id: if first { req_id } else { 0 },
                addr: slice.buf().addr,
                lkey: slice.buf().lkey,
                length: slice.len() as u16,
                first,
                last,
            });
            queue.ring.store(queue.ring.at(queue.producer), desc.words());
            queue.producer = queue.producer.wrapping_add(1);
        }
        queue.posted = queue.posted.wrapping_add(1);
        Ok(())
    }

    /// Rings the doorbell for all receives that were posted since the last time. The device learns of them from it.
    pub fn ring(&mut self) {
        let producer = self.queue.producer;
        if producer != self.rung {
            self.queue.ring.ring(Doorbell::new(producer).value());
            self.rung = producer;
        }
    }

    /// Returns the number of receives whose completion was not polled yet.
    pub fn outstanding(&self) -> u32 {
        self.queue.credits.outstanding(self.queue.posted, self.queue.qp.ledgers.recv.completed())
    }

    /// Takes the ring back from the CPU, once all receives have completed and been polled. Failing the queue pair
    /// ([`QpControl::fail`](crate::QpControl::fail)) completes receives that wait for a message.
    ///
    /// # Errors
    /// [`HandOverError::Outstanding`], with this queue. Receives that were posted but not rung are rung first.
    pub fn into_idle(mut self) -> Result<RecvQueue, Refused<Self>> {
        self.ring();
        match self.outstanding() {
            0 => Ok(self.queue),
            outstanding => Err(Refused { value: self, error: HandOverError::Outstanding { outstanding } }),
        }
    }
}

impl GpuRecvQueue {
    #[cfg(feature = "cuda")]
    pub(crate) fn raw_ring(&self) -> &RawRing {
        &self.queue.ring
    }

    /// Returns what the ring's driver needs to know. Addresses are those of this process.
    pub fn handle(&self) -> RecvRingHandle {
        let queue = &self.queue;
        let size = queue.ring.size();
        RecvRingHandle {
            ring: queue.ring.addr(),
            doorbell: queue.ring.doorbell_addr(),
            mask: size.mask(),
            shift: size.log2(),
            max_batch: queue.max_batch,
            producer: queue.producer,
            credits: queue.credits.limit(),
            max_bufs: queue.max_bufs,
            qpn: queue.qp.qpn,
            cq: queue.qp.recv_cq().tag,
            posted: queue.posted,
        }
    }

    /// Takes the ring back. `producer` is the number of descriptors that its driver rang, `posted` the number of
    /// receives that it posted, `completed` the number that completed. All count from the ring's creation.
    ///
    /// # Errors
    /// [`HandOverError::Outstanding`], with this queue, if `posted` and `completed` differ.
    ///
    /// # Safety
    /// The driver has stopped, posts no more through any handle, and the numbers are correct: see
    /// [`GpuSendQueue::into_idle`](crate::GpuSendQueue::into_idle).
    pub unsafe fn into_idle(mut self, producer: u32, posted: u32, completed: u32) -> Result<RecvQueue, Refused<Self>> {
        match posted.wrapping_sub(completed) {
            0 => {
                self.queue.producer = producer;
                self.queue.posted = posted;
                Ok(self.queue)
            }
            outstanding => Err(Refused { value: self, error: HandOverError::Outstanding { outstanding } }),
        }
    }
}

impl std::fmt::Debug for CpuRecvQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuRecvQueue({} outstanding)", self.outstanding())
    }
}

impl std::fmt::Debug for GpuRecvQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuRecvQueue({:?})", self.handle())
    }
}
