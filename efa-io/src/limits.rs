//! What a send queue takes.

use crate::opcode::OpCode;

/// The limits of a send queue, which a request is checked against before its WQE is built.
///
/// The layout is fixed, since it is part of what a host hands to a GPU kernel
/// ([`SendRingHandle`](crate::SendRingHandle)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Limits {
    /// Longest send in bytes: the device's MTU.
    pub max_send_bytes: u32,
    /// Longest RDMA read or write in bytes (`max_rdma_size`); 0 where the device has no RDMA.
    pub max_rdma_bytes: u32,
    /// Longest inline message in bytes; the WQE's size limits it further.
    pub max_inline_bytes: u16,
    /// Most buffers in one send (`max_sq_sge`), at most 2.
    pub max_send_bufs: u16,
    /// The operations that the queue was created with: a sum of the constants of this type.
    pub operations: u32,
}

impl Limits {
    /// The queue does RDMA reads.
    pub const RDMA_READ: u32 = 1;
    /// The queue does RDMA writes.
    pub const RDMA_WRITE: u32 = 2;
    /// The queue does inline RDMA writes, and so has 128-byte WQEs.
    pub const INLINE_WRITE: u32 = 4;

    /// Returns the limits of a queue that does every operation, given its longest send and its longest RDMA operation
    /// in bytes.
    pub const fn of_queue(max_send_bytes: u32, max_rdma_bytes: u32) -> Self {
        Self {
            max_send_bytes,
            max_rdma_bytes,
            max_inline_bytes: 80,
            max_send_bufs: 2,
            operations: Self::RDMA_READ | Self::RDMA_WRITE | Self::INLINE_WRITE,
        }
    }

    /// Returns the longest message of this operation in bytes.
    #[inline(always)]
    pub const fn max_bytes(&self, op: OpCode) -> u32 {
        match op {
            OpCode::Send => self.max_send_bytes,
            OpCode::RdmaRead | OpCode::RdmaWrite => self.max_rdma_bytes,
        }
    }

    /// Returns the most local buffers of this operation. RDMA has exactly one.
    #[inline(always)]
    pub const fn max_bufs(&self, op: OpCode) -> usize {
        match op {
            OpCode::Send => self.max_send_bufs as usize,
            OpCode::RdmaRead | OpCode::RdmaWrite => 1,
        }
    }
}
