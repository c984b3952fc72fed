//! What can go wrong, with what to do about it.

use crate::Arch;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no PTX, or no report about it.
///
/// Its `Debug` prints what its `Display` does: that is what people see of a build script whose `main` returns it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing here compiles to PTX.
    #[error(
        "no Rust toolchain here compiles to PTX: `rustup toolchain install nightly --component rust-src` brings one, or Debian's packages \
         rustc-web, cargo-web and rust-web-src do, or name the folder of one in EFA_PTX_TOOLCHAIN{}",
        considered(found)
    )]
    NoToolchain {
        /// Which were considered, each with what it lacks.
        found: Vec<String>,
    },
    /// The toolchain that was asked for cannot be used.
    #[error("EFA_PTX_TOOLCHAIN is {given}: {lacks}")]
    BadToolchain {
        /// What the variable says.
        given: String,
        /// What is missing there.
        lacks: String,
    },
    /// The folder is no crate.
    #[error("{} is not there: PtxBuilder::new takes the folder of a crate, relative to the package's own", .0.display())]
    NoManifest(PathBuf),
    /// Nobody said where the PTX goes.
    #[error("OUT_DIR is not set: outside a build script, PtxBuilder::out_dir says where the PTX goes")]
    NoOutDir,
    /// The kernel crate, or a crate that it depends on, does not compile; or cargo could not start to compile it.
    #[error("{krate} does not compile for {arch} with {toolchain}\n\n{diagnostics}")]
    Compile {
        /// The kernel crate's folder, as it was given.
        krate: String,
        /// For what it was compiled.
        arch: Arch,
        /// The version of the compiler.
        toolchain: String,
        /// The compiler's errors as it renders them, or cargo's.
        diagnostics: String,
    },
    /// There is no `ptxas`.
    #[error(
        "ptxas is not here: `pip install nvidia-cuda-nvcc` brings one (in nvidia/cu13/bin), a CUDA toolkit does, too; name it in PTXAS{}",
        considered(found)
    )]
    NoPtxas {
        /// What was considered.
        found: Vec<String>,
    },
    /// `ptxas` refused the PTX.
    #[error("ptxas does not assemble {} for {arch}\n{output}", ptx.display())]
    Ptxas {
        /// For what.
        arch: Arch,
        /// The PTX.
        ptx: PathBuf,
        /// What it said.
        output: String,
    },
    /// A program or the file system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: what was being done to which file.
    pub(crate) fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn considered(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!(" (there are: {})", found.join("; ")) }
}
