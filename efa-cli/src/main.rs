//! The command `efa`.
//!
//! | subcommand | what it does |
//! | --- | --- |
//! | `efa devices` | lists devices |
//! | `efa node` | runs one of two nodes that exchange an RDMA write; the other may be on another host |
//! | `efa demo` | runs both nodes as processes on this machine, over a good network and over a bad one |
//! | `efa run` | runs a program on software devices, through its own libibverbs and libefa |
//! | `efa soak` | runs two processes with all kinds of traffic for a long time, while faults come and go |
//! | `efa dissect` | shows a WQE, a receive descriptor or a completion entry field by field |
//!
//! Unsafe code: `kernel.rs` (launches a kernel), `node.rs` (takes a ring back from it), `run.rs` (runs code in a child
//! between fork and exec).

mod demo;
mod dissect;
mod kernel;
mod node;
mod process;
mod report;
mod run;
mod soak;
mod watch;
mod wire;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "efa", version, about = "EFA direct verbs: devices, a demonstration, a dissector")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the devices that can be opened.
    Devices {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Runs one of two nodes: node 1 waits (`--listen`), node 0 connects to it (`--connect`) and writes into its
    /// memory.
    Node(node::Options),
    /// Runs two processes, each with a software device, and RDMA writes between them; then again over a bad network.
    Demo(demo::Options),
    /// Runs a program on software devices: it finds them through libibverbs and libefa, as it would find real ones.
    Run(run::Options),
    /// Runs two processes that exchange all kinds of traffic for a given time, while faults come and go, and check it.
    Soak(soak::Options),
    /// Runs one of the two processes.
    #[command(hide = true)]
    SoakNode(soak::NodeOptions),
    /// Shows a ring entry field by field, from its bytes in hexadecimal.
    Dissect(dissect::Options),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::WARN.into())
                .with_env_var("EFA_LOG")
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .init();
    let passed =
        |outcome: Result<bool>| outcome.map(|passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    let outcome = match Args::parse().command {
        Command::Devices { json } => passed(devices(json).map(|()| true)),
        Command::Node(options) => passed(node::main(&options)),
        Command::Demo(options) => passed(demo::main(&options)),
        Command::Run(options) => run::main(&options),
        Command::Soak(options) => passed(soak::main(&options)),
        Command::SoakNode(options) => passed(soak::node_main(&options).map(|()| true)),
        Command::Dissect(options) => passed(dissect::main(&options).map(|()| true)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("efa: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs `efa devices`.
fn devices(json: bool) -> Result<()> {
    let devices = efa_direct::devices();
    if json {
        let row = |device: &efa_direct::DeviceInfo| {
            serde_json::json!({
                "name": device.name, "description": device.description,
                "missing": device.missing, "usable": device.usable,
            })
        };
        println!("{}", serde_json::to_string_pretty(&devices.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    let width = devices.iter().map(|device| device.name.len()).max().unwrap_or(0);
    for device in devices {
        println!("{:width$}  {}", device.name, device.description);
        let word = if device.usable { "missing" } else { "cannot be opened" };
        for missing in device.missing {
            println!("{:width$}  {word}: {missing}", "");
        }
    }
    match efa_direct::hardware_devices() {
        Ok(found) if found.is_empty() => println!("\nThis machine has no EFA device."),
        Ok(_) => {}
        Err(reason) => println!("\nNo EFA devices: {reason}"),
    }
    Ok(())
}
