//! What programs have created, apart from the flows, so that both can be borrowed at once.

use super::{AsyncEvent, DeviceEvent, MAX_EVENTS};
use crate::contain::log;
use crate::counter::CompletionCounter;
use crate::cq::{CompletionQueue, Pushed};
use crate::mr::{Regions, RevocableMemory};
use crate::qp::QueuePair;
use crate::trace::{Traced, Tracer};
use efa_io::{Completion, Event, LocalBuf, OpCode, Status};
use efa_types::{Access, ControlError, CounterOps, Gid, QpState};
use foldhash::fast::RandomState;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Number of the first address handle. Neither handles nor queue pairs start at zero, so that one which was never filled in is
/// noticed.
const FIRST_AH: u16 = 16;

#[derive(Debug)]
pub(super) struct AddressHandle {
    pub(super) pd: u32,
    pub(super) gid: Gid,
    /// How often it was created: the device gives one number per domain and address.
    pub(super) users: u32,
}

/// What programs have created.
pub(super) struct Objects {
    /// How many objects are in each domain.
    pub(super) pds: HashMap<u32, u32>,
    pub(super) regions: Regions,
    pub(super) ahs: Vec<Option<AddressHandle>>,
    pub(super) ah_of: HashMap<(u32, Gid), u16, RandomState>,
    /// A key of `ah_of` that was last found there.
    pub(super) known_peer: Cell<Option<(u32, Gid)>>,
    pub(super) cqs: BTreeMap<u32, CompletionQueue>,
    pub(super) counters: HashMap<u32, CompletionCounter, RandomState>,
    /// By queue pair number modulo the table's size, as libefa keeps them.
    pub(super) qps: Vec<Option<QueuePair>>,
    /// Places in `qps` that are taken: what a look at the doorbells visits.
    pub(super) live: Vec<usize>,
    pub(super) events: VecDeque<DeviceEvent>,
    /// Queue pairs whose rings turned out malformed, to be failed.
    pub(super) broken: Vec<u16>,
    pub(super) tracer: Tracer,
}

impl Objects {
    pub(super) fn new(max_qp: u32) -> Self {
        Self {
            pds: HashMap::new(),
            regions: Regions::new(),
            ahs: Vec::new(),
            ah_of: HashMap::default(),
            known_peer: Cell::new(None),
            cqs: BTreeMap::new(),
            counters: HashMap::default(),
            qps: (0..max_qp.next_power_of_two()).map(|_| None).collect(),
            live: Vec::new(),
            events: VecDeque::new(),
            broken: Vec::new(),
            tracer: Tracer::default(),
        }
    }

    /// The number of the address handle at `index`.
    pub(super) fn ah_number(index: usize) -> u16 {
        index as u16 + FIRST_AH
    }

    /// The index of an address handle's number.
    pub(super) fn ah_index(number: u16) -> Option<usize> {
        number.checked_sub(FIRST_AH).map(usize::from)
    }

    /// Most address handles that numbers can tell apart.
    pub(super) const MAX_AHS: u32 = (u16::MAX - FIRST_AH) as u32;

    pub(super) fn ah(&mut self, number: u16) -> Option<&mut AddressHandle> {
        self.ahs.get_mut(Self::ah_index(number)?)?.as_mut()
    }

    /// How many objects are in a domain.
    pub(super) fn pd(&mut self, pd: u32) -> Result<&mut u32, ControlError> {
        self.pds.get_mut(&pd).ok_or(ControlError::NoSuch { kind: "protection domain", id: pd })
    }

    pub(super) fn cq(&mut self, cqn: u32) -> Result<&mut CompletionQueue, ControlError> {
        self.cqs.get_mut(&cqn).ok_or(ControlError::NoSuch { kind: "completion queue", id: cqn })
    }

    pub(super) fn counter(&mut self, id: u32) -> Result<&mut CompletionCounter, ControlError> {
        self.counters.get_mut(&id).ok_or(ControlError::NoSuch { kind: "completion counter", id })
    }

    pub(super) fn qp(&mut self, qpn: u16) -> Result<&mut QueuePair, ControlError> {
        let index = usize::from(qpn) % self.qps.len();
        let found = self.qps[index].as_mut().filter(|qp| qp.qpn == qpn);
        found.ok_or(ControlError::NoSuch { kind: "queue pair", id: qpn.into() })
    }

    /// A queue pair is in another state.
    pub(super) fn set_state(&mut self, qpn: u16, state: QpState) {
        if let Ok(qp) = self.qp(qpn)
            && std::mem::replace(&mut qp.state, state) != state
        {
            self.tracer.emit(|| Traced::State { qpn, state });
        }
    }

    /// A local buffer's memory, if its key, domain, right and bounds fit.
    pub(super) fn local(&self, pd: u32, buf: &LocalBuf, need: Access) -> Option<(&Arc<RevocableMemory>, usize)> {
        self.regions.local(pd, buf.lkey.get(), buf.addr, buf.length.into(), need)
    }

    /// Has an event wait to be fetched. An asynchronous one is lost if too many wait; of a completion queue's there is one at a
    /// time, and it is never lost.
    pub(super) fn tell(&mut self, event: DeviceEvent) {
        let wanted = match event {
            DeviceEvent::Completion(cqn) => self.cq(cqn).is_ok_and(|cq| !std::mem::replace(&mut cq.event_waits, true)),
            DeviceEvent::Async(_) => self.events.len() < MAX_EVENTS,
        };
        if wanted {
            self.events.push_back(event);
        }
    }

    /// Writes a completion, and asks for an event where one is due.
    fn complete(&mut self, cqn: u32, sub: u16, completion: Completion) {
        let Some(cq) = self.cqs.get_mut(&cqn) else { return };
        match cq.push(sub, completion) {
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
        let Ok(qp) = self.qp(qpn) else { return };
        qp.outstanding = qp.outstanding.saturating_sub(1);
        let &mut QueuePair { send_cq, send_sub, .. } = qp;
        let event = Event::Send { op };
        self.complete(send_cq, send_sub, Completion { req_id, status, qpn, phase: false, event });
        let kind = match op {
            OpCode::Send => CounterOps::SEND,
            OpCode::RdmaRead => CounterOps::RDMA_READ,
            OpCode::RdmaWrite => CounterOps::RDMA_WRITE,
        };
        self.count(qpn, kind, status);
    }

    /// Completes a receive, or tells of a message that needed none.
    pub(super) fn complete_receive(&mut self, qpn: u16, req_id: u64, received: efa_io::cqe::Received, status: Status) {
        let Ok(&mut QueuePair { recv_cq, recv_sub, .. }) = self.qp(qpn) else { return };
        let event = Event::Receive(received);
        self.complete(recv_cq, recv_sub, Completion { req_id, status, qpn, phase: false, event });
        self.count(qpn, CounterOps::RECV, status);
    }

    /// Counts something of one kind that was done, in the counter that is attached for it.
    pub(super) fn count(&mut self, qpn: u16, kind: CounterOps, status: Status) {
        let kind = kind.bits().trailing_zeros() as usize;
        if let Ok(&mut QueuePair { counters, .. }) = self.qp(qpn)
            && let Some(counter) = counters[kind].and_then(|id| self.counters.get_mut(&id))
        {
            counter.count(status.is_ok());
        }
    }
}
