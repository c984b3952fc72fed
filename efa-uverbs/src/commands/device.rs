//! Commands for the context, and queries of device and port, after the kernel's `uverbs_std_types_device.c`,
//! `efa_alloc_ucontext`, `efa_query_device` and `efa_query_port`.

use crate::abi::efa::{self, caps};
use crate::abi::ioctl::{
    async_event_alloc, get_context as set_up, invoke_write, query_context as asked, query_gid_entry as gid_entry,
    query_gid_table as gid_table, query_port as port_ex, query_port_speed as speed,
};
use crate::abi::verbs::{
    CORE_SUPPORT_OPTIONAL_MR_ACCESS, ExQueryDeviceResp, GidEntry, QueryDeviceResp, QueryPort, QueryPortResp,
    QueryPortRespEx,
};
use crate::call::Call;
use crate::context::Context;
use crate::device::{SoftDevice, VENDOR};
use crate::errno::{Errno, Outcome, refuse};
use crate::quota::Item;
use bytemuck::Zeroable;
use rustix::pipe::PipeFlags;
use std::os::fd::AsFd;

/// The number of completion vectors (event queues). A real device has one for each CPU.
const COMP_VECTORS: u32 = 1;

pub(super) fn get_context(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    if context.is_set_up {
        return refuse(Errno::INVAL, "the context is set up already");
    }
    // The input (`efa_ibv_alloc_ucontext_cmd`) names abilities that every libefa since 2020 has. It is not checked,
    // because newer ones name more.
    let config = &context.device.config;
    call.put(set_up::NUM_COMP_VECTORS, &COMP_VECTORS)?;
    call.put(set_up::CORE_SUPPORT, &CORE_SUPPORT_OPTIONAL_MR_ACCESS)?;
    call.put_driver(&efa::AllocUcontextResp {
        cmds_supp_udata_mask: efa::SUPP_UDATA_QUERY_DEVICE | efa::SUPP_UDATA_CREATE_AH,
        sub_cqs_per_cq: config.sub_cqs,
        inline_buf_size: config.attributes.inline_bytes,
        max_llq_size: config.max_sq_bytes,
        max_tx_batch: config.max_tx_batch,
        inline_buf_size_ex: config.attributes.inline_bytes_ex,
        ..efa::AllocUcontextResp::zeroed()
    })?;
    context.is_set_up = true;
    Ok(())
}

pub(super) fn query_context(_: &mut Context, call: &Call<'_>) -> Outcome<()> {
    call.put(asked::NUM_COMP_VECTORS, &COMP_VECTORS)?;
    call.put(asked::CORE_SUPPORT, &CORE_SUPPORT_OPTIONAL_MR_ACCESS)
}

pub(super) fn async_event_alloc(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let place = call.place(async_event_alloc::FD_HANDLE)?;
    let charge = context.account.charge(Item::Descriptors, 1)?;
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    call.caller.give(read.as_fd(), place, 8)?;
    context.async_events = Some((write, charge));
    Ok(())
}

fn attributes(device: &SoftDevice) -> QueryDeviceResp {
    let config = &device.config;
    let guid = u64::from_ne_bytes(device.guid());
    QueryDeviceResp {
        node_guid: guid,
        sys_image_guid: guid,
        max_mr_size: 1 << 40, // an assumption; the size is not documented
        page_size_cap: 0xffff_f000,
        vendor_id: VENDOR.into(),
        vendor_part_id: config.vendor_part_id.into(),
        hw_ver: config.vendor_part_id.into(),
        max_qp: config.attributes.max_qp,
        max_qp_wr: device.max_sq_wr().min(config.max_rq_descs),
        max_sge: config.attributes.max_sq_sge.min(config.attributes.max_rq_sge).into(),
        max_sge_rd: 1,
        max_cq: config.max_cq,
        max_cqe: config.attributes.max_cqe,
        max_mr: config.max_mr,
        max_pd: config.max_pd,
        max_ah: config.max_ah,
        max_pkeys: 1,
        phys_port_cnt: 1,
        ..QueryDeviceResp::zeroed()
    }
}

fn driver_attributes(device: &SoftDevice) -> efa::QueryDeviceResp {
    let config = &device.config;
    let has = |yes: bool, cap: u32| if yes { cap } else { 0 };
    efa::QueryDeviceResp {
        comp_mask: 0,
        max_sq_wr: device.max_sq_wr(),
        max_rq_wr: config.max_rq_descs,
        max_sq_sge: config.attributes.max_sq_sge,
        max_rq_sge: config.attributes.max_rq_sge,
        max_rdma_size: config.attributes.max_rdma_bytes,
        device_caps: caps::RNR_RETRY
            | caps::CQ_NOTIFICATIONS
            | caps::CQ_WITH_SGID
            | caps::CQ_WITH_EXT_MEM
            | has(config.attributes.rdma_read, caps::RDMA_READ)
            | has(config.attributes.rdma_write, caps::RDMA_WRITE)
            | has(config.attributes.unsolicited_write_recv, caps::UNSOLICITED_WRITE_RECV)
            | has(config.attributes.max_counters != 0, caps::COMP_CNTR)
            | has(config.req_id_64, caps::SQ_64_BIT_REQ_ID),
    }
}

pub(super) fn query_device(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let _response: u64 = call.structure(invoke_write::CORE_IN)?;
    call.put(invoke_write::CORE_OUT, &attributes(&context.device))
}

pub(super) fn ex_query_device(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let masks: [u32; 2] = call.structure(invoke_write::CORE_IN)?;
    if masks != [0, 0] {
        return refuse(Errno::INVAL, "a newer query of the device");
    }
    call.put(
        invoke_write::CORE_OUT,
        &ExQueryDeviceResp {
            base: attributes(&context.device),
            response_length: call.room(invoke_write::CORE_OUT).min(size_of::<ExQueryDeviceResp>()) as u32,
            ..ExQueryDeviceResp::zeroed()
        },
    )?;
    call.put_driver(&driver_attributes(&context.device))
}

/// `enum ib_port_state`.
mod port_state {
    pub(super) const DOWN: u8 = 1;
    pub(super) const ACTIVE: u8 = 4;
}

/// Returns the numbers in verbs of a link's width and speed, as the driver chooses them
/// (`efa_link_gbps_to_speed_and_width`).
fn width_and_speed(gbps: u32) -> (u8, u8) {
    let [x4, x8] = [2, 4];
    let [edr, hdr] = [32, 64];
    match gbps {
        400.. => (x8, hdr),
        200.. => (x4, hdr),
        _ => (x4, edr),
    }
}

fn port_attributes(device: &SoftDevice, port: u64) -> Outcome<QueryPortResp> {
    if port != 1 {
        return refuse(Errno::INVAL, format!("port {port}: the device has port 1 alone"));
    }
    let config = &device.config;
    let is_up = device.call(|device| Ok(device.port_is_up()))?;
    // `ib_mtu_int_to_enum`
    let mtu = match config.attributes.mtu {
        4096.. => 5,
        2048.. => 4,
        1024.. => 3,
        512.. => 2,
        _ => 1,
    };
    let (active_width, active_speed) = width_and_speed(config.link_gbps);
    Ok(QueryPortResp {
        max_msg_sz: config.attributes.mtu,
        gid_tbl_len: 1,
        pkey_tbl_len: 1,
        state: if is_up { port_state::ACTIVE } else { port_state::DOWN },
        max_mtu: mtu,
        active_mtu: mtu,
        lmc: 1,
        max_vl_num: 1,
        active_width,
        active_speed,
        phys_state: if is_up { 5 } else { 3 }, // LinkUp, Disabled
        ..QueryPortResp::zeroed()
    })
}

pub(super) fn query_port(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let query: QueryPort = call.structure(invoke_write::CORE_IN)?;
    call.put(invoke_write::CORE_OUT, &port_attributes(&context.device, query.port_num.into())?)
}

pub(super) fn query_port_ex(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let legacy_resp = port_attributes(&context.device, call.number(port_ex::PORT_NUM)?)?;
    let active_speed_ex = legacy_resp.active_speed.into();
    call.put(port_ex::RESP, &QueryPortRespEx { legacy_resp, active_speed_ex, ..QueryPortRespEx::zeroed() })
}

pub(super) fn query_port_speed(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    port_attributes(&context.device, call.number(speed::PORT_NUM)?)?;
    // In units of 100 Mb/s (`ib_port_attr_to_speed_info`).
    call.put(speed::RESP, &(u64::from(context.device.config.link_gbps) * 10))
}

fn gid(device: &SoftDevice) -> GidEntry {
    GidEntry { gid: device.config.attributes.gid.0, gid_index: 0, port_num: 1, gid_type: 0, netdev_ifindex: 0 }
}

pub(super) fn query_gid_entry(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    if call.number_or(gid_entry::FLAGS, 0) != 0 {
        return refuse(Errno::INVAL, "flags that are not known");
    }
    match (call.number(gid_entry::PORT)?, call.number(gid_entry::GID_INDEX)?) {
        (1, 0) => call.put(gid_entry::RESP_ENTRY, &gid(&context.device)),
        (port, index) => refuse(Errno::INVAL, format!("GID {index} of port {port}: there is GID 0 of port 1 alone")),
    }
}

pub(super) fn query_gid_table(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let bytes = call.number(gid_table::ENTRY_SIZE)? as usize;
    if call.number_or(gid_table::FLAGS, 0) != 0 || bytes < size_of::<GidEntry>() {
        return refuse(Errno::INVAL, format!("flags that are not known, or entries of {bytes} bytes"));
    }
    call.put(gid_table::RESP_ENTRIES, &gid(&context.device))?;
    call.put(gid_table::RESP_NUM_ENTRIES, &1u64)
}
