//! The receiving end: messages from one peer, each placed exactly once.
//!
//! Of most messages a byte is all that is kept: how they stand. Only a message of which some packets have arrived has more.

use super::MESSAGE_WINDOW;
use super::bitmap::Bitmap;
use crate::wire::{Ack, Acks, MAX_ACKS, MessageHeader};
use efa_io::Status;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};

/// How a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing has arrived.
    Empty,
    /// Some packets have arrived.
    Partial,
    /// A read request that is being answered.
    Accepted,
    /// It arrived and found no receive descriptor: it comes again, as another message.
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

/// A message under way.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) header: MessageHeader,
    pub(crate) stride: u32,
    pub(crate) received: Bitmap,
}

impl Partial {
    fn packets(&self) -> u64 {
        self.header.packets(self.stride).into()
    }
}

/// Most packets, a bit each, that book is kept of for one peer: as many as a window of the longest messages has.
const MOST_BOOKED: u64 = 1 << 28;

/// Messages from one peer.
#[derive(Debug, Default)]
pub(crate) struct RxFlow {
    /// The oldest message that the peer still cares about, once a packet has said so.
    base: Option<u32>,
    /// From `base` on, how each message stands, as [`Standing::code`].
    standings: VecDeque<u8>,
    partials: HashMap<u32, Partial, RandomState>,
    /// Packets of all of them together.
    booked: u64,
    /// Messages of which the peer is to be told.
    touched: Vec<u32>,
}

impl RxFlow {
    /// How a message stands, given what its packet says of the sender's oldest one. `None`: the message has ended
    /// long ago, or lies `span` ahead of it or more.
    pub(crate) fn open(&mut self, message: u32, base: u32, span: u32) -> Option<Standing> {
        let known = *self.base.get_or_insert(base);
        let ahead = base.wrapping_sub(known);
        if ahead < 1 << 31 && ahead > 0 {
            let gone = (ahead as usize).min(self.standings.len());
            let partial = Standing::Partial.code();
            for (i, standing) in self.standings.drain(..gone).enumerate() {
                if standing == partial
                    && let Some(gone) = self.partials.remove(&known.wrapping_add(i as u32))
                {
                    self.booked -= gone.packets();
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

    /// How a message stands of which something is known.
    pub(crate) fn known(&self, message: u32) -> Option<Standing> {
        let index = message.wrapping_sub(self.base?) as usize;
        self.standings.get(index).map(|&code| Standing::of_code(code))
    }

    /// From here on a known message stands like this.
    pub(crate) fn set(&mut self, message: u32, standing: Standing) {
        let Some(base) = self.base else { return };
        if let Some(code) = self.standings.get_mut(message.wrapping_sub(base) as usize) {
            if *code == Standing::Partial.code()
                && let Some(gone) = self.partials.remove(&message)
            {
                self.booked -= gone.packets();
            }
            *code = standing.code();
        }
    }

    /// A message under way.
    pub(crate) fn partial(&mut self, message: u32) -> Option<&mut Partial> {
        self.partials.get_mut(&message)
    }

    /// Starts to keep book of a known message's packets; `None` if there are more such messages than a sender may have under way.
    pub(crate) fn begin(&mut self, message: u32, header: MessageHeader, stride: u32) -> Option<&mut Partial> {
        let packets = u64::from(header.packets(stride));
        if self.partials.len() >= MESSAGE_WINDOW as usize || self.booked + packets > MOST_BOOKED {
            return None;
        }
        self.set(message, Standing::Partial);
        self.booked += packets;
        let received = Bitmap::new(header.packets(stride));
        Some(self.partials.entry(message).or_insert(Partial { header, stride, received }))
    }

    /// The peer is to be told how this message stands.
    pub(crate) fn touch(&mut self, message: u32) {
        self.touched.push(message);
    }

    /// Whether there is something to tell.
    pub(crate) fn wants_to_ack(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What to tell the peer now, one packet full: at most so many bytes, which are enough for an entry.
    pub(crate) fn poll_acks(&mut self, mut room: usize) -> Acks<'static> {
        let mut acks = Acks::with_capacity(self.touched.len());
        let mut entries = 0;
        // An entry that may still grow.
        let mut last: Option<Ack> = None;
        let base = self.base.unwrap_or(0);
        self.touched.sort_unstable_by_key(|m| m.wrapping_sub(base));
        self.touched.dedup();
        let mut told = 0;
        for &message in &self.touched {
            let standing = self.known(message).unwrap_or(Standing::Empty);
            if let Standing::Done(status) = standing
                && let Some(Ack::Done { first, count, status: run }) = &mut last
                && status == *run
                && first.wrapping_add(u32::from(*count)) == message
                && *count < u16::MAX
            {
                *count += 1;
                told += 1;
                continue;
            }
            let ack = match (standing, self.partials.get(&message)) {
                (Standing::Done(status), _) => Some(Ack::Done { first: message, count: 1, status }),
                (Standing::Accepted, _) => Some(Ack::Accepted { message }),
                (Standing::NotReady, _) => Some(Ack::NotReady { message }),
                (Standing::Partial, Some(Partial { received, .. })) => {
                    Some(Ack::Partial { message, next: received.next(), bitmap: received.window() })
                }
                (Standing::Partial | Standing::Empty, _) => None,
            };
            let len = ack.as_ref().map_or(0, Ack::wire_len);
            if entries == MAX_ACKS || len > room {
                break;
            }
            room -= len;
            told += 1;
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
        self.touched.drain(..told);
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::super::NUMBER_SPAN;
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
        let mut flow = RxFlow::default();
        for message in [2, 0, 1, 5, 1, 4] {
            flow.open(message, 0, NUMBER_SPAN).unwrap();
            flow.set(message, Standing::Done(if message == 5 { Status::RemoteRnr } else { Status::Ok }));
            flow.touch(message);
        }
        let done = |first, count, status| Ack::Done { first, count, status };
        let told: Vec<Ack> = flow.poll_acks(8192).iter().collect();
        assert_eq!(told, [done(0, 3, Status::Ok), done(4, 1, Status::Ok), done(5, 1, Status::RemoteRnr)]);
        assert!(flow.poll_acks(8192).is_empty());
    }

    #[test]
    fn what_the_sender_no_longer_cares_about_is_forgotten_and_never_comes_back() {
        let mut flow = RxFlow::default();
        flow.open(u32::MAX, u32::MAX, NUMBER_SPAN).unwrap();
        flow.set(u32::MAX, Standing::Done(Status::Ok));
        assert_eq!(flow.open(0, u32::MAX, NUMBER_SPAN), Some(Standing::Empty));
        assert!(flow.open(1, 1, NUMBER_SPAN).is_some());
        assert!(flow.open(u32::MAX, u32::MAX, NUMBER_SPAN).is_none(), "a late packet of an old message");
        assert!(flow.open(1 + NUMBER_SPAN, 1, NUMBER_SPAN).is_none(), "beyond the span");
        assert!(flow.known(0).is_none() && flow.known(1).is_some());
    }

    #[test]
    fn book_is_kept_of_no_more_messages_than_a_sender_may_have_under_way() {
        let mut flow = RxFlow::default();
        let header = header(200);
        for message in 0..MESSAGE_WINDOW {
            flow.open(message, 0, NUMBER_SPAN).unwrap();
            assert!(flow.begin(message, header, 100).is_some());
        }
        flow.open(MESSAGE_WINDOW, 0, NUMBER_SPAN).unwrap();
        assert!(flow.begin(MESSAGE_WINDOW, header, 100).is_none());
        flow.set(5, Standing::Done(Status::Ok));
        assert!(flow.begin(MESSAGE_WINDOW, header, 100).is_some(), "one that ended makes room");
        flow.open(MESSAGE_WINDOW, MESSAGE_WINDOW, NUMBER_SPAN).unwrap();
        assert_eq!(flow.partials.len(), 1, "what the sender forgets is forgotten");
    }

    #[test]
    fn more_entries_than_a_packet_holds_are_told_in_the_next() {
        let mut flow = RxFlow::default();
        for message in (0..200).step_by(2) {
            flow.open(message, 0, NUMBER_SPAN).unwrap();
            flow.set(message, Standing::Accepted);
            flow.touch(message);
        }
        assert_eq!(flow.poll_acks(8192).iter().count(), MAX_ACKS);
        assert!(flow.wants_to_ack());
        assert_eq!(flow.poll_acks(8192).iter().count(), 100 - MAX_ACKS);
        assert!(!flow.wants_to_ack());
    }

    #[test]
    fn entries_that_are_longer_than_a_packet_together_are_told_in_several() {
        let mut flow = RxFlow::default();
        for message in 0..10 {
            flow.open(message, 0, NUMBER_SPAN).unwrap();
            let partial = flow.begin(message, header(64 * 256), 64).unwrap();
            (1..256).for_each(|packet| assert!(partial.received.insert(packet)));
            flow.touch(message);
        }
        let packets: Vec<_> = std::iter::from_fn(|| flow.wants_to_ack().then(|| flow.poll_acks(100))).collect();
        assert_eq!(packets.iter().map(|acks| acks.iter().count()).collect::<Vec<_>>(), [2; 5]);
    }
}
