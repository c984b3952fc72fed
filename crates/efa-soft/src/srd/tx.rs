//! The sending end: messages towards one peer, until each is known to have ended.

use super::MESSAGE_WINDOW;
use super::rtt::Rtt;
use crate::Time;
use crate::config::DeviceConfig;
use crate::wire::{Ack, MessageHeader, WireOp};
use efa_io::op::Bufs;
use efa_io::{LocalBuf, OpCode, Status};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Congestion window in packets: where it starts, and its bounds.
const INITIAL_WINDOW: f32 = 32.0;
const MIN_WINDOW: f32 = 8.0;
const MAX_WINDOW: f32 = 1024.0;

/// A message to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// What its packets say.
    pub(crate) header: MessageHeader,
    /// Whom to tell how it ended.
    pub(crate) origin: Origin,
    /// Where its bytes come from, or in a read request, go to.
    pub(crate) memory: Memory,
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A WQE of a local queue pair.
    Wqe { qpn: u16, req_id: u64, op: OpCode },
    /// A read request of the peer: its number at the peer, and the local queue pair that answers.
    Response { qpn: u16, request: u32 },
}

impl Origin {
    /// The local queue pair.
    pub(crate) fn qpn(self) -> u16 {
        match self {
            Self::Wqe { qpn, .. } | Self::Response { qpn, .. } => qpn,
        }
    }
}

/// Where a message's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// In the WQE.
    Inline(Box<[u8]>),
    /// In local regions of protection domain `pd`.
    Gather { pd: u32, bufs: Bufs },
    /// In a region that the peer named by its remote key.
    Remote { pd: u32, rkey: u32, addr: u64 },
    /// A read's target in protection domain `pd`.
    Scatter { pd: u32, buf: LocalBuf },
}

/// A message that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) message: Message,
    pub(crate) status: Status,
}

/// A packet that is to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) message: u32,
    pub(crate) packet: u32,
    pub(crate) resent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    InFlight,
    /// Given up for lost, or to be sent again for another reason.
    Lost,
    Acked,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    state: State,
    resent: bool,
    at: Time,
}

impl Sent {
    const NEW: Self = Self { state: State::Unsent, resent: false, at: Time::ZERO };
}

/// The packets of a message; nearly all messages have one.
#[derive(Debug)]
enum Packets {
    One(Sent),
    Many(Vec<Sent>),
}

impl Packets {
    fn as_mut(&mut self) -> &mut [Sent] {
        match self {
            Self::One(sent) => std::slice::from_mut(sent),
            Self::Many(all) => all,
        }
    }
}

#[derive(Debug)]
struct Slot {
    message: Message,
    packets: Packets,
    /// Packets sent at least once.
    sent: u32,
    /// Packets below this one are acknowledged.
    acked_below: u32,
    /// Times the receiver was not ready.
    refusals: u32,
    /// Nothing is to be sent until the wake-up that is already set.
    held: bool,
}

/// Messages towards one peer.
#[derive(Debug)]
pub(crate) struct TxFlow {
    /// Number of the oldest message that has not ended; `slots[0]` is its place.
    base: u32,
    slots: VecDeque<Option<Slot>>,
    /// Messages for which the window has no room yet.
    waiting: VecDeque<Message>,
    /// Messages with packets never sent; taken in turn, one packet each.
    ready: VecDeque<u32>,
    resend: VecDeque<(u32, u32)>,
    /// Packets by the time they were sent, oldest first; entries of packets that moved on are skipped.
    in_flight: VecDeque<(u32, u32, Time)>,
    outstanding: u32,
    window: f32,
    /// No further reaction to loss before this time: one per round trip.
    recovered_at: Time,
    newest_acked: Time,
    rtt: Rtt,
    wakeups: BinaryHeap<Reverse<(Time, u32)>>,
    stride: u32,
    rnr_delay: Duration,
    rnr_retries: Option<u32>,
    /// Timeouts that nobody has counted yet.
    timeouts: u64,
}

impl TxFlow {
    /// A flow with no messages yet, whose first message will be number `base`.
    pub(crate) fn new(config: &DeviceConfig, base: u32) -> Self {
        Self {
            base,
            slots: VecDeque::new(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            resend: VecDeque::new(),
            in_flight: VecDeque::new(),
            outstanding: 0,
            window: INITIAL_WINDOW,
            recovered_at: Time::ZERO,
            newest_acked: Time::ZERO,
            rtt: Rtt::new(config.initial_rto, config.min_rto, config.max_rto),
            wakeups: BinaryHeap::new(),
            stride: config.mtu,
            rnr_delay: config.rnr_delay,
            rnr_retries: config.rnr_retries,
            timeouts: 0,
        }
    }

    /// Whether no message is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Messages that have not ended, the waiting ones among them.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() + self.waiting.len()
    }

    /// Timeouts since this was last asked.
    pub(crate) fn take_timeouts(&mut self) -> u64 {
        std::mem::take(&mut self.timeouts)
    }

    /// The oldest message that has not ended.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// Adds a message.
    pub(crate) fn push(&mut self, message: Message) {
        self.waiting.push_back(message);
        self.admit();
    }

    fn admit(&mut self) {
        while (self.slots.len() as u32) < MESSAGE_WINDOW {
            let Some(message) = self.waiting.pop_front() else { return };
            let count = message.header.packets(self.stride);
            let packets =
                if count == 1 { Packets::One(Sent::NEW) } else { Packets::Many(vec![Sent::NEW; count as usize]) };
            self.ready.push_back(self.base.wrapping_add(self.slots.len() as u32));
            self.slots.push_back(Some(Slot { message, packets, sent: 0, acked_below: 0, refusals: 0, held: false }));
        }
    }

    fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        self.slots.get_mut(id.wrapping_sub(self.base) as usize)?.as_mut()
    }

    /// The message with this number, while it is under way.
    pub(crate) fn message(&self, id: u32) -> Option<&Message> {
        self.slots.get(id.wrapping_sub(self.base) as usize)?.as_ref().map(|slot| &slot.message)
    }

    /// The next packet to send, if the congestion window has room.
    pub(crate) fn poll_send(&mut self, now: Time) -> Option<Due> {
        if self.outstanding >= self.window as u32 {
            return None;
        }
        while let Some((message, packet)) = self.resend.pop_front() {
            if let Some(slot) = self.slot(message)
                && let sent = &mut slot.packets.as_mut()[packet as usize]
                && sent.state == State::Lost
            {
                *sent = Sent { state: State::InFlight, resent: true, at: now };
                return Some(self.launch(message, packet, true, now));
            }
        }
        while let Some(message) = self.ready.pop_front() {
            let Some(slot) = self.slot(message) else { continue };
            let packet = slot.sent;
            slot.sent += 1;
            let all = slot.packets.as_mut();
            all[packet as usize] = Sent { state: State::InFlight, resent: false, at: now };
            if (packet + 1) < all.len() as u32 {
                self.ready.push_back(message);
            }
            return Some(self.launch(message, packet, false, now));
        }
        None
    }

    fn launch(&mut self, message: u32, packet: u32, resent: bool, now: Time) -> Due {
        self.outstanding += 1;
        self.in_flight.push_back((message, packet, now));
        Due { message, packet, resent }
    }

    /// Takes in an acknowledgement; messages that ended go to `finished`.
    pub(crate) fn on_ack(&mut self, now: Time, ack: Ack, finished: &mut Vec<Finished>) {
        match ack {
            Ack::Done { first, count, status } => {
                for id in (0..u32::from(count).min(MESSAGE_WINDOW)).map(|i| first.wrapping_add(i)) {
                    let Some(slot) = self.slot(id) else { continue };
                    if slot.sent == 0 {
                        continue; // nobody can have received it
                    }
                    let waits_for_response = slot.message.header.op == WireOp::ReadRequest && status.is_ok();
                    self.ack_below(now, id, u32::MAX);
                    if !waits_for_response {
                        finished.extend(self.finish(id, status));
                    }
                }
            }
            Ack::Partial { message, next, bitmap } => {
                self.ack_below(now, message, next);
                for (i, mut word) in bitmap.into_iter().enumerate() {
                    while word != 0 {
                        self.ack_packet(now, message, next.saturating_add(i as u32 * 64 + word.trailing_zeros()));
                        word &= word - 1;
                    }
                }
            }
            Ack::NotReady { message } => self.refused(now, message, finished),
            Ack::Accepted { message } => {
                self.ack_below(now, message, u32::MAX);
                // Ask again from time to time, so that a responder that died is noticed.
                let pause = self.rtt.timeout() * 4;
                if let Some(slot) = self.slot(message)
                    && slot.message.header.op == WireOp::ReadRequest
                    && slot.sent > 0
                    && !slot.held
                {
                    slot.held = true;
                    self.wakeups.push(Reverse((now + pause, message)));
                }
            }
        }
    }

    fn refused(&mut self, now: Time, id: u32, finished: &mut Vec<Finished>) {
        self.ack_below(now, id, u32::MAX);
        let (delay, retries) = (self.rnr_delay, self.rnr_retries);
        let Some(slot) = self.slot(id) else { return };
        if slot.held || slot.sent == 0 {
            return;
        }
        slot.refusals += 1;
        if retries.is_some_and(|most| slot.refusals > most) {
            finished.extend(self.finish(id, Status::RemoteRnr));
            return;
        }
        slot.held = true;
        let pause = delay * (1 << (slot.refusals - 1).min(6));
        self.wakeups.push(Reverse((now + pause, id)));
    }

    fn ack_below(&mut self, now: Time, id: u32, below: u32) {
        let Some(slot) = self.slot(id) else { return };
        let (from, to) = (slot.acked_below, below.min(slot.sent));
        slot.acked_below = to.max(from);
        for packet in from..to {
            self.ack_packet(now, id, packet);
        }
    }

    fn ack_packet(&mut self, now: Time, id: u32, packet: u32) {
        let Some(slot) = self.slot(id) else { return };
        let Some(sent) = slot.packets.as_mut().get_mut(packet as usize) else { return };
        let Sent { state, resent, at } = *sent;
        if matches!(state, State::Acked | State::Unsent) {
            return;
        }
        sent.state = State::Acked;
        if state == State::InFlight {
            self.outstanding -= 1;
            self.newest_acked = self.newest_acked.max(at);
        }
        if !resent {
            self.rtt.sample(now.since(at));
        }
        let growth = if self.recovered_at == Time::ZERO { 1.0 } else { 1.0 / self.window };
        self.window = (self.window + growth).min(MAX_WINDOW);
    }

    /// Ends a message, whatever of it is still under way.
    pub(crate) fn finish(&mut self, id: u32, status: Status) -> Option<Finished> {
        let index = id.wrapping_sub(self.base) as usize;
        let mut slot = self.slots.get_mut(index)?.take()?;
        let flying = slot.packets.as_mut().iter().filter(|sent| sent.state == State::InFlight).count();
        self.outstanding -= flying as u32;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        self.admit();
        if self.slots.is_empty() {
            // What is left speaks of messages that are gone: without it an idle flow has no next time.
            self.resend.clear();
            self.in_flight.clear();
            self.wakeups.clear();
        }
        Some(Finished { message: slot.message, status })
    }

    /// Ends every message for which `which` holds, the waiting ones too.
    pub(crate) fn finish_where(
        &mut self,
        status: Status,
        which: impl Fn(&Message) -> bool,
        finished: &mut Vec<Finished>,
    ) {
        let (gone, stay) = std::mem::take(&mut self.waiting).into_iter().partition(|message| which(message));
        self.waiting = stay;
        let base = self.base;
        let ids: Vec<u32> = (0..self.slots.len())
            .filter(|&i| self.slots[i].as_ref().is_some_and(|slot| which(&slot.message)))
            .map(|i| base.wrapping_add(i as u32))
            .collect();
        finished.extend(ids.into_iter().filter_map(|id| self.finish(id, status)));
        let gone: VecDeque<Message> = gone;
        finished.extend(gone.into_iter().map(|message| Finished { message, status }));
    }

    /// Does what is due by now: packets given up for lost, receivers asked again.
    pub(crate) fn on_time(&mut self, now: Time) {
        let (timeout, reordering) = (self.rtt.timeout(), self.rtt.reordering_window());
        let (mut lost, mut timed_out) = (false, false);
        while let Some(&(message, packet, at)) = self.in_flight.front() {
            let flying = self.slot(message).is_some_and(|slot| {
                let sent = slot.packets.as_mut()[packet as usize];
                sent.state == State::InFlight && sent.at == at
            });
            if flying {
                let overtaken = self.newest_acked > at + reordering;
                let silent = now >= at + timeout;
                if !overtaken && !silent {
                    break;
                }
                timed_out |= silent;
                lost = true;
                self.lose(message, packet);
            }
            self.in_flight.pop_front();
        }
        if lost && now >= self.recovered_at {
            self.window = (self.window * if timed_out { 0.5 } else { 0.7 }).max(MIN_WINDOW);
            if timed_out {
                self.rtt.back_off();
                self.timeouts += 1;
            }
            self.recovered_at = now + self.rtt.timeout();
        }
        while let Some(&Reverse((due, message))) = self.wakeups.peek()
            && due <= now
        {
            self.wakeups.pop();
            if let Some(slot) = self.slot(message) {
                slot.held = false;
                let last = slot.sent - 1;
                slot.acked_below = slot.acked_below.min(last);
                self.lose(message, last);
            }
        }
    }

    /// Has a packet sent again, whatever became of it.
    fn lose(&mut self, message: u32, packet: u32) {
        let Some(slot) = self.slot(message) else { return };
        let state = &mut slot.packets.as_mut()[packet as usize].state;
        let was = std::mem::replace(state, State::Lost);
        self.outstanding -= u32::from(was == State::InFlight);
        self.resend.push_back((message, packet));
    }

    /// When [`on_time`](Self::on_time) next has something to do.
    pub(crate) fn next_time(&self) -> Option<Time> {
        let silent = self.in_flight.front().map(|&(_, _, at)| at + self.rtt.timeout());
        let wakeup = self.wakeups.peek().map(|Reverse((due, _))| *due);
        silent.into_iter().chain(wakeup).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gid;

    const MS: Duration = Duration::from_millis(1);

    fn message(bytes: u32) -> Message {
        Message {
            header: MessageHeader {
                op: WireOp::Write,
                src_qpn: 1,
                dst_qpn: 2,
                qkey: 3,
                imm: None,
                bytes,
                rkey: 4,
                remote_addr: 5,
                reply_to: 0,
            },
            origin: Origin::Wqe { qpn: 1, req_id: bytes.into(), op: OpCode::RdmaWrite },
            memory: Memory::Inline(Box::default()),
        }
    }

    fn flow() -> TxFlow {
        TxFlow::new(&DeviceConfig { mtu: 1000, rnr_retries: Some(2), ..DeviceConfig::new(Gid::local(0)) }, u32::MAX)
    }

    fn drain(flow: &mut TxFlow, now: Time) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| flow.poll_send(now)).map(|due| (due.message.wrapping_add(1), due.packet)).collect()
    }

    fn done(first: u32, count: u16) -> Ack {
        Ack::Done { first: first.wrapping_sub(1), count, status: Status::Ok }
    }

    #[test]
    fn messages_take_turns_so_that_a_small_one_does_not_wait_for_a_large_one() {
        let mut flow = flow();
        flow.push(message(3000));
        flow.push(message(8));
        assert_eq!(drain(&mut flow, Time::ZERO), [(0, 0), (1, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn a_silent_packet_is_sent_again_and_an_acknowledged_one_is_not() {
        let mut flow = flow();
        flow.push(message(3000));
        drain(&mut flow, Time::ZERO);
        let mut finished = Vec::new();
        flow.on_ack(Time::ZERO + MS, Ack::Partial { message: u32::MAX, next: 1, bitmap: [2, 0, 0, 0] }, &mut finished);
        let later = flow.next_time().unwrap();
        flow.on_time(later);
        assert_eq!(drain(&mut flow, later), [(0, 1)]);
        assert!(finished.is_empty() && flow.timeouts == 1);
        flow.on_ack(later + MS, done(0, 1), &mut finished);
        assert_eq!((finished.len(), flow.is_idle(), flow.outstanding), (1, true, 0));
        assert_eq!(flow.next_time(), None, "an idle flow waits for nothing");
    }

    #[test]
    fn an_acknowledgement_for_a_message_never_sent_ends_nothing() {
        let mut flow = flow();
        for _ in 0..40 {
            flow.push(message(8));
        }
        drain(&mut flow, Time::ZERO); // the window holds 32
        let mut finished = Vec::new();
        flow.on_ack(Time::ZERO, done(30, u16::MAX), &mut finished);
        assert_eq!(finished.len(), 2);
    }

    #[test]
    fn a_receiver_that_is_never_ready_ends_the_message_after_its_retries() {
        let mut flow = flow();
        flow.push(message(8));
        let (mut now, mut finished) = (Time::ZERO, Vec::new());
        for _ in 0..3 {
            assert_eq!(drain(&mut flow, now), [(0, 0)]);
            assert!(finished.is_empty());
            flow.on_ack(now, Ack::NotReady { message: u32::MAX }, &mut finished);
            now = flow.wakeups.peek().map_or(now, |Reverse((due, _))| *due);
            flow.on_time(now);
        }
        assert_eq!(finished[0].status, Status::RemoteRnr);
        assert_eq!(flow.outstanding, 0);
    }

    #[test]
    fn the_window_admits_waiting_messages_as_others_end() {
        let mut flow = flow();
        for _ in 0..MESSAGE_WINDOW + 5 {
            flow.push(message(8));
        }
        assert_eq!(flow.waiting.len(), 5);
        let mut finished = Vec::new();
        drain(&mut flow, Time::ZERO);
        flow.on_ack(Time::ZERO, done(3, 1), &mut finished); // not the oldest: no room yet
        assert_eq!(flow.waiting.len(), 5);
        flow.on_ack(Time::ZERO, done(0, 3), &mut finished);
        assert_eq!((flow.waiting.len(), finished.len()), (1, 4));
    }

    #[test]
    fn flushing_takes_the_waiting_messages_too() {
        let mut flow = flow();
        for _ in 0..MESSAGE_WINDOW + 5 {
            flow.push(message(8));
        }
        drain(&mut flow, Time::ZERO);
        let mut finished = Vec::new();
        flow.finish_where(Status::Flushed, |m| m.origin.qpn() == 1, &mut finished);
        assert_eq!(finished.len(), MESSAGE_WINDOW as usize + 5);
        assert!(flow.is_idle() && flow.outstanding == 0 && drain(&mut flow, Time::ZERO).is_empty());
    }
}
