//! `cargo xtask`: the project's chores.

mod apt;
mod checks;
mod toolchain;
mod vendor;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use efa_gpu_builder::{Arch, PtxBuilder};
use std::fs;
use std::path::{Path, PathBuf};
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
    /// Brings a Rust toolchain that compiles to PTX and NVIDIA's ptxas into target/toolchain, where the machine has none.
    Toolchain,
    /// Compares the bindings of efa-sys with the headers of the rdma-core that `vendor` brought.
    Bindings {
        /// Writes them anew instead, as those of this release: 65.0.
        #[arg(long, value_name = "RELEASE")]
        bless: Option<String>,
    },
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
        Chore::Demo { args } => run(cargo().args(["run", "--quiet", "--package", "efa-cli", "--", "demo"]).args(args)),
        Chore::Test => checks::run_all(),
        Chore::Vendor => vendor::bring(),
        Chore::Toolchain => toolchain::bring(),
        Chore::Bindings { bless } => bindings(bless),
        Chore::Bench { which: Bench::Gpu, args } => bench_gpu(&args),
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

/// Compiles the kernels for the GPU that is here and has the benchmark run them.
fn bench_gpu(args: &[String]) -> Result<()> {
    toolchain::bring()?;
    let query = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
    let answer = query.context("nvidia-smi, which tells what GPU there is, could not be started: is there one?")?;
    let number: u32 = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or("").replace('.', "").parse()?;
    let arch = Arch::ALL.into_iter().rfind(|arch| arch.number() <= number);
    let Some(arch) = arch else {
        bail!("the GPU has compute capability {number}, {} or more is needed", Arch::ALL[0].number())
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/efa-gpu-kernels");
    let built = PtxBuilder::new(folder.display().to_string()).arch(arch).out_dir(target().join("kernels")).build()?;
    let [kernels] = built.modules() else { bail!("one architecture gives one file") };
    let mut bench = cargo();
    bench.args(["bench", "--package", "efa-tests", "--bench", "gpu", "--"]).arg(&kernels.path);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        bench.arg(arg);
        if arg == "--dp-direct" {
            let folder =
                args.next().context("--dp-direct takes the folder of an efa-dp-direct, the one with CUDA in it")?;
            bench.arg(compile_dp_direct(Path::new(folder), arch)?);
        }
    }
    run(&mut bench)
}

/// Compiles the vendor's device functions, and kernels that call them, with the machine's nvcc.
fn compile_dp_direct(folder: &Path, arch: Arch) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/gpu/dp_direct.cu");
    let ptx = target().join("kernels/dp_direct.ptx");
    let mut nvcc = Command::new("nvcc");
    nvcc.args(["-O3", "-ptx", &format!("-arch={arch}"), "-o"]).arg(&ptx).arg(source);
    for part in ["CUDA/common", "CUDA/device"] {
        nvcc.arg("-I").arg(folder.join(part));
    }
    run(&mut nvcc)?;
    Ok(ptx)
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

/// The workspace's target folder.
pub(crate) fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
