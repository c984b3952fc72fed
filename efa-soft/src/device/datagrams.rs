//! Sends of unreliable (UD) queue pairs that have not left.

use crate::srd::Message;
use efa_types::Gid;
use std::collections::VecDeque;

/// Most datagrams of a queue pair that wait to leave; further WQEs stay in its ring until some have left.
pub(super) const DATAGRAM_WINDOW: u32 = 16;

/// A datagram that has not left.
pub(super) struct Datagram {
    pub(super) dst: Gid,
    pub(super) message: Message,
}

/// All datagrams of a device that have not left, in the order of their WQEs.
#[derive(Default)]
pub(super) struct Datagrams {
    waiting: VecDeque<Datagram>,
    /// The next packet is a datagram, if one waits.
    has_turn: bool,
}

impl Datagrams {
    pub(super) fn push(&mut self, datagram: Datagram) {
        self.waiting.push_back(datagram);
    }

    pub(super) fn pop(&mut self) -> Option<Datagram> {
        self.waiting.pop_front()
    }

    /// Lets datagrams and all other packets take turns. Returns `true` if it is the datagrams' turn.
    pub(super) fn take_turn(&mut self) -> bool {
        self.has_turn = !self.has_turn;
        self.has_turn
    }

    /// Removes the datagrams for which `which` holds, and returns them.
    pub(super) fn take_where(&mut self, which: impl Fn(&Message) -> bool) -> VecDeque<Datagram> {
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (taken, staying) = all.partition(|datagram: &Datagram| which(&datagram.message));
        self.waiting = staying;
        taken
    }
}
