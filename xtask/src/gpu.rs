//! `cargo xtask gpu` and `cargo xtask bench gpu`: the chores that need a GPU.

use crate::common::{cargo, run, target};
use crate::toolchain;
use anyhow::{Context, Result, bail};
use efa_gpu_builder::{Arch, PtxBuilder};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable with the paths of the kernels: `efa_gpu_kernels::VARIABLE`.
const KERNELS: &str = "EFA_KERNELS";

/// Returns the architecture of this machine's GPU.
fn arch() -> Result<Arch> {
    let query = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
    let answer = query.context("nvidia-smi, which tells what GPU there is, could not be started: is there one?")?;
    let said = String::from_utf8_lossy(&answer.stdout);
    let first = said.lines().next().unwrap_or("").trim();
    let number: u32 = first.replace('.', "").parse().with_context(|| format!("nvidia-smi said {first:?}"))?;
    let arch = Arch::ALL.into_iter().rfind(|arch| arch.number() <= number);
    arch.with_context(|| format!("the GPU has compute capability {first}, {} or more is needed", Arch::ALL[0].number()))
}

/// Compiles the project's kernels for this machine's GPU. Returns the file.
fn kernels() -> Result<PathBuf> {
    let arch = arch()?;
    toolchain::bring()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../efa-gpu-kernels");
    let built = PtxBuilder::new(folder.display().to_string()).arch(arch).out_dir(target().join("kernels")).build()?;
    let [kernels] = built.modules() else { bail!("one architecture gives one file") };
    Ok(kernels.path.clone())
}

/// Compiles the kernels and returns the environment variable by which programs find them. Returns nothing if there is
/// no GPU.
pub(crate) fn environment() -> Result<Option<(&'static str, PathBuf)>> {
    if arch().is_err() {
        return Ok(None);
    }
    Ok(Some((KERNELS, kernels()?)))
}

/// Runs the tests that need a GPU.
pub(crate) fn test() -> Result<()> {
    let kernels = kernels()?;
    for tests in [
        ["--package", "efa-direct", "--features", "cuda", "--test", "cuda"].as_slice(),
        &["--package", "efa-tests", "--test", "gpu"],
    ] {
        let mut test = cargo();
        test.args(["test", "--release"]).args(tests).args(["--", "--ignored", "--nocapture", "--test-threads", "1"]);
        run(test.env(KERNELS, &kernels))?;
    }
    Ok(())
}

/// Runs the benchmark with the kernels.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    let mut bench = cargo();
    bench.args(["bench", "--package", "efa-tests", "--bench", "gpu", "--"]).arg(kernels()?);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        bench.arg(arg);
        if arg == "--dp-direct" {
            let folder =
                args.next().context("--dp-direct takes the folder of an efa-dp-direct, the one with CUDA in it")?;
            bench.arg(compile_dp_direct(Path::new(folder))?);
        }
    }
    run(&mut bench)
}

/// Compiles the vendor's device functions and kernels that call them, with the machine's nvcc.
fn compile_dp_direct(folder: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/gpu/dp_direct.cu");
    let ptx = target().join("kernels/dp_direct.ptx");
    let mut nvcc = Command::new("nvcc");
    nvcc.args(["-O3", "-ptx", &format!("-arch={}", arch()?), "-o"]).arg(&ptx).arg(source);
    for part in ["CUDA/common", "CUDA/device"] {
        nvcc.arg("-I").arg(folder.join(part));
    }
    run(&mut nvcc)?;
    Ok(ptx)
}
