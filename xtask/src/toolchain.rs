//! `cargo xtask toolchain`: downloads what is needed to compile kernels to PTX and to assemble them. The compiler is
//! Debian's if possible, because the checks of machine code hold for that one.
//!
//! | below `target/toolchain` | what | from |
//! | --- | --- | --- |
//! | `root` | rustc and cargo, the sources of the standard library, what these need | the machine's own Debian, security updates included |
//! | `bin/ptxas` | NVIDIA's assembler of PTX | PyPI, package `nvidia-cuda-nvcc`, through the machine's pip, or else Debian's |
//!
//! Packages are unpacked, not installed, so root is not needed. `efa-gpu-builder` searches here first.

use crate::apt::{Apt, Archive, INSTALLED, run};
use crate::common::{remove, target};
use crate::python::Python;
use anyhow::{Context, Result, bail};
use efa_gpu_builder::{Ptxas, Toolchain};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages of which the first one that is new enough is used. Debian has an additional, newer Rust for its browsers.
const FAMILIES: &[[&str; 3]] = &[["rustc", "cargo", "rust-src"], ["rustc-web", "cargo-web", "rust-web-src"]];

/// The oldest minor version of Rust 1 that `efa-gpu-builder` supports.
const OLDEST_RUST: u32 = 88;

/// The requirement for pip. CUDA 12.8 has the oldest ptxas that knows all architectures of `efa_gpu_builder::Arch`.
const PTXAS: &str = "nvidia-cuda-nvcc>=13";

/// Downloads what is missing.
pub(crate) fn bring() -> Result<()> {
    let folder = target().join("toolchain");
    let root = folder.join("root");
    let is_chosen = std::env::var_os("EFA_PTX_TOOLCHAIN").is_some_and(|chosen| !chosen.is_empty());
    let brought = if is_chosen || root.exists() { Ok(()) } else { in_one_piece(&root, fetch_rust) };
    let toolchain = match (Toolchain::find(), brought) {
        (Ok(toolchain), Ok(())) => toolchain,
        (Ok(toolchain), Err(why)) => {
            println!("Debian's Rust could not be brought, so another compiles the kernels: {why:#}");
            toolchain
        }
        (Err(efa_gpu_builder::Error::NoToolchain { .. }), Err(why)) => {
            return Err(why.context(
                "no Rust toolchain that compiles to PTX could be brought; `rustup toolchain install nightly --component rust-src` brings one",
            ));
        }
        (Err(error), _) => return Err(error.into()),
    };
    println!("{toolchain}");
    let ptxas = match Ptxas::find() {
        Ok(ptxas) => ptxas,
        Err(_) => {
            in_one_piece(&folder.join("bin"), fetch_ptxas)
                .context("ptxas could not be brought; name one in PTXAS, or install a CUDA toolkit")?;
            Ptxas::find()?
        }
    };
    let version = run(Command::new(ptxas.path()).arg("--version"))?;
    let release = version.lines().find_map(|line| line.split_once("release ")).map_or("of unknown release", |it| it.1);
    println!("ptxas {release} in {}", ptxas.path().display());
    Ok(())
}

/// Creates a folder with another name first and renames it at the end, so that an interrupted run leaves nothing that
/// looks complete.
fn in_one_piece(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = folder.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    make(&partial)?;
    remove(folder)?;
    fs::rename(&partial, folder).with_context(|| format!("renaming {}", partial.display()))
}

fn fetch_rust(into: &Path) -> Result<()> {
    let (archive, security) = Archive::of_this_machine()?;
    let apt = into.join("apt");
    let suites: Vec<_> = [archive].into_iter().chain(security).collect();
    let names = suites.iter().map(|archive| archive.suite.as_str()).collect::<Vec<_>>().join(" and ");
    println!("fetching a Rust toolchain from Debian {names}");
    // Packages that are installed on this machine are not downloaded.
    let private = Apt::new(&apt, &suites, Some(Path::new(INSTALLED)))?;
    let mut seen = Vec::new();
    for family in FAMILIES {
        let version = private.candidate(family[0])?;
        if version.as_deref().and_then(minor).is_some_and(|minor| minor >= OLDEST_RUST) {
            private.download(family)?;
            private.unpack(into)?;
            remove_what_only_rustc_is_made_of(into)?;
            return remove(&apt);
        }
        seen.push(format!("{} {}", family[0], version.as_deref().unwrap_or("nowhere")));
    }
    bail!("Debian {names} has no Rust from 1.{OLDEST_RUST} on: {}", seen.join(", "))
}

/// Returns the minor version of a package's version: 96 for `1.96.0+dfsg1-1~deb12u2`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// Removes rustc's sources except the standard library's: the rest is six times as large and not compiled.
fn remove_what_only_rustc_is_made_of(root: &Path) -> Result<()> {
    for sources in entries(&root.join("usr/src")) {
        entries(&sources)
            .iter()
            .filter(|part| part.is_dir() && !part.ends_with("library"))
            .try_for_each(|part| remove(part))?;
    }
    Ok(())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn fetch_ptxas(into: &Path) -> Result<()> {
    let own = into.join("python");
    let python = Python::find_or_bring(&own)?;
    println!("fetching ptxas from PyPI");
    let (wheels, parts) = (into.join("wheels"), into.join("parts"));
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", PTXAS, "--dest"];
    run(python.command(pip).arg(&wheels)).context("is PyPI reachable?")?;
    let wheel = entries(&wheels).pop().context("pip brought nothing")?;
    // A wheel is a zip file.
    run(python.command(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&parts))?;
    let ptxas =
        entries(&parts.join("nvidia")).into_iter().map(|cuda| cuda.join("bin/ptxas")).find(|file| file.is_file());
    let ptxas = ptxas.with_context(|| format!("{} has no ptxas", wheel.display()))?;
    make_executable(&ptxas)?;
    fs::rename(ptxas, into.join("ptxas"))?;
    [wheels, parts, own].iter().try_for_each(|part| remove(part))
}

/// Makes a file executable: zip files contain no permissions.
fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).with_context(|| format!("{}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn the_minor_version_of_a_package_is_understood() {
        assert_eq!(minor("1.96.0+dfsg1-1~deb12u2"), Some(96));
        assert_eq!(minor("1.85.0"), Some(85));
        assert_eq!(minor("2:1"), None);
    }
}
