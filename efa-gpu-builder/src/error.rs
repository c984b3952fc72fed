//! The crate's error: what failed, and what to do about it.

use crate::Arch;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The reason why there is no PTX, or no report about it.
///
/// `Debug` prints the same as `Display`, because cargo shows a build script's error by `Debug` if its `main` returns
/// the error.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No toolchain on this machine compiles to PTX.
    #[error(
        "no Rust toolchain here compiles to PTX: `rustup toolchain install nightly --component rust-src` brings one, or Debian's packages \
         rustc-web, cargo-web and rust-web-src do, or name the folder of one in EFA_PTX_TOOLCHAIN{}",
        considered(found)
    )]
    NoToolchain {
        /// The toolchains that were found, each with what it lacks.
        found: Vec<String>,
    },
    /// The toolchain that `EFA_PTX_TOOLCHAIN` names cannot be used.
    #[error("EFA_PTX_TOOLCHAIN is {given}: {lacks}")]
    BadToolchain {
        /// The variable's value.
        given: String,
        /// What the toolchain lacks.
        lacks: String,
    },
    /// The folder has no `Cargo.toml`. The field is the path where it was expected.
    #[error("{} is not there: PtxBuilder::new takes the folder of a crate, relative to the package's own", .0.display())]
    NoManifest(PathBuf),
    /// There is no folder for the PTX: `OUT_DIR` is not set.
    #[error("OUT_DIR is not set: outside a build script, PtxBuilder::out_dir says where the PTX goes")]
    NoOutDir,
    /// The kernel crate or one of its dependencies does not compile, or cargo failed before compiling.
    #[error("{krate} does not compile for {arch} with {toolchain}\n\n{diagnostics}")]
    Compile {
        /// The kernel crate's folder, as the user gave it.
        krate: String,
        /// The architecture.
        arch: Arch,
        /// The toolchain: its version and folder.
        toolchain: String,
        /// The errors of the compiler, or of cargo, in their own format.
        diagnostics: String,
    },
    /// There is no `ptxas`.
    #[error(
        "ptxas is not here: `pip install nvidia-cuda-nvcc` brings one (in nvidia/cu13/bin), a CUDA toolkit does, too; name it in PTXAS{}",
        considered(found)
    )]
    NoPtxas {
        /// The files that were considered, each with the reason why it cannot be used.
        found: Vec<String>,
    },
    /// `ptxas` refused the PTX.
    #[error("ptxas does not assemble {} for {arch}\n{output}", ptx.display())]
    Ptxas {
        /// The architecture.
        arch: Arch,
        /// The PTX file.
        ptx: PathBuf,
        /// The output of `ptxas`.
        output: String,
    },
    /// A program could not be started, or a file operation failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation and the file.
        doing: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl Error {
    /// Returns a function for `map_err` that adds the operation and the file to an error.
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

/// Returns the end of a message: the list of what was found.
fn considered(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!(" (there are: {})", found.join("; ")) }
}
