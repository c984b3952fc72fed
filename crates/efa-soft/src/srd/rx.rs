//! The receiving end: messages from one peer, each placed exactly once.

use super::MESSAGE_WINDOW;
use super::bitmap::Bitmap;
use crate::wire::{Ack, MAX_ACKS, MessageHeader};
use efa_io::Status;
use std::collections::VecDeque;

/// What is known of a message.
#[derive(Debug)]
pub(crate) enum Slot {
    /// Nothing has arrived, or what arrived could not be taken for want of a receive descriptor.
    Empty,
    /// Some packets have arrived.
    Partial(Box<Partial>),
    /// All has been placed, but the immediate finds no receive descriptor.
    Waiting(Box<MessageHeader>),
    /// A read request that is being answered.
    Accepted,
    /// It ended.
    Done(Status),
}

/// A message under way.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) header: MessageHeader,
    pub(crate) stride: u32,
    pub(crate) received: Bitmap,
}

/// Messages from one peer.
#[derive(Debug, Default)]
pub(crate) struct RxFlow {
    /// The oldest message that the peer still cares about, once a packet has said so.
    base: Option<u32>,
    slots: VecDeque<Slot>,
    /// Messages of which the peer is to be told.
    touched: Vec<u32>,
}

impl RxFlow {
    /// The place of a message, given what its packet says of the sender's oldest one. `None`: the message has ended
    /// long ago, or lies further ahead than a sender may go.
    pub(crate) fn slot(&mut self, message: u32, base: u32) -> Option<&mut Slot> {
        let known = *self.base.get_or_insert(base);
        let ahead = base.wrapping_sub(known);
        if ahead < 1 << 31 && ahead > 0 {
            let gone = (ahead as usize).min(self.slots.len());
            self.slots.drain(..gone);
            self.base = Some(base);
        }
        let index = message.wrapping_sub(self.base.unwrap_or(base));
        if index >= MESSAGE_WINDOW {
            return None;
        }
        while self.slots.len() <= index as usize {
            self.slots.push_back(Slot::Empty);
        }
        self.slots.get_mut(index as usize)
    }

    /// The place of a message of which something is known.
    pub(crate) fn known(&mut self, message: u32) -> Option<&mut Slot> {
        self.slots.get_mut(message.wrapping_sub(self.base?) as usize)
    }

    /// The peer is to be told how this message stands.
    pub(crate) fn touch(&mut self, message: u32) {
        self.touched.push(message);
    }

    /// Whether there is something to tell.
    pub(crate) fn wants_to_ack(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What to tell the peer now, one packet full.
    pub(crate) fn poll_acks(&mut self, acks: &mut Vec<Ack>) {
        acks.clear();
        let base = self.base.unwrap_or(0);
        self.touched.sort_unstable_by_key(|m| m.wrapping_sub(base));
        self.touched.dedup();
        let mut told = 0;
        for &message in &self.touched {
            let Some(slot) = self.slots.get(message.wrapping_sub(base) as usize) else {
                told += 1;
                continue;
            };
            if let Slot::Done(status) = *slot
                && let Some(Ack::Done { first, count, status: run }) = acks.last_mut()
                && status == *run
                && first.wrapping_add(u32::from(*count)) == message
                && *count < u16::MAX
            {
                *count += 1;
                told += 1;
                continue;
            }
            if acks.len() == MAX_ACKS {
                break;
            }
            told += 1;
            acks.push(match slot {
                Slot::Done(status) => Ack::Done { first: message, count: 1, status: *status },
                Slot::Accepted => Ack::Accepted { message },
                Slot::Empty | Slot::Waiting(_) => Ack::NotReady { message },
                Slot::Partial(partial) => {
                    Ack::Partial { message, next: partial.received.next(), bitmap: partial.received.window() }
                }
            });
        }
        self.touched.drain(..told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(flow: &mut RxFlow) -> Vec<Ack> {
        let mut acks = Vec::new();
        flow.poll_acks(&mut acks);
        acks
    }

    #[test]
    fn neighbours_that_ended_alike_are_told_in_one_entry() {
        let mut flow = RxFlow::default();
        for message in [2, 0, 1, 5, 1, 4] {
            *flow.slot(message, 0).unwrap() = Slot::Done(if message == 5 { Status::RemoteRnr } else { Status::Ok });
            flow.touch(message);
        }
        let done = |first, count, status| Ack::Done { first, count, status };
        assert_eq!(acks(&mut flow), [done(0, 3, Status::Ok), done(4, 1, Status::Ok), done(5, 1, Status::RemoteRnr)]);
        assert!(acks(&mut flow).is_empty());
    }

    #[test]
    fn what_the_sender_no_longer_cares_about_is_forgotten_and_never_comes_back() {
        let mut flow = RxFlow::default();
        *flow.slot(u32::MAX, u32::MAX).unwrap() = Slot::Done(Status::Ok);
        assert!(matches!(flow.slot(0, u32::MAX), Some(Slot::Empty)));
        assert!(flow.slot(1, 1).is_some());
        assert!(flow.slot(u32::MAX, u32::MAX).is_none(), "a late packet of an old message");
        assert!(flow.slot(1 + MESSAGE_WINDOW, 1).is_none(), "beyond the window");
        assert!(flow.known(0).is_none() && flow.known(1).is_some());
    }

    #[test]
    fn more_entries_than_a_packet_holds_are_told_in_the_next() {
        let mut flow = RxFlow::default();
        for message in (0..200).step_by(2) {
            *flow.slot(message, 0).unwrap() = Slot::Accepted;
            flow.touch(message);
        }
        assert_eq!(acks(&mut flow).len(), MAX_ACKS);
        assert!(flow.wants_to_ack());
        assert_eq!(acks(&mut flow).len(), 100 - MAX_ACKS);
        assert!(!flow.wants_to_ack());
    }
}
