//! The objects that programs have created, and what can be done with them alone.
//!
//! They are apart from the [peers](super::peer), so that a lane and the memory for its packets can be borrowed at once.

use super::event::{DeviceEvent, MAX_EVENTS};
use crate::contain::log;
use crate::counter::CompletionCounter;
use crate::cq::{CompletionQueue, Pushed};
use crate::qp::{QueuePair, Receive};
use crate::regions::{Regions, RevocableMemory};
use crate::srd::{Memory, Message};
use crate::trace::{Traced, Tracer};
use crate::wire::{MessageHeader, Payload, Span};
use efa_io::cqe::Received;
use efa_io::rx::RxBuf;
use efa_io::{Completion, Event, LocalBuf, OpCode, Status};
use efa_types::{Access, AsyncEvent, ControlError, CounterOps, Gid, QpState, Transport, UD_PREFIX};
use foldhash::fast::RandomState;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Number of the first address handle. Neither handles nor queue pairs are numbered 0, so that a field which a program
/// forgot to fill in is noticed.
const FIRST_AH: u16 = 16;

/// An address handle.
#[derive(Debug)]
pub(super) struct AddressHandle {
    pub(super) pd: u32,
    pub(super) gid: Gid,
    /// How often it was created: a device has one number for each domain and address.
    pub(super) users: u32,
}

/// The objects of a device.
pub(super) struct Objects {
    /// The number of objects in each protection domain.
    pub(super) pds: HashMap<u32, u32>,
    pub(super) regions: Regions,
    ahs: Vec<Option<AddressHandle>>,
    pub(super) ah_of: HashMap<(u32, Gid), u16, RandomState>,
    /// The key that was last found in `ah_of`. Most RDMA packets ask for the same as the packet before.
    last_found: Cell<Option<(u32, Gid)>>,
    pub(super) cqs: BTreeMap<u32, CompletionQueue>,
    pub(super) counters: HashMap<u32, CompletionCounter, RandomState>,
    /// By queue pair number modulo the table's length, as libefa keeps them (`qp_table`, `qp_table_sz_m1`).
    pub(super) qps: Vec<Option<QueuePair>>,
    /// The indexes in `qps` of the queue pairs that exist: what a look at the doorbells visits.
    pub(super) live: Vec<usize>,
    pub(super) events: VecDeque<DeviceEvent>,
    pub(super) tracer: Tracer,
}

impl Objects {
    pub(super) fn new(max_qp: u32) -> Self {
        Self {
            pds: HashMap::new(),
            regions: Regions::new(),
            ahs: Vec::new(),
            ah_of: HashMap::default(),
            last_found: Cell::new(None),
            cqs: BTreeMap::new(),
            counters: HashMap::default(),
            qps: (0..max_qp.next_power_of_two()).map(|_| None).collect(),
            live: Vec::new(),
            events: VecDeque::new(),
            tracer: Tracer::default(),
        }
    }
}

/// Looking objects up.
impl Objects {
    /// Most address handles that their numbers can tell apart.
    pub(super) const MAX_AHS: u32 = (u16::MAX - FIRST_AH) as u32;

    fn ah_index(number: u16) -> Option<usize> {
        number.checked_sub(FIRST_AH).map(usize::from)
    }

    pub(super) fn ah(&mut self, number: u16) -> Option<&mut AddressHandle> {
        self.ahs.get_mut(Self::ah_index(number)?)?.as_mut()
    }

    /// Returns the index that the next address handle gets: the lowest that is free.
    pub(super) fn vacant_ah(&self) -> usize {
        self.ahs.iter().position(Option::is_none).unwrap_or(self.ahs.len())
    }

    /// Adds an address handle without users at this [vacant](Self::vacant_ah) index, and returns its number.
    pub(super) fn add_ah(&mut self, index: usize, pd: u32, gid: Gid) -> u16 {
        if index == self.ahs.len() {
            self.ahs.push(None);
        }
        self.ahs[index] = Some(AddressHandle { pd, gid, users: 0 });
        let number = index as u16 + FIRST_AH;
        self.ah_of.insert((pd, gid), number);
        number
    }

    /// Removes an address handle.
    pub(super) fn remove_ah(&mut self, number: u16) {
        if let Some(place) = Self::ah_index(number).and_then(|index| self.ahs.get_mut(index))
            && let Some(AddressHandle { pd, gid, .. }) = place.take()
        {
            self.ah_of.remove(&(pd, gid));
            self.last_found.set(None);
        }
    }

    /// Returns the number of objects in a protection domain.
    pub(super) fn pd(&mut self, pd: u32) -> Result<&mut u32, ControlError> {
        self.pds.get_mut(&pd).ok_or(ControlError::NoSuch { kind: "protection domain", id: pd })
    }

    pub(super) fn cq(&mut self, cqn: u32) -> Result<&mut CompletionQueue, ControlError> {
        self.cqs.get_mut(&cqn).ok_or(ControlError::NoSuch { kind: "completion queue", id: cqn })
    }

    pub(super) fn counter(&mut self, id: u32) -> Result<&mut CompletionCounter, ControlError> {
        self.counters.get_mut(&id).ok_or(ControlError::NoSuch { kind: "completion counter", id })
    }

    /// Returns a queue pair. A number of an earlier life of its place in the table misses.
    pub(super) fn qp(&mut self, qpn: u16) -> Result<&mut QueuePair, ControlError> {
        let index = usize::from(qpn) % self.qps.len();
        let found = self.qps[index].as_mut().filter(|qp| qp.qpn == qpn);
        found.ok_or(ControlError::NoSuch { kind: "queue pair", id: qpn.into() })
    }

    /// Changes the state of a queue pair.
    pub(super) fn set_state(&mut self, qpn: u16, state: QpState) {
        if let Ok(qp) = self.qp(qpn)
            && std::mem::replace(&mut qp.state, state) != state
        {
            self.tracer.emit(|| Traced::State { qpn, state });
        }
    }

    /// Notes that a datagram of a queue pair does not wait to leave any more.
    pub(super) fn datagram_left(&mut self, qpn: u16) {
        if let Ok(qp) = self.qp(qpn) {
            qp.datagrams = qp.datagrams.saturating_sub(1);
        }
    }
}

/// Finding the bytes of a message.
impl Objects {
    /// Returns the memory of a local buffer and its offset there, if its key, domain, right and bounds fit.
    pub(super) fn local(&self, pd: u32, buf: &LocalBuf, need: Access) -> Option<(&Arc<RevocableMemory>, usize)> {
        self.regions.local(pd, buf.lkey.get(), buf.addr, buf.length.into(), need)
    }

    /// Returns the payload of packet number `packet` of a message.
    pub(super) fn payload(&self, message: &Message, packet: u32, stride: u32) -> Result<Payload<'static>, Status> {
        let header = &message.header;
        let from = (u64::from(packet) * u64::from(stride)) as usize;
        let len = header.payload_len(packet, stride);
        if len == 0 {
            return Ok(Payload::EMPTY); // no key is looked at for no bytes
        }
        let (spans, if_gone) = match &message.memory {
            Memory::Inline(data) => return Ok(Payload::copied(&data[from..from + len])),
            Memory::Gather { pd, bufs } => (self.gather(*pd, bufs.as_slice(), from, len)?, Status::InvalidLkey),
            Memory::Remote { pd, rkey, addr } => {
                let found = self.regions.remote(*pd, *rkey, *addr, header.bytes.into(), Access::REMOTE_READ);
                let (memory, offset) = found.ok_or(Status::RemoteBadAddress)?;
                let span = Span { memory: memory.clone(), offset: offset + from, len };
                ([Some(span), None], Status::RemoteBadAddress)
            }
            Memory::Scatter { .. } => return Ok(Payload::EMPTY),
        };
        Payload::of_spans(spans).ok_or(if_gone)
    }

    /// Returns where `len` bytes from byte `from` of the concatenated buffers on are.
    fn gather(&self, pd: u32, bufs: &[LocalBuf], mut from: usize, mut len: usize) -> Result<[Option<Span>; 2], Status> {
        let mut spans = [None, None];
        for (span, buf) in spans.iter_mut().zip(bufs) {
            let skipped = from.min(buf.length as usize);
            let here = len.min(buf.length as usize - skipped);
            (from, len) = (from - skipped, len - here);
            if here > 0 {
                let (memory, offset) = self.local(pd, buf, Access::LOCAL_READ).ok_or(Status::InvalidLkey)?;
                *span = Some(Span { memory: memory.clone(), offset: offset + skipped, len: here });
            }
        }
        Ok(spans)
    }

    /// Returns the protection domain of the queue pair that a message is for.
    ///
    /// A wrong qkey is answered like a wrong number (assumed: no public source says what hardware answers).
    pub(super) fn target(&mut self, header: &MessageHeader) -> Result<u32, Status> {
        match self.qp(header.dst_qpn) {
            Ok(qp) if qp.takes(Transport::Srd, header.qkey) => Ok(qp.pd),
            _ => Err(Status::RemoteBadDestQpn),
        }
    }

    /// Returns the memory that a remote operation names, or `None` for no bytes at all.
    ///
    /// RDMA takes an address handle for the initiator in the target's domain
    /// (`EFA_IO_COMP_STATUS_REMOTE_ERROR_UNKNOWN_PEER` in `efa_io_defs.h`).
    pub(super) fn remote(
        &self,
        pd: u32,
        header: &MessageHeader,
        src: Gid,
        need: Access,
        enabled: bool,
    ) -> Result<Option<(&Arc<RevocableMemory>, usize)>, Status> {
        if !enabled {
            return Err(Status::RemoteFeatureMismatch);
        }
        if self.last_found.get() != Some((pd, src)) {
            if !self.ah_of.contains_key(&(pd, src)) {
                return Err(Status::RemoteUnknownPeer);
            }
            self.last_found.set(Some((pd, src)));
        }
        if header.bytes == 0 {
            return Ok(None);
        }
        let found = self.regions.remote(pd, header.rkey, header.remote_addr, header.bytes.into(), need);
        found.map(Some).ok_or(Status::RemoteBadAddress)
    }

    /// Spreads `prefix` zeros and a payload over the buffers of a receive. Nothing is written unless all of it fits.
    pub(super) fn scatter(
        &self,
        pd: u32,
        receive: &Receive,
        payload: &Payload<'_>,
        prefix: usize,
    ) -> Result<(), Status> {
        let total = prefix + payload.len();
        // Each buffer, with where its part begins in the whole and how long it is.
        let parts = receive.bufs.iter().scan(0, |from, buf| {
            let here = usize::from(buf.length).min(total - *from);
            *from += here;
            Some((buf, *from - here, here))
        });
        let parts = parts.filter(|&(_, _, here)| here > 0);
        let find = |buf: &RxBuf| {
            let found = self.regions.local(pd, buf.lkey.get(), buf.addr, buf.length.into(), Access::LOCAL_WRITE);
            found.ok_or(Status::InvalidLkey)
        };
        // Two passes: with the first, a receive that fails leaves its buffers untouched. A key is checked only if bytes
        // go there.
        let mut room = 0;
        for (buf, _, here) in parts.clone() {
            find(buf)?;
            room += here;
        }
        if room < total {
            return Err(Status::BadLength);
        }
        for (buf, from, here) in parts {
            let (memory, at) = find(buf)?;
            let zeros = prefix.saturating_sub(from).min(here);
            let placed = memory.write(at, &[0; UD_PREFIX as usize][..zeros])
                && payload.place((from + zeros).saturating_sub(prefix), here - zeros, memory, at + zeros);
            if !placed {
                return Err(Status::InvalidLkey);
            }
        }
        Ok(())
    }
}

/// Telling programs.
impl Objects {
    /// Has an event wait to be fetched. An asynchronous one is lost if too many wait. Of a completion queue one event
    /// waits at a time, and it is never lost.
    pub(super) fn tell(&mut self, event: DeviceEvent) {
        // At most one event for each completion queue keeps the queue of events bounded without losing any.
        let wanted = match event {
            DeviceEvent::Completion(cqn) => self.cq(cqn).is_ok_and(|cq| !std::mem::replace(&mut cq.event_waits, true)),
            DeviceEvent::Async(_) => self.events.len() < MAX_EVENTS,
        };
        if wanted {
            self.events.push_back(event);
        }
    }

    /// Writes a completion, and has an event wait where one is due.
    fn complete(&mut self, cqn: u32, sub_queue: u16, completion: Completion) {
        let Some(cq) = self.cqs.get_mut(&cqn) else { return };
        match cq.push(sub_queue, completion) {
            Pushed::Quietly => {}
            Pushed::WithEvent => self.tell(DeviceEvent::Completion(cqn)),
            Pushed::Lost => return,
            Pushed::Overflow => {
                // The vendor's libfabric: "completions to be dropped". The event is what verbs has for it.
                log!(warn, cqn, "completion queue overflow: completions are lost");
                self.tell(DeviceEvent::Async(AsyncEvent::CqError(cqn)));
                return;
            }
        }
        let Completion { req_id, status, qpn, event, .. } = completion;
        let receive = matches!(event, Event::Receive(_));
        self.tracer.emit(|| Traced::Completion { cqn, qpn, req_id, status, receive });
    }

    /// Completes a work request of a send queue.
    pub(super) fn complete_send(&mut self, qpn: u16, req_id: u64, op: OpCode, status: Status) {
        // A message may outlive its queue pair: then nobody is left to be told.
        let Ok(qp) = self.qp(qpn) else { return };
        qp.outstanding = qp.outstanding.saturating_sub(1);
        let &mut QueuePair { send_cq, send_sub_queue, .. } = qp;
        let event = Event::Send { op };
        self.complete(send_cq, send_sub_queue, Completion { req_id, status, qpn, phase: false, event });
        let kind = match op {
            OpCode::Send => CounterOps::SEND,
            OpCode::RdmaRead => CounterOps::RDMA_READ,
            OpCode::RdmaWrite => CounterOps::RDMA_WRITE,
        };
        self.count(qpn, kind, status);
    }

    /// Completes a receive, or reports a message that consumed none.
    pub(super) fn complete_receive(&mut self, qpn: u16, req_id: u64, received: Received, status: Status) {
        let Ok(&mut QueuePair { recv_cq, recv_sub_queue, .. }) = self.qp(qpn) else { return };
        let event = Event::Receive(received);
        self.complete(recv_cq, recv_sub_queue, Completion { req_id, status, qpn, phase: false, event });
        self.count(qpn, CounterOps::RECV, status);
    }

    /// Counts one operation in the completion counter that is attached for its kind.
    pub(super) fn count(&mut self, qpn: u16, kind: CounterOps, status: Status) {
        let kind = kind.bits().trailing_zeros() as usize;
        if let Ok(&mut QueuePair { counters, .. }) = self.qp(qpn)
            && let Some(counter) = counters[kind].and_then(|id| self.counters.get_mut(&id))
        {
            counter.count(status.is_ok());
        }
    }

    /// Returns what the completion of a received message says. A sender without an address handle is named by its GID,
    /// as `efadv_wc_read_sgid` has it.
    pub(super) fn received(&self, pd: u32, header: &MessageHeader, src: Gid, op: OpCode) -> Received {
        let ah = self.ah_of.get(&(pd, src)).copied();
        Received {
            op,
            length: header.bytes,
            ah,
            src_qpn: header.src_qpn,
            imm: header.imm,
            unsolicited: false,
            src_gid: ah.is_none().then_some(src.0),
        }
    }
}
