//! The share of one queue pair in a lane.
//!
//! Queue pairs take turns: one message each when messages are opened, and one packet each when packets leave. So no
//! queue pair waits for what another has posted, however much that is. Within a queue pair, short messages do not wait
//! for long ones.

use super::message::Message;
use super::window::{QUEUE_PAIR_MESSAGES, QUEUE_PAIR_WINDOW, SHORT};
use crate::wire::MessageHeader;
use std::collections::VecDeque;

/// The two classes of messages by length. Each has a window of its own in its queue pair's [`Share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Short,
    Long,
}

impl Length {
    /// Short ones first: they are opened before long ones.
    const ALL: [Self; 2] = [Self::Short, Self::Long];
}

/// Returns what a message takes of its queue pair's window: its class, and its packets in either direction.
///
/// A read request is one packet, but its answer is as long as the bytes that it asks for. So a read counts like a
/// write.
pub(super) fn weight(header: &MessageHeader, stride: u32) -> (Length, u32) {
    let packets = header.bytes.div_ceil(stride).max(1);
    (if packets <= SHORT { Length::Short } else { Length::Long }, packets)
}

/// The messages of one class.
#[derive(Debug, Default)]
struct Class {
    /// Messages that wait to be opened.
    waiting: VecDeque<Message>,
    /// Number of open messages.
    open: u32,
    /// Packets of the open messages, with those of the answers to reads.
    packets: u32,
}

impl Class {
    /// Returns `true` if a message waits and may be opened.
    fn may_open(&self) -> bool {
        let has_room = self.packets < QUEUE_PAIR_WINDOW || self.open < QUEUE_PAIR_MESSAGES;
        has_room && !self.waiting.is_empty()
    }
}

/// The messages of one queue pair in a lane.
#[derive(Debug, Default)]
pub(super) struct Share {
    short: Class,
    long: Class,
    /// Numbers of open messages with packets that were never sent. They take turns, one packet each.
    pub(super) unsent: VecDeque<u32>,
    /// The queue pair is in `SendLane::to_open`.
    pub(super) in_line_to_open: bool,
    /// The queue pair is in `SendLane::to_send`.
    pub(super) in_line_to_send: bool,
}

impl Share {
    fn class(&mut self, length: Length) -> &mut Class {
        match length {
            Length::Short => &mut self.short,
            Length::Long => &mut self.long,
        }
    }

    /// Adds a message that waits to be opened.
    pub(super) fn push(&mut self, length: Length, message: Message) {
        self.class(length).waiting.push_back(message);
    }

    /// Returns `true` if a message waits and may be opened.
    pub(super) fn may_open(&self) -> bool {
        self.short.may_open() || self.long.may_open()
    }

    /// Takes the next message that may be opened.
    pub(super) fn next_to_open(&mut self) -> Option<Message> {
        let length = Length::ALL.into_iter().find(|&length| self.class(length).may_open())?;
        self.class(length).waiting.pop_front()
    }

    /// Counts a message of this weight as open.
    pub(super) fn opened(&mut self, (length, packets): (Length, u32)) {
        let class = self.class(length);
        class.open += 1;
        class.packets += packets;
    }

    /// Counts an open message of this weight as ended.
    pub(super) fn ended(&mut self, (length, packets): (Length, u32)) {
        let class = self.class(length);
        class.open -= 1;
        class.packets -= packets;
    }

    /// Removes the waiting messages for which `which` holds, and returns them: short ones first, each class in its
    /// order.
    pub(super) fn take_waiting(&mut self, which: impl Fn(&Message) -> bool) -> VecDeque<Message> {
        let mut taken = VecDeque::new();
        for length in Length::ALL {
            let waiting = &mut self.class(length).waiting;
            let (mut leaving, staying): (VecDeque<_>, _) = std::mem::take(waiting).into_iter().partition(&which);
            *waiting = staying;
            taken.append(&mut leaving);
        }
        taken
    }

    /// Returns `true` if the queue pair has nothing in the lane any more.
    pub(super) fn is_over(&self) -> bool {
        let is_empty = |class: &Class| class.open == 0 && class.waiting.is_empty();
        is_empty(&self.short) && is_empty(&self.long) && !self.in_line_to_open && !self.in_line_to_send
    }
}
