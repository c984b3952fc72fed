//! `cargo xtask miri`: Miri over what it can run, which checks each access against Rust's memory model.
//!
//! Miri runs no instructions, no coroutines and maps no files. So it sees the formats, the software device in simulated
//! time, memory that is shared between threads, and the host API on software devices of this process; not the executor
//! of kernels, UDP, libibverbs and CUDA. Copies of shared bytes are loops for it (`efa-memory/src/copy.rs`).

use crate::nightly;
use anyhow::{Result, bail};
use std::time::Instant;

/// Some tests, and how Miri is to run them.
struct Run {
    what: &'static str,
    args: &'static [&'static str],
    flags: &'static str,
}

const RUNS: &[Run] = &[
    Run { what: "memory that threads share", args: &["--package", "efa-memory", "--lib"], flags: "" },
    // Its network's thread never ends.
    Run {
        what: "the host API on software devices",
        args: &["--package", "efa-direct", "--no-default-features", "--features", "soft", "--test", "shared_memory"],
        flags: "-Zmiri-ignore-leaks",
    },
    Run {
        what: "the software device, in simulated time",
        args: &["--package", "efa-soft", "--test", "device", "--test", "counters"],
        flags: "",
    },
    // The property tests look for earlier failures in a folder.
    Run { what: "formats", args: &["--package", "efa-io", "--lib"], flags: "-Zmiri-disable-isolation" },
];

/// Runs all of it, or ends this process with [`nightly::SKIPPED`].
pub(crate) fn run() -> Result<()> {
    nightly::require(&["miri", "rust-src"]);
    for Run { what, args, flags } in RUNS {
        println!("\n── Miri: {what} ──");
        let start = Instant::now();
        let mut miri = nightly::cargo();
        miri.args(["miri", "test"]).args(*args);
        // `parking_lot` makes pointers of integers, which is only a warning.
        miri.env("MIRIFLAGS", format!("-Zmiri-permissive-provenance {flags}"));
        miri.env("PROPTEST_CASES", "2");
        if !miri.status()?.success() {
            bail!("Miri: {what}");
        }
        println!("{:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
