//! The attributes of a device.

use crate::Gid;

/// The attributes that a device reports about itself (`ibv_query_device`, `ibv_query_port`, `efadv_query_device`).
///
/// The default has no features and all limits 0: a provider fills in those of its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceAttributes {
    /// The device's address.
    pub gid: Gid,
    /// Longest send in bytes: the device's MTU, that is the most payload of a packet.
    pub mtu: u32,
    /// Longest RDMA operation in bytes: 1 GiB on current devices (`max_rdma_size`).
    pub max_rdma_bytes: u32,
    /// Longest inline message in bytes on a queue pair with 64-byte WQEs (`inline_buf_size`).
    pub inline_bytes: u16,
    /// Longest inline message in bytes on any queue pair (`inline_buf_size_ex`): over 32 means that 128-byte WQEs
    /// exist.
    pub inline_bytes_ex: u16,
    /// Most buffers in a send: 2 on current devices.
    pub max_sq_sge: u16,
    /// Most buffers in a receive.
    pub max_rq_sge: u16,
    /// Most queue pairs.
    pub max_qp: u32,
    /// Most entries of a completion queue.
    pub max_cqe: u32,
    /// Most completion counters; 0 if the device has none.
    pub max_counters: u32,
    /// `true` if the device has RDMA reads.
    pub rdma_read: bool,
    /// `true` if the device has RDMA writes.
    pub rdma_write: bool,
    /// `true` if a queue pair can let writes with immediate consume no receive descriptor.
    pub unsolicited_write_recv: bool,
}
