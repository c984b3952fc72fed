//! Commands for completion counters, after the kernel's `uverbs_std_types_comp_cntr.c` and the driver's part of it.

use super::memory::map_dmabuf;
use crate::abi::efa::COMP_CNTR_BUFFERS;
use crate::abi::ioctl::{
    comp_cntr_create as created, comp_cntr_modify as modified, comp_cntr_read as asked,
    qp_attach_comp_cntr as attached, query_comp_cntr_caps as caps,
};
use crate::abi::verbs::{BUFFER_DMABUF, BUFFER_VA, BufferDesc};
use crate::call::Call;
use crate::context::{Context, Object};
use crate::errno::{Errno, Outcome, refuse};
use crate::guard::Guarded;
use crate::kind::Kind;
use crate::quota::Charge;
use efa_memory::RingMemory;
use efa_soft::CounterPlace;
use efa_types::{COUNTER_MAX, CounterOps, CounterValue};
use std::sync::Arc;

/// All operations whose completions a counter can count.
const ALL_OPS: u32 = 0x3f;

pub(super) fn query_caps(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let max = context.device.config.attributes.max_counters;
    if max == 0 {
        return refuse(Errno::OPNOTSUPP, "the device has no completion counters");
    }
    call.put(caps::MAX_COUNTERS, &max)?;
    call.put(caps::MAX_VALUE, &COUNTER_MAX)?;
    call.put(caps::SUPPORTED_QP_ATTACH_OPS, &ALL_OPS)
}

/// Reads where the program wants one of a counter's numbers to be. Also returns the DMA-BUF to keep, if the number is
/// in one.
fn place(call: &Call<'_>, id: u16, charges: &mut Vec<Charge>) -> Outcome<(CounterPlace, Option<Guarded<RingMemory>>)> {
    let buffer: BufferDesc = call.structure(id)?;
    if buffer.length < 8 || !buffer.addr.is_multiple_of(8) || buffer.flags != 0 {
        let why = format!(
            "{} bytes at {:#x}, flags {:#x}: a counter is an aligned word",
            buffer.length, buffer.addr, buffer.flags
        );
        return refuse(Errno::INVAL, why);
    }
    match buffer.kind {
        BUFFER_DMABUF => {
            let memory = map_dmabuf(call, call.caller.fd(buffer.fd)?, buffer.addr, 8, charges)?;
            Ok((CounterPlace::Shared(memory.memory().clone(), 0), Some(memory)))
        }
        BUFFER_VA => Ok((CounterPlace::Backing(Arc::new(call.caller.region(buffer.addr, 8, true)?)), None)),
        kind => refuse(Errno::INVAL, format!("memory of kind {kind}")),
    }
}

pub(super) fn create(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let mut charges = context.charge(Kind::CompletionCounter, context.device.config.attributes.max_counters, 0)?;
    let [completions, errors] = COMP_CNTR_BUFFERS;
    let (completions, first) = place(call, completions, &mut charges)?;
    let (errors, second) = place(call, errors, &mut charges)?;
    let id = context.device.call(|device| device.create_counter(completions, errors))?;
    let counter = Object::Counter { id, _memory: [first, second] };
    context.keep(counter, charges, |handle| call.put_handle(created::HANDLE, handle))
}

/// Translates the number of a counter's value (`enum ib_uverbs_comp_cntr_entry`).
fn which(number: u64) -> Outcome<CounterValue> {
    match number {
        0 => Ok(CounterValue::Completions),
        1 => Ok(CounterValue::Errors),
        _ => refuse(Errno::INVAL, format!("a counter has no number {number}")),
    }
}

pub(super) fn modify(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let id = context.counter(call.number(modified::HANDLE)?)?;
    let which = which(call.number(modified::ENTRY)?)?;
    let value = call.number(modified::VALUE)?;
    match call.number(modified::OP)? {
        0 => context.device.call(|device| device.set_counter(id, which, value)),
        1 => context.device.call(|device| device.add_to_counter(id, which, value)),
        op => refuse(Errno::INVAL, format!("operation {op}")),
    }
}

pub(super) fn read(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let id = context.counter(call.number(asked::HANDLE)?)?;
    let which = which(call.number(asked::ENTRY)?)?;
    let value = context.device.call(|device| device.read_counter(id, which))?;
    call.put(asked::RESP_VALUE, &value)
}

pub(super) fn attach(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let qpn = context.qp(call.number(attached::HANDLE)?)?.qpn;
    let id = context.counter(call.number(attached::CNTR_HANDLE)?)?;
    let ops = CounterOps::from_bits(call.number(attached::OP_MASK)? as u32);
    context.device.call(|device| device.attach_counter(qpn, id, ops))
}
