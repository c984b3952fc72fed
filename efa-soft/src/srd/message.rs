//! A message as its sender knows it.

use crate::wire::MessageHeader;
use efa_io::op::Bufs;
use efa_io::{LocalBuf, OpCode, Status};

/// A message to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// What its packets say.
    pub(crate) header: MessageHeader,
    /// Who learns how it ended.
    pub(crate) origin: Origin,
    /// Where its bytes come from; of a read request, where the answer's bytes go.
    pub(crate) memory: Memory,
    /// The address handle that its WQE names. An answer to a read has none.
    pub(crate) ah: Option<u16>,
    /// How often it is offered again to a receiver that is not ready; `None` means without limit.
    pub(crate) rnr_retries: Option<u32>,
    /// How often a receiver was not ready for it.
    pub(crate) refusals: u32,
}

/// The cause of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A WQE of a local queue pair. The message's end completes it.
    Wqe { qpn: u16, req_id: u64, op: OpCode },
    /// A read request of the peer, by its number at the peer, and the local queue pair that answers it.
    Response { qpn: u16, request: u32 },
}

impl Origin {
    /// Returns the number of the local queue pair.
    pub(crate) fn qpn(self) -> u16 {
        match self {
            Self::Wqe { qpn, .. } | Self::Response { qpn, .. } => qpn,
        }
    }
}

/// The place of a message's bytes.
///
/// Regions are named by their keys and looked up for every packet: a program may deregister one while the message is
/// under way.
#[derive(Clone, Debug)]
pub(crate) enum Memory {
    /// In the WQE, from which they were copied.
    Inline(Box<[u8]>),
    /// In local regions of protection domain `pd`.
    Gather { pd: u32, bufs: Bufs },
    /// In the region that the peer's read request names.
    Remote { pd: u32, rkey: u32, addr: u64 },
    /// Of a read request: they will be placed in a local region of protection domain `pd`.
    Scatter { pd: u32, buf: LocalBuf },
}

/// A message that ended, and how.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) message: Message,
    pub(crate) status: Status,
}
