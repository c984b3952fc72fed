//! `cargo xtask test`: runs every check, and closes with a table of those that ran and those that could not.

use crate::common::cargo;
use anyhow::{Result, bail};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A check: arguments of cargo.
struct Check {
    name: &'static str,
    /// What the check needs that a machine may lack.
    needs: Option<Need>,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

/// Something that a machine may lack.
struct Need {
    /// Arguments of cargo, which succeed if the machine has it.
    probe: &'static [&'static str],
    what: &'static str,
    /// The command that installs it.
    remedy: &'static str,
}

const CHECKS: &[Check] = &[
    Check {
        name: "formatting",
        needs: Some(Need {
            probe: &["fmt", "--version"],
            what: "rustfmt is not installed",
            remedy: "rustup component add rustfmt",
        }),
        args: &["fmt", "--all", "--check"],
        env: &[],
    },
    // Not with all features: `bindgen` of `efa-sys` needs libclang and rdma-core's headers.
    Check {
        name: "lints",
        needs: Some(Need {
            probe: &["clippy", "--version"],
            what: "clippy is not installed",
            remedy: "rustup component add clippy",
        }),
        args: &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"],
        env: &[],
    },
    Check { name: "structure", needs: None, args: &["xtask", "structure"], env: &[] },
    Check {
        name: "unit, property, simulation, compile-fail and demo tests",
        needs: None,
        args: &["test", "--workspace", "--lib", "--bins", "--tests"],
        env: &[],
    },
    Check {
        name: "vendor programs",
        needs: Some(Need {
            probe: &["xtask", "vendor"],
            what: "rdma-core, perftest and libfabric could not be brought",
            remedy: "cargo xtask vendor",
        }),
        // One at a time, because each test keeps several processes busy, and some measure times.
        args: &["test", "--package", "efa-tests", "--test", "vendor", "--", "--ignored", "--test-threads", "1"],
        env: &[],
    },
    Check {
        name: "bindings beside the vendor's headers",
        needs: Some(Need {
            probe: &["xtask", "vendor"],
            what: "rdma-core's headers could not be brought",
            remedy: "cargo xtask vendor",
        }),
        args: &["xtask", "bindings"],
        env: &[],
    },
    Check {
        name: "kernels",
        needs: Some(Need {
            probe: &["xtask", "toolchain"],
            what: "no toolchain that compiles to PTX, or no ptxas, could be brought",
            remedy: "cargo xtask toolchain",
        }),
        args: &["test", "--package", "efa-gpu-builder", "--package", "efa-gpu-device", "--tests", "--", "--ignored"],
        env: &[],
    },
    // A machine without the target skips it, even with `CI=true`: nothing in the project depends on another
    // architecture's libraries.
    Check { name: "compiling for aarch64", needs: None, args: &["xtask", "aarch64"], env: &[] },
    Check { name: "doc tests", needs: None, args: &["test", "--workspace", "--doc"], env: &[] },
    Check {
        name: "documentation",
        needs: None,
        args: &["doc", "--quiet", "--workspace", "--no-deps"],
        env: &[("RUSTDOCFLAGS", "--deny warnings")],
    },
];

enum Verdict {
    Passed,
    Failed,
    /// The check could not run, because the machine lacks this.
    Gap(&'static Need),
}

/// Runs every check. Fails if one fails or, with `CI=true`, if one cannot run.
pub(crate) fn run_all() -> Result<()> {
    let mut verdicts = Vec::new();
    for check in CHECKS {
        println!("\n── {} ──", check.name);
        let start = Instant::now();
        let missing = check.needs.as_ref().and_then(|need| Some((need, complaint(cargo().args(need.probe))?)));
        let verdict = match missing {
            Some((need, complaint)) => {
                eprintln!("{}\n{complaint}", need.what);
                Verdict::Gap(need)
            }
            None => {
                let status = cargo().args(check.args).envs(check.env.iter().copied()).status()?;
                if status.success() { Verdict::Passed } else { Verdict::Failed }
            }
        };
        verdicts.push((check.name, verdict, start.elapsed()));
    }
    print_table(&verdicts);
    let failed = verdicts.iter().filter(|(_, verdict, _)| matches!(verdict, Verdict::Failed)).count();
    let gaps = verdicts.iter().filter(|(_, verdict, _)| matches!(verdict, Verdict::Gap(_))).count();
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true");
    match (failed, gaps) {
        (0, 0) => Ok(()),
        (0, _) if !strict => Ok(()),
        _ => bail!("{failed} checks failed, {gaps} could not run"),
    }
}

/// Runs a command. Returns its messages if it fails.
fn complaint(command: &mut Command) -> Option<String> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().into()),
        Err(error) => Some(error.to_string()),
    }
}

fn print_table(verdicts: &[(&str, Verdict, Duration)]) {
    let width = verdicts.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    println!("\n{:width$}  result  seconds", "check");
    for (name, verdict, time) in verdicts {
        let result = match verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Gap(_) => "gap",
        };
        println!("{name:width$}  {result:6}  {:7.1}", time.as_secs_f64());
    }
    for (name, verdict, _) in verdicts {
        if let Verdict::Gap(need) = verdict {
            println!("{name} could not run: {}; `{}` enables it, or says what is missing", need.what, need.remedy);
        }
    }
}
