//! Commands for queue pairs and their states, after the kernel's `uverbs_std_types_qp.c`, `ib_uverbs_modify_qp`,
//! `efa_create_qp`, `efa_modify_qp` and `efa_query_qp`.

use crate::abi::efa;
use crate::abi::ioctl::{invoke_write, qp_create as attr, qp_destroy};
use crate::abi::verbs::{ModifyQp, QP_CREATE_SQ_SIG_ALL, QpCap, QueryQp, QueryQpResp, qp_attr, qp_type};
use crate::call::Call;
use crate::context::{Context, Object, Qp};
use crate::errno::{Errno, Outcome, refuse};
use crate::kind::Kind;
use bytemuck::Zeroable;
use efa_types::{QpAttributes, QpState, Transport};

/// Refuses capabilities that exceed the device's limits, as the driver does (`efa_qp_validate_cap`).
fn check_cap(context: &Context, cap: &QpCap) -> Outcome<()> {
    let config = &context.device.config;
    for (what, asked, max) in [
        ("send work requests", cap.max_send_wr, context.device.max_sq_wr()),
        ("receive work requests", cap.max_recv_wr, config.max_rq_descs),
        ("buffers of a send", cap.max_send_sge, config.attributes.max_sq_sge.into()),
        ("buffers of a receive", cap.max_recv_sge, config.attributes.max_rq_sge.into()),
        ("inline bytes", cap.max_inline_data, config.attributes.inline_bytes_ex.into()),
    ] {
        if asked > max {
            return refuse(Errno::INVAL, format!("{asked} {what}, the device allows {max}"));
        }
    }
    Ok(())
}

/// Reads libefa's input to the driver, and refuses what the device does not support.
fn check_driver(context: &Context, call: &Call<'_>) -> Outcome<efa::CreateQp> {
    let config = &context.device.config;
    let driver: efa::CreateQp = call.driver_input()?;
    if driver.comp_mask != 0 || driver.reserved_98 != [0; 5] {
        return refuse(Errno::INVAL, "libefa says something that is not known here");
    }
    let mut unknown = driver.flags;
    for (flag, supported) in [
        (efa::QP_WITH_UNSOLICITED_WRITE_RECV, config.attributes.unsolicited_write_recv),
        (efa::QP_WITH_64_BIT_REQ_ID, config.req_id_64),
    ] {
        if supported {
            unknown &= !flag;
        }
    }
    if unknown != 0 {
        return refuse(Errno::OPNOTSUPP, format!("flags {unknown:#x} are not supported by this device"));
    }
    if config.req_id_64 && driver.flags & efa::QP_WITH_64_BIT_REQ_ID == 0 {
        return refuse(Errno::OPNOTSUPP, "this libefa knows no 64-bit request ids: start the device with reqid64=off");
    }
    Ok(driver)
}

pub(super) fn create(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let cap: QpCap = call.structure(attr::CAP)?;
    check_cap(context, &cap)?;
    if call.has(attr::SRQ_HANDLE) || call.number_or(attr::FLAGS, 0) & !QP_CREATE_SQ_SIG_ALL != 0 {
        return refuse(Errno::OPNOTSUPP, "shared receive queues and flags of queue pairs are not supported");
    }
    let driver = check_driver(context, call)?;
    let transport = match (call.number(attr::TYPE)?, driver.driver_qp_type) {
        (qp_type::UD, _) => Transport::Ud,
        (qp_type::DRIVER, efa::DRIVER_QP_TYPE_SRD) => Transport::Srd,
        (kind, driver) => {
            let why =
                format!("queue pairs of type {kind:#x}, driver type {driver}: there are UD (4) and SRD (0xff, 0)");
            return refuse(Errno::OPNOTSUPP, why);
        }
    };
    let wqe_bytes = driver.sq_ring_size.checked_div(cap.max_send_wr).unwrap_or(64);
    if !matches!(wqe_bytes, 64 | 128) {
        let ring = driver.sq_ring_size;
        return refuse(Errno::INVAL, format!("a send ring of {ring} bytes for {} entries", cap.max_send_wr));
    }
    let request = QpAttributes {
        transport,
        pd: context.pd(call.number(attr::PD_HANDLE)?)?,
        send_cq: context.cq(call.number(attr::SEND_CQ_HANDLE)?)?,
        recv_cq: context.cq(call.number(attr::RECV_CQ_HANDLE)?)?,
        send_entries: cap.max_send_wr,
        recv_entries: cap.max_recv_wr,
        recv_sge: cap.max_recv_sge as u16,
        inline_bytes: cap.max_inline_data as u16,
        // libefa asks for 128-byte WQEs for long inline messages or for inline writes.
        inline_write: wqe_bytes == 128 && transport == Transport::Srd,
        unsolicited_write_recv: driver.flags & efa::QP_WITH_UNSOLICITED_WRITE_RECV != 0,
        rnr_retry: None,
    };
    let charges = context.charge(Kind::QueuePair, context.device.config.attributes.max_qp, 3)?;
    let info = context.device.call(|device| device.create_qp(request))?;
    let fits = |entries: u32, entry: u32, bytes: u32, used: u32| used == 0 || entries * entry == bytes;
    if !fits(info.sq.entries, info.sq.entry_size, driver.sq_ring_size, cap.max_send_wr)
        || !fits(info.rq.entries, info.rq.entry_size, driver.rq_ring_size, cap.max_recv_wr)
    {
        context.device.call(|device| device.destroy_qp(info.qpn))?;
        let (sq, rq) = (driver.sq_ring_size, driver.rq_ring_size);
        return refuse(Errno::INVAL, format!("rings of {sq} and {rq} bytes do not fit {cap:?}"));
    }

    let [sq_ring, rq_ring] = [&info.sq, &info.rq].map(|wq| context.offer(wq.ring.clone()));
    let [sq_doorbell, rq_doorbell] = [&info.sq, &info.rq].map(|wq| context.offer(wq.doorbell.clone()));
    let qp = Qp {
        qpn: info.qpn,
        keys: vec![sq_ring, rq_ring, sq_doorbell, rq_doorbell],
        is_srd: transport == Transport::Srd,
        cap: bytemuck::cast(cap),
        qkey: 0,
        sq_psn: 0,
        rnr_retry: 7,
    };
    context.keep(Object::Qp(qp), charges, |handle| {
        call.put(attr::RESP_CAP, &cap)?;
        call.put(attr::RESP_QP_NUM, &u32::from(info.qpn))?;
        call.put_driver(&efa::CreateQpResp {
            rq_db_offset: info.rq.doorbell_offset as u32,
            sq_db_offset: info.sq.doorbell_offset as u32,
            rq_mmap_key: rq_ring,
            rq_mmap_size: info.rq.ring.len() as u64,
            rq_db_mmap_key: rq_doorbell,
            sq_db_mmap_key: sq_doorbell,
            llq_desc_mmap_key: sq_ring,
            ..efa::CreateQpResp::zeroed()
        })?;
        call.put_handle(attr::HANDLE, handle)
    })
}

pub(super) fn destroy(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    context.destroy(call.number(qp_destroy::HANDLE)?, Kind::QueuePair)?;
    call.put(qp_destroy::RESP, &0u32) // events reported
}

/// The states by their numbers in verbs (`enum ib_qp_state`).
const STATES: [Option<QpState>; 7] = [
    Some(QpState::Reset),
    Some(QpState::Init),
    Some(QpState::ReadyToReceive),
    Some(QpState::ReadyToSend),
    None, // SQD: the send queue drains
    None, // SQE: the send queue has failed
    Some(QpState::Error),
];

fn number_of(state: QpState) -> u8 {
    STATES.iter().position(|&known| known == Some(state)).unwrap_or_default() as u8
}

/// Returns the attributes that a change of state requires, and those that it allows. Returns `None` if there is no such
/// change. The tables are `srd_qp_state_table` in the driver and, for UD, `qp_state_table` in `core/verbs.c`; they
/// differ only in the retries.
fn change(from: QpState, to: QpState, is_srd: bool) -> Option<(u32, u32)> {
    use QpState::*;
    use qp_attr::*;
    Some(match (from, to) {
        (_, Reset) => (0, 0),
        (Init | ReadyToReceive | ReadyToSend | Error, Error) => (0, 0),
        (Reset, Init) => (PKEY_INDEX | PORT | QKEY, 0),
        (Init, Init) => (0, PKEY_INDEX | PORT | QKEY),
        (Init, ReadyToReceive) => (0, PKEY_INDEX | QKEY),
        (ReadyToReceive, ReadyToSend) => (SQ_PSN, CUR_STATE | QKEY | if is_srd { RNR_RETRY } else { 0 }),
        (ReadyToSend, ReadyToSend) => (0, CUR_STATE | QKEY),
        _ => return None,
    })
}

pub(super) fn modify(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let request: ModifyQp = call.structure(invoke_write::CORE_IN)?;
    let mask = request.attr_mask;
    let device = context.device.clone();
    let qp = context.qp(request.qp_handle.into())?;
    let known = qp_attr::STATE
        | qp_attr::CUR_STATE
        | qp_attr::EN_SQD_ASYNC_NOTIFY
        | qp_attr::PKEY_INDEX
        | qp_attr::PORT
        | qp_attr::QKEY
        | qp_attr::SQ_PSN
        | qp_attr::RNR_RETRY;
    if mask & !known != 0 {
        return refuse(Errno::OPNOTSUPP, format!("attributes {:#x} are not supported", mask & !known));
    }
    let state = |number: u8| match STATES.get(usize::from(number)) {
        Some(Some(state)) => Ok(*state),
        Some(None) => refuse(Errno::OPNOTSUPP, "draining send queues are not supported"),
        None => refuse(Errno::INVAL, format!("state {number}")),
    };
    let is = device.call(|device| device.query_qp(qp.qpn))?;
    let from = if mask & qp_attr::CUR_STATE != 0 { state(request.cur_qp_state)? } else { is };
    let to = if mask & qp_attr::STATE != 0 { state(request.qp_state)? } else { from };
    let Some((needed, allowed)) = change(from, to, qp.is_srd) else {
        return refuse(Errno::INVAL, format!("from {from:?} to {to:?}"));
    };
    let (missing, excess) = (needed & !mask, mask & !(needed | allowed | qp_attr::STATE));
    if missing != 0 || excess != 0 {
        let why = format!("from {from:?} to {to:?}: attributes {missing:#x} are missing, {excess:#x} too many");
        return refuse(Errno::INVAL, why);
    }
    let has = |attr: u32| mask & attr != 0;
    if has(qp_attr::PORT) && request.port_num != 1 || has(qp_attr::PKEY_INDEX) && request.pkey_index != 0 {
        let (port, pkey) = (request.port_num, request.pkey_index);
        return refuse(Errno::OPNOTSUPP, format!("port {port}, pkey {pkey}: there are port 1 and pkey 0 alone"));
    }
    if has(qp_attr::RNR_RETRY) {
        device.call(|device| device.set_rnr_retry(qp.qpn, request.rnr_retry))?;
        qp.rnr_retry = request.rnr_retry;
    }
    let qkey = has(qp_attr::QKEY).then_some(request.qkey);
    device.call(|device| device.modify_qp(qp.qpn, to, qkey))?;
    qp.qkey = qkey.unwrap_or(qp.qkey);
    if has(qp_attr::SQ_PSN) {
        qp.sq_psn = request.sq_psn;
    }
    Ok(())
}

pub(super) fn query(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let request: QueryQp = call.structure(invoke_write::CORE_IN)?;
    let known = qp_attr::STATE
        | qp_attr::PKEY_INDEX
        | qp_attr::PORT
        | qp_attr::QKEY
        | qp_attr::SQ_PSN
        | qp_attr::CAP
        | qp_attr::RNR_RETRY;
    if request.attr_mask & !known != 0 {
        return refuse(Errno::OPNOTSUPP, format!("attributes {:#x} are not supported", request.attr_mask & !known));
    }
    let device = context.device.clone();
    let qp = context.qp(request.qp_handle.into())?;
    let state = number_of(device.call(|device| device.query_qp(qp.qpn))?);
    call.put(
        invoke_write::CORE_OUT,
        &QueryQpResp {
            cap: qp.cap,
            qkey: qp.qkey,
            sq_psn: qp.sq_psn,
            qp_state: state,
            port_num: 1,
            rnr_retry: qp.rnr_retry,
            ..QueryQpResp::zeroed()
        },
    )
}
