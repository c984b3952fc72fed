//! Control calls: create, change and destroy objects.

use super::Device;
use super::objects::Objects;
use crate::counter::{CompletionCounter, CounterPlace};
use crate::cq::{CompletionQueue, CqInfo};
use crate::qp::{QpInfo, QueuePair};
use efa_io::Status;
use efa_memory::{Backing, RingMemory};
use efa_types::{
    Access, CommandCounters, ControlError, CounterOps, CounterValue, CqAttributes, Gid, QpAttributes, QpState,
    RegionKeys, Transport,
};
use std::sync::Arc;

/// # Control: objects
impl Device {
    /// Runs a control call and counts it. A call that fails also counts in the counter of its kind, if there is one.
    fn command<T>(
        &mut self,
        kind: Option<fn(&mut CommandCounters) -> &mut u64>,
        run: impl FnOnce(&mut Self) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.commands.submitted_cmds += 1;
        let answer = run(self);
        self.commands.completed_cmds += 1;
        if answer.is_err() {
            self.commands.cmds_err += 1;
            if let Some(errors) = kind {
                *errors(&mut self.commands) += 1;
            }
        }
        answer
    }

    /// Creates a protection domain, and returns its number.
    ///
    /// # Errors
    /// The device has no more of them.
    pub fn alloc_pd(&mut self) -> Result<u32, ControlError> {
        self.command(Some(|counters| &mut counters.alloc_pd_err), |device| {
            room("protection domains", device.objects.pds.len(), device.config.max_pd)?;
            let pd = device.next_pd;
            device.next_pd += 1;
            device.objects.pds.insert(pd, 0);
            Ok(pd)
        })
    }

    /// Destroys a protection domain.
    ///
    /// # Errors
    /// It does not exist, or there are objects in it.
    pub fn dealloc_pd(&mut self, pd: u32) -> Result<(), ControlError> {
        self.command(None, |device| match *device.objects.pd(pd)? {
            0 => {
                device.objects.pds.remove(&pd);
                Ok(())
            }
            users => Err(ControlError::InUse { kind: "protection domain", id: pd, users }),
        })
    }

    /// Registers memory, which work requests address from `addr` on.
    ///
    /// # Errors
    /// The domain does not exist, the device has no more regions, or the addresses pass 2^64.
    pub fn register(
        &mut self,
        pd: u32,
        backing: Arc<dyn Backing>,
        addr: u64,
        access: Access,
    ) -> Result<RegionKeys, ControlError> {
        self.command(Some(|counters| &mut counters.reg_mr_err), |device| {
            device.objects.pd(pd)?;
            let keys =
                device.objects.regions.register(pd, backing, addr, access, device.config.max_mr, &mut device.rng)?;
            *device.objects.pd(pd)? += 1;
            Ok(keys)
        })
    }

    /// Deregisters a region. From here on the device does not access its memory, and what is still under way there
    /// fails.
    ///
    /// # Errors
    /// It does not exist.
    pub fn deregister(&mut self, lkey: u32) -> Result<(), ControlError> {
        self.command(None, |device| {
            let pd = device.objects.regions.deregister(lkey)?;
            *device.objects.pd(pd)? -= 1;
            Ok(())
        })
    }

    /// Creates an address handle, and returns its number. Every handle of one address in a domain has the same number.
    ///
    /// # Errors
    /// The domain does not exist, or the device has no more handles.
    pub fn create_ah(&mut self, pd: u32, gid: Gid) -> Result<u16, ControlError> {
        self.command(Some(|counters| &mut counters.create_ah_err), |device| {
            let objects = &mut device.objects;
            objects.pd(pd)?;
            let number = match objects.ah_of.get(&(pd, gid)) {
                Some(&number) => number,
                None => {
                    let index = objects.vacant_ah();
                    room("address handles", index, device.config.max_ah.min(Objects::MAX_AHS))?;
                    objects.add_ah(index, pd, gid)
                }
            };
            if let Some(ah) = objects.ah(number) {
                ah.users += 1;
            }
            *objects.pd(pd)? += 1;
            Ok(number)
        })
    }

    /// Destroys an address handle. With the last one of its number, what is outstanding through it completes as
    /// [`Status::Flushed`].
    ///
    /// # Errors
    /// It does not exist.
    pub fn destroy_ah(&mut self, pd: u32, number: u16) -> Result<(), ControlError> {
        self.command(None, |device| {
            let Some(ah) = device.objects.ah(number).filter(|ah| ah.pd == pd) else {
                return Err(ControlError::NoSuch { kind: "address handle", id: number.into() });
            };
            ah.users -= 1;
            if ah.users == 0 {
                let gid = ah.gid;
                // "Outstanding WRs using that AH are completed in error" (the vendor's SRD.txt).
                device.flush_datagrams(|message| message.ah == Some(number));
                if let Some(peer) = device.peers.find(gid) {
                    let ended = device.peers[peer].end_where(Status::Flushed, |message| message.ah == Some(number));
                    device.report_ended(peer, ended);
                }
                device.objects.remove_ah(number);
            }
            *device.objects.pd(pd)? -= 1;
            Ok(())
        })
    }

    /// Creates a completion queue whose ring is in memory of its own.
    ///
    /// # Errors
    /// The device has fewer entries, or no more queues.
    pub fn create_cq(&mut self, config: CqAttributes) -> Result<CqInfo, ControlError> {
        self.create_cq_in(config, None)
    }

    /// Creates a completion queue whose ring is in `memory`, at this byte offset, or in memory of its own.
    ///
    /// # Errors
    /// Those of [`create_cq`](Self::create_cq); or the offset is not that of an aligned 64-bit word, or leaves no room
    /// for the ring.
    pub fn create_cq_in(
        &mut self,
        config: CqAttributes,
        memory: Option<(Arc<RingMemory>, usize)>,
    ) -> Result<CqInfo, ControlError> {
        self.command(Some(|counters| &mut counters.create_cq_err), |device| {
            room("completion queues", device.objects.cqs.len(), device.config.max_cq)?;
            let cqn = device.next_cq;
            let (queue, info) = CompletionQueue::new(cqn, config, memory, &device.config)?;
            device.next_cq += 1;
            device.objects.cqs.insert(cqn, queue);
            Ok(info)
        })
    }

    /// Destroys a completion queue.
    ///
    /// # Errors
    /// It does not exist, or queue pairs complete in it.
    pub fn destroy_cq(&mut self, cqn: u32) -> Result<(), ControlError> {
        self.command(None, |device| match device.objects.cq(cqn)?.users {
            0 => {
                device.objects.cqs.remove(&cqn);
                Ok(())
            }
            users => Err(ControlError::InUse { kind: "completion queue", id: cqn, users }),
        })
    }

    /// Creates a queue pair, in state Reset.
    ///
    /// # Errors
    /// An object that it names does not exist; it asks for more than the device has, or for a feature that the device
    /// or its transport lacks; or `rnr_retry` is more than 7.
    pub fn create_qp(&mut self, config: QpAttributes) -> Result<QpInfo, ControlError> {
        self.command(Some(|counters| &mut counters.create_qp_err), |device| {
            device.objects.pd(config.pd)?;
            device.objects.cq(config.send_cq)?;
            device.objects.cq(config.recv_cq)?;
            let table = device.objects.qps.len();
            let vacant = device.objects.qps.iter().position(Option::is_none);
            let index = vacant.unwrap_or(table);
            room("queue pairs", index, device.config.attributes.max_qp)?;
            // A number is used again only after all others of its place in the table, so that late packets miss.
            let qpn = (usize::from(device.qp_generation[index]) * table + index) as u16;
            let retries = config.rnr_retry.map_or(Ok(None), |retry| rnr_retries(config.transport, retry))?;
            let (mut qp, info) = QueuePair::new(qpn, &config, &device.config)?;
            *device.objects.pd(config.pd)? += 1;
            for (cqn, sub) in [(config.send_cq, &mut qp.send_sub_queue), (config.recv_cq, &mut qp.recv_sub_queue)] {
                let cq = device.objects.cq(cqn)?;
                cq.users += 1;
                *sub = cq.assign();
            }
            qp.rnr_retries = retries;
            device.objects.qps[index] = Some(qp);
            device.objects.live.push(index);
            Ok(info)
        })
    }

    /// Changes a queue pair's state, and its qkey if the new state is `Init`, `ReadyToReceive` or `ReadyToSend`.
    ///
    /// The change to `Error` flushes: everything outstanding completes as [`Status::Flushed`].
    ///
    /// # Errors
    /// It does not exist, or verbs does not allow this change.
    pub fn modify_qp(&mut self, qpn: u16, to: QpState, qkey: Option<u32>) -> Result<(), ControlError> {
        self.command(None, |device| {
            let qp = device.objects.qp(qpn)?;
            if !qp.state.can_become(to) {
                return Err(ControlError::Transition { from: qp.state, to });
            }
            match to {
                QpState::Init | QpState::ReadyToReceive | QpState::ReadyToSend => qp.qkey = qkey.unwrap_or(qp.qkey),
                QpState::Error => {
                    device.fail_qp(qpn);
                    return Ok(());
                }
                QpState::Reset => {
                    device.forget_work(qpn);
                    device.objects.qp(qpn)?.reset();
                }
            }
            device.objects.set_state(qpn, to);
            Ok(())
        })
    }

    /// Sets how often a queue pair's messages are offered again to a receiver that is not ready: 0 to 6 times, or with
    /// 7 without limit, as a new queue pair has it (`EFA_RNR_INFINITE_RETRY`).
    ///
    /// # Errors
    /// The queue pair does not exist, is not an SRD queue pair, or sends already; or the value is more than 7.
    pub fn set_rnr_retry(&mut self, qpn: u16, retry: u8) -> Result<(), ControlError> {
        self.command(None, |device| {
            let qp = device.objects.qp(qpn)?;
            let retries = rnr_retries(qp.transport, retry)?;
            if !matches!(qp.state, QpState::Reset | QpState::Init | QpState::ReadyToReceive) {
                return Err(ControlError::TooLate {
                    what: "the retry count is set before ReadyToSend",
                    state: qp.state,
                });
            }
            qp.rnr_retries = retries;
            Ok(())
        })
    }

    /// Returns the state of a queue pair.
    ///
    /// # Errors
    /// It does not exist.
    pub fn query_qp(&mut self, qpn: u16) -> Result<QpState, ControlError> {
        self.command(None, |device| device.objects.qp(qpn).map(|qp| qp.state))
    }

    /// Destroys a queue pair. What is outstanding on it never completes.
    ///
    /// # Errors
    /// It does not exist.
    pub fn destroy_qp(&mut self, qpn: u16) -> Result<(), ControlError> {
        self.command(None, |device| {
            let &mut QueuePair { pd, send_cq, recv_cq, counters, .. } = device.objects.qp(qpn)?;
            device.forget_work(qpn);
            for id in counters.into_iter().flatten() {
                device.objects.counter(id)?.users -= 1;
            }
            let index = usize::from(qpn) % device.objects.qps.len();
            device.objects.qps[index] = None;
            device.objects.live.retain(|&live| live != index);
            let generations = (1u32 << 16) / device.objects.qps.len() as u32;
            let next = (u32::from(device.qp_generation[index]) + 1) % generations;
            device.qp_generation[index] = next.max(1) as u16; // generation 0 has the number 0, which no queue pair gets
            *device.objects.pd(pd)? -= 1;
            device.objects.cq(send_cq)?.users -= 1;
            device.objects.cq(recv_cq)?.users -= 1;
            Ok(())
        })
    }

    /// Creates a completion counter whose two numbers are in these places, and start at 0. Returns its number.
    ///
    /// # Errors
    /// The device has no more of them, or a place has no eight bytes at an aligned offset.
    pub fn create_counter(&mut self, completions: CounterPlace, errors: CounterPlace) -> Result<u32, ControlError> {
        self.command(None, |device| {
            room("completion counters", device.objects.counters.len(), device.config.attributes.max_counters)?;
            let id = device.next_counter;
            let counter = CompletionCounter::new(completions, errors)?;
            device.next_counter += 1;
            device.objects.counters.insert(id, counter);
            Ok(id)
        })
    }

    /// Attaches a counter to these kinds of completions of a queue pair, until the queue pair is destroyed.
    ///
    /// # Errors
    /// One of the two does not exist, the queue pair is not in `Reset` or `Init` any more, one of the kinds has a
    /// counter already, or a kind is invalid.
    pub fn attach_counter(&mut self, qpn: u16, id: u32, ops: CounterOps) -> Result<(), ControlError> {
        self.command(None, |device| {
            device.objects.counter(id)?;
            let qp = device.objects.qp(qpn)?;
            if !matches!(qp.state, QpState::Reset | QpState::Init) {
                return Err(ControlError::TooLate { what: "counters are attached in Reset or Init", state: qp.state });
            }
            if ops.bits() == 0 || ops.bits() >> CounterOps::KINDS != 0 {
                let expected = "one or more of the six kinds of completions";
                return Err(ControlError::Invalid {
                    what: "completion counter kinds",
                    value: ops.bits().into(),
                    expected,
                });
            }
            let taken = ops.kinds().filter(|&kind| qp.counters[kind].is_some()).count() as u32;
            if taken != 0 {
                return Err(ControlError::CounterAttached { qpn, kinds: taken });
            }
            ops.kinds().for_each(|kind| qp.counters[kind] = Some(id));
            device.objects.counter(id)?.users += ops.kinds().count() as u32;
            Ok(())
        })
    }

    /// Sets one of a counter's two numbers, modulo 2^31.
    ///
    /// # Errors
    /// It does not exist.
    pub fn set_counter(&mut self, id: u32, which: CounterValue, value: u64) -> Result<(), ControlError> {
        self.command(None, |device| device.objects.counter(id).map(|counter| counter.set(which, value)))
    }

    /// Adds to one of a counter's two numbers, modulo 2^31.
    ///
    /// # Errors
    /// It does not exist.
    pub fn add_to_counter(&mut self, id: u32, which: CounterValue, amount: u64) -> Result<(), ControlError> {
        self.command(None, |device| device.objects.counter(id).map(|counter| counter.add(which, amount)))
    }

    /// Returns one of a counter's two numbers.
    ///
    /// # Errors
    /// It does not exist.
    pub fn read_counter(&mut self, id: u32, which: CounterValue) -> Result<u64, ControlError> {
        self.command(None, |device| device.objects.counter(id).map(|counter| counter.get(which)))
    }

    /// Destroys a completion counter.
    ///
    /// # Errors
    /// It does not exist, or is attached to queue pairs.
    pub fn destroy_counter(&mut self, id: u32) -> Result<(), ControlError> {
        self.command(None, |device| match device.objects.counter(id)?.users {
            0 => {
                device.objects.counters.remove(&id);
                Ok(())
            }
            users => Err(ControlError::InUse { kind: "completion counter", id, users }),
        })
    }
}

/// Returns how often a message is offered again to a receiver that is not ready; `None` means without limit.
///
/// # Errors
/// The queue pair is not an SRD queue pair, or `retry` is more than 7.
fn rnr_retries(transport: Transport, retry: u8) -> Result<Option<u32>, ControlError> {
    if transport != Transport::Srd {
        return Err(ControlError::Unsupported("retries on unreliable datagram queue pairs"));
    }
    match retry {
        0..7 => Ok(Some(retry.into())),
        7 => Ok(None),
        _ => Err(ControlError::Invalid { what: "rnr_retry", value: retry.into(), expected: "0 to 7" }),
    }
}

/// Checks that a device which has `used` objects of a kind may have one more.
fn room(what: &'static str, used: usize, max: u32) -> Result<(), ControlError> {
    ControlError::check_limit(what, used as u64 + 1, max)
}
