//! The receiving end of a lane: messages from one peer, each placed exactly once.
//!
//! Of most messages one byte is all that is kept: their standing. Only a message of which some packets have arrived has
//! more.

use super::bitmap::Bitmap;
use super::window::MESSAGE_WINDOW;
use crate::wire::{Ack, Acks, MAX_ACKS, MessageHeader};
use efa_io::Status;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};

/// The state of a message at its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing has arrived.
    Empty,
    /// Some packets have arrived.
    Partial,
    /// A read request that is being answered.
    Accepted,
    /// All of it arrived and found no receive descriptor. It comes again, as another message.
    NotReady,
    /// It ended.
    Done(Status),
}

impl Standing {
    /// Codes from here on are statuses.
    const DONE: u8 = 4;

    fn code(self) -> u8 {
        match self {
            Self::Empty => 0,
            Self::Partial => 1,
            Self::Accepted => 2,
            Self::NotReady => 3,
            Self::Done(status) => Self::DONE.saturating_add(status.code()),
        }
    }

    fn of_code(code: u8) -> Self {
        match code {
            0 => Self::Empty,
            1 => Self::Partial,
            2 => Self::Accepted,
            3 => Self::NotReady,
            code => Self::Done(Status::from_code(code - Self::DONE)),
        }
    }
}

/// A message of several packets of which some have arrived.
#[derive(Debug)]
pub(crate) struct Partial {
    /// What its first packet said. Those that follow must say the same.
    pub(crate) header: MessageHeader,
    pub(crate) stride: u32,
    received: Bitmap,
}

impl Partial {
    /// Returns `true` if this packet has arrived.
    pub(crate) fn has(&self, packet: u32) -> bool {
        self.received.contains(packet)
    }

    /// Notes that a packet was placed. Returns `true` if no other is missing.
    pub(crate) fn complete_with(&mut self, packet: u32) -> bool {
        self.received.insert(packet);
        self.received.missing() == 0
    }

    fn packets(&self) -> u64 {
        self.header.packets(self.stride).into()
    }
}

/// Most packets of all partial messages of a lane. There is a bit for each, so this is a bound of 32 MiB on what a peer
/// can have allocated; a window of the longest messages (2048 of 1 GiB, in packets of 8928 bytes) has about as many.
const MAX_TRACKED_PACKETS: u64 = 1 << 28;

/// The receiving end of a lane.
#[derive(Debug, Default)]
pub(crate) struct RecvLane {
    /// The oldest message that the peer still waits for, once a packet has said so.
    base: Option<u32>,
    /// The standing of each message from `base` on, as [`Standing::code`].
    standings: VecDeque<u8>,
    partials: HashMap<u32, Partial, RandomState>,
    /// Packets of all partial messages together.
    tracked_packets: u64,
    /// Messages to acknowledge.
    to_ack: Vec<u32>,
}

impl RecvLane {
    /// Returns the standing of a message, and forgets those below `base`, the sender's oldest. Returns `None` if the
    /// message ended long ago, or if it lies `span` or more ahead of the oldest.
    pub(crate) fn open(&mut self, message: u32, base: u32, span: u32) -> Option<Standing> {
        let known = *self.base.get_or_insert(base);
        // A late packet names an older base than the newest: numbers wrap, so half of them count as older.
        let ahead = base.wrapping_sub(known);
        if ahead < 1 << 31 && ahead > 0 {
            let gone = (ahead as usize).min(self.standings.len());
            let partial = Standing::Partial.code();
            for (i, standing) in self.standings.drain(..gone).enumerate() {
                if standing == partial
                    && let Some(gone) = self.partials.remove(&known.wrapping_add(i as u32))
                {
                    self.tracked_packets -= gone.packets();
                }
            }
            self.base = Some(base);
        }
        let index = message.wrapping_sub(self.base.unwrap_or(base));
        if index >= span {
            return None;
        }
        if self.standings.len() <= index as usize {
            self.standings.resize(index as usize + 1, Standing::Empty.code());
        }
        self.known(message)
    }

    /// Returns the standing of a message that was [opened](Self::open) and is not forgotten.
    pub(crate) fn known(&self, message: u32) -> Option<Standing> {
        let index = message.wrapping_sub(self.base?) as usize;
        self.standings.get(index).map(|&code| Standing::of_code(code))
    }

    /// Sets the standing of a known message.
    pub(crate) fn set(&mut self, message: u32, standing: Standing) {
        let Some(base) = self.base else { return };
        if let Some(code) = self.standings.get_mut(message.wrapping_sub(base) as usize) {
            if *code == Standing::Partial.code()
                && let Some(gone) = self.partials.remove(&message)
            {
                self.tracked_packets -= gone.packets();
            }
            *code = standing.code();
        }
    }

    /// Returns a message of which some packets have arrived.
    pub(crate) fn partial(&mut self, message: u32) -> Option<&mut Partial> {
        self.partials.get_mut(&message)
    }

    /// Starts to track the packets of a known message. Returns `None` if more messages, or packets, would be tracked
    /// than an honest sender has open.
    pub(crate) fn begin(&mut self, message: u32, header: MessageHeader, stride: u32) -> Option<&mut Partial> {
        let packets = u64::from(header.packets(stride));
        if self.partials.len() >= MESSAGE_WINDOW as usize || self.tracked_packets + packets > MAX_TRACKED_PACKETS {
            return None;
        }
        self.set(message, Standing::Partial);
        self.tracked_packets += packets;
        let received = Bitmap::new(header.packets(stride));
        Some(self.partials.entry(message).or_insert(Partial { header, stride, received }))
    }

    /// Has the message acknowledged: the peer learns its standing.
    pub(crate) fn acknowledge(&mut self, message: u32) {
        self.to_ack.push(message);
    }

    /// Returns `true` if there is something to acknowledge.
    pub(crate) fn wants_to_ack(&self) -> bool {
        !self.to_ack.is_empty()
    }

    /// Returns the acknowledgements of the next packet: at most `room` bytes, which must be enough for one entry.
    pub(crate) fn poll_acks(&mut self, mut room: usize) -> Acks<'static> {
        // In the order of their numbers, so that neighbours that ended alike share an entry.
        let base = self.base.unwrap_or(0);
        self.to_ack.sort_unstable_by_key(|m| m.wrapping_sub(base));
        self.to_ack.dedup();
        let mut acks = Acks::with_capacity(self.to_ack.len());
        let (mut entries, mut acknowledged) = (0, 0);
        // The last entry, which the next message may join.
        let mut last: Option<Ack> = None;
        for &message in &self.to_ack {
            let standing = self.known(message).unwrap_or(Standing::Empty);
            if let Standing::Done(status) = standing
                && let Some(Ack::Done { first, count, status: run }) = &mut last
                && status == *run
                && first.wrapping_add(u32::from(*count)) == message
                && *count < u16::MAX
            {
                *count += 1;
                acknowledged += 1;
                continue;
            }
            let ack = self.ack_of(message, standing);
            let len = ack.as_ref().map_or(0, Ack::wire_len);
            if entries == MAX_ACKS || len > room {
                break;
            }
            room -= len;
            acknowledged += 1;
            if ack.is_some() {
                entries += 1;
                if let Some(complete) = std::mem::replace(&mut last, ack) {
                    acks.push(&complete);
                }
            }
        }
        if let Some(complete) = last {
            acks.push(&complete);
        }
        self.to_ack.drain(..acknowledged);
        acks
    }

    /// Returns the acknowledgement of one message, or `None` if nothing of it has arrived or it is forgotten.
    fn ack_of(&self, message: u32, standing: Standing) -> Option<Ack> {
        match standing {
            Standing::Done(status) => Some(Ack::Done { first: message, count: 1, status }),
            Standing::Accepted => Some(Ack::Accepted { message }),
            Standing::NotReady => Some(Ack::NotReady { message }),
            Standing::Empty => None,
            Standing::Partial => {
                let Partial { received, .. } = self.partials.get(&message)?;
                Some(Ack::Partial { message, next: received.next(), bitmap: received.window() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::NUMBER_SPAN;
    use super::*;

    fn header(bytes: u32) -> MessageHeader {
        MessageHeader::new(crate::wire::WireOp::Write, 1, 2, bytes)
    }

    #[test]
    fn a_standing_is_a_byte() {
        let statuses = (0..=255 - Standing::DONE).map(Status::from_code).map(Standing::Done);
        for standing in statuses.chain([Standing::Empty, Standing::Partial, Standing::Accepted, Standing::NotReady]) {
            assert_eq!(Standing::of_code(standing.code()), standing);
        }
    }

    #[test]
    fn neighbours_that_ended_alike_are_told_in_one_entry() {
        let mut lane = RecvLane::default();
        for message in [2, 0, 1, 5, 1, 4] {
            lane.open(message, 0, NUMBER_SPAN).unwrap();
            lane.set(message, Standing::Done(if message == 5 { Status::RemoteRnr } else { Status::Ok }));
            lane.acknowledge(message);
        }
        let done = |first, count, status| Ack::Done { first, count, status };
        let told: Vec<Ack> = lane.poll_acks(8192).iter().collect();
        assert_eq!(told, [done(0, 3, Status::Ok), done(4, 1, Status::Ok), done(5, 1, Status::RemoteRnr)]);
        assert!(lane.poll_acks(8192).is_empty());
    }

    #[test]
    fn what_the_sender_no_longer_cares_about_is_forgotten_and_never_comes_back() {
        let mut lane = RecvLane::default();
        lane.open(u32::MAX, u32::MAX, NUMBER_SPAN).unwrap();
        lane.set(u32::MAX, Standing::Done(Status::Ok));
        assert_eq!(lane.open(0, u32::MAX, NUMBER_SPAN), Some(Standing::Empty));
        assert!(lane.open(1, 1, NUMBER_SPAN).is_some());
        assert!(lane.open(u32::MAX, u32::MAX, NUMBER_SPAN).is_none(), "a late packet of an old message");
        assert!(lane.open(1 + NUMBER_SPAN, 1, NUMBER_SPAN).is_none(), "beyond the span");
        assert!(lane.known(0).is_none() && lane.known(1).is_some());
    }

    #[test]
    fn book_is_kept_of_no_more_messages_than_a_sender_may_have_under_way() {
        let mut lane = RecvLane::default();
        let header = header(200);
        for message in 0..MESSAGE_WINDOW {
            lane.open(message, 0, NUMBER_SPAN).unwrap();
            assert!(lane.begin(message, header, 100).is_some());
        }
        lane.open(MESSAGE_WINDOW, 0, NUMBER_SPAN).unwrap();
        assert!(lane.begin(MESSAGE_WINDOW, header, 100).is_none());
        lane.set(5, Standing::Done(Status::Ok));
        assert!(lane.begin(MESSAGE_WINDOW, header, 100).is_some(), "one that ended makes room");
        lane.open(MESSAGE_WINDOW, MESSAGE_WINDOW, NUMBER_SPAN).unwrap();
        assert_eq!(lane.partials.len(), 1, "what the sender forgets is forgotten");
    }

    #[test]
    fn more_entries_than_a_packet_holds_are_told_in_the_next() {
        let mut lane = RecvLane::default();
        for message in (0..200).step_by(2) {
            lane.open(message, 0, NUMBER_SPAN).unwrap();
            lane.set(message, Standing::Accepted);
            lane.acknowledge(message);
        }
        assert_eq!(lane.poll_acks(8192).iter().count(), MAX_ACKS);
        assert!(lane.wants_to_ack());
        assert_eq!(lane.poll_acks(8192).iter().count(), 100 - MAX_ACKS);
        assert!(!lane.wants_to_ack());
    }

    #[test]
    fn entries_that_are_longer_than_a_packet_together_are_told_in_several() {
        let mut lane = RecvLane::default();
        for message in 0..10 {
            lane.open(message, 0, NUMBER_SPAN).unwrap();
            let partial = lane.begin(message, header(64 * 256), 64).unwrap();
            (1..256).for_each(|packet| assert!(!partial.complete_with(packet)));
            lane.acknowledge(message);
        }
        let packets: Vec<_> = std::iter::from_fn(|| lane.wants_to_ack().then(|| lane.poll_acks(100))).collect();
        assert_eq!(packets.iter().map(|acks| acks.iter().count()).collect::<Vec<_>>(), [2; 5]);
    }
}
