//! What queues are created with, and the states of a queue pair.

/// The states of a queue pair that EFA knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// Just created.
    Reset,
    /// Receives may be posted.
    Init,
    /// Messages are received.
    ReadyToReceive,
    /// Messages are received and sent.
    ReadyToSend,
    /// Everything outstanding is flushed, and so is everything posted from here on.
    Error,
}

impl QpState {
    /// Returns `true` if verbs allows this change of state.
    pub fn can_become(self, to: Self) -> bool {
        use QpState::*;
        matches!(
            (self, to),
            (Reset, Init)
                | (Init, Init | ReadyToReceive)
                | (ReadyToReceive | ReadyToSend, ReadyToSend)
                | (_, Error)
                | (_, Reset)
        )
    }

    /// Returns `true` if messages are received in this state.
    pub fn receives(self) -> bool {
        matches!(self, Self::ReadyToReceive | Self::ReadyToSend)
    }
}

/// The transport of a queue pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Scalable reliable datagrams: sends and RDMA. Each message arrives exactly once, in any order.
    #[default]
    Srd,
    /// Unreliable datagrams: sends of one packet each, which may be lost. A send completes once it has left. A
    /// receive's buffers begin with [`UD_PREFIX`] bytes that are not part of the message.
    Ud,
}

/// Bytes in front of every received datagram; the completion's length counts them.
///
/// InfiniBand has a global routing header there. EFA's contents are not documented; the software device's are zero.
/// (libfabric's `msg_prefix_size` for `efa` datagrams, UCX's `UCT_IB_GRH_LEN`, perftest.)
pub const UD_PREFIX: u32 = 40;

/// What a queue pair is created with. The default is an SRD queue pair of protection domain and completion queues 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct QpAttributes {
    /// The transport.
    pub transport: Transport,
    /// Protection domain, by its device's number.
    pub pd: u32,
    /// The completion queue of sends, by its device's number.
    pub send_cq: u32,
    /// The completion queue of receives, by its device's number.
    pub recv_cq: u32,
    /// Most outstanding sends; rounded up to a power of two.
    pub send_entries: u32,
    /// Most outstanding receives.
    pub recv_entries: u32,
    /// Most buffers of a receive.
    pub recv_sge: u16,
    /// Longest inline message in bytes; over 32 asks for 128-byte WQEs.
    pub inline_bytes: u16,
    /// Inline RDMA writes; asks for 128-byte WQEs.
    pub inline_write: bool,
    /// Writes with immediate consume no receive descriptor.
    pub unsolicited_write_recv: bool,
    /// How often a message is offered again to a receiver that is not ready: 0 to 6 times, or 7 for no limit. `None`
    /// leaves it to the device, which is no limit as well (`EFA_RNR_INFINITE_RETRY`).
    pub rnr_retry: Option<u8>,
}

/// Bytes of a completion entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CqeSize {
    /// 16 bytes.
    Small = 16,
    /// 32 bytes, which libefa always asks for.
    #[default]
    Large = 32,
}

/// What a completion queue is created with.
#[derive(Clone, Copy, Debug)]
pub struct CqAttributes {
    /// Entries; rounded up to a power of two.
    pub entries: u32,
    /// Bytes of an entry.
    pub entry_size: CqeSize,
    /// A program can wait for events: the queue has a doorbell that arms them.
    pub events: bool,
}
