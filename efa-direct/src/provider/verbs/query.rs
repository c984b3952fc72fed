//! What a device reports about itself.

use efa_sys::Context;
use efa_sys::sys::*;
use efa_types::{DeviceAttributes, Gid};

/// The only port of an EFA device.
pub(super) const PORT: u8 = 1;

/// A device's answers to queries about itself.
pub(super) struct DeviceQuery {
    pub(super) device: ibv_device_attr,
    pub(super) efa: efadv_device_attr,
    pub(super) port: ibv_port_attr,
    pub(super) gid: Gid,
}

impl DeviceQuery {
    /// Queries a device.
    pub(super) fn of(context: &Context) -> Result<Self, efa_sys::Error> {
        let efa = context.query_efa()?;
        // Without these functions the rings cannot be found, so a library without them is refused here.
        let libefa = context.libraries().efa()?;
        libefa.efadv_query_qp_wqs()?;
        libefa.efadv_query_cq()?;
        Ok(Self {
            efa,
            device: context.query_device()?.orig_attr,
            port: context.query_port(PORT)?,
            gid: Gid(context.query_gid(PORT, 0)?),
        })
    }

    /// Returns `true` if the device has this capability (`EFADV_DEVICE_ATTR_CAPS_…`).
    pub(super) fn has_capability(&self, capability: u32) -> bool {
        self.efa.device_caps & capability != 0
    }

    /// Converts the answers into the attributes that all providers report.
    pub(super) fn attributes(&self, context: &Context) -> DeviceAttributes {
        let Self { device, efa, port, gid } = self;
        let max_counters = if self.has_capability(EFADV_DEVICE_ATTR_CAPS_COMP_CNTR) {
            context.comp_cntr_caps().map_or(0, |caps| caps.max_counters)
        } else {
            0
        };
        DeviceAttributes {
            gid: *gid,
            mtu: port.max_msg_sz,
            max_rdma_bytes: efa.max_rdma_size,
            inline_bytes: efa.inline_buf_size,
            // 0 in libraries without 128-byte WQEs.
            inline_bytes_ex: efa.inline_buf_size_ex.max(efa.inline_buf_size),
            max_sq_sge: efa.max_sq_sge,
            max_rq_sge: efa.max_rq_sge,
            max_qp: device.max_qp.try_into().unwrap_or(0),
            max_cqe: device.max_cqe.try_into().unwrap_or(0),
            rdma_read: self.has_capability(EFADV_DEVICE_ATTR_CAPS_RDMA_READ),
            rdma_write: self.has_capability(EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE),
            max_counters,
            unsolicited_write_recv: self.has_capability(EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV),
        }
    }
}
