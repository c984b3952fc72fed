//! Commands for completion channels and completion queues, after the kernel's `ib_uverbs_create_comp_channel`,
//! `uverbs_std_types_cq.c` and `efa_create_cq_umem`.

use super::memory::map_dmabuf;
use crate::abi::efa;
use crate::abi::ioctl::{cq_create as attr, cq_destroy, invoke_write};
use crate::abi::verbs::DestroyCqResp;
use crate::call::Call;
use crate::channel::Channel;
use crate::context::{Context, Cq, Object};
use crate::errno::{Errno, Outcome, refuse};
use crate::kind::Kind;
use crate::quota::Item;
use bytemuck::Zeroable;
use efa_types::{CqAttributes, CqeSize};
use std::os::fd::AsFd;
use std::sync::Arc;

pub(super) fn create_channel(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let _response: u64 = call.structure(invoke_write::CORE_IN)?;
    let place = call.target(invoke_write::CORE_OUT, 4)?;
    let charge = match context.account.charge(Item::Descriptors, 1) {
        Ok(charge) => charge,
        Err(_) => {
            // Channels that the program has closed may still be counted.
            context.forget_channels();
            context.account.charge(Item::Descriptors, 1)?
        }
    };
    let (channel, end) = Channel::new(Some(charge))?;
    call.caller.give(end.as_fd(), place, 4)?;
    drop(end);
    context.keep_channel(channel);
    Ok(())
}

pub(super) fn create(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let config = &context.device.config;
    let entries = call.number(attr::CQE)? as u32;
    if call.number_or(attr::FLAGS, 0) != 0 {
        return refuse(Errno::OPNOTSUPP, "flags of completion queues are not supported");
    }
    if entries == 0 || entries > config.attributes.max_cqe {
        return refuse(
            Errno::INVAL,
            format!("{entries} entries, the device allows 1 to {}", config.attributes.max_cqe),
        );
    }
    let driver: efa::CreateCq = call.driver_input()?;
    if driver.comp_mask != 0 || driver.reserved_58 != [0; 5] {
        return refuse(Errno::INVAL, "libefa says something that is not known here");
    }
    let with_sgid = driver.flags & efa::CQ_WITH_SGID != 0;
    let entry_size = match driver.cq_entry_size {
        32 => CqeSize::Large,
        16 if !with_sgid => CqeSize::Small,
        bytes => return refuse(Errno::INVAL, format!("entries of {bytes} bytes")),
    };
    let known = efa::CQ_WITH_COMPLETION_CHANNEL | efa::CQ_WITH_SGID | efa::CQ_WITH_64_BIT_REQ_ID;
    if driver.flags & !known != 0 {
        return refuse(Errno::OPNOTSUPP, format!("flags {:#x} are not supported", driver.flags & !known));
    }
    if driver.num_sub_cqs != config.sub_cqs {
        let asked = driver.num_sub_cqs;
        return refuse(Errno::INVAL, format!("{asked} sub-queues, the device has {}", config.sub_cqs));
    }
    let user_handle = call.number(attr::USER_HANDLE)?;
    let channel = match call.has(attr::COMP_CHANNEL) {
        true => Some(context.channel(call.caller.fd(call.number(attr::COMP_CHANNEL)? as i32)?)?),
        false => None,
    };
    let request = CqAttributes { entries, entry_size, events: driver.flags & efa::CQ_WITH_COMPLETION_CHANNEL != 0 };
    if call.has(attr::BUFFER_VA) {
        return refuse(Errno::OPNOTSUPP, "completion queues in memory by address (a DMA-BUF is supported)");
    }
    let bytes = u64::from(entries.next_power_of_two()) * entry_size as u64 * u64::from(config.sub_cqs);
    let mut charges = context.charge(Kind::CompletionQueue, context.device.config.max_cq, 2)?;
    let external = match call.has(attr::BUFFER_FD) {
        true => {
            let (len, offset) = (call.number(attr::BUFFER_LENGTH)?, call.number_or(attr::BUFFER_OFFSET, 0));
            if len < bytes.next_multiple_of(4096) {
                return refuse(Errno::INVAL, format!("{len} bytes of memory for a ring of {bytes}, in whole pages"));
            }
            if !offset.is_multiple_of(entry_size as u64) {
                let why = format!("offset {offset} in the memory, where entries have {} bytes", entry_size as u64);
                return refuse(Errno::INVAL, why);
            }
            let fd = call.caller.fd(call.number(attr::BUFFER_FD)? as i32)?;
            Some(map_dmabuf(call, fd, offset, len, &mut charges)?)
        }
        false => None,
    };
    let place = external.as_ref().map(|memory| (memory.memory().clone(), 0));
    let info = context.device.call(|device| device.create_cq_in(request, place))?;

    let mut answer = efa::CreateCqResp { cq_idx: info.cqn as u16, ..efa::CreateCqResp::zeroed() };
    let mut keys = Vec::new();
    if external.is_none() {
        (answer.q_mmap_key, answer.q_mmap_size) = (context.offer(info.ring.clone()), info.ring.len() as u64);
        keys.push(answer.q_mmap_key);
    }
    if let Some(doorbell) = &info.doorbell {
        (answer.db_mmap_key, answer.comp_mask) = (context.offer(doorbell.clone()), efa::CQ_RESP_DB_OFF);
        keys.push(answer.db_mmap_key);
    }
    let channel = channel.map(|channel| (channel, user_handle));
    if let Some((channel, user_handle)) = channel.clone() {
        context.device.wake(info.cqn, Some(Arc::new(move || channel.tell(user_handle))))?;
    }
    context.keep(Object::Cq(Cq { cqn: info.cqn, keys, channel, _memory: external }), charges, |handle| {
        call.put(attr::RESP_CQE, &info.entries)?;
        call.put_driver(&answer)?;
        call.put_handle(attr::HANDLE, handle)
    })
}

pub(super) fn destroy(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let comp_events_reported = context.destroy(call.number(cq_destroy::HANDLE)?, Kind::CompletionQueue)?;
    call.put(cq_destroy::RESP, &DestroyCqResp { comp_events_reported, async_events_reported: 0 })
}
