//! `efa run`: a program on software devices, through the vendor's own libibverbs and libefa.

use anyhow::{Context, Result};
use clap::Args;
use efa_soft::driver::SoftSpec;
use efa_uverbs::Node;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitCode};

/// Options of `efa run`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of devices: rails.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    devices: u8,
    /// This host's address, for nodes on other hosts.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    address: Ipv4Addr,
    /// What the devices and their network are like, as after `soft:` in a device's name: loss=0.1,delay=50us,profile=p5,…
    #[arg(long, value_name = "KEY=VALUE,…", default_value = "")]
    soft: String,
    /// Shows the devices before the program starts.
    #[arg(long)]
    verbose: bool,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<OsString>,
}

/// Runs a program on a node; how it ended.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let spec: SoftSpec = options.soft.parse().map_err(anyhow::Error::msg).context("--soft")?;
    let specs: Vec<_> = (0..options.devices).map(|number| device(&spec, options.address, number)).collect();
    let node = Node::start(&specs).context("starting the devices")?;
    if options.verbose {
        for (name, gid) in node.devices() {
            eprintln!("efa: {name}, GID {gid}");
        }
        eprintln!("efa: counters below {}", node.sysfs().display());
    }
    let [program, arguments @ ..] = &options.program[..] else { unreachable!("clap sees to it") };
    let mut command = node.command(program);
    command.args(arguments);
    // SAFETY: between fork and exec there is one system call, and nothing else.
    unsafe {
        command.pre_exec(|| {
            // Whoever kills this process means the program.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    pass_signals_on(&child)?;
    let status = child.wait().context("waiting for the program")?;
    drop(node);
    // As a shell says it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(code.unwrap_or(1) as u8))
}

/// One of a node's devices.
fn device(spec: &SoftSpec, address: Ipv4Addr, number: u8) -> SoftSpec {
    let mut spec = spec.clone();
    if spec.udp.bind.ip() == &Ipv4Addr::LOCALHOST {
        spec.udp.bind = SocketAddrV4::new(address, spec.udp.bind.port());
    }
    if spec.udp.bind.port() != 0 {
        spec.udp.bind.set_port(spec.udp.bind.port() + u16::from(number));
    }
    spec.udp.link.seed = spec.udp.link.seed.wrapping_add(number.into());
    spec
}

/// The program gets the signals that this process gets, and what becomes of them is its affair.
fn pass_signals_on(child: &Child) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let pid = rustix::process::Pid::from_child(child);
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // A terminal has sent those two to the program as well.
            if let Some(signal) = rustix::process::Signal::from_named_raw(signal)
                && !matches!(signal, rustix::process::Signal::INT | rustix::process::Signal::QUIT)
            {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    });
    Ok(())
}
