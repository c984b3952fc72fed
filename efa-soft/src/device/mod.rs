//! The device: objects, and the three things that happen to it. Doorbells are rung, packets arrive, time passes.
//!
//! It is a state machine without sockets, clock or threads. Whoever drives it calls [`Device::poll_doorbells`] (or rings
//! them one by one), [`Device::handle`] for every packet from the network, and [`Device::poll_transmit`] until there is nothing to send;
//! [`Device::poll_timeout`] says when it wants to be called again. Completions appear in the completion rings.
//!
//! Queue pairs take turns at a device: one packet each towards a peer, and none has more than a window of packets under way. Whatever one of
//! them has posted, another's message leaves after a few packets. Datagrams and the rest take turns in the same way.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `mod.rs` | the device as its driver sees it: time, port, faults, events |
//! | `control.rs` | control calls: create, change, destroy |
//! | `objects.rs` | what they created, and how completions are written |
//! | `flow.rs` | what is under way towards each peer, and its timers |
//! | `send.rs` | from a doorbell to a packet: WQEs, local checks, transmission |
//! | `receive.rs` | from a packet to memory and completions |

mod control;
mod flow;
mod objects;
mod receive;
mod send;

use crate::Time;
use crate::config::DeviceConfig;
use crate::contain::log;
use crate::faults::Faults;
use crate::trace::{DropReason, Subscriber, Traced};
use crate::wire::Packet;
use efa_types::{AsyncEvent, CommandCounters, Counters, Gid};
use flow::Flow;
use foldhash::fast::RandomState;
use objects::Objects;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

/// Something that a program may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The armed completion queue with this number has a new entry.
    Completion(u32),
    /// Something happened that no completion tells of.
    Async(AsyncEvent),
}

/// Most events that wait to be fetched when an asynchronous one comes; who fetches none loses the later ones.
pub(crate) const MAX_EVENTS: usize = 4096;

/// Most queue pairs whose malformed rings are logged within a second: programs are not to fill the log.
const MAX_COMPLAINTS: u32 = 10;

/// An EFA device in software.
pub struct Device {
    config: DeviceConfig,
    objects: Objects,
    flows: Vec<Flow>,
    flow_of: HashMap<Gid, usize, RandomState>,
    /// The flow that was last asked for.
    last_flow: usize,
    /// Flows that may have something to send.
    busy: VecDeque<usize>,
    /// When flows want attention; some entries are outdated.
    timers: BinaryHeap<Reverse<(Time, usize)>>,
    /// Answers to hellos, and to packets for another life of this device.
    answers: VecDeque<Packet<'static>>,
    /// The last challenge that was given to a peer: no two are alike.
    challenges: u64,
    datagrams: VecDeque<send::Datagram>,
    /// The next packet is a datagram, if one waits.
    datagrams_turn: bool,
    faults: Faults,
    inbox: receive::Inbox,
    /// When the next WQE may be fetched, on a slow device.
    next_wqe_at: Time,
    /// WQEs wait for that moment, or for datagrams to leave.
    wqes_wait: bool,
    port_up: bool,
    counters: Counters,
    commands: CommandCounters,
    rng: fastrand::Rng,
    /// Since when complaints are counted, and how many there were.
    complaints: (Time, u32),
    next_pd: u32,
    next_cq: u32,
    next_counter: u32,
    qp_generation: Vec<u16>,
    /// It panics when it is next driven.
    #[cfg(test)]
    pub(crate) broken: bool,
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
        let objects = Objects::new(config.attributes.max_qp);
        Self {
            qp_generation: vec![1; objects.qps.len()],
            objects,
            flows: Vec::new(),
            flow_of: HashMap::default(),
            last_flow: 0,
            busy: VecDeque::new(),
            timers: BinaryHeap::new(),
            answers: VecDeque::new(),
            challenges: 0,
            datagrams: VecDeque::new(),
            datagrams_turn: false,
            faults: Faults::default(),
            inbox: receive::Inbox::default(),
            next_wqe_at: Time::ZERO,
            wqes_wait: false,
            port_up: true,
            counters: Counters::default(),
            commands: CommandCounters::default(),
            rng: config.rng(),
            complaints: (Time::ZERO, 0),
            next_pd: 1,
            next_cq: 1,
            next_counter: 1,
            #[cfg(test)]
            broken: false,
            config,
        }
    }

    /// Its limits and capabilities.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// Its address.
    pub fn gid(&self) -> Gid {
        self.config.attributes.gid
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What became of control calls so far.
    pub fn command_counters(&self) -> CommandCounters {
        self.commands
    }

    /// The next event that a program may wait for.
    pub fn poll_event(&mut self) -> Option<DeviceEvent> {
        let event = self.objects.events.pop_front()?;
        if let DeviceEvent::Completion(cqn) = event
            && let Ok(cq) = self.objects.cq(cqn)
        {
            cq.event_waits = false;
        }
        Some(event)
    }

    /// From here on `subscriber` is told of everything that the device does.
    pub fn subscribe(&mut self, subscriber: Box<dyn Subscriber>) {
        self.objects.tracer.subscribe(subscriber);
    }

    /// It is `now`, for what subscribers are told of control calls; everything else is told the time by itself.
    pub fn set_time(&mut self, now: Time) {
        self.objects.tracer.now = now;
    }

    /// What is wrong with it.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// From here on this is wrong with it.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.inbox.reschedule(self.objects.tracer.now, faults.rx_rate);
    }

    /// Whether its port is up.
    pub fn port_is_up(&self) -> bool {
        self.port_up
    }

    /// Takes the port down or up. While it is down nothing leaves the device and nothing arrives; what is outstanding is
    /// sent again later, or given up in its time.
    pub fn set_port(&mut self, up: bool) {
        if std::mem::replace(&mut self.port_up, up) != up {
            let event = if up { AsyncEvent::PortActive } else { AsyncEvent::PortError };
            self.objects.tell(DeviceEvent::Async(event));
            self.objects.tracer.emit(|| Traced::Port { up });
        }
    }

    /// When [`on_timeout`](Self::on_timeout) next has something to do; sometimes there turns out to be nothing.
    pub fn poll_timeout(&self) -> Option<Time> {
        #[cfg(test)]
        assert!(!self.broken, "on purpose");
        let flows = self.timers.peek().map(|Reverse((at, _))| *at);
        let wqe = self.wqes_wait.then_some(self.next_wqe_at);
        [flows, wqe, self.inbox.next_time()].into_iter().flatten().min()
    }

    /// Does what is due by now: packets go out again, peers that stay silent are given up.
    pub fn on_timeout(&mut self, now: Time) {
        self.objects.tracer.now = now;
        self.take_in(now);
        self.ring_timers(now);
        if self.wqes_wait && self.next_wqe_at <= now {
            self.poll_doorbells(now);
        }
        self.fail_broken();
    }

    /// Fails the queue pairs that turned out to be of no use.
    fn fail_broken(&mut self) {
        while let Some(qpn) = self.objects.broken.pop() {
            self.fail_qp_by_itself(qpn);
        }
    }

    /// Whether one more malformed ring may be logged as a warning now.
    fn may_complain(&mut self) -> bool {
        let now = self.objects.tracer.now;
        if now.since(self.complaints.0) >= Duration::from_secs(1) {
            self.complaints = (now, 0);
        }
        self.complaints.1 += 1;
        if self.complaints.1 == MAX_COMPLAINTS {
            log!(warn, "programs get more queue pairs wrong than are logged: {MAX_COMPLAINTS} a second");
        }
        self.complaints.1 < MAX_COMPLAINTS
    }

    fn drop_packet(&mut self, reason: DropReason) {
        self.counters.rx_drops += 1;
        self.objects.tracer.emit(|| Traced::PacketDropped { reason });
    }

    /// Whether a packet between this device and `peer` gets anywhere. EFA does not deliver to itself, nor to other subnets; senders
    /// are not told.
    fn is_routable(&self, peer: Gid) -> bool {
        (peer != self.config.attributes.gid || self.config.loopback)
            && peer.subnet() == self.config.attributes.gid.subnet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_get_everything_wrong_do_not_fill_the_log() {
        let mut device = Device::new(DeviceConfig::new(Gid::local(0)));
        for second in 1..4 {
            device.set_time(Time::ZERO + Duration::from_secs(second));
            let logged = (0..1000).filter(|_| device.may_complain()).count();
            assert_eq!(logged, 9, "second {second}");
        }
    }
}
