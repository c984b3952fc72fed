//! What is under way between this device and each of its peers, and when it needs attention.

use super::Device;
use crate::Time;
use crate::config::DeviceConfig;
use crate::srd::rx::RxFlow;
use crate::srd::tx::{Finished, Message, TxFlow};
use crate::srd::{MESSAGE_WINDOW, NUMBER_SPAN};
use crate::wire::Hello;
use efa_io::Status;
use efa_types::Gid;
use std::cmp::Reverse;

/// Most peers that a device keeps book of at once; whoever else sends it something is not heard.
const MAX_FLOWS: usize = 4096;

/// How often a peer is asked whether it has begun another life, before that is forgotten again.
const MAX_DOUBTS: u32 = 8;

/// Everything between this device and one peer.
pub(super) struct Flow {
    pub(super) peer: Gid,
    /// What this life of the device is called before the peer.
    pub(super) own_incarnation: u64,
    /// Which life of the peer we know; 0: not heard from it. Until then it is only asked.
    pub(super) peer_incarnation: u64,
    /// A packet named another life of the peer. That may be a new one, or an old one whose packet was late: it is asked, and until it
    /// answers nothing changes.
    pub(super) doubt: bool,
    /// What a hello must echo to say which life of the peer it is. A new one after every such answer, so that no answer counts twice.
    pub(super) challenge: u64,
    /// When to ask again, and how often that was done.
    hello_at: Time,
    hellos: u32,
    /// By [`Lane`](crate::wire::Lane).
    pub(super) tx: [TxFlow; 2],
    pub(super) rx: [RxFlow; 2],
    /// The path that the peer's last packet took: acknowledgements go back by it.
    pub(super) ack_path: u8,
    /// The lane whose turn it is to send.
    pub(super) turn: usize,
    /// Last time that the peer was heard, or that something was asked of it after a pause.
    pub(super) lively_at: Time,
    /// In `Device::busy`.
    pub(super) queued: bool,
    /// Something was sent to the peer, or delivered from it: not to be forgotten lightly.
    pub(super) matters: bool,
    /// When `Device::timers` will next bring it up, if at all.
    timer: Option<Time>,
}

impl Flow {
    /// How far beyond the oldest message another may lie: not far, for a stranger.
    pub(super) fn span(&self) -> u32 {
        if self.matters { NUMBER_SPAN } else { MESSAGE_WINDOW }
    }

    /// There is cause to ask the peer which life it is in.
    fn wonders(&self) -> bool {
        self.doubt || self.peer_incarnation == 0 && !self.is_idle()
    }

    /// What to ask the peer now, if anything.
    pub(super) fn poll_hello(&mut self, now: Time, config: &DeviceConfig) -> Option<Hello> {
        if !self.wonders() || now < self.hello_at {
            return None;
        }
        self.hello_at = now + (config.initial_rto * (1 << self.hellos.min(10))).min(config.max_rto);
        self.hellos += 1;
        self.doubt &= self.hellos < MAX_DOUBTS;
        Some(Hello { challenge: self.challenge, echo: 0 })
    }

    /// A packet named a life of the peer that is not the one that we know.
    pub(super) fn doubt(&mut self) {
        if !self.doubt && self.peer_incarnation != 0 {
            (self.doubt, self.hellos) = (true, 0);
        }
    }

    /// Nothing of ours is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.tx.iter().all(TxFlow::is_idle)
    }

    /// Ends every message for which `which` holds.
    pub(super) fn finish_where(&mut self, status: Status, which: impl Fn(&Message) -> bool) -> Vec<Finished> {
        let mut finished = Vec::new();
        for tx in &mut self.tx {
            tx.finish_where(status, &which, &mut finished);
        }
        finished
    }
}

impl Device {
    /// The flow to `peer`, if there is one. Mostly it is the last one asked for.
    pub(super) fn known_flow(&mut self, peer: Gid) -> Option<usize> {
        if self.flows.get(self.last_flow).is_none_or(|flow| flow.peer != peer) {
            self.last_flow = *self.flow_of.get(&peer)?;
        }
        Some(self.last_flow)
    }

    /// The flow to `peer`, new if there is none; `None` if there are too many.
    pub(super) fn flow_to(&mut self, now: Time, peer: Gid) -> Option<usize> {
        if let Some(flow) = self.known_flow(peer) {
            return Some(flow);
        }
        self.challenges += 1;
        let new = Flow {
            peer,
            own_incarnation: self.config.incarnation_for(peer),
            peer_incarnation: 0,
            doubt: false,
            challenge: self.challenges,
            hello_at: now,
            hellos: 0,
            // Starting anywhere but at zero keeps the wrap of message numbers an ordinary event.
            tx: [(); 2].map(|()| TxFlow::new(&self.config, self.rng.u32(..))),
            rx: Default::default(),
            ack_path: 0,
            turn: 0,
            lively_at: now,
            queued: false,
            matters: false,
            timer: None,
        };
        let index = if self.flows.len() < MAX_FLOWS {
            self.flows.push(new);
            self.flows.len() - 1
        } else {
            // A stranger may be forgotten at any time: what it was told it can be told again. Any other peer that has been silent for
            // so long has given up whatever it had under way, and will take us for one that counts from anew (`Device::note_return`).
            let silence = self.config.peer_timeout * 2;
            let forgettable =
                |flow: &Flow| flow.is_idle() && !flow.queued && (!flow.matters || flow.lively_at + silence < now);
            let index = self.flows.iter().position(forgettable)?;
            let old = std::mem::replace(&mut self.flows[index], new);
            self.flow_of.remove(&old.peer);
            index
        };
        self.flow_of.insert(peer, index);
        Some(index)
    }

    /// The flow may have something to send.
    pub(super) fn wake(&mut self, flow: usize) {
        if !std::mem::replace(&mut self.flows[flow].queued, true) {
            self.busy.push_back(flow);
        }
    }

    /// The flow has nothing to send: sets the timer for what it waits for.
    pub(super) fn rest(&mut self, index: usize) {
        let due = self.deadline(index);
        let flow = &mut self.flows[index];
        flow.queued = false;
        // A timer that rings too early is set again when it does; only an earlier one is worth the trouble now.
        if let Some(due) = due
            && flow.timer.is_none_or(|timer| due < timer)
        {
            flow.timer = Some(due);
            self.timers.push(Reverse((due, index)));
        }
    }

    /// When a flow next has something to do by itself.
    fn deadline(&self, index: usize) -> Option<Time> {
        let flow = &self.flows[index];
        let silence = (!flow.is_idle()).then(|| flow.lively_at + self.config.peer_timeout);
        let hello = flow.wonders().then_some(flow.hello_at);
        flow.tx.iter().filter_map(TxFlow::next_time).chain(silence).chain(hello).min()
    }

    /// Does what flows have to do by now: packets go out again, peers that stay silent are given up.
    pub(super) fn ring_timers(&mut self, now: Time) {
        while let Some(&Reverse((at, index))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            if self.flows[index].timer != Some(at) {
                continue; // an earlier one was set since
            }
            self.flows[index].timer = None;
            if self.deadline(index).is_some_and(|due| due <= now) {
                self.pass_time(now, index);
                self.check_liveliness(now, index);
                self.wake(index);
            } else if !self.flows[index].queued {
                self.rest(index);
            }
        }
    }

    fn check_liveliness(&mut self, now: Time, index: usize) {
        let flow = &mut self.flows[index];
        if flow.is_idle() || now < flow.lively_at + self.config.peer_timeout {
            return;
        }
        let status = if flow.peer_incarnation == 0 {
            Status::UnreachableRemote
        } else {
            self.counters.unresponsive_remote_events += 1;
            Status::UnresponsiveRemote
        };
        let finished = flow.finish_where(status, |_| true);
        self.settle(index, finished);
    }

    /// Lets a flow see what is overdue.
    pub(super) fn pass_time(&mut self, now: Time, flow: usize) {
        for tx in &mut self.flows[flow].tx {
            tx.on_time(now);
            self.counters.retrans_timeout_events += tx.take_timeouts();
        }
    }
}
