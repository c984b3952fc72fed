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
    /// Two processes, each with a software EFA device, and one RDMA write between them; then again over a bad network.
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of `efa demo`; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Everything that proves the project on this machine. With CI=true, what cannot run is a failure.
    Test,
    /// Both of the above in a minimal Debian, which has git, gcc and rustup and nothing else. Takes root, debootstrap,
    /// and half an hour.
    Trial {
        /// Leaves the root in target/trial, to look around in it.
        #[arg(long)]
        keep: bool,
    },
    /// Compiles what drives queues from a CPU for aarch64, if the toolchain can.
    Aarch64,
    /// Miri over what it can run, if it is there.
    Miri,
    /// The software devices' threads and memory under ThreadSanitizer and AddressSanitizer, if a nightly toolchain is
    /// there.
    Sanitize {
        /// Which of the two; without, both.
        #[arg(value_enum)]
        which: Option<sanitize::Sanitizer>,
    },
    /// Kernels on the GPU of this machine: a million operations, every byte checked, and all of efa-direct's CUDA.
    Gpu,
    /// Brings the vendor's library and programs that use it into target/vendor, from Debian unstable; tests run them.
    Vendor,
    /// Brings a Rust toolchain that compiles to PTX and NVIDIA's ptxas into target/toolchain, where the machine has
    /// none.
    Toolchain,
    /// Compares the bindings of efa-sys with the headers of the rdma-core that `vendor` brought.
    Bindings {
        /// Writes them anew instead, as those of this release: 65.0.
        #[arg(long, value_name = "RELEASE")]
        bless: Option<String>,
    },
    /// Draws the project's crates and modules: who knows whom. Fails if that goes upward or in circles.
    Graph {
        /// Only this crate.
        #[arg(value_name = "CRATE")]
        only: Option<String>,
        /// As input of Graphviz, for example for `dot -Tsvg`.
        #[arg(long)]
        dot: bool,
    },
    /// Checks that crates and modules know each other in one direction only, and that no line is wider than 120
    /// columns.
    Structure,
    /// What things cost, beside their floor.
    Bench {
        /// Which benchmark.
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
    /// The same beside the vendor's libefa, on the same rings.
    Libefa,
    /// The software device.
    Soft,
    /// Posting and polling by a GPU, which this takes.
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

/// Has bindgen read the headers, with the libclang that came along or the machine's own, and the test compare or write.
fn bindings(bless: Option<String>) -> Result<()> {
    vendor::bring()?;
    let mut test = cargo();
    test.args(["test", "--quiet", "--package", "efa-sys", "--features", "bindgen", "--test", "bindings"]);
    test.envs(vendor::bindgen_environment());
    test.envs(bless.map(|release| ("EFA_SYS_BLESS", release)));
    run(&mut test)
}
