//! What a software device can do, and how patient it is.

use crate::Gid;
use crate::error::ControlError;
use crate::wire::MIN_STRIDE;
use std::time::Duration;

/// Limits, capabilities and timing of a device.
///
/// The default resembles a current device. Where no public figure exists the value is *assumed*, and says so.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's address.
    pub gid: Gid,
    /// Distinguishes this life of the device from earlier ones at the same address; must grow from life to life.
    pub incarnation: u64,
    /// Seed of everything that is random: keys, scheduling.
    pub seed: u64,

    /// Payload bytes of a packet, and so the longest send. About 8 KiB on EFA (fi_efa(7)); exact value assumed.
    pub mtu: u32,
    /// Longest RDMA operation in bytes: 1 GiB on current devices.
    pub max_rdma_bytes: u32,
    /// Bytes of the longest send ring (`max_llq_size`); assumed: 4096 WQEs of 64 bytes, as NCCL's notes allow.
    pub max_sq_bytes: u32,
    /// Most receive descriptors of a queue pair; assumed.
    pub max_rq_descs: u32,
    /// Most buffers in a send: 2.
    pub max_sq_sge: u16,
    /// Most buffers in a receive; assumed.
    pub max_rq_sge: u16,
    /// Longest inline message of a queue with 64-byte WQEs.
    pub inline_bytes: u16,
    /// Longest inline message of any queue (`inline_buf_size_ex`): over 32 means 128-byte WQEs exist.
    pub inline_bytes_ex: u16,
    /// Most WQEs between two doorbells, in units of 64 bytes (`max_tx_batch`); assumed.
    pub max_tx_batch: u16,
    /// Most entries of a completion queue; assumed.
    pub max_cqe: u32,
    /// Most queue pairs, a power of two; assumed.
    pub max_qp: u32,
    /// Most completion queues; assumed.
    pub max_cq: u32,
    /// Most memory regions; assumed.
    pub max_mr: u32,
    /// Most protection domains; assumed.
    pub max_pd: u32,
    /// Most address handles; assumed.
    pub max_ah: u32,
    /// Most completion counters; assumed.
    pub max_counters: u32,
    /// Sub-queues of a completion queue (`sub_cqs_per_cq`); assumed to be 1 on current devices.
    pub sub_cqs: u16,

    /// RDMA read works.
    pub rdma_read: bool,
    /// RDMA write works.
    pub rdma_write: bool,
    /// A queue pair may ask that writes with immediate consume no receive descriptor.
    pub unsolicited_write_recv: bool,
    /// Send queues carry 64-bit request ids.
    pub req_id_64: bool,
    /// Packets to this device's own address are delivered. EFA does not deliver them.
    pub loopback: bool,

    /// Paths that packets to a peer are spread over; assumed.
    pub paths: u8,
    /// Retransmission timeout before anything was measured.
    pub initial_rto: Duration,
    /// Shortest retransmission timeout.
    pub min_rto: Duration,
    /// Longest retransmission timeout.
    pub max_rto: Duration,
    /// How long a peer may stay silent before what is outstanding towards it fails.
    pub peer_timeout: Duration,
    /// Pause before a message is offered again to a receiver that was not ready; grows with every time. Assumed.
    pub rnr_delay: Duration,
}

impl DeviceConfig {
    /// Whether a device can be like this.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<(), ControlError> {
        let check = |what, value: u64, good: bool, expected| {
            if good { Ok(()) } else { Err(ControlError::Invalid { what, value, expected }) }
        };
        let mtu = u64::from(self.mtu);
        check("mtu", mtu, (u64::from(MIN_STRIDE)..=60_000).contains(&mtu), "64 to 60000 bytes")?;
        check("incarnation", self.incarnation, self.incarnation != 0, "a positive number")?;
        check("max_sq_bytes", self.max_sq_bytes.into(), self.max_sq_bytes >= 128, "room for a WQE of 128 bytes")?;
        check("max_tx_batch", self.max_tx_batch.into(), self.max_tx_batch >= 2, "room for a WQE of 128 bytes")?;
        check("max_qp", self.max_qp.into(), (1..=1 << 14).contains(&self.max_qp), "1 to 16384")?;
        check("max_cqe", self.max_cqe.into(), self.max_cqe.is_power_of_two(), "a power of two")?;
        check("sub_cqs", self.sub_cqs.into(), (1..=64).contains(&self.sub_cqs), "1 to 64")?;
        check("paths", self.paths.into(), (1..=64).contains(&self.paths), "1 to 64")?;
        check("min_rto", self.min_rto.as_nanos() as u64, !self.min_rto.is_zero(), "a positive time")
    }

    /// A device at `gid`.
    pub fn new(gid: Gid) -> Self {
        Self {
            gid,
            incarnation: 1,
            seed: 1,
            mtu: 8192,
            max_rdma_bytes: 1 << 30,
            max_sq_bytes: 4096 * 64,
            max_rq_descs: 32768,
            max_sq_sge: 2,
            max_rq_sge: 3,
            inline_bytes: 32,
            inline_bytes_ex: 80,
            max_tx_batch: 64,
            max_cqe: 32768,
            max_qp: 512,
            max_cq: 512,
            max_mr: 65536,
            max_pd: 256,
            max_ah: 32768,
            max_counters: 1024,
            sub_cqs: 1,
            rdma_read: true,
            rdma_write: true,
            unsolicited_write_recv: true,
            req_id_64: false,
            loopback: false,
            paths: 4,
            initial_rto: Duration::from_millis(20),
            min_rto: Duration::from_millis(1),
            max_rto: Duration::from_millis(500),
            peer_timeout: Duration::from_secs(5),
            rnr_delay: Duration::from_micros(200),
        }
    }
}
