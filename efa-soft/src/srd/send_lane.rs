//! The sending end of a lane: messages towards one peer, until each is known to have ended.

use super::message::{Ended, Message};
use super::path::{Departure, Path};
use super::share::{Share, weight};
use super::window::{MESSAGE_WINDOW, NUMBER_SPAN};
use crate::Time;
use crate::config::DeviceConfig;
use crate::wire::{Ack, WireOp};
use efa_io::Status;
use foldhash::fast::RandomState;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

/// A packet that is to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DuePacket {
    /// The number of its message.
    pub(crate) message: u32,
    /// Its number in the message.
    pub(crate) packet: u32,
    pub(crate) path: u8,
    /// It was sent before.
    pub(crate) resent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketState {
    Unsent,
    InFlight,
    /// Taken for lost, or to be sent again for another reason. It is in `SendLane::resend`.
    Lost,
    Acked,
}

/// What is known of one packet. Its latest transmission counts.
#[derive(Clone, Copy, Debug)]
struct PacketRecord {
    state: PacketState,
    resent: bool,
    path: u8,
    at: Time,
}

impl PacketRecord {
    const NEW: Self = Self { state: PacketState::Unsent, resent: false, path: 0, at: Time::ZERO };
}

/// The packets of a message.
///
/// Nearly all messages have one packet, which takes no allocation. Of many packets, only those that were sent are kept:
/// a message of 1 GiB has more than 100,000 of them, and most messages fail or succeed with few under way.
#[derive(Debug)]
enum Packets {
    One(PacketRecord),
    Many { sent: Vec<PacketRecord>, count: u32 },
}

impl Packets {
    fn new(count: u32) -> Self {
        if count == 1 { Self::One(PacketRecord::NEW) } else { Self::Many { sent: Vec::new(), count } }
    }

    fn as_mut(&mut self) -> &mut [PacketRecord] {
        match self {
            Self::One(packet) => std::slice::from_mut(packet),
            Self::Many { sent, .. } => sent,
        }
    }

    fn count(&self) -> u32 {
        match self {
            Self::One(_) => 1,
            Self::Many { count, .. } => *count,
        }
    }

    /// Notes how packet number `packet` was sent: one that was sent before, or the next one.
    fn note(&mut self, packet: u32, record: PacketRecord) {
        match self {
            Self::Many { sent, .. } if packet as usize == sent.len() => sent.push(record),
            _ => self.as_mut()[packet as usize] = record,
        }
    }
}

/// A message that may send packets.
#[derive(Debug)]
struct OpenMessage {
    message: Message,
    packets: Packets,
    /// Number of packets that were sent at least once.
    sent: u32,
    /// All packets below this one are acknowledged.
    acked_below: u32,
    /// The read request is in `SendLane::reminders`.
    reminder_set: bool,
}

/// Stands in `SendLane::places` for a message that has ended.
const ENDED: u32 = u32::MAX;

/// The sending end of a lane.
#[derive(Debug)]
pub(crate) struct SendLane {
    /// Number of the oldest open message.
    base: u32,
    /// The place in `open` of each message from `base` on, or [`ENDED`].
    places: VecDeque<u32>,
    open: Slab<OpenMessage>,
    /// What each queue pair has here, by its number. The map's order differs from run to run, so nothing may depend on
    /// it.
    shares: HashMap<u16, Share, RandomState>,
    /// Number of messages that wait in all shares.
    waiting: usize,
    /// Queue pairs whose next message may be opened, in turn.
    to_open: VecDeque<u16>,
    /// Queue pairs with packets that were never sent, in turn.
    to_send: VecDeque<u16>,
    /// Packets to send again, by message and packet. Some may have been acknowledged since.
    resend: VecDeque<(u32, u32)>,
    paths: Box<[Path]>,
    /// The path whose turn it is.
    next_path: u8,
    /// Messages for which their receiver was not ready, by the time at which they wait again, and by the order of their
    /// refusals.
    deferred: BTreeMap<(Time, u64), Message>,
    /// Number of refusals so far.
    refusals: u64,
    /// When to send read requests again that the peer is answering.
    reminders: BinaryHeap<Reverse<(Time, u32)>>,
    stride: u32,
    rnr_delay: Duration,
    /// Longest time for which a peer that is to be asked again is left alone. It is shorter than `peer_timeout`, so
    /// that the pause is not taken for the peer's silence.
    longest_pause: Duration,
    /// Timeouts that were not counted yet.
    timeouts: u64,
}

impl SendLane {
    /// Creates a lane without messages, whose first message will be number `base`.
    pub(crate) fn new(config: &DeviceConfig, base: u32) -> Self {
        Self {
            base,
            places: VecDeque::new(),
            open: Slab::new(),
            shares: HashMap::default(),
            waiting: 0,
            to_open: VecDeque::new(),
            to_send: VecDeque::new(),
            resend: VecDeque::new(),
            paths: (0..config.paths).map(|_| Path::new(config)).collect(),
            next_path: 0,
            deferred: BTreeMap::new(),
            refusals: 0,
            reminders: BinaryHeap::new(),
            stride: config.attributes.mtu,
            rnr_delay: config.rnr_delay,
            longest_pause: config.peer_timeout / 4,
            timeouts: 0,
        }
    }

    /// Returns `true` if there is no message.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of messages that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.open.len() + self.waiting + self.deferred.len()
    }

    /// Returns the number of timeouts since the last call.
    pub(crate) fn take_timeouts(&mut self) -> u64 {
        std::mem::take(&mut self.timeouts)
    }

    /// Returns the number of the oldest open message, which every packet tells the receiver.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// Adds a message.
    pub(crate) fn push(&mut self, message: Message) {
        let (qpn, (length, _)) = (message.origin.qpn(), weight(&message.header, self.stride));
        self.waiting += 1;
        self.shares.entry(qpn).or_default().push(length, message);
        self.line_up_to_open(qpn);
        self.open_messages();
    }

    /// Puts a queue pair in line to open a message, if it has one that may be opened.
    fn line_up_to_open(&mut self, qpn: u16) {
        if let Some(share) = self.shares.get_mut(&qpn)
            && share.may_open()
            && !std::mem::replace(&mut share.in_line_to_open, true)
        {
            self.to_open.push_back(qpn);
        }
    }

    /// Opens messages while the lane's window has room, one of each queue pair in turn.
    fn open_messages(&mut self) {
        // The second limit holds while a long message keeps `base` back: the receiver has a byte for each number.
        while self.open.len() < MESSAGE_WINDOW as usize && self.places.len() < NUMBER_SPAN as usize {
            let Some(qpn) = self.to_open.pop_front() else { return };
            let Some(share) = self.shares.get_mut(&qpn) else { continue };
            share.in_line_to_open = false;
            let Some(message) = share.next_to_open() else {
                self.drop_share_if_over(qpn);
                continue;
            };
            self.waiting -= 1;
            share.opened(weight(&message.header, self.stride));
            share.unsent.push_back(self.base.wrapping_add(self.places.len() as u32));
            if !std::mem::replace(&mut share.in_line_to_send, true) {
                self.to_send.push_back(qpn);
            }
            let packets = Packets::new(message.header.packets(self.stride));
            let open = OpenMessage { message, packets, sent: 0, acked_below: 0, reminder_set: false };
            let place = self.open.insert(open);
            self.places.push_back(place as u32);
            self.line_up_to_open(qpn);
        }
    }

    /// Drops the share of a queue pair that has nothing more to send. Otherwise the map would keep every queue pair for
    /// ever.
    fn drop_share_if_over(&mut self, qpn: u16) {
        if self.shares.get(&qpn).is_some_and(Share::is_over) {
            self.shares.remove(&qpn);
        }
    }

    /// Returns the place of a message in `open`, if it is open. All numbers from the network come through here.
    fn place(&self, number: u32) -> Option<usize> {
        let place = *self.places.get(number.wrapping_sub(self.base) as usize)?;
        (place != ENDED).then_some(place as usize)
    }

    fn open_mut(&mut self, number: u32) -> Option<&mut OpenMessage> {
        let place = self.place(number)?;
        self.open.get_mut(place)
    }

    /// Returns the message with this number, while it is open.
    pub(crate) fn message(&self, number: u32) -> Option<&Message> {
        self.open.get(self.place(number)?).map(|open| &open.message)
    }

    /// Returns the next path with room for a packet. It is `avoid` only if there is no other.
    ///
    /// Paths take turns, so that packets spread over all of them. SRD does the same, which is why it has no order
    /// (Shalev et al., "A Cloud-Optimized Transport Protocol for Elastic and Scalable HPC", IEEE Micro 2020).
    fn choose_path(&self, now: Time, avoid: Option<u8>) -> Option<u8> {
        let count = self.paths.len() as u8;
        let some_work = self.paths.iter().any(Path::works);
        let turns = (0..count).map(|i| (self.next_path + i) % count);
        let mut last_resort = None;
        for path in turns.filter(|&path| self.paths[usize::from(path)].has_room(now, some_work)) {
            if Some(path) != avoid {
                return Some(path);
            }
            last_resort = avoid;
        }
        last_resort
    }

    /// Returns the next packet to send, if a path has room. Lost packets go before new ones: messages that are nearly
    /// complete end first, and make room.
    pub(crate) fn poll_send(&mut self, now: Time) -> Option<DuePacket> {
        if self.resend.is_empty() && self.to_send.is_empty() {
            return None;
        }
        let any = self.choose_path(now, None)?; // all windows are full otherwise
        while let Some((message, packet)) = self.resend.pop_front() {
            let Some(open) = self.open_mut(message) else { continue };
            let record = open.packets.as_mut()[packet as usize];
            if record.state != PacketState::Lost {
                continue; // acknowledged after all
            }
            // Not over the path on which it was lost: that path may be dead.
            let path = self.choose_path(now, Some(record.path)).unwrap_or(any);
            return self.launch(now, message, packet, path, true);
        }
        while let Some(qpn) = self.to_send.pop_front() {
            let Some((message, packet)) = self.next_unsent(qpn) else { continue };
            return self.launch(now, message, packet, any, false);
        }
        None
    }

    /// Returns the next packet that was never sent of a queue pair whose turn it is, and puts the queue pair in line
    /// again if it has more.
    fn next_unsent(&mut self, qpn: u16) -> Option<(u32, u32)> {
        let Self { base, places, open, shares, to_send, .. } = self;
        let share = shares.get_mut(&qpn)?;
        let mut next = None;
        while next.is_none()
            && let Some(message) = share.unsent.pop_front()
        {
            // A message that has ended since has no place any more: `ENDED` is none in the slab.
            let place = places.get(message.wrapping_sub(*base) as usize);
            let Some(open) = place.and_then(|&place| open.get_mut(place as usize)) else { continue };
            next = Some((message, open.sent));
            open.sent += 1;
            if open.sent < open.packets.count() {
                share.unsent.push_back(message);
            }
        }
        share.in_line_to_send = !share.unsent.is_empty();
        if share.in_line_to_send {
            to_send.push_back(qpn);
        }
        self.drop_share_if_over(qpn);
        next
    }

    fn launch(&mut self, now: Time, message: u32, packet: u32, path: u8, resent: bool) -> Option<DuePacket> {
        let record = PacketRecord { state: PacketState::InFlight, resent, path, at: now };
        self.open_mut(message)?.packets.note(packet, record);
        self.paths[usize::from(path)].launch(Departure { message, packet, at: now });
        self.next_path = (path + 1) % self.paths.len() as u8;
        Some(DuePacket { message, packet, path, resent })
    }

    /// Slows down all paths: the receiver says that more arrives than it can take in.
    pub(crate) fn congested(&mut self, now: Time) {
        self.paths.iter_mut().for_each(|path| path.congested(now));
    }

    /// Handles an acknowledgement, and adds the messages that ended to `ended`.
    pub(crate) fn on_ack(&mut self, now: Time, ack: Ack, ended: &mut Vec<Ended>) {
        match ack {
            Ack::Done { first, count, status } => self.on_done(now, first, count, status, ended),
            Ack::Partial { message, next, bitmap } => {
                // An entry repeats all that has arrived, so that a lost acknowledgement costs nothing. `acked_below`
                // keeps the first part cheap.
                self.ack_below(now, message, next);
                for (i, mut word) in bitmap.into_iter().enumerate() {
                    while word != 0 {
                        self.ack_packet(now, message, next.saturating_add(i as u32 * 64 + word.trailing_zeros()));
                        word &= word - 1;
                    }
                }
            }
            Ack::NotReady { message } => self.on_not_ready(now, message, ended),
            Ack::Accepted { message } => self.on_accepted(now, message),
        }
    }

    fn on_done(&mut self, now: Time, first: u32, count: u16, status: Status, ended: &mut Vec<Ended>) {
        // Only the messages that are open, however many a forged entry names.
        let offset = i64::from(first.wrapping_sub(self.base) as i32);
        let end = (offset + i64::from(count)).min(self.places.len() as i64);
        let base = self.base;
        for number in (offset.max(0)..end).map(|i| base.wrapping_add(i as u32)) {
            let Some(open) = self.open_mut(number) else { continue };
            if open.sent == 0 {
                continue; // nobody can have received it
            }
            // The last packet of its answer ends a read.
            let waits_for_answer = open.message.header.op == WireOp::ReadRequest && status.is_ok();
            self.ack_below(now, number, u32::MAX);
            if !waits_for_answer {
                ended.extend(self.end(number, status));
            }
        }
    }

    /// The peer is answering a read request.
    fn on_accepted(&mut self, now: Time, number: u32) {
        self.ack_below(now, number, u32::MAX);
        // The request is sent again from time to time, so that a responder that died is noticed.
        let pause = (self.patience().unwrap_or(self.paths[0].rtt.timeout()) * 4).min(self.longest_pause);
        if let Some(open) = self.open_mut(number)
            && open.message.header.op == WireOp::ReadRequest
            && open.sent > 0
            && !open.reminder_set
        {
            open.reminder_set = true;
            self.reminders.push(Reverse((now + pause, number)));
        }
    }

    /// The receiver had no receive descriptor for a message. It is offered again later, or ends.
    fn on_not_ready(&mut self, now: Time, number: u32, ended: &mut Vec<Ended>) {
        if !self.open_mut(number).is_some_and(|open| open.sent > 0 && open.message.header.op != WireOp::ReadResponse) {
            return; // no receiver says this of such a message
        }
        self.ack_below(now, number, u32::MAX);
        let Some(Ended { mut message, .. }) = self.end(number, Status::RemoteRnr) else { return };
        if message.rnr_retries.is_some_and(|most| message.refusals >= most) {
            ended.push(Ended { message, status: Status::RemoteRnr });
            return;
        }
        let until = now + (self.rnr_delay * (1 << message.refusals.min(6))).min(self.longest_pause);
        message.refusals += 1;
        // The receiver placed the bytes of a write before it looked for a descriptor for its immediate.
        message.header.placed = message.header.op == WireOp::Write;
        self.refusals += 1;
        self.deferred.insert((until, self.refusals), message);
    }

    fn ack_below(&mut self, now: Time, number: u32, below: u32) {
        let Some(open) = self.open_mut(number) else { return };
        let (from, to) = (open.acked_below, below.min(open.sent));
        open.acked_below = to.max(from);
        for packet in from..to {
            self.ack_packet(now, number, packet);
        }
    }

    fn ack_packet(&mut self, now: Time, number: u32, packet: u32) {
        let Some(open) = self.open_mut(number) else { return };
        let Some(record) = open.packets.as_mut().get_mut(packet as usize) else { return };
        let PacketRecord { state, resent, path, at } = *record;
        if matches!(state, PacketState::Acked | PacketState::Unsent) {
            return;
        }
        record.state = PacketState::Acked;
        let path = &mut self.paths[usize::from(path)];
        if state == PacketState::InFlight {
            path.land();
            path.newest_acked = path.newest_acked.max(at);
        }
        // A packet that was taken for lost may be acknowledged as well: it was only late.
        path.acknowledged(now, at, resent);
    }

    /// Ends an open message, whatever of it is still in flight.
    pub(crate) fn end(&mut self, number: u32, status: Status) -> Option<Ended> {
        let place = self.place(number)?;
        let mut open = self.open.try_remove(place)?;
        self.places[number.wrapping_sub(self.base) as usize] = ENDED;
        for packet in open.packets.as_mut().iter().filter(|packet| packet.state == PacketState::InFlight) {
            self.paths[usize::from(packet.path)].land();
        }
        // `base` moves on to the oldest open message: the receiver forgets what lies below.
        while let Some(&ENDED) = self.places.front() {
            self.places.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        let qpn = open.message.origin.qpn();
        if let Some(share) = self.shares.get_mut(&qpn) {
            share.ended(weight(&open.message.header, self.stride));
            self.line_up_to_open(qpn);
            self.drop_share_if_over(qpn);
        }
        self.open_messages();
        if self.open.is_empty() {
            // All that is left here is of messages that have ended. Without it, an idle lane has no next time.
            self.resend.clear();
            self.reminders.clear();
            self.paths.iter_mut().for_each(Path::clear);
        }
        Some(Ended { message: open.message, status })
    }

    /// Ends every message for which `which` holds, and adds them to `ended`: deferred ones, then open ones, then those
    /// that wait.
    pub(crate) fn end_where(&mut self, status: Status, which: impl Fn(&Message) -> bool, ended: &mut Vec<Ended>) {
        let deferred = std::mem::take(&mut self.deferred).into_iter();
        let (gone, staying): (BTreeMap<_, _>, _) = deferred.partition(|(_, message)| which(message));
        self.deferred = staying;
        ended.extend(gone.into_values().map(|message| Ended { message, status }));
        // Waiting messages go first, so that none of them is opened when an open one ends. In the order of the queue
        // pairs' numbers, since the map's order differs from run to run.
        let mut qpns: Vec<u16> = self.shares.keys().copied().collect();
        qpns.sort_unstable();
        let mut waited = VecDeque::new();
        for qpn in qpns {
            let Some(share) = self.shares.get_mut(&qpn) else { continue };
            waited.append(&mut share.take_waiting(&which));
            self.drop_share_if_over(qpn);
        }
        self.waiting -= waited.len();
        let base = self.base;
        let numbers: Vec<u32> = (0..self.places.len() as u32)
            .map(|i| base.wrapping_add(i))
            .filter(|&number| self.message(number).is_some_and(&which))
            .collect();
        ended.extend(numbers.into_iter().filter_map(|number| self.end(number, status)));
        ended.extend(waited.into_iter().map(|message| Ended { message, status }));
    }

    /// Returns how long a path that works would wait for an answer, with a margin; `None` if none works.
    fn patience(&self) -> Option<Duration> {
        self.paths.iter().filter(|path| path.works()).map(|path| path.rtt.timeout() * 4).min()
    }

    /// Does what is due by `now`: takes packets for lost, sends reminders, and has deferred messages wait again.
    pub(crate) fn on_time(&mut self, now: Time) {
        let patience = self.patience();
        for path in 0..self.paths.len() {
            self.find_losses(now, path, patience);
        }
        while let Some(&Reverse((due, message))) = self.reminders.peek()
            && due <= now
        {
            self.reminders.pop();
            // The last packet of the request goes out again. The peer answers with its standing, or as a life that
            // knows nothing of it.
            if let Some(open) = self.open_mut(message) {
                open.reminder_set = false;
                let last = open.sent - 1;
                open.acked_below = open.acked_below.min(last);
                self.mark_lost(message, last);
            }
        }
        while let Some(deferred) = self.deferred.first_entry()
            && deferred.key().0 <= now
        {
            let message = deferred.remove();
            self.push(message);
        }
    }

    /// Takes the packets of a path for lost that were overtaken by far, or of which nothing was heard for long.
    ///
    /// A path reorders little, so a packet is lost once others that left long after it have arrived (the idea of RACK,
    /// RFC 8985).
    fn find_losses(&mut self, now: Time, index: usize, patience: Option<Duration>) {
        let path = &self.paths[index];
        let (timeout, reordering) = (path.timeout(patience), path.rtt.reordering_window());
        let (mut lost, mut timed_out) = (false, false);
        while let Some(&Departure { message, packet, at }) = self.paths[index].in_flight.front() {
            let is_in_flight = self.open_mut(message).is_some_and(|open| {
                let record = open.packets.as_mut()[packet as usize];
                record.state == PacketState::InFlight && record.at == at && usize::from(record.path) == index
            });
            if is_in_flight {
                let overtaken = self.paths[index].newest_acked > at + reordering;
                let silent = now >= at + timeout;
                if !overtaken && !silent {
                    break; // all others of this path left later
                }
                timed_out |= silent;
                lost = true;
                self.mark_lost(message, packet);
            }
            self.paths[index].in_flight.pop_front();
        }
        if lost && self.paths[index].lost(now, timed_out) {
            self.timeouts += 1;
        }
    }

    /// Has a packet sent again, whatever its state.
    fn mark_lost(&mut self, message: u32, packet: u32) {
        let Some(open) = self.open_mut(message) else { return };
        let record = &mut open.packets.as_mut()[packet as usize];
        let (was, path) = (std::mem::replace(&mut record.state, PacketState::Lost), record.path);
        if was == PacketState::InFlight {
            self.paths[usize::from(path)].land();
        }
        self.resend.push_back((message, packet));
    }

    /// Returns when [`on_time`](Self::on_time) next has something to do.
    pub(crate) fn next_time(&self) -> Option<Time> {
        if self.is_idle() {
            return None;
        }
        let patience = self.patience();
        let silent = self.paths.iter().filter_map(|path| Some(path.in_flight.front()?.at + path.timeout(patience)));
        let reminder = self.reminders.peek().map(|Reverse((due, _))| *due);
        let deferred = self.deferred.first_key_value().map(|(&(until, _), _)| until);
        silent.chain(reminder).chain(deferred).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Memory, Origin};
    use super::super::window::{QUEUE_PAIR_MESSAGES, QUEUE_PAIR_WINDOW};
    use super::*;
    use crate::wire::MessageHeader;
    use efa_io::OpCode;
    use efa_types::Gid;

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

    fn lane() -> SendLane {
        lane_of_paths(1)
    }

    fn lane_of_paths(paths: u8) -> SendLane {
        let mut config = DeviceConfig { paths, ..DeviceConfig::new(Gid::local(0)) };
        config.attributes.mtu = 1000;
        SendLane::new(&config, u32::MAX)
    }

    fn outstanding(lane: &SendLane) -> u32 {
        lane.paths.iter().map(Path::outstanding).sum()
    }

    fn drain(lane: &mut SendLane, now: Time) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| lane.poll_send(now)).map(|due| (due.message.wrapping_add(1), due.packet)).collect()
    }

    fn done(first: u32, count: u16) -> Ack {
        Ack::Done { first: first.wrapping_sub(1), count, status: Status::Ok }
    }

    #[test]
    fn messages_take_turns_so_that_a_small_one_does_not_wait_for_a_large_one() {
        let mut lane = lane();
        lane.push(message(3000));
        lane.push(message(8));
        assert_eq!(drain(&mut lane, Time::ZERO), [(0, 0), (1, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn a_silent_packet_is_sent_again_and_an_acknowledged_one_is_not() {
        let mut lane = lane();
        lane.push(message(3000));
        drain(&mut lane, Time::ZERO);
        let mut ended = Vec::new();
        lane.on_ack(Time::ZERO + MS, Ack::Partial { message: u32::MAX, next: 1, bitmap: [2, 0, 0, 0] }, &mut ended);
        let later = lane.next_time().unwrap();
        lane.on_time(later);
        assert_eq!(drain(&mut lane, later), [(0, 1)]);
        assert!(ended.is_empty() && lane.timeouts == 1);
        lane.on_ack(later + MS, done(0, 1), &mut ended);
        assert_eq!((ended.len(), lane.is_idle(), outstanding(&lane)), (1, true, 0));
        assert_eq!(lane.next_time(), None, "an idle lane waits for nothing");
    }

    #[test]
    fn an_acknowledgement_for_a_message_never_sent_ends_nothing() {
        let mut lane = lane();
        for _ in 0..40 {
            lane.push(message(8));
        }
        drain(&mut lane, Time::ZERO); // the window holds 32
        let mut ended = Vec::new();
        lane.on_ack(Time::ZERO, done(30, u16::MAX), &mut ended);
        assert_eq!(ended.len(), 2);
    }

    #[test]
    fn a_receiver_that_is_never_ready_ends_the_message_after_its_retries_and_holds_up_no_other() {
        let mut lane = lane();
        lane.push(message(8));
        let (mut now, mut ended) = (Time::ZERO, Vec::new());
        for attempt in 0..3 {
            assert_eq!(drain(&mut lane, now), [(attempt, 0)], "each attempt is a message of its own");
            assert!(ended.is_empty());
            lane.on_ack(now, Ack::NotReady { message: attempt.wrapping_sub(1) }, &mut ended);
            assert_eq!(lane.base(), attempt, "nothing that comes later waits for it");
            now = lane.next_time().unwrap_or(now);
            lane.on_time(now);
        }
        assert_eq!(ended[0].status, Status::RemoteRnr);
        assert!(lane.is_idle() && outstanding(&lane) == 0 && lane.next_time().is_none());
    }

    #[test]
    fn a_write_whose_immediate_was_refused_comes_again_without_its_bytes() {
        let mut lane = lane();
        lane.push(message(2500));
        assert_eq!(drain(&mut lane, Time::ZERO).len(), 3);
        lane.on_ack(Time::ZERO, Ack::NotReady { message: u32::MAX }, &mut Vec::new());
        let later = lane.next_time().unwrap();
        lane.on_time(later);
        assert_eq!(drain(&mut lane, later), [(1, 0)]);
        assert_eq!(
            lane.message(0).map(|m| (m.header.placed, m.header.carried(), m.header.bytes)),
            Some((true, 0, 2500))
        );
    }

    #[test]
    fn paths_take_turns_and_what_is_lost_on_one_goes_over_another() {
        let mut lane = lane_of_paths(4);
        lane.push(message(8000));
        let sent: Vec<DuePacket> = std::iter::from_fn(|| lane.poll_send(Time::ZERO)).collect();
        assert_eq!(sent.iter().map(|due| due.path).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1, 2, 3]);
        // Path 2 is dead: of its packets 2 and 6 nothing is heard.
        let mut now = Time::ZERO + MS;
        let arrived = Ack::Partial { message: u32::MAX, next: 2, bitmap: [0b101110, 0, 0, 0] };
        lane.on_ack(now, arrived, &mut Vec::new());
        let mut again: Vec<DuePacket> = Vec::new();
        while again.is_empty() {
            now = lane.next_time().unwrap();
            lane.on_time(now);
            again.extend(std::iter::from_fn(|| lane.poll_send(now)));
        }
        assert_eq!(again.iter().map(|due| due.packet).collect::<Vec<_>>(), [2, 6]);
        assert!(again.iter().all(|due| due.resent && due.path != 2));
    }

    #[test]
    fn a_dead_path_is_only_tried_now_and_then() {
        let mut lane = lane_of_paths(4);
        let (mut now, mut on_dead, mut sent) = (Time::ZERO, 0, 0);
        for i in 0..2000u32 {
            lane.push(message(8));
            let due: Vec<DuePacket> = std::iter::from_fn(|| lane.poll_send(now)).collect();
            sent += due.len();
            on_dead += due.iter().filter(|due| due.path == 1).count();
            now = now + MS / 4;
            for due in due.iter().filter(|due| due.path != 1) {
                lane.on_ack(now, Ack::Done { first: due.message, count: 1, status: Status::Ok }, &mut Vec::new());
            }
            if lane.next_time().is_some_and(|due| due <= now) {
                lane.on_time(now);
            }
            assert!(lane.len() < 40, "after {i} messages {} have not ended", lane.len());
        }
        assert!(on_dead < 100, "{on_dead} of {sent} packets");
        assert!(on_dead > 2, "it is tried from time to time");
    }

    #[test]
    fn a_long_message_does_not_stop_short_ones_from_overtaking_it() {
        let mut lane = lane();
        lane.push(message(5_000_000));
        for id in 1..20_000 {
            lane.push(message(8));
            while let Some(due) = lane.poll_send(Time::ZERO) {
                let done = due.message.wrapping_add(1);
                let ack = if done == 0 {
                    Ack::Partial { message: due.message, next: due.packet + 1, bitmap: [0; 4] }
                } else {
                    Ack::Done { first: due.message, count: 1, status: Status::Ok }
                };
                lane.on_ack(Time::ZERO, ack, &mut Vec::new());
                if done == id {
                    break;
                }
            }
            assert!(lane.len() <= 2);
        }
    }

    #[test]
    fn the_window_opens_waiting_messages_as_others_end() {
        let mut lane = lane();
        for i in 0..MESSAGE_WINDOW + 5 {
            lane.push(message_of(i as u16 % 4, 8));
        }
        assert_eq!(lane.waiting, 5);
        let mut ended = Vec::new();
        drain(&mut lane, Time::ZERO);
        lane.on_ack(Time::ZERO, done(3, 1), &mut ended); // not the oldest, and yet it makes room
        assert_eq!(lane.waiting, 4);
        lane.on_ack(Time::ZERO, done(0, 3), &mut ended);
        assert_eq!((lane.waiting, ended.len()), (1, 4));
        lane.on_ack(Time::ZERO, done(5, 20), &mut ended);
        assert_eq!(lane.waiting, 0);
    }

    /// Sends what there is room for and has it acknowledged, a round trip later; how many packets that were until
    /// `until` ended, if it did.
    fn round_trip(lane: &mut SendLane, now: Time, until: u16) -> Result<usize, usize> {
        let due: Vec<DuePacket> = std::iter::from_fn(|| lane.poll_send(now)).collect();
        for (count, due) in (1..).zip(&due) {
            let Some(message) = lane.message(due.message) else { continue };
            let ack = match (message.header.op, message.header.packets(1000)) {
                (WireOp::ReadRequest, _) => Ack::Accepted { message: due.message },
                (_, 1) => Ack::Done { first: due.message, count: 1, status: Status::Ok },
                _ => Ack::Partial { message: due.message, next: due.packet + 1, bitmap: [0; 4] },
            };
            let mut ended = Vec::new();
            lane.on_ack(now + MS, ack, &mut ended);
            if ended.iter().any(|ended| ended.message.origin.qpn() == until) {
                return Ok(count);
            }
        }
        Err(due.len())
    }

    #[test]
    fn a_queue_pair_that_posts_without_end_does_not_hold_up_another() {
        // More long messages than the window has places, by one queue pair or by as many as a device has; then
        // another's short one.
        for (hogs, op) in
            [(1, WireOp::Write), (255, WireOp::Write), (1, WireOp::ReadRequest), (255, WireOp::ReadRequest)]
        {
            let mut lane = lane();
            for i in 0..2 * MESSAGE_WINDOW {
                let mut long = message_of(10 + (i % hogs) as u16, 64 << 20);
                long.header.op = op;
                lane.push(long);
            }
            for i in 0..10 {
                assert!(round_trip(&mut lane, Time::ZERO + MS * i, 1).is_err());
            }
            lane.push(message_of(1, 8));
            let mut packets = 0;
            let ended = (10..100).any(|i| match round_trip(&mut lane, Time::ZERO + MS * i, 1) {
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
        let mut lane = lane();
        for _ in 0..100 {
            lane.push(message(64 << 20));
        }
        assert_eq!(lane.open.len(), QUEUE_PAIR_MESSAGES as usize);
        lane.push(message(8));
        let sent = drain(&mut lane, Time::ZERO);
        assert_eq!(sent[QUEUE_PAIR_MESSAGES as usize], (QUEUE_PAIR_MESSAGES, 0), "after one packet of each: {sent:?}");
    }

    #[test]
    fn queue_pairs_get_the_same_share_however_much_each_has_posted() {
        let mut lane = lane();
        for _ in 0..50 {
            lane.push(message_of(1, 8));
        }
        for qpn in 2..4 {
            for _ in 0..10 {
                lane.push(message_of(qpn, 8));
            }
        }
        let due: Vec<DuePacket> = std::iter::from_fn(|| lane.poll_send(Time::ZERO)).collect();
        let sent: Vec<u16> = due.iter().map(|due| lane.message(due.message).unwrap().origin.qpn()).collect();
        assert_eq!(sent[..30], [1, 2, 3].repeat(10));
    }

    #[test]
    fn a_queue_pair_that_is_alone_fills_the_windows_of_all_paths() {
        let mut lane = lane();
        for _ in 0..MESSAGE_WINDOW {
            lane.push(message(8));
        }
        assert_eq!(lane.open.len(), QUEUE_PAIR_WINDOW as usize);
        let mut ended = Vec::new();
        while ended.len() < MESSAGE_WINDOW as usize {
            let due: Vec<DuePacket> = std::iter::from_fn(|| lane.poll_send(Time::ZERO)).collect();
            assert!(!due.is_empty());
            for due in due {
                let ack = Ack::Done { first: due.message, count: 1, status: Status::Ok };
                lane.on_ack(Time::ZERO, ack, &mut ended);
            }
        }
        assert!(lane.is_idle() && lane.shares.is_empty() && lane.to_open.is_empty() && lane.to_send.is_empty());
    }

    #[test]
    fn flushing_takes_the_waiting_messages_too() {
        let mut lane = lane();
        for _ in 0..MESSAGE_WINDOW + 5 {
            lane.push(message(8));
        }
        drain(&mut lane, Time::ZERO);
        let mut ended = Vec::new();
        lane.end_where(Status::Flushed, |m| m.origin.qpn() == 1, &mut ended);
        assert_eq!(ended.len(), MESSAGE_WINDOW as usize + 5);
        assert!(lane.is_idle() && outstanding(&lane) == 0 && drain(&mut lane, Time::ZERO).is_empty());
    }
}
