//! `cargo xtask vendor`: downloads the vendor's library and programs that use it, for the tests that run them on
//! software devices.
//!
//! rdma-core, perftest and libfabric are packages of Debian unstable. A private apt downloads them into `target/vendor`
//! with everything that they need, including the C library, without root and without changing the system. They are
//! unpacked, not installed. Their programs run through their own loader.
//!
//! | below `target/vendor` | contents |
//! | --- | --- |
//! | `root` | rdma-core (with headers), perftest, libfabric and everything that they need |
//! | `clang` | the packages of libclang that the machine lacks, for generating bindings |
//! | `packages` | the packages that were asked for, then those that were downloaded; written last |

use crate::apt::{Apt, Archive, INSTALLED, Package};
use crate::common::{remove, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The packages that the tests run or compile against. apt adds what these need.
const WANTED: &[&str] =
    &["ibverbs-providers", "ibverbs-utils", "libibverbs-dev", "librdmacm1t64", "perftest", "libfabric-bin"];

/// The oldest rdma-core that has completion counters, which the tests' peer uses.
const OLDEST_RDMA_CORE: u32 = 65;

/// Downloads the packages unless they are there.
pub(crate) fn bring() -> Result<()> {
    let vendor = target().join("vendor");
    if fs::read_to_string(vendor.join("packages")).is_ok_and(|list| list.lines().next() == Some(&wanted())) {
        println!("{} (delete {} to have the newest)", versions(&vendor)?, vendor.display());
        return Ok(());
    }
    // Everything goes to another folder first, so that an interrupted run leaves nothing that looks complete.
    let partial = target().join("vendor.partial");
    remove(&partial)?;
    fetch(&partial)?;
    remove(&vendor)?;
    fs::rename(&partial, &vendor).with_context(|| format!("renaming {} to vendor", partial.display()))?;
    println!("{} in {}", versions(&vendor)?, vendor.display());
    Ok(())
}

/// Returns the environment variables for bindgen: the folder of the headers and, if it was downloaded, that of
/// libclang.
pub(crate) fn bindgen_environment() -> Vec<(&'static str, PathBuf)> {
    let vendor = target().join("vendor");
    let mut environment = vec![("EFA_SYS_INCLUDE", vendor.join("root/usr/include"))];
    let folders = fs::read_dir(vendor.join("clang/usr/lib")).into_iter().flatten().flatten();
    let has_libclang = |folder: &PathBuf| {
        let mut files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.any(|file| file.file_name().as_encoded_bytes().starts_with(b"libclang-"))
    };
    if let Some(folder) = folders.map(|entry| entry.path()).find(has_libclang) {
        // The libraries that libclang needs are beside it.
        environment.extend([("LIBCLANG_PATH", folder.clone()), ("LD_LIBRARY_PATH", folder)]);
    }
    environment
}

fn fetch(into: &Path) -> Result<()> {
    let (archive, _) = Archive::of_this_machine()?;

    println!("fetching rdma-core, perftest and libfabric from Debian unstable");
    // As on a machine without any packages, everything is downloaded, including the C library.
    let apt = Apt::new(&into.join("apt/unstable"), &[archive.with_suite("unstable")], None)?;
    let packages = apt.download(WANTED)?;
    let rdma_core = version(&packages, "libibverbs1")?;
    let major = rdma_core.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major < OLDEST_RDMA_CORE {
        bail!("the archive has rdma-core {rdma_core}; {OLDEST_RDMA_CORE} or newer is needed");
    }
    apt.unpack(&into.join("root"))?;

    println!("fetching libclang from Debian {}", archive.suite);
    // This machine's programs load libclang, so libraries that they have already must not be there a second time.
    let apt = Apt::new(&into.join("apt/own"), &[archive], Some(Path::new(INSTALLED)))?;
    let newest = apt.newest("libclang1-")?;
    let clang = apt.download(&[&newest])?;
    apt.unpack(&into.join("clang"))?;

    remove(&into.join("apt"))?;
    let lines = packages.iter().chain(&clang).map(|package| format!("{} {}\n", package.name, package.version));
    fs::write(into.join("packages"), wanted() + "\n" + &lines.collect::<String>())?;
    Ok(())
}

/// Returns the first line of `packages` in a complete folder.
fn wanted() -> String {
    format!("wanted: {} and libclang1", WANTED.join(" "))
}

/// Returns one line about the downloaded packages.
fn versions(vendor: &Path) -> Result<String> {
    let list = fs::read_to_string(vendor.join("packages"))?;
    let packages: Vec<_> = list.lines().skip(1).filter_map(Package::parse).collect();
    let names = [("rdma-core", "libibverbs1"), ("perftest", "perftest"), ("libfabric", "libfabric1")];
    let versions: Result<Vec<_>> =
        names.iter().map(|(name, package)| Ok(format!("{name} {}", version(&packages, package)?))).collect();
    Ok(versions?.join(", "))
}

fn version<'a>(packages: &'a [Package], name: &str) -> Result<&'a str> {
    let package = packages.iter().find(|package| package.name == name);
    Ok(&package.with_context(|| format!("{name} is not among the packages that came"))?.version)
}
