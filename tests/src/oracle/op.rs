//! Operations. Number and seed determine everything about an operation, including its bytes.

use super::sizes::{MTU, NODES, SLOT, UD};
use efa_direct::{OpCode, Status};

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A send from memory.
    Send,
    /// An inline send.
    SendInline,
    /// An RDMA write from memory.
    Write,
    /// An inline RDMA write.
    WriteInline,
    /// An RDMA read.
    Read,
    /// An unreliable datagram.
    Datagram,
    /// An RDMA write that must fail.
    Bad(Bad),
}

/// The error in an operation that must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The remote key does not exist.
    Rkey,
    /// The write exceeds the remote region by one byte.
    Bounds,
    /// The queue key is not the destination's.
    Qkey,
    /// The queue pair does not exist.
    Number,
}

impl Kind {
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::WriteInline | Self::Bad(_))
    }

    pub(super) fn is_send(self) -> bool {
        matches!(self, Self::Send | Self::SendInline)
    }

    /// Returns the operation code in its completion.
    pub(super) fn op_code(self) -> OpCode {
        match self {
            Self::Send | Self::SendInline | Self::Datagram => OpCode::Send,
            Self::Write | Self::WriteInline | Self::Bad(_) => OpCode::RdmaWrite,
            Self::Read => OpCode::RdmaRead,
        }
    }

    /// Returns the status of its completion, unless it is doomed.
    pub(super) fn status(self) -> Status {
        match self {
            Self::Bad(Bad::Rkey | Bad::Bounds) => Status::RemoteBadAddress,
            Self::Bad(Bad::Qkey | Bad::Number) => Status::RemoteBadDestQpn,
            _ => Status::Ok,
        }
    }
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// The posting node.
    pub(super) from: usize,
    /// The destination node.
    pub(super) to: usize,
    /// The index of the posting queue pair.
    pub(super) qp: usize,
    /// The index of the destination's queue pair.
    pub(super) peer_qp: usize,
    pub(super) imm: bool,
    pub(super) len: usize,
    /// The offset of the bytes in the slot that is written.
    pub(super) offset: usize,
    /// The offset of the bytes in the slot that they are taken from.
    pub(super) local_offset: usize,
    /// The length of the first of a send's two buffers.
    pub(super) cut: u32,
}

impl Op {
    /// Creates operation number `id`.
    pub(super) fn new(seed: u64, id: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let from = rng.usize(..NODES);
        let to = (from + rng.usize(1..NODES)) % NODES;
        let (qp, peer_qp) = (rng.usize(..2), rng.usize(..2));
        let is_wide = qp == 1;
        let kind = match rng.u8(..64) {
            0..10 => Kind::Send,
            10..16 => Kind::SendInline,
            16..18 => Kind::Bad([Bad::Rkey, Bad::Bounds, Bad::Qkey, Bad::Number][rng.usize(..4)]),
            18..24 => Kind::Datagram,
            24..30 if is_wide => Kind::WriteInline,
            24..46 => Kind::Write,
            _ => Kind::Read,
        };
        let imm = kind != Kind::Read && rng.bool();
        let most = match kind {
            Kind::Send | Kind::Datagram => MTU,
            Kind::SendInline => 32,
            Kind::WriteInline => 80,
            Kind::Write | Kind::Read if rng.u8(..) < 8 => SLOT,
            Kind::Write | Kind::Read | Kind::Bad(_) => [8, 100, MTU, 3 * MTU][rng.usize(..4)],
        };
        // A message without immediate has its number in its first eight bytes; a datagram always has.
        let least = match kind {
            Kind::Send | Kind::SendInline if !imm => 8,
            Kind::Datagram => 8,
            Kind::Bad(_) => 1,
            _ => 0,
        };
        let len = rng.usize(least..=most);
        Self {
            id,
            kind,
            from,
            to,
            qp,
            peer_qp,
            imm,
            len,
            offset: rng.usize(..=SLOT - len),
            local_offset: rng.usize(..=SLOT - len),
            cut: rng.u32(..=len as u32),
        }
    }

    /// Returns the index of the posting queue pair.
    pub(super) fn qp_index(&self) -> usize {
        if self.kind == Kind::Datagram { UD } else { self.qp }
    }

    /// Returns the index of the destination's queue pair.
    pub(super) fn peer_qp_index(&self) -> usize {
        if self.kind == Kind::Datagram { UD } else { self.peer_qp }
    }

    /// Returns `true` if the operation is from or to this queue pair.
    pub(super) fn involves(&self, node: usize, qp: usize) -> bool {
        (self.from, self.qp_index()) == (node, qp) || (self.to, self.peer_qp_index()) == (node, qp)
    }

    /// Returns `true` if the receiver gets a completion.
    pub(super) fn arrives(&self) -> bool {
        self.kind.is_send() || (self.kind.is_write() && self.imm && self.kind.status().is_ok())
    }

    /// Fills `into` with the operation's bytes.
    pub(super) fn content(&self, into: &mut Vec<u8>) {
        content(self.id, self.len, into);
    }
}

/// Fills `into` with the `len` bytes of message `id`. The first eight are its number.
pub(super) fn content(id: u64, len: usize, into: &mut Vec<u8>) {
    into.clear();
    let mut word = id;
    for _ in 0..len.div_ceil(8) {
        into.extend_from_slice(&word.to_le_bytes());
        word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(id | 1);
    }
    into.truncate(len);
}
