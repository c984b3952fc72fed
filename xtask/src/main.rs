//! `cargo xtask`: the project's chores.

mod checks;
mod vendor;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::process::Command;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Two processes, each with a software EFA device, and one RDMA write between them; then again over a bad network.
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of `efa demo`; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Everything that proves the project on this machine. With CI=true, what cannot run is a failure.
    Test,
    /// Brings the vendor's library and programs that use it into target/vendor, from Debian unstable; tests run them.
    Vendor,
    /// What posting and polling cost, beside the floor.
    Bench {
        /// Options of the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Args::parse().chore {
        Chore::Demo { args } => run(cargo().args(["run", "--quiet", "--package", "efa-cli", "--", "demo"]).args(args)),
        Chore::Test => checks::run_all(),
        Chore::Vendor => vendor::bring(),
        Chore::Bench { args } => {
            run(cargo().args(["bench", "--package", "efa-direct", "--bench", "post_poll", "--"]).args(args))
        }
    }
}

/// The cargo that runs this.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command that prints for itself, and exits as it does.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("{command:?} was killed: {status}"),
    }
}
