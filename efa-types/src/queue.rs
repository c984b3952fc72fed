//! The attributes that queues are created with, and the states of a queue pair.

/// The state of a queue pair. (Those that EFA has; InfiniBand has more.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// The state after creation.
    Reset,
    /// Receives can be posted; no message is received.
    Init,
    /// Messages are received.
    ReadyToReceive,
    /// Messages are received and sent.
    ReadyToSend,
    /// All outstanding requests are flushed, and so are those posted from now on.
    Error,
}

impl QpState {
    /// Returns `true` if libibverbs allows this change of state.
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

/// Number of bytes in front of every received datagram. The completion's length includes them.
///
/// InfiniBand has its global routing header there. The contents on EFA are not documented; those of the software device
/// are 0. (Sources: libfabric's `msg_prefix_size` for `efa` datagrams, UCX's `UCT_IB_GRH_LEN`, perftest.)
pub const UD_PREFIX: u32 = 40;

/// The attributes that a queue pair is created with. The default is an SRD queue pair of protection domain and
/// completion queues 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct QpAttributes {
    /// The transport.
    pub transport: Transport,
    /// The number of its protection domain at the device.
    pub pd: u32,
    /// The number of the completion queue for sends at the device.
    pub send_cq: u32,
    /// The number of the completion queue for receives at the device.
    pub recv_cq: u32,
    /// Most outstanding sends; the device rounds it up to a power of two.
    pub send_entries: u32,
    /// Most outstanding receives.
    pub recv_entries: u32,
    /// Most buffers of a receive.
    pub recv_sge: u16,
    /// Longest inline message in bytes; over 32 asks for 128-byte WQEs.
    pub inline_bytes: u16,
    /// `true` for inline RDMA writes, which need 128-byte WQEs.
    pub inline_write: bool,
    /// `true` if writes with immediate shall consume no receive descriptor.
    pub unsolicited_write_recv: bool,
    /// How often a message is offered again to a receiver that is not ready: 0 to 6 times, or 7 for no limit. `None`
    /// leaves it to the device, which has no limit by default (`EFA_RNR_INFINITE_RETRY`).
    pub rnr_retry: Option<u8>,
}

/// The size of a completion entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CqeSize {
    /// 16 bytes.
    Small = 16,
    /// 32 bytes, which libefa always asks for.
    #[default]
    Large = 32,
}

/// The attributes that a completion queue is created with.
#[derive(Clone, Copy, Debug)]
pub struct CqAttributes {
    /// Number of entries; the device rounds it up to a power of two.
    pub entries: u32,
    /// The size of an entry.
    pub entry_size: CqeSize,
    /// `true` if programs shall be able to wait for events: the queue has a doorbell that arms them.
    pub events: bool,
}
