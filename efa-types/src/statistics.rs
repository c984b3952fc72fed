//! The statistics that a device counts.

/// Counters of traffic, by the names that the kernel driver gives the hardware's (`ports/1/hw_counters`,
/// `efa_verbs.c`), and some that only software can see.
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
    /// Packets that arrived again, whose bytes were not placed again.
    pub duplicate_pkts: u64,
    /// Packets with a wrong checksum; included in `rx_drops`.
    pub corrupt_pkts: u64,
    /// Packets that did not come from the address that they name as their source, or were not sealed with the device's
    /// key; included in `rx_drops`.
    pub refused_pkts: u64,
    /// Answers "receiver not ready" that this device sent.
    pub rnr_sent: u64,
    /// Acknowledgement packets sent; included in `tx_pkts`.
    pub ack_pkts: u64,
}

/// Counters of control calls, by the names that the kernel driver gives the hardware's (`hw_counters` of the device,
/// `efa_verbs.c`). Missing are those that count what a software device does not have: the admin queue, contexts and
/// mappings.
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
