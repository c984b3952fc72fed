//! A device: its objects, its peers, and what happens to it.
//!
//! A [`Device`] is a state machine without sockets, clock or threads. Whoever drives it calls it: a [`Net`](crate::Net)
//! in simulated or real time, or a [driver](crate::driver)'s thread.
//!
//! Its calls are of four classes:
//!
//! | class | calls | what they do |
//! | --- | --- | --- |
//! | control | `alloc_pd`, `register`, `create_*`, `modify_qp`, `destroy_*`, …; `set_port`, `set_faults`, `subscribe`, `set_time` | change objects and the device itself, at any time, as the program or an operator asks |
//! | input | [`poll_doorbells`](Device::poll_doorbells), [`ring_send_doorbell`](Device::ring_send_doorbell); [`handle`](Device::handle), [`handle_packet`](Device::handle_packet) | take in what the program posted, and what the network delivered |
//! | time | [`poll_timeout`](Device::poll_timeout), [`on_timeout`](Device::on_timeout) | say when the device next wants to be called, and do what is due then |
//! | output | [`poll_transmit`](Device::poll_transmit), [`poll_event`](Device::poll_event) | hand out packets, and events |
//!
//! # The order of calls
//!
//! A driver goes round in this order, with one time `now` for the whole round; time never goes back:
//!
//! 1. Input: it looks at the doorbells, and hands over each packet that arrived.
//! 2. Time: it calls `on_timeout` if the time that `poll_timeout` returned has come.
//! 3. Output: it calls `poll_transmit` until there is no packet, and `poll_event` until there is no event.
//! 4. It sleeps until `poll_timeout`, or until a packet arrives.
//!
//! Any other order is safe, and only later: each call leaves the device complete. What a call finds to be sent waits
//! for `poll_transmit`, and what it finds to be due later is in `poll_timeout`. Control calls come between rounds. They
//! take no time as an argument; [`set_time`](Device::set_time) tells subscribers when they happen. Completions need no
//! call: they appear in the completion rings.
//!
//! # The files
//!
//! A WQE goes through the first three of them at the initiator, and its packets through the next three at the target:
//!
//! | file | from | to |
//! | --- | --- | --- |
//! | `fetch.rs` | a doorbell | a message, in a lane |
//! | `transmit.rs` | a message | a packet |
//! | `life.rs` | the end of a message, or of its queue pair | a completion |
//! | `receive.rs` | a packet | its peer, and its lane |
//! | `handshake.rs` | a packet | whether it is for this life of the device |
//! | `place.rs` | a packet of a message | memory, and a completion |
//!
//! | file | holds |
//! | --- | --- |
//! | `control.rs` | the control calls |
//! | `objects.rs` | what they created |
//! | `peer.rs` | the peers, with their lanes and timers |
//! | `datagrams.rs`, `inbox.rs`, `event.rs` | the queues of datagrams, of a slow device's packets, and of events |

mod control;
mod datagrams;
mod event;
mod fetch;
mod handshake;
mod inbox;
mod life;
mod objects;
mod peer;
mod place;
mod receive;
mod transmit;

pub use event::DeviceEvent;
pub(crate) use event::MAX_EVENTS;

use crate::Time;
use crate::config::DeviceConfig;
use crate::contain::log;
use crate::faults::Faults;
use crate::trace::{Subscriber, Traced};
use crate::wire::Packet;
use datagrams::Datagrams;
use efa_types::{AsyncEvent, CommandCounters, Counters, Gid};
use inbox::Inbox;
use objects::Objects;
use peer::{PeerIndex, Peers};
use std::collections::VecDeque;
use std::time::Duration;

/// Most queue pairs whose malformed rings are logged in a second, so that programs do not fill the log.
const MAX_COMPLAINTS: u32 = 10;

/// An EFA device in software.
pub struct Device {
    config: DeviceConfig,
    objects: Objects,
    peers: Peers,
    /// Answers to hellos, and to packets for another life of this device.
    answers: VecDeque<Packet<'static>>,
    datagrams: Datagrams,
    faults: Faults,
    inbox: Inbox,
    /// When the next WQE may be fetched, on a slow device.
    next_fetch_at: Time,
    /// WQEs wait in their rings for `next_fetch_at`, or for datagrams to leave.
    fetch_is_due: bool,
    port_up: bool,
    counters: Counters,
    commands: CommandCounters,
    rng: fastrand::Rng,
    /// When the current second of complaints began, and how many there were in it.
    complaints: (Time, u32),
    next_pd: u32,
    next_cq: u32,
    next_counter: u32,
    /// By place in the table of queue pairs: what distinguishes the numbers that a place gives out one after the other.
    qp_generation: Vec<u16>,
    /// It panics when it is driven next.
    #[cfg(test)]
    pub(crate) broken: bool,
}

/// # Control: the device itself
impl Device {
    /// Creates a device without objects.
    ///
    /// # Panics
    /// If the configuration is invalid: see [`DeviceConfig::check`].
    pub fn new(config: DeviceConfig) -> Self {
        if let Err(error) = config.check() {
            panic!("invalid configuration of a device: {error}");
        }
        let objects = Objects::new(config.attributes.max_qp);
        Self {
            qp_generation: vec![1; objects.qps.len()],
            objects,
            peers: Peers::new(&config),
            answers: VecDeque::new(),
            datagrams: Datagrams::default(),
            faults: Faults::default(),
            inbox: Inbox::default(),
            next_fetch_at: Time::ZERO,
            fetch_is_due: false,
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

    /// Returns the device's configuration.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// Returns the device's address.
    pub fn gid(&self) -> Gid {
        self.config.attributes.gid
    }

    /// Returns what the device has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the counters of control calls.
    pub fn command_counters(&self) -> CommandCounters {
        self.commands
    }

    /// Adds a subscriber, which is told of everything that the device does from here on.
    pub fn subscribe(&mut self, subscriber: Box<dyn Subscriber>) {
        self.objects.tracer.subscribe(subscriber);
    }

    /// Sets the time that subscribers are told with the control calls that follow. All other calls bring their time
    /// along.
    pub fn set_time(&mut self, now: Time) {
        self.objects.tracer.now = now;
    }

    /// Returns the faults of the device.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Changes the faults of the device from here on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.inbox.reschedule(self.objects.tracer.now, faults.rx_rate);
    }

    /// Returns `true` if the port is up.
    pub fn port_is_up(&self) -> bool {
        self.port_up
    }

    /// Takes the port up or down. While it is down, nothing leaves the device and nothing arrives. What is outstanding
    /// is sent again later, or given up in its time.
    pub fn set_port(&mut self, up: bool) {
        if std::mem::replace(&mut self.port_up, up) != up {
            let event = if up { AsyncEvent::PortActive } else { AsyncEvent::PortError };
            self.objects.tell(DeviceEvent::Async(event));
            self.objects.tracer.emit(|| Traced::Port { up });
        }
    }
}

/// # Time
impl Device {
    /// Returns when [`on_timeout`](Self::on_timeout) next has something to do. Sometimes there turns out to be nothing.
    pub fn poll_timeout(&self) -> Option<Time> {
        #[cfg(test)]
        assert!(!self.broken, "on purpose");
        let fetch = self.fetch_is_due.then_some(self.next_fetch_at);
        [self.peers.next_time(), fetch, self.inbox.next_time()].into_iter().flatten().min()
    }

    /// Does what is due by `now`: packets go out again, peers that stay silent are given up, and slow devices go on.
    pub fn on_timeout(&mut self, now: Time) {
        self.objects.tracer.now = now;
        self.empty_inbox(now);
        while let Some(peer) = self.peers.pop_due(now) {
            self.advance(now, peer);
            if self.peers.is_silent(peer, now) {
                self.give_up(peer);
            }
            self.peers.wake(peer);
        }
        if self.fetch_is_due && self.next_fetch_at <= now {
            self.poll_doorbells(now);
        }
    }

    /// Lets a peer's lanes find what is overdue.
    fn advance(&mut self, now: Time, peer: PeerIndex) {
        self.counters.retrans_timeout_events += self.peers[peer].on_time(now);
    }

    /// Ends all messages to a peer that has been silent for too long.
    fn give_up(&mut self, peer: PeerIndex) {
        let peer_state = &mut self.peers[peer];
        let status = if peer_state.incarnation == 0 {
            efa_io::Status::UnreachableRemote
        } else {
            self.counters.unresponsive_remote_events += 1;
            efa_io::Status::UnresponsiveRemote
        };
        let ended = peer_state.end_where(status, |_| true);
        self.report_ended(peer, ended);
    }
}

/// # Output: events
impl Device {
    /// Returns the next event that a program may wait for.
    pub fn poll_event(&mut self) -> Option<DeviceEvent> {
        let event = self.objects.events.pop_front()?;
        if let DeviceEvent::Completion(cqn) = event
            && let Ok(cq) = self.objects.cq(cqn)
        {
            cq.event_waits = false;
        }
        Some(event)
    }
}

impl Device {
    /// Counts a malformed ring. Returns `true` if it may be logged as a warning.
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
