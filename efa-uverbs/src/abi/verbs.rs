//! The structures in commands and answers: `rdma/ib_user_verbs.h` and `rdma/ib_user_ioctl_verbs.h`.

use bytemuck::{Pod, Zeroable};
use static_assertions::const_assert_eq;

/// The names of the older interface's commands by number (`enum ib_uverbs_write_cmds`).
pub(crate) const WRITE_COMMANDS: [&str; 41] = [
    "GET_CONTEXT",
    "QUERY_DEVICE",
    "QUERY_PORT",
    "ALLOC_PD",
    "DEALLOC_PD",
    "CREATE_AH",
    "MODIFY_AH",
    "QUERY_AH",
    "DESTROY_AH",
    "REG_MR",
    "REG_SMR",
    "REREG_MR",
    "QUERY_MR",
    "DEREG_MR",
    "ALLOC_MW",
    "BIND_MW",
    "DEALLOC_MW",
    "CREATE_COMP_CHANNEL",
    "CREATE_CQ",
    "RESIZE_CQ",
    "DESTROY_CQ",
    "POLL_CQ",
    "PEEK_CQ",
    "REQ_NOTIFY_CQ",
    "CREATE_QP",
    "QUERY_QP",
    "MODIFY_QP",
    "DESTROY_QP",
    "POST_SEND",
    "POST_RECV",
    "ATTACH_MCAST",
    "DETACH_MCAST",
    "CREATE_SRQ",
    "MODIFY_SRQ",
    "QUERY_SRQ",
    "DESTROY_SRQ",
    "POST_SRQ_RECV",
    "OPEN_XRCD",
    "CLOSE_XRCD",
    "CREATE_XSRQ",
    "OPEN_QP",
];
/// The bit that marks extended commands. They have the numbers from 50 on and some of the older ones.
pub(crate) const EXTENDED: u32 = 0x8000_0000;

/// The numbers of the older interface's commands that an EFA supports.
pub(crate) mod command {
    use super::EXTENDED;
    pub(crate) const QUERY_DEVICE: u32 = 1;
    pub(crate) const QUERY_PORT: u32 = 2;
    pub(crate) const ALLOC_PD: u32 = 3;
    pub(crate) const CREATE_AH: u32 = 5;
    pub(crate) const REG_MR: u32 = 9;
    pub(crate) const CREATE_COMP_CHANNEL: u32 = 17;
    pub(crate) const QUERY_QP: u32 = 25;
    pub(crate) const MODIFY_QP: u32 = 26;
    pub(crate) const EX_QUERY_DEVICE: u32 = EXTENDED | QUERY_DEVICE;
}

/// Flag: the kernel accepts access flags that a driver may ignore (`IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS`).
pub(crate) const CORE_SUPPORT_OPTIONAL_MR_ACCESS: u64 = 1 << 0;

/// `struct ib_uverbs_query_device_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryDeviceResp {
    pub(crate) fw_ver: u64,
    /// In network order, as `sys_image_guid` is.
    pub(crate) node_guid: u64,
    pub(crate) sys_image_guid: u64,
    pub(crate) max_mr_size: u64,
    pub(crate) page_size_cap: u64,
    pub(crate) vendor_id: u32,
    pub(crate) vendor_part_id: u32,
    pub(crate) hw_ver: u32,
    pub(crate) max_qp: u32,
    pub(crate) max_qp_wr: u32,
    pub(crate) device_cap_flags: u32,
    pub(crate) max_sge: u32,
    pub(crate) max_sge_rd: u32,
    pub(crate) max_cq: u32,
    pub(crate) max_cqe: u32,
    pub(crate) max_mr: u32,
    pub(crate) max_pd: u32,
    /// Attributes of atomics, memory windows, multicast and other features that an EFA does not have: zeros.
    pub(crate) none: [u32; 14],
    pub(crate) max_ah: u32,
    /// Attributes of shared receive queues and other features that an EFA does not have: zeros.
    pub(crate) none_either: [u32; 5],
    pub(crate) max_pkeys: u16,
    pub(crate) local_ca_ack_delay: u8,
    pub(crate) phys_port_cnt: u8,
    pub(crate) reserved: [u8; 4],
}
const_assert_eq!(size_of::<QueryDeviceResp>(), 176);

/// `struct ib_uverbs_ex_query_device_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ExQueryDeviceResp {
    pub(crate) base: QueryDeviceResp,
    pub(crate) comp_mask: u32,
    pub(crate) response_length: u32,
    /// Attributes of on-demand paging, timestamps, steering, tag matching and device memory: zeros.
    pub(crate) none: [u64; 15],
}
const_assert_eq!(size_of::<ExQueryDeviceResp>(), 304);

/// `struct ib_uverbs_query_port`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryPort {
    pub(crate) response: u64,
    pub(crate) port_num: u8,
    pub(crate) reserved: [u8; 7],
}

/// `struct ib_uverbs_query_port_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryPortResp {
    pub(crate) port_cap_flags: u32,
    pub(crate) max_msg_sz: u32,
    pub(crate) bad_pkey_cntr: u32,
    pub(crate) qkey_viol_cntr: u32,
    pub(crate) gid_tbl_len: u32,
    pub(crate) pkey_tbl_len: u16,
    pub(crate) lid: u16,
    pub(crate) sm_lid: u16,
    pub(crate) state: u8,
    pub(crate) max_mtu: u8,
    pub(crate) active_mtu: u8,
    pub(crate) lmc: u8,
    pub(crate) max_vl_num: u8,
    pub(crate) sm_sl: u8,
    pub(crate) subnet_timeout: u8,
    pub(crate) init_type_reply: u8,
    pub(crate) active_width: u8,
    pub(crate) active_speed: u8,
    pub(crate) phys_state: u8,
    pub(crate) link_layer: u8,
    pub(crate) flags: u8,
    pub(crate) reserved: u8,
}
const_assert_eq!(size_of::<QueryPortResp>(), 40);

/// `struct ib_uverbs_query_port_resp_ex`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryPortRespEx {
    pub(crate) legacy_resp: QueryPortResp,
    pub(crate) port_cap_flags2: u16,
    pub(crate) reserved: [u8; 2],
    pub(crate) active_speed_ex: u32,
}
const_assert_eq!(size_of::<QueryPortRespEx>(), 48);

/// `struct ib_uverbs_gid_entry`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GidEntry {
    pub(crate) gid: [u8; 16],
    pub(crate) gid_index: u32,
    pub(crate) port_num: u32,
    pub(crate) gid_type: u32,
    pub(crate) netdev_ifindex: u32,
}
const_assert_eq!(size_of::<GidEntry>(), 32);

/// `struct ib_uverbs_reg_mr`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RegMr {
    pub(crate) response: u64,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) hca_va: u64,
    pub(crate) pd_handle: u32,
    pub(crate) access_flags: u32,
}
const_assert_eq!(size_of::<RegMr>(), 40);

/// `struct ib_uverbs_reg_mr_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RegMrResp {
    pub(crate) mr_handle: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// The access flags of memory regions (`enum ib_uverbs_access_flags`).
pub(crate) mod access {
    pub(crate) const LOCAL_WRITE: u32 = 1 << 0;
    pub(crate) const REMOTE_WRITE: u32 = 1 << 1;
    pub(crate) const REMOTE_READ: u32 = 1 << 2;
    /// The flags that a driver may ignore (`IB_UVERBS_ACCESS_OPTIONAL_RANGE`).
    pub(crate) const OPTIONAL: u32 = 0x3ff0_0000;
}

/// `struct ib_uverbs_create_ah`, with its `ib_uverbs_ah_attr`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateAh {
    pub(crate) response: u64,
    pub(crate) user_handle: u64,
    pub(crate) pd_handle: u32,
    pub(crate) reserved: u32,
    pub(crate) dgid: [u8; 16],
    pub(crate) flow_label: u32,
    pub(crate) sgid_index: u8,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    pub(crate) grh_reserved: u8,
    pub(crate) dlid: u16,
    pub(crate) sl: u8,
    pub(crate) src_path_bits: u8,
    pub(crate) static_rate: u8,
    pub(crate) is_global: u8,
    pub(crate) port_num: u8,
    pub(crate) attr_reserved: u8,
}
const_assert_eq!(size_of::<CreateAh>(), 56);

/// `struct ib_uverbs_qp_cap`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QpCap {
    pub(crate) max_send_wr: u32,
    pub(crate) max_recv_wr: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline_data: u32,
}

/// The types of queue pairs (`enum ib_uverbs_qp_type`).
pub(crate) mod qp_type {
    pub(crate) const UD: u64 = 4;
    pub(crate) const DRIVER: u64 = 0xff;
}

/// Flag of new queue pairs: every send has a completion (`IB_UVERBS_QP_CREATE_SQ_SIG_ALL`). An EFA does this anyway.
pub(crate) const QP_CREATE_SQ_SIG_ALL: u64 = 1 << 12;

/// `struct ib_uverbs_modify_qp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ModifyQp {
    /// The primary and the alternate path of connected queue pairs, which an EFA does not have.
    pub(crate) dest: [[u32; 8]; 2],
    pub(crate) qp_handle: u32,
    pub(crate) attr_mask: u32,
    pub(crate) qkey: u32,
    pub(crate) rq_psn: u32,
    pub(crate) sq_psn: u32,
    pub(crate) dest_qp_num: u32,
    pub(crate) qp_access_flags: u32,
    pub(crate) pkey_index: u16,
    pub(crate) alt_pkey_index: u16,
    pub(crate) qp_state: u8,
    pub(crate) cur_qp_state: u8,
    pub(crate) path_mtu: u8,
    pub(crate) path_mig_state: u8,
    pub(crate) en_sqd_async_notify: u8,
    pub(crate) max_rd_atomic: u8,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) min_rnr_timer: u8,
    pub(crate) port_num: u8,
    pub(crate) timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) alt_port_num: u8,
    pub(crate) alt_timeout: u8,
    pub(crate) reserved: [u8; 2],
}
const_assert_eq!(size_of::<ModifyQp>(), 112);

/// `struct ib_uverbs_query_qp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryQp {
    pub(crate) response: u64,
    pub(crate) qp_handle: u32,
    pub(crate) attr_mask: u32,
}

/// `struct ib_uverbs_query_qp_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryQpResp {
    pub(crate) dest: [[u32; 8]; 2],
    pub(crate) cap: [u32; 5],
    pub(crate) qkey: u32,
    pub(crate) rq_psn: u32,
    pub(crate) sq_psn: u32,
    pub(crate) dest_qp_num: u32,
    pub(crate) qp_access_flags: u32,
    pub(crate) pkey_index: u16,
    pub(crate) alt_pkey_index: u16,
    pub(crate) qp_state: u8,
    pub(crate) cur_qp_state: u8,
    pub(crate) path_mtu: u8,
    pub(crate) path_mig_state: u8,
    pub(crate) sq_draining: u8,
    pub(crate) max_rd_atomic: u8,
    pub(crate) max_dest_rd_atomic: u8,
    pub(crate) min_rnr_timer: u8,
    pub(crate) port_num: u8,
    pub(crate) timeout: u8,
    pub(crate) retry_cnt: u8,
    pub(crate) rnr_retry: u8,
    pub(crate) alt_port_num: u8,
    pub(crate) alt_timeout: u8,
    pub(crate) sq_sig_all: u8,
    pub(crate) reserved: [u8; 5],
}
const_assert_eq!(size_of::<QueryQpResp>(), 128);

/// The bits of `attr_mask` that an EFA supports (`enum ib_qp_attr_mask`).
pub(crate) mod qp_attr {
    pub(crate) const STATE: u32 = 1 << 0;
    pub(crate) const CUR_STATE: u32 = 1 << 1;
    pub(crate) const EN_SQD_ASYNC_NOTIFY: u32 = 1 << 2;
    pub(crate) const PKEY_INDEX: u32 = 1 << 4;
    pub(crate) const PORT: u32 = 1 << 5;
    pub(crate) const QKEY: u32 = 1 << 6;
    pub(crate) const RNR_RETRY: u32 = 1 << 11;
    pub(crate) const SQ_PSN: u32 = 1 << 16;
    pub(crate) const CAP: u32 = 1 << 19;
}

/// Memory that a program lends (`struct ib_uverbs_buffer_desc`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BufferDesc {
    pub(crate) kind: u32,
    pub(crate) fd: i32,
    pub(crate) flags: u32,
    pub(crate) optional_flags: u32,
    /// The address, or the offset in the DMA-BUF in bytes.
    pub(crate) addr: u64,
    /// The length in bytes.
    pub(crate) length: u64,
}
const_assert_eq!(size_of::<BufferDesc>(), 32);

/// The kind of a buffer in a DMA-BUF.
pub(crate) const BUFFER_DMABUF: u32 = 0;
/// The kind of a buffer in the program's memory.
pub(crate) const BUFFER_VA: u32 = 1;

/// `struct ib_uverbs_destroy_cq_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DestroyCqResp {
    pub(crate) comp_events_reported: u32,
    pub(crate) async_events_reported: u32,
}
