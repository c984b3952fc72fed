//! The device: objects, and the three things that happen to it. Doorbells are rung, packets arrive, time passes.
//!
//! It is a state machine without sockets, clock or threads. Whoever drives it calls [`Device::poll_doorbells`] (or rings
//! them one by one), [`Device::handle`] for every packet from the network, and [`Device::poll_transmit`] until there is nothing to send;
//! [`Device::poll_timeout`] says when it wants to be called again. Completions appear in the completion rings.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `mod.rs` | control calls: create, change, destroy |
//! | `send.rs` | from a doorbell to a packet: WQEs, local checks, transmission |
//! | `receive.rs` | from a packet to memory and completions |

mod receive;
mod send;

use crate::config::DeviceConfig;
use crate::counters::Counters;
use crate::cq::{CompletionQueue, CqConfig, CqInfo};
use crate::error::ControlError;
use crate::memory::Backing;
use crate::mr::{Access, RegionKeys, Regions};
use crate::qp::{QpConfig, QpInfo, QpState, QueuePair};
use crate::srd::rx::RxFlow;
use crate::srd::tx::{Finished, Message, TxFlow};
use crate::wire::{Ack, Envelope};
use crate::{Gid, Time};
use efa_io::{Completion, Event, OpCode, Status};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Something that a program may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The armed completion queue with this number has a new entry.
    Completion(u32),
}

/// A packet to be put on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The device it goes to.
    pub dst: Gid,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// Most peers that a device keeps book of at once; whoever else sends it something is not heard.
const MAX_FLOWS: usize = 4096;

/// Number of the first address handle. Neither handles nor queue pairs start at zero, so that one which was never filled in is
/// noticed.
const FIRST_AH: u16 = 16;

#[derive(Debug)]
struct AddressHandle {
    pd: u32,
    gid: Gid,
    /// How often it was created: the device gives one number per domain and address.
    users: u32,
}

/// Everything between this device and one peer.
struct Flow {
    peer: Gid,
    /// Which life of the peer we know; 0: not heard from it.
    peer_incarnation: u64,
    /// By [`Lane`].
    tx: [TxFlow; 2],
    rx: [RxFlow; 2],
    /// The lane whose turn it is to send.
    turn: usize,
    /// Last time that the peer was heard, or that something was asked of it after a pause.
    lively_at: Time,
    /// In `Device::busy`.
    queued: bool,
}

impl Flow {
    /// Nothing of ours is under way.
    fn is_idle(&self) -> bool {
        self.tx.iter().all(TxFlow::is_idle)
    }

    /// Ends every message for which `which` holds.
    fn finish_where(&mut self, status: Status, which: impl Fn(&Message) -> bool) -> Vec<Finished> {
        let mut finished = Vec::new();
        for tx in &mut self.tx {
            tx.finish_where(status, &which, &mut finished);
        }
        finished
    }
}

/// The objects, apart from the flows, so that both can be borrowed at once.
struct Objects {
    pds: HashMap<u32, u32>,
    regions: Regions,
    ahs: Vec<Option<AddressHandle>>,
    ah_of: HashMap<(u32, Gid), u16>,
    cqs: HashMap<u32, CompletionQueue>,
    /// By queue pair number modulo the table's size, as libefa keeps them.
    qps: Vec<Option<QueuePair>>,
    /// Places in `qps` that are taken: what a look at the doorbells visits.
    live: Vec<usize>,
    events: VecDeque<DeviceEvent>,
    /// Queue pairs whose rings turned out malformed, to be failed.
    broken: Vec<u16>,
}

/// An EFA device in software.
pub struct Device {
    config: DeviceConfig,
    objects: Objects,
    flows: Vec<Flow>,
    flow_of: HashMap<Gid, usize>,
    /// Flows that may have something to send.
    busy: VecDeque<usize>,
    resets: VecDeque<Envelope>,
    counters: Counters,
    rng: fastrand::Rng,
    next_pd: u32,
    next_cq: u32,
    qp_generation: Vec<u16>,
    acks: Vec<Ack>,
    spare: Vec<Vec<u8>>,
}

impl Device {
    /// A device without objects.
    ///
    /// # Panics
    /// If the configuration makes no sense: see [`DeviceConfig::check`].
    pub fn new(config: DeviceConfig) -> Self {
        if let Err(error) = config.check() {
            panic!("no device can be like this: {error}");
        }
        let table = config.max_qp.next_power_of_two() as usize;
        Self {
            objects: Objects {
                pds: HashMap::new(),
                regions: Regions::new(),
                ahs: Vec::new(),
                ah_of: HashMap::new(),
                cqs: HashMap::new(),
                qps: (0..table).map(|_| None).collect(),
                live: Vec::new(),
                events: VecDeque::new(),
                broken: Vec::new(),
            },
            flows: Vec::new(),
            flow_of: HashMap::new(),
            busy: VecDeque::new(),
            resets: VecDeque::new(),
            counters: Counters::default(),
            rng: fastrand::Rng::with_seed(config.seed ^ config.incarnation.rotate_left(32)),
            next_pd: 1,
            next_cq: 1,
            qp_generation: vec![1; table],
            acks: Vec::new(),
            spare: Vec::new(),
            config,
        }
    }

    /// Its limits and capabilities.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// Its address.
    pub fn gid(&self) -> Gid {
        self.config.gid
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The next event that a program may wait for.
    pub fn poll_event(&mut self) -> Option<DeviceEvent> {
        self.objects.events.pop_front()
    }

    /// Creates a protection domain.
    ///
    /// # Errors
    /// The device has no more of them.
    pub fn alloc_pd(&mut self) -> Result<u32, ControlError> {
        room("protection domains", self.objects.pds.len(), self.config.max_pd)?;
        let pd = self.next_pd;
        self.next_pd += 1;
        self.objects.pds.insert(pd, 0);
        Ok(pd)
    }

    /// Destroys a protection domain.
    ///
    /// # Errors
    /// It does not exist, or something in it does.
    pub fn dealloc_pd(&mut self, pd: u32) -> Result<(), ControlError> {
        match *self.objects.pd(pd)? {
            0 => {
                self.objects.pds.remove(&pd);
                Ok(())
            }
            users => Err(ControlError::InUse { kind: "protection domain", id: pd, users }),
        }
    }

    /// Registers memory that the device's owner sees at `addr`.
    ///
    /// # Errors
    /// No such domain, no more regions, or an address range that wraps.
    pub fn register(
        &mut self,
        pd: u32,
        backing: Arc<dyn Backing>,
        addr: u64,
        access: Access,
    ) -> Result<RegionKeys, ControlError> {
        self.objects.pd(pd)?;
        let keys = self.objects.regions.register(pd, backing, addr, access, self.config.max_mr, &mut self.rng)?;
        *self.objects.pd(pd)? += 1;
        Ok(keys)
    }

    /// Forgets a region. From here on the device does not touch its memory; what is still under way fails.
    ///
    /// # Errors
    /// It does not exist.
    pub fn deregister(&mut self, lkey: u32) -> Result<(), ControlError> {
        let pd = self.objects.regions.deregister(lkey)?;
        *self.objects.pd(pd)? -= 1;
        Ok(())
    }

    /// Creates an address handle and gives its number. One address has one number in a domain, however often asked for.
    ///
    /// # Errors
    /// No such domain, or no more handles.
    pub fn create_ah(&mut self, pd: u32, gid: Gid) -> Result<u16, ControlError> {
        self.objects.pd(pd)?;
        let known = self.objects.ah_of.get(&(pd, gid)).copied();
        let number = match known {
            Some(number) => number,
            None => {
                let max = self.config.max_ah.min(u32::from(u16::MAX - FIRST_AH));
                let vacant = self.objects.ahs.iter().position(Option::is_none);
                let index = vacant.unwrap_or(self.objects.ahs.len());
                room("address handles", index, max)?;
                if vacant.is_none() {
                    self.objects.ahs.push(None);
                }
                let number = index as u16 + FIRST_AH;
                self.objects.ahs[index] = Some(AddressHandle { pd, gid, users: 0 });
                self.objects.ah_of.insert((pd, gid), number);
                number
            }
        };
        if let Some(ah) = self.objects.ah(number) {
            ah.users += 1;
        }
        *self.objects.pd(pd)? += 1;
        Ok(number)
    }

    /// Gives an address handle back.
    ///
    /// # Errors
    /// It does not exist.
    pub fn destroy_ah(&mut self, pd: u32, number: u16) -> Result<(), ControlError> {
        let Some(ah) = self.objects.ah(number).filter(|ah| ah.pd == pd) else {
            return Err(ControlError::NoSuch { kind: "address handle", id: number.into() });
        };
        ah.users -= 1;
        if ah.users == 0 {
            let gid = ah.gid;
            self.objects.ah_of.remove(&(pd, gid));
            self.objects.ahs[usize::from(number - FIRST_AH)] = None;
        }
        *self.objects.pd(pd)? -= 1;
        Ok(())
    }

    /// Creates a completion queue.
    ///
    /// # Errors
    /// More entries, or more queues, than the device has.
    pub fn create_cq(&mut self, config: CqConfig) -> Result<CqInfo, ControlError> {
        room("completion queues", self.objects.cqs.len(), self.config.max_cq)?;
        let cqn = self.next_cq;
        let (queue, info) = CompletionQueue::new(cqn, config, self.config.max_cqe)?;
        self.next_cq += 1;
        self.objects.cqs.insert(cqn, queue);
        Ok(info)
    }

    /// Destroys a completion queue.
    ///
    /// # Errors
    /// It does not exist, or queue pairs report to it.
    pub fn destroy_cq(&mut self, cqn: u32) -> Result<(), ControlError> {
        match self.objects.cq(cqn)?.users {
            0 => {
                self.objects.cqs.remove(&cqn);
                Ok(())
            }
            users => Err(ControlError::InUse { kind: "completion queue", id: cqn, users }),
        }
    }

    /// Creates an SRD queue pair, in state Reset.
    ///
    /// # Errors
    /// An object it names does not exist, or it asks for more than the device has.
    pub fn create_qp(&mut self, config: QpConfig) -> Result<QpInfo, ControlError> {
        self.objects.pd(config.pd)?;
        self.objects.cq(config.send_cq)?;
        self.objects.cq(config.recv_cq)?;
        let table = self.objects.qps.len();
        let vacant = self.objects.qps.iter().position(Option::is_none);
        let index = vacant.unwrap_or(table);
        room("queue pairs", index, self.config.max_qp)?;
        // A number comes back only after every other number of its place in the table, so that late packets miss.
        let qpn = (usize::from(self.qp_generation[index]) * table + index) as u16;
        let (qp, info) = QueuePair::new(qpn, &config, &self.config)?;
        self.objects.qps[index] = Some(qp);
        self.objects.live.push(index);
        *self.objects.pd(config.pd)? += 1;
        self.objects.cq(config.send_cq)?.users += 1;
        self.objects.cq(config.recv_cq)?.users += 1;
        Ok(info)
    }

    /// Changes a queue pair's state. `qkey` is taken when it becomes `Init`.
    ///
    /// Going to `Error` flushes: everything outstanding completes as [`Status::Flushed`].
    ///
    /// # Errors
    /// It does not exist, or verbs does not allow this change.
    pub fn modify_qp(&mut self, qpn: u16, to: QpState, qkey: Option<u32>) -> Result<(), ControlError> {
        let qp = self.objects.qp(qpn)?;
        if !qp.state.can_become(to) {
            return Err(ControlError::Transition { from: qp.state, to });
        }
        match to {
            QpState::Init => qp.qkey = qkey.unwrap_or(qp.qkey),
            QpState::Error => {
                self.fail_qp(qpn);
                return Ok(());
            }
            QpState::Reset => {
                self.forget_messages(qpn);
                self.objects.qp(qpn)?.reset();
            }
            QpState::ReadyToReceive | QpState::ReadyToSend => {}
        }
        self.objects.qp(qpn)?.state = to;
        Ok(())
    }

    /// The state of a queue pair.
    ///
    /// # Errors
    /// It does not exist.
    pub fn query_qp(&mut self, qpn: u16) -> Result<QpState, ControlError> {
        self.objects.qp(qpn).map(|qp| qp.state)
    }

    /// Destroys a queue pair. What was outstanding on it never completes.
    ///
    /// # Errors
    /// It does not exist.
    pub fn destroy_qp(&mut self, qpn: u16) -> Result<(), ControlError> {
        let (pd, send_cq, recv_cq) = {
            let qp = self.objects.qp(qpn)?;
            (qp.pd, qp.send_cq, qp.recv_cq)
        };
        self.forget_messages(qpn);
        let index = usize::from(qpn) % self.objects.qps.len();
        self.objects.qps[index] = None;
        self.objects.live.retain(|&live| live != index);
        let generations = (1u32 << 16) / self.objects.qps.len() as u32;
        let next = (u32::from(self.qp_generation[index]) + 1) % generations;
        self.qp_generation[index] = next.max(1) as u16; // number 0 is nobody's
        *self.objects.pd(pd)? -= 1;
        self.objects.cq(send_cq)?.users -= 1;
        self.objects.cq(recv_cq)?.users -= 1;
        Ok(())
    }

    /// The flow to `peer`, new if there is none; `None` if there are too many.
    fn flow_to(&mut self, now: Time, peer: Gid) -> Option<usize> {
        if let Some(&flow) = self.flow_of.get(&peer) {
            return Some(flow);
        }
        let new = Flow {
            peer,
            peer_incarnation: 0,
            // Starting anywhere but at zero keeps the wrap of message numbers an ordinary event.
            tx: [(); 2].map(|()| TxFlow::new(&self.config, self.rng.u32(..))),
            rx: Default::default(),
            turn: 0,
            lively_at: now,
            queued: false,
        };
        let index = if self.flows.len() < MAX_FLOWS {
            self.flows.push(new);
            self.flows.len() - 1
        } else {
            // A peer that has been silent for so long has given up whatever it had under way: it may be forgotten.
            let silence = self.config.peer_timeout * 2;
            let forgettable = |flow: &Flow| flow.is_idle() && !flow.queued && flow.lively_at + silence < now;
            let index = self.flows.iter().position(forgettable)?;
            let old = std::mem::replace(&mut self.flows[index], new);
            self.flow_of.remove(&old.peer);
            index
        };
        self.flow_of.insert(peer, index);
        Some(index)
    }

    /// The flow may have something to send.
    fn wake(&mut self, flow: usize) {
        if !std::mem::replace(&mut self.flows[flow].queued, true) {
            self.busy.push_back(flow);
        }
    }
}

impl Objects {
    fn ah(&mut self, number: u16) -> Option<&mut AddressHandle> {
        self.ahs.get_mut(usize::from(number.checked_sub(FIRST_AH)?))?.as_mut()
    }

    /// How many objects are in a domain.
    fn pd(&mut self, pd: u32) -> Result<&mut u32, ControlError> {
        self.pds.get_mut(&pd).ok_or(ControlError::NoSuch { kind: "protection domain", id: pd })
    }

    fn cq(&mut self, cqn: u32) -> Result<&mut CompletionQueue, ControlError> {
        self.cqs.get_mut(&cqn).ok_or(ControlError::NoSuch { kind: "completion queue", id: cqn })
    }

    fn qp(&mut self, qpn: u16) -> Result<&mut QueuePair, ControlError> {
        let index = usize::from(qpn) % self.qps.len();
        let found = self.qps[index].as_mut().filter(|qp| qp.qpn == qpn);
        found.ok_or(ControlError::NoSuch { kind: "queue pair", id: qpn.into() })
    }

    /// Writes a completion, and asks for an event where one is due.
    fn complete(&mut self, cqn: u32, completion: Completion) {
        if let Some(cq) = self.cqs.get_mut(&cqn)
            && cq.push(completion)
        {
            self.events.push_back(DeviceEvent::Completion(cqn));
        }
    }

    /// Completes a work request of a send queue.
    fn complete_send(&mut self, qpn: u16, req_id: u64, op: OpCode, status: Status) {
        if let Ok(cqn) = self.qp(qpn).map(|qp| qp.send_cq) {
            let event = Event::Send { op };
            self.complete(cqn, Completion { req_id, status, qpn, phase: false, event });
        }
    }
}

fn room(what: &'static str, used: usize, max: u32) -> Result<(), ControlError> {
    if used < max as usize {
        Ok(())
    } else {
        Err(ControlError::Limit { what, asked: used as u64 + 1, max: max.into() })
    }
}
