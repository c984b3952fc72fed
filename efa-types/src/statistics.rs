//! What a device has counted so far.

/// Counters, under the names that the kernel driver gives the hardware's (`ports/1/hw_counters`, `efa_verbs.c`), and
/// some that only software can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the hardware's names; the exceptions are documented")]
pub struct Counters {
    pub tx_bytes: u64,
    pub tx_pkts: u64,
    pub rx_bytes: u64,
    pub rx_pkts: u64,
    pub rx_drops: u64,
    pub send_bytes: u64,
    pub send_wrs: u64,
    pub recv_bytes: u64,
    pub recv_wrs: u64,
    pub rdma_read_wrs: u64,
    pub rdma_read_bytes: u64,
    pub rdma_read_wr_err: u64,
    pub rdma_read_resp_bytes: u64,
    pub rdma_write_wrs: u64,
    pub rdma_write_bytes: u64,
    pub rdma_write_wr_err: u64,
    pub rdma_write_recv_bytes: u64,
    pub retrans_bytes: u64,
    pub retrans_pkts: u64,
    pub retrans_timeout_events: u64,
    pub unresponsive_remote_events: u64,
    pub impaired_remote_conn_events: u64,
    /// Packets that arrived again and were not placed again.
    pub duplicate_pkts: u64,
    /// Packets whose checksum did not match; among `rx_drops`.
    pub corrupt_pkts: u64,
    /// Packets that did not come from the address that they give as their own, or were not sealed with the device's
    /// key; among `rx_drops`.
    pub refused_pkts: u64,
    /// Answers "receiver not ready" that this device sent.
    pub rnr_sent: u64,
    /// Acknowledgement packets sent; among `tx_pkts`.
    pub ack_pkts: u64,
}

/// What became of control calls, under the names that the kernel driver gives the hardware's (`hw_counters` of the
/// device, `efa_verbs.c`). Of its names those are missing that speak of the admin queue, of contexts and of mappings,
/// which a software device has none of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the hardware's names")]
pub struct CommandCounters {
    pub submitted_cmds: u64,
    pub completed_cmds: u64,
    pub cmds_err: u64,
    pub alloc_pd_err: u64,
    pub create_qp_err: u64,
    pub create_cq_err: u64,
    pub reg_mr_err: u64,
    pub create_ah_err: u64,
}
