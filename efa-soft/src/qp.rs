//! A queue pair, as the device sees it: two rings, two doorbells, and a state.

use crate::config::DeviceConfig;
use efa_io::rx::RxBuf;
use efa_io::{DecodeError, Doorbell, RingSize, RxDesc, SendRequest, WqCursor, Wqe64, Wqe128};
use efa_memory::{DoorbellMemory, RingMemory};
use efa_types::{ControlError, CounterOps, QpAttributes, QpState, Transport};
use std::sync::Arc;

/// Byte offset of the send doorbell in a queue pair's doorbell page.
const SQ_DOORBELL: usize = 0;
/// Byte offset of the receive doorbell. It has a cache line of its own, since another thread may ring it.
const RQ_DOORBELL: usize = 64;

/// The ring and the doorbell of a work queue, as its program needs to know them.
#[derive(Clone)]
pub struct WqInfo {
    /// The memory of the ring, which begins at byte 0.
    pub ring: Arc<RingMemory>,
    /// Number of entries: WQEs, or receive descriptors.
    pub entries: u32,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// The page in which the doorbell is.
    pub doorbell: Arc<DoorbellMemory>,
    /// Byte offset of the doorbell in that page.
    pub doorbell_offset: usize,
    /// Most entries between two doorbells.
    pub max_batch: u32,
    /// Request ids have 64 bits.
    pub req_id_64: bool,
}

/// The two work queues of a queue pair, as its program needs to know them.
#[derive(Clone)]
pub struct QpInfo {
    /// Number of the queue pair.
    pub qpn: u16,
    /// The send ring.
    pub sq: WqInfo,
    /// The receive ring.
    pub rq: WqInfo,
}

/// A work queue as the device sees it.
pub(crate) struct WorkQueue {
    pub(crate) ring: Arc<RingMemory>,
    pub(crate) max_batch: u32,
    /// The next entry that the device reads.
    next: WqCursor,
    /// The last doorbell value that the device saw.
    seen: u32,
    doorbell: Arc<DoorbellMemory>,
    doorbell_offset: usize,
}

impl WorkQueue {
    fn new(
        entries: u32,
        entry_size: usize,
        doorbell: Arc<DoorbellMemory>,
        doorbell_offset: usize,
        device: &DeviceConfig,
    ) -> Result<Self, ControlError> {
        let invalid = ControlError::Limit {
            what: "work queue entries",
            asked: entries.into(),
            max: RingSize::MAX_WQ_ENTRIES.into(),
        };
        let size = RingSize::at_least(entries)
            .ok()
            .filter(|size| size.entries() <= RingSize::MAX_WQ_ENTRIES)
            .ok_or(invalid)?;
        let ring = device.ring_memory(size.entries() as usize * entry_size)?;
        let next = WqCursor::new(size, 0);
        Ok(Self { ring, max_batch: size.entries(), next, seen: 0, doorbell, doorbell_offset })
    }

    fn info(&self, entry_size: u32, req_id_64: bool) -> WqInfo {
        WqInfo {
            ring: self.ring.clone(),
            entries: self.entries(),
            entry_size,
            doorbell: self.doorbell.clone(),
            doorbell_offset: self.doorbell_offset,
            max_batch: self.max_batch,
            req_id_64,
        }
    }

    /// Returns the number of entries of the ring.
    pub(crate) fn entries(&self) -> u32 {
        self.next.size().entries()
    }

    /// Skips all entries up to a doorbell.
    pub(crate) fn skip_to(&mut self, doorbell: u32) {
        self.next = WqCursor::new(self.next.size(), doorbell);
    }

    /// Returns the doorbell's value.
    pub(crate) fn doorbell(&self) -> u32 {
        self.doorbell.load_doorbell(self.doorbell_offset)
    }

    /// Rings the doorbell.
    pub(crate) fn store_doorbell(&self, value: u32) {
        self.doorbell.store_doorbell(self.doorbell_offset, value);
    }

    /// Returns the number of entries that were rung and not read yet, given the doorbell's value. It is more than the
    /// ring holds if the value is invalid.
    pub(crate) fn rung(&self, doorbell: u32) -> u32 {
        self.next.until(Doorbell::new(doorbell))
    }

    /// Notes a doorbell value. Returns how many entries it is beyond the last one.
    pub(crate) fn note_doorbell(&mut self, doorbell: u32) -> u32 {
        Doorbell::new(doorbell).entries_since(Doorbell::new(std::mem::replace(&mut self.seen, doorbell)))
    }

    fn reset(&mut self) {
        self.skip_to(0);
        self.seen = 0;
        self.store_doorbell(0);
    }
}

/// A receive that was taken from the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receive {
    pub(crate) req_id: u16,
    pub(crate) bufs: Vec<RxBuf>,
}

/// A WQE that was taken from the ring.
pub(crate) struct FetchedWqe {
    entry: WqeEntry,
    /// The phase that a WQE of this lap of the ring has.
    phase: bool,
    /// The largest request id of the queue pair.
    max_req_id: u64,
}

enum WqeEntry {
    Of64(Wqe64),
    Of128(Wqe128),
}

impl FetchedWqe {
    /// Returns the request id, as a completion can name it even if the WQE is malformed.
    pub(crate) fn req_id(&self) -> u64 {
        let req_id = match &self.entry {
            WqeEntry::Of64(wqe) => wqe.req_id(),
            WqeEntry::Of128(wqe) => wqe.req_id(),
        };
        req_id & self.max_req_id
    }

    /// Returns what the WQE asks for, or `None` if it is malformed: it breaks the format, it is of another lap, or its
    /// request id is too wide.
    #[inline]
    pub(crate) fn decode(&self) -> Option<SendRequest<'_>> {
        let request = match &self.entry {
            WqeEntry::Of64(wqe) => wqe.decode(),
            WqeEntry::Of128(wqe) => wqe.decode(),
        };
        request.ok().filter(|request| request.phase == self.phase && request.req_id <= self.max_req_id)
    }
}

/// A queue pair.
pub(crate) struct QueuePair {
    pub(crate) qpn: u16,
    pub(crate) transport: Transport,
    pub(crate) pd: u32,
    pub(crate) send_cq: u32,
    pub(crate) recv_cq: u32,
    /// Its sub-queue in each of the two.
    pub(crate) send_sub_queue: u16,
    pub(crate) recv_sub_queue: u16,
    pub(crate) state: QpState,
    pub(crate) qkey: u32,
    /// How often a message is offered again to a receiver that is not ready; `None` means without limit.
    pub(crate) rnr_retries: Option<u32>,
    /// Completion counters by kind, as [`CounterOps`] numbers them.
    pub(crate) counters: [Option<u32>; CounterOps::KINDS],
    /// WQEs have 128 bytes instead of 64.
    wqe_128: bool,
    req_id_64: bool,
    pub(crate) unsolicited_write_recv: bool,
    pub(crate) inline_bytes: u16,
    pub(crate) inline_write: bool,
    pub(crate) sq: WorkQueue,
    pub(crate) rq: WorkQueue,
    /// WQEs that were fetched and have not completed.
    pub(crate) outstanding: u32,
    /// Datagrams that wait to leave.
    pub(crate) datagrams: u32,
}

impl QueuePair {
    /// Creates a queue pair in state Reset, with rings of its own.
    pub(crate) fn new(qpn: u16, asked: &QpAttributes, device: &DeviceConfig) -> Result<(Self, QpInfo), ControlError> {
        let is_ud = asked.transport == Transport::Ud;
        if is_ud && (asked.inline_write || asked.unsolicited_write_recv) {
            return Err(ControlError::Unsupported("RDMA on unreliable datagram queue pairs"));
        }
        let wqe_128 = asked.inline_bytes > 32 || asked.inline_write;
        let wqe_size = if wqe_128 { 128 } else { 64 };
        if asked.inline_write && !(device.attributes.rdma_write && device.attributes.inline_bytes_ex > 32) {
            return Err(ControlError::Unsupported("inline RDMA write"));
        }
        if asked.unsolicited_write_recv && !device.attributes.unsolicited_write_recv {
            return Err(ControlError::Unsupported("unsolicited receives of writes with immediate"));
        }
        ControlError::check_limit("inline bytes", asked.inline_bytes, device.attributes.inline_bytes_ex)?;
        ControlError::check_limit("buffers in a receive", asked.recv_sge, device.attributes.max_rq_sge)?;
        let max_send_entries = 1u32 << (device.max_sq_bytes / wqe_size).ilog2();
        ControlError::check_limit("send ring entries", asked.send_entries, max_send_entries)?;
        let recv_sge = u32::from(asked.recv_sge.max(1));
        ControlError::check_limit("receives", asked.recv_entries, device.max_rq_descs / recv_sge)?;

        let doorbells = device.ring_memory(4096)?;
        let work_queue = |entries: u32, entry_size, doorbell| {
            WorkQueue::new(entries.max(1), entry_size, doorbells.clone(), doorbell, device)
        };
        let mut sq = work_queue(asked.send_entries, wqe_size as usize, SQ_DOORBELL)?;
        // `max_tx_batch` counts units of 64 bytes; libefa converts it in the same way (`efa_sq_initialize`).
        sq.max_batch = u32::from(device.max_tx_batch) * 64 / wqe_size;
        let rq = work_queue(asked.recv_entries * recv_sge, RxDesc::SIZE, RQ_DOORBELL)?;
        let info = QpInfo { qpn, sq: sq.info(wqe_size, device.req_id_64), rq: rq.info(RxDesc::SIZE as u32, false) };
        let qp = Self {
            qpn,
            transport: asked.transport,
            pd: asked.pd,
            send_cq: asked.send_cq,
            recv_cq: asked.recv_cq,
            send_sub_queue: 0,
            recv_sub_queue: 0,
            state: QpState::Reset,
            qkey: 0,
            rnr_retries: None,
            counters: [None; CounterOps::KINDS],
            wqe_128,
            req_id_64: device.req_id_64,
            unsolicited_write_recv: asked.unsolicited_write_recv,
            inline_bytes: asked.inline_bytes,
            inline_write: asked.inline_write,
            sq,
            rq,
            outstanding: 0,
            datagrams: 0,
        };
        Ok((qp, info))
    }

    /// Returns `true` if messages of this transport with this qkey are received.
    pub(crate) fn takes(&self, transport: Transport, qkey: u32) -> bool {
        self.transport == transport && self.state.receives() && self.qkey == qkey
    }

    /// Forgets what was posted, as the change to `IBV_QPS_RESET` does.
    pub(crate) fn reset(&mut self) {
        self.sq.reset();
        self.rq.reset();
        (self.qkey, self.outstanding) = (0, 0);
    }

    /// Takes the next WQE from the ring. At least one must have been rung.
    #[inline]
    pub(crate) fn take_wqe(&mut self) -> FetchedWqe {
        let (slot, phase) = (self.sq.next.slot() as usize, self.sq.next.phase());
        self.sq.next.advance(1);
        self.outstanding += 1;
        let entry = if self.wqe_128 {
            WqeEntry::Of128(Wqe128::from_words(self.sq.ring.load_entry(slot * 128)))
        } else {
            WqeEntry::Of64(Wqe64::from_words(self.sq.ring.load_entry(slot * 64)))
        };
        let max_req_id = if self.req_id_64 { u64::MAX } else { u16::MAX.into() };
        FetchedWqe { entry, phase, max_req_id }
    }

    /// Takes the next receive from the ring, if one was posted.
    ///
    /// # Errors
    /// The doorbell or the descriptors are malformed.
    pub(crate) fn take_receive(&mut self) -> Result<Option<Receive>, DecodeError> {
        let rung = self.rq.rung(self.rq.doorbell());
        if rung == 0 {
            return Ok(None);
        }
        if rung > self.rq.entries() {
            return Err(malformed("doorbell", rung, "at most a ring full"));
        }
        let mut receive = Receive { req_id: 0, bufs: Vec::with_capacity(1) };
        // A receive is a run of descriptors, of which the first and the last are marked (`struct efa_io_rx_desc`).
        for i in 0..rung {
            let offset = self.rq.next.ahead(i).slot() as usize * RxDesc::SIZE;
            let buf = RxDesc::from_words(self.rq.ring.load_entry(offset)).decode()?;
            if buf.first != (i == 0) {
                return Err(malformed(
                    "lkey_ctrl.first",
                    buf.first.into(),
                    "1 in the first descriptor of a receive alone",
                ));
            }
            if i == 0 {
                receive.req_id = buf.req_id;
            }
            receive.bufs.push(buf);
            if buf.last {
                self.rq.next.advance(i + 1);
                return Ok(Some(receive));
            }
        }
        Err(malformed("lkey_ctrl.last", 0, "1 in the last descriptor before the doorbell"))
    }
}

fn malformed(field: &'static str, value: u32, expected: &'static str) -> DecodeError {
    DecodeError { field, byte: 12, value: value.into(), expected }
}
