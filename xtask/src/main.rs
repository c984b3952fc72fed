//! `cargo xtask`: the project's chores.

mod aarch64;
mod apt;
mod checks;
mod common;
mod gpu;
mod miri;
mod nightly;
mod python;
mod sanitize;
mod structure;
mod toolchain;
mod trial;
mod vendor;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use common::{cargo, run};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs two processes, each with a software EFA device, and one RDMA write between them; then again over a bad
    /// network.
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of `efa demo`; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs all checks that this machine can run. With CI=true, a check that cannot run is a failure.
    Test,
    /// Runs both of the above in a minimal Debian with git, gcc and rustup. Needs root, debootstrap, and half an hour.
    Trial {
        /// Keeps the root folder in target/trial, to look around in it.
        #[arg(long)]
        keep: bool,
    },
    /// Compiles the crates that drive queues from a CPU for aarch64, if the toolchain has this target.
    Aarch64,
    /// Runs tests under Miri, if a nightly toolchain has it.
    Miri,
    /// Runs tests under ThreadSanitizer and AddressSanitizer, if there is a nightly toolchain.
    Sanitize {
        /// Runs only this sanitizer.
        #[arg(value_enum)]
        which: Option<sanitize::Sanitizer>,
    },
    /// Runs the tests on this machine's GPU: millions of operations with every byte checked, and all of efa-direct's
    /// CUDA code.
    Gpu,
    /// Downloads the vendor's library and programs, which tests run, from Debian unstable into target/vendor.
    Vendor,
    /// Downloads a Rust toolchain that compiles to PTX, and NVIDIA's ptxas, into target/toolchain, unless the machine
    /// has them.
    Toolchain,
    /// Compares the bindings of efa-sys with the headers of the rdma-core that `vendor` downloads.
    Bindings {
        /// Generates the bindings again instead, as those of this release, for example 65.0.
        #[arg(long, value_name = "RELEASE")]
        bless: Option<String>,
    },
    /// Draws which crates and modules use which. Fails if a use goes upward or in a circle.
    Graph {
        /// Draws only this crate.
        #[arg(value_name = "CRATE")]
        only: Option<String>,
        /// Prints input for Graphviz, for example for `dot -Tsvg`.
        #[arg(long)]
        dot: bool,
    },
    /// Checks that crates and modules know each other in one direction only, and that no line is wider than 120
    /// columns.
    Structure,
    /// Runs a benchmark. Each figure stands beside its floor.
    Bench {
        /// The benchmark.
        #[arg(value_enum, default_value_t)]
        which: Bench,
        /// Options of the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Bench {
    /// Posting and polling.
    #[default]
    Posts,
    /// Posting and polling, beside the vendor's libefa on the same rings.
    Libefa,
    /// The software device.
    Soft,
    /// Posting and polling by a GPU. Needs one.
    Gpu,
}

fn main() -> Result<()> {
    match Args::parse().chore {
        Chore::Demo { args } => {
            let mut demo = cargo();
            demo.args(["run", "--quiet", "--package", "efa-cli", "--", "demo"]).args(&args);
            if args.iter().any(|arg| arg.ends_with("gpu")) {
                demo.envs(gpu::environment()?);
            }
            run(&mut demo)
        }
        Chore::Test => checks::run_all(),
        Chore::Trial { keep } => trial::main(keep),
        Chore::Aarch64 => aarch64::check(),
        Chore::Miri => miri::run(),
        Chore::Sanitize { which } => sanitize::run(which),
        Chore::Gpu => gpu::test(),
        Chore::Vendor => vendor::bring(),
        Chore::Toolchain => toolchain::bring(),
        Chore::Bindings { bless } => bindings(bless),
        Chore::Graph { only, dot } => structure::draw(only.as_deref(), dot),
        Chore::Structure => structure::check(),
        Chore::Bench { which: Bench::Gpu, args } => gpu::bench(&args),
        Chore::Bench { which, args } => {
            let (package, bench) = match which {
                Bench::Posts => ("efa-direct", "post_poll"),
                Bench::Libefa => ("efa-tests", "libefa"),
                Bench::Soft | Bench::Gpu => ("efa-tests", "soft"),
            };
            if matches!(which, Bench::Libefa) {
                vendor::bring()?;
            }
            run(cargo().args(["bench", "--package", package, "--bench", bench, "--"]).args(args))
        }
    }
}

/// Runs bindgen on the headers, with the downloaded libclang or the machine's own, and the test that compares or
/// replaces the bindings.
fn bindings(bless: Option<String>) -> Result<()> {
    vendor::bring()?;
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "efa-sys", "--features", "bindgen", "--test", "bindings"]);
    test.envs(vendor::bindgen_environment());
    test.envs(bless.map(|release| ("EFA_SYS_BLESS", release)));
    run(&mut test)
}
