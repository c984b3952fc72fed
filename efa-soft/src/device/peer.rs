//! The peers of a device: what is under way between the device and each of them, and when one needs attention.

use crate::Time;
use crate::config::DeviceConfig;
use crate::srd::{Ended, MESSAGE_WINDOW, Message, NUMBER_SPAN, RecvLane, SendLane};
use crate::wire::{Hello, Lane};
use efa_io::Status;
use efa_types::Gid;
use foldhash::fast::RandomState;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::{Index, IndexMut};
use std::time::Duration;

/// Most peers that a device keeps at once. If more send it something, it does not hear them.
const MAX_PEERS: usize = 4096;

/// How often a peer is asked whether it has begun another life, before the doubt is dropped.
const MAX_HELLOS_IN_DOUBT: u32 = 8;

/// The two lanes of one direction.
#[derive(Default)]
pub(super) struct Lanes<L> {
    pub(super) requests: L,
    pub(super) responses: L,
}

impl<L> Index<Lane> for Lanes<L> {
    type Output = L;
    fn index(&self, lane: Lane) -> &L {
        match lane {
            Lane::Requests => &self.requests,
            Lane::Responses => &self.responses,
        }
    }
}

impl<L> IndexMut<Lane> for Lanes<L> {
    fn index_mut(&mut self, lane: Lane) -> &mut L {
        match lane {
            Lane::Requests => &mut self.requests,
            Lane::Responses => &mut self.responses,
        }
    }
}

impl<L> Lanes<L> {
    fn iter(&self) -> impl Iterator<Item = &L> {
        [&self.requests, &self.responses].into_iter()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut L> {
        [&mut self.requests, &mut self.responses].into_iter()
    }
}

/// A peer.
pub(super) struct Peer {
    pub(super) gid: Gid,
    /// The incarnation that this life of the device has for the peer.
    pub(super) own_incarnation: u64,
    /// The peer's incarnation, or 0 if the peer was not heard yet. Until then it is only asked for it.
    pub(super) incarnation: u64,
    /// A packet named another incarnation of the peer. It may be a new one, or the packet was late and it is an old
    /// one. The peer is asked, and until it answers nothing changes.
    in_doubt: bool,
    /// What an answer to our hello must echo. It changes with every such answer, so that no answer counts twice.
    pub(super) challenge: u64,
    /// When to say hello again.
    hello_at: Time,
    /// How often hello was said.
    hellos: u32,
    /// Messages to the peer.
    pub(super) send_lanes: Lanes<SendLane>,
    /// Messages from the peer.
    pub(super) recv_lanes: Lanes<RecvLane>,
    /// The path of the peer's last packet. Acknowledgements go back on it, since it works.
    pub(super) ack_path: u8,
    /// The lane that sent last.
    turn: Lane,
    /// When the peer was heard last, or when something was asked of it after a pause.
    pub(super) heard_at: Time,
    /// The peer is in `Peers::to_send`.
    in_line_to_send: bool,
    /// Nothing was sent to the peer, and nothing from it was delivered. A stranger may be forgotten at any time.
    pub(super) is_stranger: bool,
    /// When `Peers::timers` brings the peer up next, if at all.
    timer: Option<Time>,
}

impl Peer {
    /// Returns how far ahead of the oldest message a message of the peer may be numbered: not far, if the peer is a
    /// stranger, since each number costs memory.
    pub(super) fn span(&self) -> u32 {
        if self.is_stranger { MESSAGE_WINDOW } else { NUMBER_SPAN }
    }

    /// Returns `true` if there is cause to ask the peer for its incarnation.
    fn needs_hello(&self) -> bool {
        self.in_doubt || self.incarnation == 0 && !self.is_idle()
    }

    /// Returns the hello to send now, if there is one.
    pub(super) fn poll_hello(&mut self, now: Time, config: &DeviceConfig) -> Option<Hello> {
        if !self.needs_hello() || now < self.hello_at {
            return None;
        }
        self.hello_at = now + (config.initial_rto * (1 << self.hellos.min(10))).min(config.max_rto);
        self.hellos += 1;
        self.in_doubt &= self.hellos < MAX_HELLOS_IN_DOUBT;
        Some(Hello { challenge: self.challenge, echo: 0 })
    }

    /// Notes that a packet named an incarnation of the peer that is not the known one.
    pub(super) fn doubt(&mut self) {
        if !self.in_doubt && self.incarnation != 0 {
            (self.in_doubt, self.hellos) = (true, 0);
        }
    }

    /// Notes the peer's answer to the current challenge: its incarnation is beyond doubt. Returns the one that was
    /// known before.
    pub(super) fn identify(&mut self, incarnation: u64, next_challenge: u64) -> u64 {
        (self.challenge, self.in_doubt) = (next_challenge, false);
        std::mem::replace(&mut self.incarnation, incarnation)
    }

    /// Notes that the peer was heard, over this path.
    pub(super) fn heard(&mut self, now: Time, path: u8) {
        (self.heard_at, self.ack_path) = (now, path);
    }

    /// Returns `true` if no message to the peer is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.send_lanes.iter().all(SendLane::is_idle)
    }

    /// Returns the lanes in the order of their turns, and passes the turn on.
    pub(super) fn take_turn(&mut self) -> [Lane; 2] {
        let lanes = match self.turn {
            Lane::Requests => [Lane::Responses, Lane::Requests],
            Lane::Responses => [Lane::Requests, Lane::Responses],
        };
        self.turn = lanes[0];
        lanes
    }

    /// Returns a lane that has something to acknowledge.
    pub(super) fn lane_to_ack(&self) -> Option<Lane> {
        [Lane::Requests, Lane::Responses].into_iter().find(|&lane| self.recv_lanes[lane].wants_to_ack())
    }

    /// Ends every message to the peer for which `which` holds, and returns them.
    pub(super) fn end_where(&mut self, status: Status, which: impl Fn(&Message) -> bool) -> Vec<Ended> {
        let mut ended = Vec::new();
        for lane in self.send_lanes.iter_mut() {
            lane.end_where(status, &which, &mut ended);
        }
        ended
    }

    /// Lets the lanes find what is overdue. Returns the number of timeouts.
    pub(super) fn on_time(&mut self, now: Time) -> u64 {
        let mut timeouts = 0;
        for lane in self.send_lanes.iter_mut() {
            lane.on_time(now);
            timeouts += lane.take_timeouts();
        }
        timeouts
    }
}

/// The index of a peer in [`Peers`]. It may be another peer's after [`Peers::find_or_add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerIndex(usize);

/// The peers of a device.
pub(super) struct Peers {
    all: Vec<Peer>,
    by_gid: HashMap<Gid, PeerIndex, RandomState>,
    /// The peer that was looked up last. Most packets are from the one before.
    last: PeerIndex,
    /// Peers to which there may be something to send, in turn: one packet each.
    to_send: VecDeque<PeerIndex>,
    /// When peers need attention. An entry that is not its peer's `timer` is outdated.
    timers: BinaryHeap<Reverse<(Time, PeerIndex)>>,
    /// The challenge that was given out last. No two are alike.
    challenges: u64,
    /// After so long a silence, what is outstanding towards a peer is given up.
    timeout: Duration,
}

impl Index<PeerIndex> for Peers {
    type Output = Peer;
    fn index(&self, index: PeerIndex) -> &Peer {
        &self.all[index.0]
    }
}

impl IndexMut<PeerIndex> for Peers {
    fn index_mut(&mut self, index: PeerIndex) -> &mut Peer {
        &mut self.all[index.0]
    }
}

impl Peers {
    pub(super) fn new(config: &DeviceConfig) -> Self {
        Self {
            all: Vec::new(),
            by_gid: HashMap::default(),
            last: PeerIndex(0),
            to_send: VecDeque::new(),
            timers: BinaryHeap::new(),
            challenges: 0,
            timeout: config.peer_timeout,
        }
    }

    /// Returns the indexes of all peers.
    pub(super) fn indexes(&self) -> impl Iterator<Item = PeerIndex> + use<> {
        (0..self.all.len()).map(PeerIndex)
    }

    /// Returns the peer at an address, if the device knows it.
    pub(super) fn find(&mut self, gid: Gid) -> Option<PeerIndex> {
        if self.all.get(self.last.0).is_none_or(|peer| peer.gid != gid) {
            self.last = *self.by_gid.get(&gid)?;
        }
        Some(self.last)
    }

    /// Returns the peer at an address, a new one if the device does not know it. Returns `None` if there are too many
    /// peers.
    pub(super) fn find_or_add(
        &mut self,
        now: Time,
        gid: Gid,
        config: &DeviceConfig,
        rng: &mut fastrand::Rng,
    ) -> Option<PeerIndex> {
        if let Some(peer) = self.find(gid) {
            return Some(peer);
        }
        // A first number anywhere but at zero makes the wrap of message numbers an ordinary event.
        let mut new_lane = || SendLane::new(config, rng.u32(..));
        let new = Peer {
            gid,
            own_incarnation: config.incarnation_for(gid),
            incarnation: 0,
            in_doubt: false,
            challenge: self.next_challenge(),
            hello_at: now,
            hellos: 0,
            send_lanes: Lanes { requests: new_lane(), responses: new_lane() },
            recv_lanes: Lanes::default(),
            ack_path: 0,
            turn: Lane::Requests,
            heard_at: now,
            in_line_to_send: false,
            is_stranger: true,
            timer: None,
        };
        let index = if self.all.len() < MAX_PEERS {
            self.all.push(new);
            PeerIndex(self.all.len() - 1)
        } else {
            let index = PeerIndex(self.all.iter().position(|peer| self.is_forgettable(peer, now))?);
            let old = std::mem::replace(&mut self[index], new);
            self.by_gid.remove(&old.gid);
            index
        };
        self.by_gid.insert(gid, index);
        Some(index)
    }

    /// Returns `true` if another peer may take the place of this one.
    ///
    /// A stranger loses nothing: what it was told it can be told again. Any other peer that has been silent for so long
    /// has given up all that it had under way, and forgets this device in its turn (`Device::on_greeting`).
    fn is_forgettable(&self, peer: &Peer, now: Time) -> bool {
        let is_silent = peer.heard_at + self.timeout * 2 < now;
        peer.is_idle() && !peer.in_line_to_send && (peer.is_stranger || is_silent)
    }

    /// Returns a challenge that was never given out before.
    pub(super) fn next_challenge(&mut self) -> u64 {
        self.challenges += 1;
        self.challenges
    }

    /// Notes that there may be something to send to a peer.
    pub(super) fn wake(&mut self, index: PeerIndex) {
        if !std::mem::replace(&mut self[index].in_line_to_send, true) {
            self.to_send.push_back(index);
        }
    }

    /// Returns the peer whose turn it is to be sent something.
    pub(super) fn next_to_send(&self) -> Option<PeerIndex> {
        self.to_send.front().copied()
    }

    /// Passes the turn on, after a packet to the peer whose turn it was.
    pub(super) fn pass_turn(&mut self) {
        self.to_send.rotate_left(1);
    }

    /// Takes the peer whose turn it is out of the line, since there is nothing to send to it, and sets its timer.
    pub(super) fn rest_front(&mut self) {
        if let Some(index) = self.to_send.pop_front() {
            self[index].in_line_to_send = false;
            self.set_timer(index);
        }
    }

    /// Sets a peer's timer for what it waits for.
    fn set_timer(&mut self, index: PeerIndex) {
        let due = self.deadline(index);
        let peer = &mut self.all[index.0];
        // A timer that rings too early is set again then. Only an earlier time than the timer's is worth an entry now.
        if let Some(due) = due
            && peer.timer.is_none_or(|timer| due < timer)
        {
            peer.timer = Some(due);
            self.timers.push(Reverse((due, index)));
        }
    }

    /// Returns when a peer next needs attention.
    fn deadline(&self, index: PeerIndex) -> Option<Time> {
        let peer = &self[index];
        let silence = (!peer.is_idle()).then(|| peer.heard_at + self.timeout);
        let hello = peer.needs_hello().then_some(peer.hello_at);
        peer.send_lanes.iter().filter_map(SendLane::next_time).chain(silence).chain(hello).min()
    }

    /// Returns when [`pop_due`](Self::pop_due) next has a peer. Sometimes it turns out to have none.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Returns the next peer that needs attention by `now`.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<PeerIndex> {
        while let Some(&Reverse((at, index))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            if self[index].timer != Some(at) {
                continue; // an earlier one was set since
            }
            self[index].timer = None;
            if self.deadline(index).is_some_and(|due| due <= now) {
                return Some(index);
            }
            if !self[index].in_line_to_send {
                self.set_timer(index);
            }
        }
        None
    }

    /// Returns `true` if something is outstanding towards a peer that has been silent for too long.
    pub(super) fn is_silent(&self, index: PeerIndex, now: Time) -> bool {
        let peer = &self[index];
        !peer.is_idle() && now >= peer.heard_at + self.timeout
    }
}
