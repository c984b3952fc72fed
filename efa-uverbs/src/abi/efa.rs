//! The EFA driver's additions to commands and answers: `rdma/efa-abi.h`.

use bytemuck::{Pod, Zeroable};
use static_assertions::const_assert_eq;

/// `struct efa_ibv_alloc_ucontext_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AllocUcontextResp {
    pub(crate) comp_mask: u32,
    pub(crate) cmds_supp_udata_mask: u32,
    pub(crate) sub_cqs_per_cq: u16,
    pub(crate) inline_buf_size: u16,
    /// Bytes.
    pub(crate) max_llq_size: u32,
    /// In units of 64 bytes.
    pub(crate) max_tx_batch: u16,
    pub(crate) min_sq_wr: u16,
    pub(crate) inline_buf_size_ex: u16,
    pub(crate) reserved_b0: [u8; 2],
}
const_assert_eq!(size_of::<AllocUcontextResp>(), 24);

/// Flag: queries of the device answer with [`QueryDeviceResp`].
pub(crate) const SUPP_UDATA_QUERY_DEVICE: u32 = 1 << 0;
/// Flag: commands that create address handles answer with [`CreateAhResp`].
pub(crate) const SUPP_UDATA_CREATE_AH: u32 = 1 << 1;

/// `struct efa_ibv_alloc_pd_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AllocPdResp {
    pub(crate) comp_mask: u32,
    pub(crate) pdn: u16,
    pub(crate) reserved_30: [u8; 2],
}

/// `struct efa_ibv_create_cq`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateCq {
    pub(crate) comp_mask: u32,
    pub(crate) cq_entry_size: u32,
    pub(crate) num_sub_cqs: u16,
    pub(crate) flags: u8,
    pub(crate) reserved_58: [u8; 5],
}
const_assert_eq!(size_of::<CreateCq>(), 16);

/// Flag: the queue has a completion channel.
pub(crate) const CQ_WITH_COMPLETION_CHANNEL: u8 = 1 << 0;
/// Flag: completions of receives from peers without an address handle contain the peer's GID.
pub(crate) const CQ_WITH_SGID: u8 = 1 << 1;
/// Flag: completions of send queues contain 64-bit request ids.
pub(crate) const CQ_WITH_64_BIT_REQ_ID: u8 = 1 << 2;

/// The answer to [`CreateCq`] (`struct efa_ibv_create_cq_resp`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateCqResp {
    pub(crate) comp_mask: u32,
    pub(crate) reserved_20: [u8; 4],
    pub(crate) q_mmap_key: u64,
    pub(crate) q_mmap_size: u64,
    pub(crate) cq_idx: u16,
    pub(crate) reserved_d0: [u8; 2],
    pub(crate) db_off: u32,
    pub(crate) db_mmap_key: u64,
}
const_assert_eq!(size_of::<CreateCqResp>(), 40);

/// Flag: the doorbell's offset is valid.
pub(crate) const CQ_RESP_DB_OFF: u32 = 1 << 0;

/// `struct efa_ibv_create_qp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateQp {
    pub(crate) comp_mask: u32,
    /// Bytes.
    pub(crate) rq_ring_size: u32,
    /// Bytes.
    pub(crate) sq_ring_size: u32,
    pub(crate) driver_qp_type: u32,
    pub(crate) flags: u16,
    pub(crate) sl: u8,
    pub(crate) reserved_98: [u8; 5],
}
const_assert_eq!(size_of::<CreateQp>(), 24);

/// Flag: incoming writes with immediate consume no receive.
pub(crate) const QP_WITH_UNSOLICITED_WRITE_RECV: u16 = 1 << 0;
/// Flag: request ids of the send queue have 64 bits.
pub(crate) const QP_WITH_64_BIT_REQ_ID: u16 = 1 << 1;
/// The only driver type of queue pairs: SRD.
pub(crate) const DRIVER_QP_TYPE_SRD: u32 = 0;

/// The answer to [`CreateQp`] (`struct efa_ibv_create_qp_resp`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateQpResp {
    pub(crate) comp_mask: u32,
    pub(crate) rq_db_offset: u32,
    pub(crate) sq_db_offset: u32,
    pub(crate) llq_desc_offset: u32,
    pub(crate) rq_mmap_key: u64,
    pub(crate) rq_mmap_size: u64,
    pub(crate) rq_db_mmap_key: u64,
    pub(crate) sq_db_mmap_key: u64,
    pub(crate) llq_desc_mmap_key: u64,
    pub(crate) send_sub_cq_idx: u16,
    pub(crate) recv_sub_cq_idx: u16,
    pub(crate) reserved_1e0: [u8; 4],
}
const_assert_eq!(size_of::<CreateQpResp>(), 64);

/// `struct efa_ibv_create_ah_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CreateAhResp {
    pub(crate) comp_mask: u32,
    pub(crate) efa_address_handle: u16,
    pub(crate) reserved_30: [u8; 2],
}

/// `struct efa_ibv_ex_query_device_resp`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryDeviceResp {
    pub(crate) comp_mask: u32,
    pub(crate) max_sq_wr: u32,
    pub(crate) max_rq_wr: u32,
    pub(crate) max_sq_sge: u16,
    pub(crate) max_rq_sge: u16,
    pub(crate) max_rdma_size: u32,
    pub(crate) device_caps: u32,
}
const_assert_eq!(size_of::<QueryDeviceResp>(), 24);

/// Bits of `device_caps`.
pub(crate) mod caps {
    pub(crate) const RDMA_READ: u32 = 1 << 0;
    pub(crate) const RNR_RETRY: u32 = 1 << 1;
    pub(crate) const CQ_NOTIFICATIONS: u32 = 1 << 2;
    pub(crate) const CQ_WITH_SGID: u32 = 1 << 3;
    pub(crate) const RDMA_WRITE: u32 = 1 << 5;
    pub(crate) const UNSOLICITED_WRITE_RECV: u32 = 1 << 6;
    pub(crate) const CQ_WITH_EXT_MEM: u32 = 1 << 7;
    pub(crate) const COMP_CNTR: u32 = 1 << 8;
    pub(crate) const SQ_64_BIT_REQ_ID: u32 = 1 << 9;
}

/// The numbers of object and method of the driver's own query of a region.
pub(crate) const MR_QUERY: (u16, u16) = (7, super::ioctl::DRIVER);
/// The attributes of that query: the region, a mask of the valid answers, and the interconnects of receives, RDMA reads
/// and incoming RDMA.
pub(crate) const MR_QUERY_ATTRS: [u16; 5] = {
    let first = super::ioctl::DRIVER;
    [first, first + 1, first + 2, first + 3, first + 4]
};
/// The attributes of a new completion counter: the locations of its two numbers ([`super::verbs::BufferDesc`]).
pub(crate) const COMP_CNTR_BUFFERS: [u16; 2] = [super::ioctl::DRIVER, super::ioctl::DRIVER + 1];
