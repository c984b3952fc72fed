//! `cargo xtask aarch64`: compiles the crates that drive queues from a CPU for aarch64. Some instances of that
//! architecture have EFA (p6e-gb200).

use crate::common::{cargo, run};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Compiles the crates, or prints why this is not possible.
pub(crate) fn check() -> Result<()> {
    if !has_target() {
        println!(
            "skipped: this toolchain has no standard library for {TARGET}; `rustup target add {TARGET}` enables it"
        );
        return Ok(());
    }
    let packages = ["--package", "efa-direct", "--package", "efa-io", "--package", "efa-soft", "--package", "efa-sys"];
    run(cargo().args(["check", "--quiet", "--target", TARGET]).args(packages))
}

/// Returns `true` if the compiler that cargo uses has the target's standard library.
fn has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|output| {
        output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    })
}
