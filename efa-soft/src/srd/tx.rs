//! The sending end: messages towards one peer, until each is known to have ended.

use super::path::Path;
use super::{MESSAGE_WINDOW, NUMBER_SPAN, QUEUE_PAIR_MESSAGES, QUEUE_PAIR_WINDOW, SHORT};
use crate::Time;
use crate::config::DeviceConfig;
use crate::wire::{Ack, MessageHeader, WireOp};
use efa_io::op::Bufs;
use efa_io::{LocalBuf, OpCode, Status};
use foldhash::fast::RandomState;
use slab::Slab;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

/// A message to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// What its packets say.
    pub(crate) header: MessageHeader,
    /// Whom to tell how it ended.
    pub(crate) origin: Origin,
    /// Where its bytes come from, or in a read request, go to.
    pub(crate) memory: Memory,
    /// The address handle that it goes by, if a program chose one.
    pub(crate) ah: Option<u16>,
    /// How often it is offered again to a receiver that is not ready; `None`: for ever.
    pub(crate) rnr_retries: Option<u32>,
    /// How often it was.
    pub(crate) refusals: u32,
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
    pub(crate) path: u8,
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
    path: u8,
    at: Time,
}

impl Sent {
    const NEW: Self = Self { state: State::Unsent, resent: false, path: 0, at: Time::ZERO };
}

/// The packets of a message; nearly all messages have one. Of many only those are kept that were sent.
#[derive(Debug)]
enum Packets {
    One(Sent),
    Many { sent: Vec<Sent>, count: u32 },
}

impl Packets {
    fn as_mut(&mut self) -> &mut [Sent] {
        match self {
            Self::One(sent) => std::slice::from_mut(sent),
            Self::Many { sent, .. } => sent,
        }
    }

    fn count(&self) -> u32 {
        match self {
            Self::One(_) => 1,
            Self::Many { count, .. } => *count,
        }
    }

    /// Notes how packet number `packet` was sent: one of those that were before, or the next.
    fn note(&mut self, packet: u32, how: Sent) {
        match self {
            Self::Many { sent, .. } if packet as usize == sent.len() => sent.push(how),
            _ => self.as_mut()[packet as usize] = how,
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
    /// Nothing is to be sent until the wake-up that is already set.
    held: bool,
}

/// A message that its receiver was not ready for, until it is offered again.
#[derive(Debug)]
struct Deferred {
    until: Time,
    /// Tells those of one moment apart.
    sequence: u64,
    message: Message,
}

impl PartialEq for Deferred {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Deferred {}
impl PartialOrd for Deferred {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Deferred {
    /// The earliest is the greatest, for a max-heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.until, other.sequence).cmp(&(self.until, self.sequence))
    }
}

/// The place of a message that has ended.
const ENDED: u32 = u32::MAX;

/// What one queue pair has to send to the peer, short messages and long ones apart, so that a short one need not wait for long ones either.
#[derive(Debug, Default)]
struct Lot {
    /// Messages for which there is no room yet, by [`Length`].
    waiting: [VecDeque<Message>; 2],
    /// Messages under way with packets never sent; taken in turn, one packet each.
    ready: VecDeque<u32>,
    /// Messages under way, by [`Length`].
    open: [u32; 2],
    /// Their packets, and those that answer reads.
    load: [u32; 2],
    /// It is in `TxFlow::admitting`.
    admits: bool,
    /// It is in `TxFlow::sending`.
    sends: bool,
}

/// What a message is to its queue pair's window.
#[derive(Clone, Copy)]
enum Length {
    Short,
    Long,
}

impl Lot {
    /// Of which length a message can be let in now, if there is one.
    fn next(&self) -> Option<Length> {
        [Length::Short, Length::Long].into_iter().find(|&length| {
            let length = length as usize;
            let has_room = self.load[length] < QUEUE_PAIR_WINDOW || self.open[length] < QUEUE_PAIR_MESSAGES;
            has_room && !self.waiting[length].is_empty()
        })
    }

    /// Whether nothing is left of it.
    fn is_over(&self) -> bool {
        self.open == [0; 2] && self.waiting.iter().all(VecDeque::is_empty) && !self.admits && !self.sends
    }
}

/// How much of its queue pair's window a message takes: packets, in either direction.
fn weight(header: &MessageHeader, stride: u32) -> (Length, u32) {
    let packets = header.bytes.div_ceil(stride).max(1);
    (if packets <= SHORT { Length::Short } else { Length::Long }, packets)
}

/// Messages towards one peer.
///
/// Queue pairs take turns: one message each as messages are let in, one packet each as packets leave. So none waits for what another has
/// posted, however much that is.
#[derive(Debug)]
pub(crate) struct TxFlow {
    /// Number of the oldest message that has not ended.
    base: u32,
    /// From `base` on, where in `open` each message is, or [`ENDED`].
    places: VecDeque<u32>,
    open: Slab<Slot>,
    /// By queue pair. The map's own order differs from run to run, so nothing may depend on it.
    lots: HashMap<u16, Lot, RandomState>,
    /// Messages in all of them for which the window has no room yet.
    waiting: usize,
    /// Queue pairs whose next message may be let in, in turn.
    admitting: VecDeque<u16>,
    /// Queue pairs with packets never sent, in turn.
    sending: VecDeque<u16>,
    resend: VecDeque<(u32, u32)>,
    paths: Box<[Path]>,
    /// The path whose turn it is.
    turn: u8,
    deferred: BinaryHeap<Deferred>,
    sequence: u64,
    /// When to ask again after read requests that are being answered.
    wakeups: BinaryHeap<Reverse<(Time, u32)>>,
    stride: u32,
    rnr_delay: Duration,
    /// A peer that is to be asked again is not left alone for longer, lest it be taken for silent.
    longest_pause: Duration,
    /// Timeouts that nobody has counted yet.
    timeouts: u64,
}

impl TxFlow {
    /// A flow with no messages yet, whose first message will be number `base`.
    pub(crate) fn new(config: &DeviceConfig, base: u32) -> Self {
        Self {
            base,
            places: VecDeque::new(),
            open: Slab::new(),
            lots: HashMap::default(),
            waiting: 0,
            admitting: VecDeque::new(),
            sending: VecDeque::new(),
            resend: VecDeque::new(),
            paths: (0..config.paths).map(|_| Path::new(config)).collect(),
            turn: 0,
            deferred: BinaryHeap::new(),
            sequence: 0,
            wakeups: BinaryHeap::new(),
            stride: config.attributes.mtu,
            rnr_delay: config.rnr_delay,
            longest_pause: config.peer_timeout / 4,
            timeouts: 0,
        }
    }

    /// Whether there is no message.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0
    }

    /// Messages that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.open.len() + self.waiting + self.deferred.len()
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
        let (qpn, (length, _)) = (message.origin.qpn(), weight(&message.header, self.stride));
        self.waiting += 1;
        self.lots.entry(qpn).or_default().waiting[length as usize].push_back(message);
        self.get_in_line(qpn);
        self.admit();
    }

    /// Has a queue pair wait for its turn to let a message in, if it has one that may.
    fn get_in_line(&mut self, qpn: u16) {
        if let Some(lot) = self.lots.get_mut(&qpn)
            && lot.next().is_some()
            && !std::mem::replace(&mut lot.admits, true)
        {
            self.admitting.push_back(qpn);
        }
    }

    fn admit(&mut self) {
        while self.open.len() < MESSAGE_WINDOW as usize && self.places.len() < NUMBER_SPAN as usize {
            let Some(qpn) = self.admitting.pop_front() else { return };
            let Some(lot) = self.lots.get_mut(&qpn) else { continue };
            lot.admits = false;
            let Some(message) = lot.next().and_then(|length| lot.waiting[length as usize].pop_front()) else {
                self.drop_if_over(qpn);
                continue;
            };
            self.waiting -= 1;
            let (length, packets) = weight(&message.header, self.stride);
            lot.open[length as usize] += 1;
            lot.load[length as usize] += packets;
            lot.ready.push_back(self.base.wrapping_add(self.places.len() as u32));
            if !std::mem::replace(&mut lot.sends, true) {
                self.sending.push_back(qpn);
            }
            let count = message.header.packets(self.stride);
            let packets = if count == 1 { Packets::One(Sent::NEW) } else { Packets::Many { sent: Vec::new(), count } };
            let place = self.open.insert(Slot { message, packets, sent: 0, acked_below: 0, held: false });
            self.places.push_back(place as u32);
            self.get_in_line(qpn);
        }
    }

    /// A message of this queue pair is not under way any more: another may be.
    fn lighten(&mut self, qpn: u16, header: &MessageHeader) {
        let Some(lot) = self.lots.get_mut(&qpn) else { return };
        let (length, packets) = weight(header, self.stride);
        lot.open[length as usize] -= 1;
        lot.load[length as usize] -= packets;
        self.get_in_line(qpn);
        self.drop_if_over(qpn);
    }

    /// Forgets a queue pair that has nothing more to send.
    fn drop_if_over(&mut self, qpn: u16) {
        if self.lots.get(&qpn).is_some_and(Lot::is_over) {
            self.lots.remove(&qpn);
        }
    }

    /// Where in `open` a message is.
    fn place(&self, id: u32) -> Option<usize> {
        let place = *self.places.get(id.wrapping_sub(self.base) as usize)?;
        (place != ENDED).then_some(place as usize)
    }

    fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        let place = self.place(id)?;
        self.open.get_mut(place)
    }

    /// The message with this number, while it is under way.
    pub(crate) fn message(&self, id: u32) -> Option<&Message> {
        self.open.get(self.place(id)?).map(|slot| &slot.message)
    }

    /// The next path with room for a packet; `avoid` only if there is no other.
    fn path(&self, now: Time, avoid: Option<u8>) -> Option<u8> {
        let count = self.paths.len() as u8;
        let some_work = self.paths.iter().any(Path::works);
        let turns = (0..count).map(|i| (self.turn + i) % count);
        let mut last = None;
        for path in turns.filter(|&path| self.paths[usize::from(path)].has_room(now, some_work)) {
            if Some(path) != avoid {
                return Some(path);
            }
            last = avoid;
        }
        last
    }

    /// The next packet to send, if a path has room.
    pub(crate) fn poll_send(&mut self, now: Time) -> Option<Due> {
        if self.resend.is_empty() && self.sending.is_empty() {
            return None;
        }
        let any = self.path(now, None)?;
        while let Some((message, packet)) = self.resend.pop_front() {
            let Some(slot) = self.slot(message) else { continue };
            let Sent { state: State::Lost, path: lost_on, .. } = slot.packets.as_mut()[packet as usize] else {
                continue;
            };
            let path = self.path(now, Some(lost_on)).unwrap_or(any);
            return self.launch(message, packet, Sent { state: State::InFlight, resent: true, path, at: now });
        }
        while let Some(qpn) = self.sending.pop_front() {
            let Some((message, packet)) = self.next_new(qpn) else { continue };
            return self.launch(message, packet, Sent { state: State::InFlight, resent: false, path: any, at: now });
        }
        None
    }

    /// The next packet never sent of a queue pair whose turn it is; it gets in line again if it has more.
    fn next_new(&mut self, qpn: u16) -> Option<(u32, u32)> {
        let Self { base, places, open, lots, sending, .. } = self;
        let lot = lots.get_mut(&qpn)?;
        let mut next = None;
        while next.is_none()
            && let Some(message) = lot.ready.pop_front()
        {
            // One that has ended since has no place any more.
            let place = places.get(message.wrapping_sub(*base) as usize);
            let Some(slot) = place.and_then(|&place| open.get_mut(place as usize)) else { continue };
            next = Some((message, slot.sent));
            slot.sent += 1;
            if slot.sent < slot.packets.count() {
                lot.ready.push_back(message);
            }
        }
        lot.sends = !lot.ready.is_empty();
        if lot.sends {
            sending.push_back(qpn);
        }
        self.drop_if_over(qpn);
        next
    }

    fn launch(&mut self, message: u32, packet: u32, sent: Sent) -> Option<Due> {
        self.slot(message)?.packets.note(packet, sent);
        self.paths[usize::from(sent.path)].launch((message, packet, sent.at));
        self.turn = (sent.path + 1) % self.paths.len() as u8;
        Some(Due { message, packet, path: sent.path, resent: sent.resent })
    }

    /// The receiver says that it gets more than it can take.
    pub(crate) fn congested(&mut self, now: Time) {
        self.paths.iter_mut().for_each(|path| path.congested(now));
    }

    /// Takes in an acknowledgement; messages that ended go to `finished`.
    pub(crate) fn on_ack(&mut self, now: Time, ack: Ack, finished: &mut Vec<Finished>) {
        match ack {
            Ack::Done { first, count, status } => {
                // Only those that are under way, however many are named.
                let offset = i64::from(first.wrapping_sub(self.base) as i32);
                let end = (offset + i64::from(count)).min(self.places.len() as i64);
                let base = self.base;
                for id in (offset.max(0)..end).map(|i| base.wrapping_add(i as u32)) {
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
                let pause = (self.patience().unwrap_or(self.paths[0].rtt.timeout()) * 4).min(self.longest_pause);
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
        if !self.slot(id).is_some_and(|slot| slot.sent > 0 && slot.message.header.op != WireOp::ReadResponse) {
            return;
        }
        self.ack_below(now, id, u32::MAX);
        let Some(Finished { mut message, .. }) = self.finish(id, Status::RemoteRnr) else { return };
        if message.rnr_retries.is_some_and(|most| message.refusals >= most) {
            finished.push(Finished { message, status: Status::RemoteRnr });
            return;
        }
        let until = now + (self.rnr_delay * (1 << message.refusals.min(6))).min(self.longest_pause);
        message.refusals += 1;
        message.header.placed = message.header.op == WireOp::Write;
        self.sequence += 1;
        self.deferred.push(Deferred { until, sequence: self.sequence, message });
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
        let Sent { state, resent, path, at } = *sent;
        if matches!(state, State::Acked | State::Unsent) {
            return;
        }
        sent.state = State::Acked;
        let path = &mut self.paths[usize::from(path)];
        if state == State::InFlight {
            path.land();
            path.newest_acked = path.newest_acked.max(at);
        }
        path.acknowledged(now, at, resent);
    }

    /// Ends a message, whatever of it is still under way.
    pub(crate) fn finish(&mut self, id: u32, status: Status) -> Option<Finished> {
        let place = self.place(id)?;
        let mut slot = self.open.try_remove(place)?;
        self.places[id.wrapping_sub(self.base) as usize] = ENDED;
        for sent in slot.packets.as_mut().iter().filter(|sent| sent.state == State::InFlight) {
            self.paths[usize::from(sent.path)].land();
        }
        while let Some(&ENDED) = self.places.front() {
            self.places.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        self.lighten(slot.message.origin.qpn(), &slot.message.header);
        self.admit();
        if self.open.is_empty() {
            // What is left speaks of messages that are gone: without it an idle flow has no next time.
            self.resend.clear();
            self.wakeups.clear();
            self.paths.iter_mut().for_each(Path::clear);
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
        let deferred = std::mem::take(&mut self.deferred).into_vec();
        let (gone, stay): (Vec<_>, Vec<_>) = deferred.into_iter().partition(|deferred| which(&deferred.message));
        self.deferred = stay.into();
        finished.extend(gone.into_iter().map(|Deferred { message, .. }| Finished { message, status }));
        // In the order of numbers, whatever order the map has.
        let mut qpns: Vec<u16> = self.lots.keys().copied().collect();
        qpns.sort_unstable();
        let mut gone = VecDeque::new();
        for qpn in qpns {
            let Some(lot) = self.lots.get_mut(&qpn) else { continue };
            for waiting in &mut lot.waiting {
                let all = std::mem::take(waiting).into_iter();
                let (mut leaving, staying): (VecDeque<_>, _) = all.partition(|message| which(message));
                *waiting = staying;
                self.waiting -= leaving.len();
                gone.append(&mut leaving);
            }
            self.drop_if_over(qpn);
        }
        let base = self.base;
        let ids: Vec<u32> = (0..self.places.len() as u32)
            .map(|i| base.wrapping_add(i))
            .filter(|&id| self.message(id).is_some_and(&which))
            .collect();
        finished.extend(ids.into_iter().filter_map(|id| self.finish(id, status)));
        finished.extend(gone.into_iter().map(|message| Finished { message, status }));
    }

    /// How long a path that works would wait for an answer, and then some; `None` if none works.
    fn patience(&self) -> Option<Duration> {
        self.paths.iter().filter(|path| path.works()).map(|path| path.rtt.timeout() * 4).min()
    }

    /// Does what is due by now: packets given up for lost, receivers asked again.
    pub(crate) fn on_time(&mut self, now: Time) {
        let patience = self.patience();
        for index in 0..self.paths.len() {
            let path = &self.paths[index];
            let (timeout, reordering) = (path.timeout(patience), path.rtt.reordering_window());
            let (mut lost, mut timed_out) = (false, false);
            while let Some(&(message, packet, at)) = self.paths[index].in_flight.front() {
                let flying = self.slot(message).is_some_and(|slot| {
                    let sent = slot.packets.as_mut()[packet as usize];
                    sent.state == State::InFlight && sent.at == at && usize::from(sent.path) == index
                });
                if flying {
                    let overtaken = self.paths[index].newest_acked > at + reordering;
                    let silent = now >= at + timeout;
                    if !overtaken && !silent {
                        break;
                    }
                    timed_out |= silent;
                    lost = true;
                    self.lose(message, packet);
                }
                self.paths[index].in_flight.pop_front();
            }
            if lost && self.paths[index].lost(now, timed_out) {
                self.timeouts += 1;
            }
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
        while self.deferred.peek().is_some_and(|deferred| deferred.until <= now) {
            let Some(Deferred { message, .. }) = self.deferred.pop() else { break };
            self.push(message);
        }
    }

    /// Has a packet sent again, whatever became of it.
    fn lose(&mut self, message: u32, packet: u32) {
        let Some(slot) = self.slot(message) else { return };
        let sent = &mut slot.packets.as_mut()[packet as usize];
        let (was, path) = (std::mem::replace(&mut sent.state, State::Lost), sent.path);
        if was == State::InFlight {
            self.paths[usize::from(path)].land();
        }
        self.resend.push_back((message, packet));
    }

    /// When [`on_time`](Self::on_time) next has something to do.
    pub(crate) fn next_time(&self) -> Option<Time> {
        if self.is_idle() {
            return None;
        }
        let patience = self.patience();
        let silent = self.paths.iter().filter_map(|path| Some(path.in_flight.front()?.2 + path.timeout(patience)));
        let wakeup = self.wakeups.peek().map(|Reverse((due, _))| *due);
        let deferred = self.deferred.peek().map(|deferred| deferred.until);
        silent.chain(wakeup).chain(deferred).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gid;

    const MS: Duration = Duration::from_millis(1);

    fn message(bytes: u32) -> Message {
        message_of(1, bytes)
    }

    /// One of this queue pair.
    fn message_of(qpn: u16, bytes: u32) -> Message {
        Message {
            header: MessageHeader::new(WireOp::Write, qpn, 2, bytes),
            origin: Origin::Wqe { qpn, req_id: bytes.into(), op: OpCode::RdmaWrite },
            memory: Memory::Inline(Box::default()),
            ah: None,
            rnr_retries: Some(2),
            refusals: 0,
        }
    }

    fn flow() -> TxFlow {
        flow_of_paths(1)
    }

    fn flow_of_paths(paths: u8) -> TxFlow {
        let mut config = DeviceConfig { paths, ..DeviceConfig::new(Gid::local(0)) };
        config.attributes.mtu = 1000;
        TxFlow::new(&config, u32::MAX)
    }

    fn outstanding(flow: &TxFlow) -> u32 {
        flow.paths.iter().map(Path::outstanding).sum()
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
        assert_eq!((finished.len(), flow.is_idle(), outstanding(&flow)), (1, true, 0));
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
    fn a_receiver_that_is_never_ready_ends_the_message_after_its_retries_and_holds_up_no_other() {
        let mut flow = flow();
        flow.push(message(8));
        let (mut now, mut finished) = (Time::ZERO, Vec::new());
        for attempt in 0..3 {
            assert_eq!(drain(&mut flow, now), [(attempt, 0)], "each attempt is a message of its own");
            assert!(finished.is_empty());
            flow.on_ack(now, Ack::NotReady { message: attempt.wrapping_sub(1) }, &mut finished);
            assert_eq!(flow.base(), attempt, "nothing that comes later waits for it");
            now = flow.next_time().unwrap_or(now);
            flow.on_time(now);
        }
        assert_eq!(finished[0].status, Status::RemoteRnr);
        assert!(flow.is_idle() && outstanding(&flow) == 0 && flow.next_time().is_none());
    }

    #[test]
    fn a_write_whose_immediate_was_refused_comes_again_without_its_bytes() {
        let mut flow = flow();
        flow.push(message(2500));
        assert_eq!(drain(&mut flow, Time::ZERO).len(), 3);
        flow.on_ack(Time::ZERO, Ack::NotReady { message: u32::MAX }, &mut Vec::new());
        let later = flow.next_time().unwrap();
        flow.on_time(later);
        assert_eq!(drain(&mut flow, later), [(1, 0)]);
        assert_eq!(
            flow.message(0).map(|m| (m.header.placed, m.header.carried(), m.header.bytes)),
            Some((true, 0, 2500))
        );
    }

    #[test]
    fn paths_take_turns_and_what_is_lost_on_one_goes_over_another() {
        let mut flow = flow_of_paths(4);
        flow.push(message(8000));
        let sent: Vec<Due> = std::iter::from_fn(|| flow.poll_send(Time::ZERO)).collect();
        assert_eq!(sent.iter().map(|due| due.path).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1, 2, 3]);
        // Path 2 is dead: of its packets 2 and 6 nothing is heard.
        let mut now = Time::ZERO + MS;
        let arrived = Ack::Partial { message: u32::MAX, next: 2, bitmap: [0b101110, 0, 0, 0] };
        flow.on_ack(now, arrived, &mut Vec::new());
        let mut again: Vec<Due> = Vec::new();
        while again.is_empty() {
            now = flow.next_time().unwrap();
            flow.on_time(now);
            again.extend(std::iter::from_fn(|| flow.poll_send(now)));
        }
        assert_eq!(again.iter().map(|due| due.packet).collect::<Vec<_>>(), [2, 6]);
        assert!(again.iter().all(|due| due.resent && due.path != 2));
    }

    #[test]
    fn a_dead_path_is_only_tried_now_and_then() {
        let mut flow = flow_of_paths(4);
        let (mut now, mut on_dead, mut sent) = (Time::ZERO, 0, 0);
        for i in 0..2000u32 {
            flow.push(message(8));
            let due: Vec<Due> = std::iter::from_fn(|| flow.poll_send(now)).collect();
            sent += due.len();
            on_dead += due.iter().filter(|due| due.path == 1).count();
            now = now + MS / 4;
            for due in due.iter().filter(|due| due.path != 1) {
                flow.on_ack(now, Ack::Done { first: due.message, count: 1, status: Status::Ok }, &mut Vec::new());
            }
            if flow.next_time().is_some_and(|due| due <= now) {
                flow.on_time(now);
            }
            assert!(flow.len() < 40, "after {i} messages {} have not ended", flow.len());
        }
        assert!(on_dead < 100, "{on_dead} of {sent} packets");
        assert!(on_dead > 2, "it is tried from time to time");
    }

    #[test]
    fn a_long_message_does_not_stop_short_ones_from_overtaking_it() {
        let mut flow = flow();
        flow.push(message(5_000_000));
        for id in 1..20_000 {
            flow.push(message(8));
            while let Some(due) = flow.poll_send(Time::ZERO) {
                let done = due.message.wrapping_add(1);
                let ack = if done == 0 {
                    Ack::Partial { message: due.message, next: due.packet + 1, bitmap: [0; 4] }
                } else {
                    Ack::Done { first: due.message, count: 1, status: Status::Ok }
                };
                flow.on_ack(Time::ZERO, ack, &mut Vec::new());
                if done == id {
                    break;
                }
            }
            assert!(flow.len() <= 2);
        }
    }

    #[test]
    fn the_window_admits_waiting_messages_as_others_end() {
        let mut flow = flow();
        for i in 0..MESSAGE_WINDOW + 5 {
            flow.push(message_of(i as u16 % 4, 8));
        }
        assert_eq!(flow.waiting, 5);
        let mut finished = Vec::new();
        drain(&mut flow, Time::ZERO);
        flow.on_ack(Time::ZERO, done(3, 1), &mut finished); // not the oldest, and yet it makes room
        assert_eq!(flow.waiting, 4);
        flow.on_ack(Time::ZERO, done(0, 3), &mut finished);
        assert_eq!((flow.waiting, finished.len()), (1, 4));
        flow.on_ack(Time::ZERO, done(5, 20), &mut finished);
        assert_eq!(flow.waiting, 0);
    }

    /// Sends what there is room for and has it acknowledged, a round trip later; how many packets that were until `until` ended, if it did.
    fn round_trip(flow: &mut TxFlow, now: Time, until: u16) -> Result<usize, usize> {
        let due: Vec<Due> = std::iter::from_fn(|| flow.poll_send(now)).collect();
        for (count, due) in (1..).zip(&due) {
            let Some(message) = flow.message(due.message) else { continue };
            let ack = match (message.header.op, message.header.packets(1000)) {
                (WireOp::ReadRequest, _) => Ack::Accepted { message: due.message },
                (_, 1) => Ack::Done { first: due.message, count: 1, status: Status::Ok },
                _ => Ack::Partial { message: due.message, next: due.packet + 1, bitmap: [0; 4] },
            };
            let mut finished = Vec::new();
            flow.on_ack(now + MS, ack, &mut finished);
            if finished.iter().any(|finished| finished.message.origin.qpn() == until) {
                return Ok(count);
            }
        }
        Err(due.len())
    }

    #[test]
    fn a_queue_pair_that_posts_without_end_does_not_hold_up_another() {
        // More long messages than the window has places, by one queue pair or by as many as a device has; then another's short one.
        for (hogs, op) in
            [(1, WireOp::Write), (255, WireOp::Write), (1, WireOp::ReadRequest), (255, WireOp::ReadRequest)]
        {
            let mut flow = flow();
            for i in 0..2 * MESSAGE_WINDOW {
                let mut long = message_of(10 + (i % hogs) as u16, 64 << 20);
                long.header.op = op;
                flow.push(long);
            }
            for i in 0..10 {
                assert!(round_trip(&mut flow, Time::ZERO + MS * i, 1).is_err());
            }
            flow.push(message_of(1, 8));
            let mut packets = 0;
            let ended = (10..100).any(|i| match round_trip(&mut flow, Time::ZERO + MS * i, 1) {
                Ok(last) => {
                    packets += last;
                    true
                }
                Err(more) => {
                    packets += more;
                    false
                }
            });
            assert!(ended && packets <= 1 + hogs as usize, "{op:?}, {hogs}: {packets} packets, {ended}");
        }
    }

    #[test]
    fn a_short_message_does_not_wait_for_the_long_ones_of_its_own_queue_pair() {
        let mut flow = flow();
        for _ in 0..100 {
            flow.push(message(64 << 20));
        }
        assert_eq!(flow.open.len(), QUEUE_PAIR_MESSAGES as usize);
        flow.push(message(8));
        let sent = drain(&mut flow, Time::ZERO);
        assert_eq!(sent[QUEUE_PAIR_MESSAGES as usize], (QUEUE_PAIR_MESSAGES, 0), "after one packet of each: {sent:?}");
    }

    #[test]
    fn queue_pairs_get_the_same_share_however_much_each_has_posted() {
        let mut flow = flow();
        for _ in 0..50 {
            flow.push(message_of(1, 8));
        }
        for qpn in 2..4 {
            for _ in 0..10 {
                flow.push(message_of(qpn, 8));
            }
        }
        let due: Vec<Due> = std::iter::from_fn(|| flow.poll_send(Time::ZERO)).collect();
        let sent: Vec<u16> = due.iter().map(|due| flow.message(due.message).unwrap().origin.qpn()).collect();
        assert_eq!(sent[..30], [1, 2, 3].repeat(10));
    }

    #[test]
    fn a_queue_pair_that_is_alone_fills_the_windows_of_all_paths() {
        let mut flow = flow();
        for _ in 0..MESSAGE_WINDOW {
            flow.push(message(8));
        }
        assert_eq!(flow.open.len(), QUEUE_PAIR_WINDOW as usize);
        let mut finished = Vec::new();
        while finished.len() < MESSAGE_WINDOW as usize {
            let due: Vec<Due> = std::iter::from_fn(|| flow.poll_send(Time::ZERO)).collect();
            assert!(!due.is_empty());
            for due in due {
                let ack = Ack::Done { first: due.message, count: 1, status: Status::Ok };
                flow.on_ack(Time::ZERO, ack, &mut finished);
            }
        }
        assert!(flow.is_idle() && flow.lots.is_empty() && flow.admitting.is_empty() && flow.sending.is_empty());
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
        assert!(flow.is_idle() && outstanding(&flow) == 0 && drain(&mut flow, Time::ZERO).is_empty());
    }
}
