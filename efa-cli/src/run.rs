//! `efa run`: runs a program on software devices, through its own libibverbs and libefa.

use anyhow::{Context, Result, bail};
use clap::Args;
use efa_soft::driver::SoftSpec;
use efa_uverbs::{Node, Quotas};
use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, kill_process, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode};

/// Options of `efa run`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of devices (rails).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    devices: u8,
    /// This host's address, for nodes on other hosts; 127.0.0.1 if not given.
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Options of the devices and their network, as after `soft:` in a device's name: loss=0.1,delay=50us,profile=p5,…
    #[arg(long, value_name = "KEY=VALUE,…", default_value = "")]
    soft: String,
    /// Limits of what one process may have at the same time, so that it leaves room for others:
    /// opens=128,descriptors=8192,objects=90 (percent of what a device has),mapped=16g,registered=1t (bytes). A limit
    /// that is not given keeps its default.
    #[arg(long, value_name = "KEY=NUMBER,…", default_value = "")]
    quota: Quotas,
    /// Prints the devices before the program starts.
    #[arg(long)]
    verbose: bool,
    /// The program and its arguments. The devices exist until it ends.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<OsString>,
}

/// Runs a program on a node. Returns the program's exit code.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let spec: SoftSpec = options.soft.parse().map_err(anyhow::Error::msg).context("--soft")?;
    let specs: Result<Vec<_>> = (0..options.devices).map(|number| device(&spec, options.address, number)).collect();
    let files = raise_file_limit();
    let node = Node::with_quotas(&specs?, options.quota.clone()).context("starting the devices")?;
    if options.verbose {
        for (name, gid) in node.devices() {
            eprintln!("efa: {name}, GID {gid}");
        }
        eprintln!("efa: counters below {}", node.sysfs().display());
    }
    let [program, arguments @ ..] = &options.program[..] else { unreachable!("clap requires a program") };
    let mut command = node.command(program);
    command.args(arguments);
    bind_to_this_process(&mut command, files);
    // Signals are caught from here on. Those that arrive before the program has started are passed on later.
    let signals = SignalsInfo::<WithOrigin>::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("efa: starting {}: {error}", program.display());
            // The exit codes of shells.
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { 127 } else { 126 }));
        }
    };
    pass_on(signals, &child);
    let status = child.wait().context("waiting for the program")?;
    drop(node);
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(code.unwrap_or(1) as u8))
}

/// Returns the specification of the device with this number.
fn device(spec: &SoftSpec, address: Option<Ipv4Addr>, number: u8) -> Result<SoftSpec> {
    let mut spec = spec.clone();
    let udp = spec.udp.bind;
    let ip = match address {
        Some(address) if *udp.ip() != Ipv4Addr::LOCALHOST && *udp.ip() != address => {
            bail!("--address {address} and udp={udp} name two addresses");
        }
        address => address.unwrap_or(*udp.ip()),
    };
    // Port 0 stands for a free port.
    let port = if udp.port() == 0 { Some(0) } else { udp.port().checked_add(number.into()) };
    let Some(port) = port else { bail!("udp={udp}: {number} devices on, there is no such port") };
    spec.udp.bind = SocketAddrV4::new(ip, port);
    spec.udp.link.seed = spec.udp.link.seed.wrapping_add(number.into());
    Ok(spec)
}

/// Raises this process's limit of descriptors to the maximum, because the node keeps descriptors for all programs.
/// Returns the limit before.
fn raise_file_limit() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    // If this fails, the node works with a smaller limit.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before });
    before
}

/// Makes the program end with this process, and gives it the limit of descriptors that this process had before.
fn bind_to_this_process(command: &mut Command, files: Rlimit) {
    let launcher = getpid();
    // SAFETY: between fork and exec, the closure only makes system calls and allocates nothing, as `pre_exec` requires.
    unsafe {
        command.pre_exec(move || {
            // A user who kills this process wants to end the program.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            if getppid() != Some(launcher) {
                return Err(std::io::Error::from(ErrorKind::Interrupted)); // this process has ended already
            }
            setrlimit(Resource::Nofile, files)?;
            Ok(())
        });
    }
}

/// Passes this process's signals on to the program, which decides what to do about them.
fn pass_on(mut signals: SignalsInfo<WithOrigin>, child: &Child) {
    let pid = Pid::from_child(child);
    std::thread::spawn(move || {
        for origin in signals.forever() {
            // A terminal sends its signals to the program, too.
            if origin.cause != Cause::Kernel
                && let Some(signal) = Signal::from_named_raw(origin.signal)
            {
                let _ = kill_process(pid, signal);
            }
        }
    });
}
