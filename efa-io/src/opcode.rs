//! The operations' numbers.

use core::fmt;

/// The operation of a send WQE or a completion (`enum efa_io_send_op_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// A message that consumes a receive descriptor at the destination.
    Send = 0,
    /// Fetches remote memory.
    RdmaRead = 1,
    /// Places bytes in remote memory.
    RdmaWrite = 2,
}

impl OpCode {
    /// Returns the operation with this number, or `None`: 3 to 15 are not assigned.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Send),
            1 => Some(Self::RdmaRead),
            2 => Some(Self::RdmaWrite),
            _ => None,
        }
    }
}

impl fmt::Display for OpCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Send => "send",
            Self::RdmaRead => "RDMA read",
            Self::RdmaWrite => "RDMA write",
        })
    }
}
