//! The nightly toolchain, which some chores need.

use std::process::{Command, Stdio};

/// The exit status of an optional chore that cannot run on this machine.
pub(crate) const SKIPPED: i32 = 77;

/// Returns a command of the nightly toolchain's cargo.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo"]);
    // These variables are about the cargo that runs this program.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    cargo
}

/// Returns `true` if a command of rustup succeeds and its output contains this text.
fn rustup_says(args: &[&str], what: &str) -> bool {
    let output = Command::new("rustup").args(args).stderr(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(what))
}

/// Ends this process if the nightly toolchain or one of these components is missing, and prints the command that
/// installs them.
pub(crate) fn require(components: &[&str]) {
    let is_there = |component: &&str| {
        let installed = ["component", "list", "--toolchain", "nightly", "--installed"];
        rustup_says(&installed, component)
    };
    if !components.iter().all(is_there) {
        let names = components.join(" ");
        println!("skipped: this takes a nightly toolchain with {names}");
        println!("`rustup toolchain install nightly --component {}` enables it", components.join(" --component "));
        std::process::exit(SKIPPED);
    }
}
