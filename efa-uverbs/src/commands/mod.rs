//! The commands of programs, and their dispatch.
//!
//! | file | commands |
//! | --- | --- |
//! | `device.rs` | the context, and queries of device and port |
//! | `memory.rs` | protection domains and memory regions |
//! | `cq.rs` | completion channels and completion queues |
//! | `qp.rs` | queue pairs and their states |
//! | `peers.rs` | address handles |
//! | `counter.rs` | completion counters |
//!
//! Each command does what the kernel's modules `ib_uverbs` and `efa` do together, and fails with the same errors.

mod counter;
mod cq;
mod device;
mod memory;
mod peers;
mod qp;

use crate::abi::efa;
use crate::abi::ioctl::{self, OBJECTS};
use crate::abi::verbs::{EXTENDED, QueryDeviceResp, QueryPortResp, QueryQpResp, RegMrResp, WRITE_COMMANDS, command};
use crate::call::Call;
use crate::caller::Caller;
use crate::context::Context;
use crate::errno::{Errno, Outcome, refuse};
use crate::kind::Kind;

/// A function that executes a command.
type Run = fn(&mut Context, &Call<'_>) -> Outcome<()>;

/// A command that an EFA supports.
struct Command {
    /// The numbers of its object and method.
    id: (u16, u16),
    name: &'static str,
    /// The attributes that the kernel defines, and those that the driver adds.
    attrs: [&'static [u16]; 2],
    run: Run,
}

macro_rules! commands {
    ($($module:ident => $run:expr;)*) => {
        &[$(Command {
            id: ioctl::$module::ID,
            name: stringify!($module),
            attrs: [ioctl::$module::ATTRS, &[]],
            run: $run,
        }),*]
    };
}

const COMMANDS: &[Command] = commands! {
    query_port => device::query_port_ex;
    get_context => device::get_context;
    query_context => device::query_context;
    query_gid_table => device::query_gid_table;
    query_gid_entry => device::query_gid_entry;
    query_port_speed => device::query_port_speed;
    query_comp_cntr_caps => counter::query_caps;
    async_event_alloc => device::async_event_alloc;
    pd_destroy => |context, call| destroy(context, call, Kind::ProtectionDomain);
    cq_create => cq::create;
    cq_destroy => cq::destroy;
    qp_create => qp::create;
    qp_destroy => qp::destroy;
    qp_attach_comp_cntr => counter::attach;
    ah_destroy => |context, call| destroy(context, call, Kind::AddressHandle);
    mr_destroy => |context, call| destroy(context, call, Kind::MemoryRegion);
    query_mr => memory::query_mr;
    reg_dmabuf_mr => memory::reg_dmabuf_mr;
    reg_mr => memory::reg_mr;
    comp_cntr_destroy => |context, call| destroy(context, call, Kind::CompletionCounter);
    comp_cntr_modify => counter::modify;
    comp_cntr_read => counter::read;
};

/// The commands to which the driver adds attributes, and the driver's own commands.
const DRIVER_COMMANDS: &[Command] = &[
    Command {
        id: ioctl::comp_cntr_create::ID,
        name: "comp_cntr_create",
        attrs: [ioctl::comp_cntr_create::ATTRS, &efa::COMP_CNTR_BUFFERS],
        run: counter::create,
    },
    Command { id: efa::MR_QUERY, name: "mr_query", attrs: [&[], &efa::MR_QUERY_ATTRS], run: memory::efa_query_mr },
];

/// Looks up the command that a program asks for.
fn find(call: &Call<'_>) -> Option<&'static Command> {
    COMMANDS.iter().chain(DRIVER_COMMANDS).find(|command| command.id == (call.object, call.method))
}

/// Returns the number of the command if it belongs to the older `write` interface.
fn older(call: &Call<'_>) -> Option<u32> {
    let is_older = (call.object, call.method) == ioctl::invoke_write::ID;
    is_older.then(|| call.number_or(ioctl::invoke_write::WRITE_CMD, u64::MAX) as u32)
}

/// Executes the command at `addr` of the caller's memory. A failure is logged.
pub(crate) fn ioctl(context: &mut Context, caller: &Caller, addr: u64) -> Result<i64, Errno> {
    let (name, outcome) = match Call::read(caller, addr) {
        Ok(call) => (name(&call), run(context, &call)),
        Err(refusal) => ("ioctl".into(), Err(refusal)),
    };
    outcome.map(|()| 0).map_err(|refusal| {
        context.log_failure(&name, is_probe(&name, refusal.errno), &refusal);
        refusal.errno
    })
}

/// Returns the name of a command, for the log.
fn name(call: &Call<'_>) -> String {
    if let Some(number) = older(call) {
        let extended = if number & EXTENDED != 0 { "EX_" } else { "" };
        return match WRITE_COMMANDS.get((number & !EXTENDED) as usize) {
            Some(name) => format!("{extended}{name}"),
            None => format!("{extended}command {}", number & !EXTENDED),
        };
    }
    match (find(call), OBJECTS.get(usize::from(call.object))) {
        (Some(command), _) => command.name.to_uppercase(),
        (None, Some(object)) => format!("method {:#x} of {object}", call.method),
        (None, None) => format!("method {:#x} of object {:#x}", call.method, call.object),
    }
}

/// Returns `true` if libibverbs expects this failure: it sends an empty query to find out whether the older commands
/// are supported.
fn is_probe(name: &str, errno: Errno) -> bool {
    name == "QUERY_DEVICE" && errno == Errno::NOSPC
}

/// Executes a command.
fn run(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    if let Some(number) = older(call) {
        return run_older(context, call, number);
    }
    let Some(command) = find(call) else {
        return refuse(Errno::PROTONOSUPPORT, "not implemented");
    };
    if !context.is_set_up && command.id != ioctl::get_context::ID {
        return refuse(Errno::INVAL, "the context is not set up yet (GET_CONTEXT)");
    }
    call.only(&command.attrs.concat())?;
    (command.run)(context, call)
}

/// Executes a command of the older interface.
fn run_older(context: &mut Context, call: &Call<'_>, number: u32) -> Outcome<()> {
    call.only(ioctl::invoke_write::ATTRS)?;
    let (run, answer): (Run, usize) = match number {
        command::QUERY_DEVICE => (device::query_device, size_of::<QueryDeviceResp>()),
        command::EX_QUERY_DEVICE => (device::ex_query_device, size_of::<QueryDeviceResp>()),
        command::QUERY_PORT => (device::query_port, size_of::<QueryPortResp>()),
        command::ALLOC_PD => (memory::alloc_pd, 4),
        command::REG_MR => (memory::reg_mr_older, size_of::<RegMrResp>()),
        command::CREATE_AH => (peers::create_ah, 4),
        command::CREATE_COMP_CHANNEL => (cq::create_channel, 4),
        command::QUERY_QP => (qp::query, size_of::<QueryQpResp>()),
        command::MODIFY_QP => (qp::modify, 0),
        _ => return refuse(Errno::OPNOTSUPP, "not implemented"),
    };
    let room = call.room(ioctl::invoke_write::CORE_OUT);
    if room < answer {
        return refuse(Errno::NOSPC, format!("room for {room} bytes of answer, which has {answer}"));
    }
    if !context.is_set_up {
        return refuse(Errno::INVAL, "the context is not set up yet (GET_CONTEXT)");
    }
    run(context, call)
}

/// Destroys an object of this kind, whose handle is the command's first attribute.
fn destroy(context: &mut Context, call: &Call<'_>, kind: Kind) -> Outcome<()> {
    context.destroy(call.number(0)?, kind).map(drop)
}
