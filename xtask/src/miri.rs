//! `cargo xtask miri`: runs tests under Miri, which checks each memory access against Rust's memory model.
//!
//! Miri supports no inline assembly, no coroutines and no mapping of files. So it runs the formats, the software device
//! in simulated time, memory that threads share, and the host API on software devices of this process. It cannot run
//! the executor of kernels, UDP, libibverbs and CUDA. Under Miri, copies of shared bytes are loops
//! (`efa-memory/src/copy.rs`).

use crate::nightly;
use anyhow::{Result, bail};
use std::time::Instant;

/// Tests, with the flags for Miri.
struct Run {
    what: &'static str,
    args: &'static [&'static str],
    flags: &'static str,
}

const RUNS: &[Run] = &[
    Run { what: "memory that threads share", args: &["--package", "efa-memory", "--lib"], flags: "" },
    // The thread of the process's network never ends.
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
    // The property tests read earlier failures from a folder.
    Run { what: "formats", args: &["--package", "efa-io", "--lib"], flags: "-Zmiri-disable-isolation" },
];

/// Runs all tests, or ends this process with [`nightly::SKIPPED`] if there is no Miri.
pub(crate) fn run() -> Result<()> {
    nightly::require(&["miri", "rust-src"]);
    for Run { what, args, flags } in RUNS {
        println!("\n── Miri: {what} ──");
        let start = Instant::now();
        let mut miri = nightly::cargo();
        miri.args(["miri", "test"]).args(*args);
        // `parking_lot` converts integers to pointers, which should only be a warning.
        miri.env("MIRIFLAGS", format!("-Zmiri-permissive-provenance {flags}"));
        miri.env("PROPTEST_CASES", "2");
        if !miri.status()?.success() {
            bail!("Miri: {what}");
        }
        println!("{:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
