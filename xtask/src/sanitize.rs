//! `cargo xtask sanitize`: runs tests of the software devices under ThreadSanitizer and AddressSanitizer.
//!
//! The sanitizers do not see accesses of inline assembly, so copies of shared bytes are loops here
//! (`cfg(efa_bytewise)`, `efa-memory/src/copy.rs`). ThreadSanitizer needs a standard library that is compiled for it.

use crate::common::target;
use crate::nightly;
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::time::Instant;

/// A sanitizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// ThreadSanitizer, which finds data races.
    Thread,
    /// AddressSanitizer, which finds accesses outside of allocated memory, or to freed memory.
    Address,
}

/// The tests: those with threads, and those that share memory with a device.
const TESTS: &[&[&str]] = &[
    &["--package", "efa-memory", "--lib"],
    &["--package", "efa-soft", "--lib", "--test", "device", "--test", "statuses", "--test", "going_away"],
    &["--package", "efa-direct", "--lib", "--test", "shared_memory"],
    &["--package", "efa-direct", "--test", "host_api", "--test", "real_time", "--test", "unwinding"],
];

const HOST: &str = "x86_64-unknown-linux-gnu";

/// Runs the tests under one sanitizer or both, or ends this process with [`nightly::SKIPPED`] if that is not possible.
pub(crate) fn run(which: Option<Sanitizer>) -> Result<()> {
    nightly::require(&["rust-src"]);
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("skipped: the sanitizers are set up for {HOST}");
        std::process::exit(nightly::SKIPPED);
    }
    for sanitizer in [Sanitizer::Thread, Sanitizer::Address] {
        if which.is_none_or(|which| which == sanitizer) {
            sanitize(sanitizer)?;
        }
    }
    Ok(())
}

fn sanitize(sanitizer: Sanitizer) -> Result<()> {
    let (name, build_std) = match sanitizer {
        Sanitizer::Thread => ("thread", true),
        Sanitizer::Address => ("address", false),
    };
    for tests in TESTS {
        println!("\n── {name} sanitizer: {} ──", tests.join(" "));
        let start = Instant::now();
        let mut test = nightly::cargo();
        // If a target is given, build scripts and macros are compiled without the sanitizer.
        test.args(["test", "--target", HOST]).args(*tests);
        if build_std {
            test.arg("-Zbuild-std");
        }
        test.env("CARGO_TARGET_DIR", target().join("sanitize").join(name));
        test.env("RUSTFLAGS", format!("-Zsanitizer={name} --cfg efa_bytewise"));
        // Memory that is left at the process's end is no leak: the network of a process never ends.
        test.env("ASAN_OPTIONS", "detect_leaks=0");
        test.env("TSAN_OPTIONS", "halt_on_error=1");
        if !test.status()?.success() {
            bail!("{name} sanitizer: {}", tests.join(" "));
        }
        println!("{:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
