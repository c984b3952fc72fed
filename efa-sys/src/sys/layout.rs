//! Compile-time checks of the sizes and offsets of structures that are passed to the libraries, on every architecture.
//!
//! The `efadv` structures grow at their end, and every call that takes one also takes its size. An older library
//! ignores the newer fields, or refuses the call if they are not zero. So the older fields must keep their offsets. The
//! numbers were compared with the headers of rdma-core 60 to 65.

use super::*;
use static_assertions::const_assert_eq;
use std::mem::offset_of;

// As in rdma-core 60 and every release since.
const_assert_eq!(size_of::<efadv_device_attr>(), 32);
const_assert_eq!(size_of::<efadv_ah_attr>(), 16);
const_assert_eq!(size_of::<efadv_wq_attr>(), 40);
const_assert_eq!(size_of::<efadv_cq_attr>(), 32);
const_assert_eq!(size_of::<efadv_cq_init_attr>(), 56);
const_assert_eq!(size_of::<efadv_mr_attr>(), 16);
const_assert_eq!(offset_of!(efadv_qp_init_attr, wr_flags), 16);

// Newer: the end of `efadv_qp_init_attr` came with release 64, depths with 63, counters with 65.
const_assert_eq!(size_of::<efadv_qp_init_attr>(), 24);
const_assert_eq!(size_of::<efadv_sq_depth_attr>(), 24);
const_assert_eq!(size_of::<efadv_rq_depth_attr>(), 16);
const_assert_eq!(size_of::<efadv_memory_location>(), 32);
const_assert_eq!(size_of::<efadv_comp_cntr_init_attr>(), 80);

// Fields that took the place of reserved ones.
const_assert_eq!(offset_of!(efadv_device_attr, inline_buf_size_ex), 22);
const_assert_eq!(offset_of!(efadv_wq_attr, caps), 36);

// libibverbs' own structures, whose sizes are not passed.
const_assert_eq!(size_of::<ibv_gid>(), 16);
const_assert_eq!(size_of::<ibv_wc>(), 48);
const_assert_eq!(size_of::<ibv_sge>(), 16);
const_assert_eq!(size_of::<ibv_recv_wr>(), 32);
const_assert_eq!(size_of::<ibv_send_wr>(), 128);
const_assert_eq!(size_of::<ibv_ah_attr>(), 32);
const_assert_eq!(size_of::<ibv_qp_attr>(), 144);
const_assert_eq!(size_of::<ibv_qp_init_attr>(), 64);
const_assert_eq!(size_of::<ibv_qp_init_attr_ex>(), 136);
const_assert_eq!(size_of::<ibv_cq_init_attr_ex>(), 56);
const_assert_eq!(size_of::<ibv_device_attr>(), 232);
const_assert_eq!(size_of::<ibv_port_attr>(), 56);
const_assert_eq!(size_of::<ibv_async_event>(), 16);
const_assert_eq!(size_of::<ibv_comp_cntr_init_attr>(), 12);
const_assert_eq!(size_of::<ibv_qp_attach_comp_cntr_attr>(), 8);
const_assert_eq!(size_of::<ibv_comp_cntr_caps>(), 16);
