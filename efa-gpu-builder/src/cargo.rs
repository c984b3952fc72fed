//! The inner cargo: its command line and its messages.
//!
//! The kernel crate is compiled as a `cdylib`, whatever its manifest says. The compiler writes the crate's assembly,
//! which is the PTX, to the file that the builder chooses. Linking would add nothing to a single module after LTO, and
//! needs a tool that toolchains do not have (`llvm-bitcode-linker`). The program `true` takes its place, so cargo's
//! exit code depends on the compiler alone.

use crate::{Arch, Error, Toolchain, inputs};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const TARGET: &str = "nvptx64-nvidia-cuda";

/// One compilation: a kernel crate for one architecture.
pub(crate) struct Job<'a> {
    pub(crate) toolchain: &'a Toolchain,
    /// The kernel crate's folder as the user gave it, for messages.
    pub(crate) name: &'a str,
    /// The absolute path of the kernel crate's folder.
    pub(crate) folder: &'a Path,
    pub(crate) arch: Arch,
    /// The target folder of the inner cargo, which all build scripts share.
    pub(crate) target: &'a Path,
    pub(crate) features: &'a [String],
    /// The PTX version times ten.
    pub(crate) ptx_version: u32,
    pub(crate) debug_assertions: bool,
}

/// The result of a compilation.
pub(crate) struct Compiled {
    pub(crate) inputs: Vec<PathBuf>,
    /// `true` if all inputs are files; `false` if there are folders among them.
    pub(crate) exact: bool,
    pub(crate) warnings: Vec<String>,
}

impl Job<'_> {
    /// Returns one line with everything that determines the PTX apart from its inputs.
    pub(crate) fn how(&self) -> String {
        let Self { toolchain, features, debug_assertions, .. } = self;
        let builder = env!("CARGO_PKG_VERSION");
        format!("{builder}, {toolchain}, {:?}, {features:?}, debug assertions {debug_assertions}", self.rustflags())
    }

    fn rustflags(&self) -> [String; 2] {
        [format!("-Ctarget-cpu={}", self.arch), format!("-Ctarget-feature=+ptx{}", self.ptx_version)]
    }

    /// Compiles the crate to the file `ptx`.
    pub(crate) fn run(&self, ptx: &Path) -> Result<Compiled, Error> {
        fs::create_dir_all(self.target).map_err(Error::io("creating", self.target))?;
        // Cargo's own lock is not enough: cargo writes the list of a crate's inputs to a file named after the crate,
        // and another build's crate may have the same name.
        let lock = self.target.join("lock");
        let file = File::create(&lock).map_err(Error::io("creating", &lock))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| Error::io("locking", &lock)(error.into()))?;

        inputs::remove(ptx)?;
        let mut cargo = self.toolchain.command("cargo");
        cargo.current_dir(self.folder);
        cargo.env("RUSTC", self.toolchain.program("rustc")).env("RUSTC_BOOTSTRAP", "1");
        // Set to empty, these variables override cargo's configuration files.
        cargo.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.rustflags().join("\x1f"));
        cargo.env("CARGO_BUILD_BUILD_DIR", self.target).arg("rustc").arg("--target-dir").arg(self.target);
        cargo.args(["--lib", "--crate-type=cdylib", "--release", "--target", TARGET, "--message-format=json"]);
        cargo.args(["-Zbuild-std=core", "-Zbuild-std-features=compiler-builtins-mem"]);
        for setting in self.profile() {
            cargo.arg("--config").arg(setting);
        }
        if !self.features.is_empty() {
            cargo.arg("--features").arg(self.features.join(","));
        }
        cargo.arg("--").arg(format!("--emit=asm={}", ptx.display()));

        let program = self.toolchain.program("cargo");
        let output = cargo.output().map_err(Error::io("starting", &program))?;
        let messages = Messages::new(&output.stdout, self.name);
        if !output.status.success() || !ptx.is_file() {
            let log = String::from_utf8_lossy(&output.stderr);
            let diagnostics =
                if messages.errors.is_empty() { errors_of_cargo(&log) } else { messages.errors.join("\n") };
            let (krate, toolchain) = (self.name.into(), self.toolchain.to_string());
            let diagnostics = diagnostics.trim_end().into();
            return Err(Error::Compile { krate, arch: self.arch, toolchain, diagnostics });
        }
        let rules = messages.library.map(|name| self.target.join(TARGET).join("release").join(name + ".d"));
        let sources = rules.and_then(|rules| inputs::of_rules(&rules));
        let exact = sources.is_some();
        // Without that list, every file of the crate may be an input.
        let mut inputs = sources.unwrap_or_else(|| vec![self.folder.join("src")]);
        let crates = inputs.iter().filter_map(|source| inputs::crate_of(source).map(Path::to_path_buf));
        let crates: Vec<_> = crates.chain([self.folder.to_path_buf()]).collect();
        inputs.extend(crates.iter().flat_map(|krate| inputs::of_cargo(krate)));
        inputs.sort();
        inputs.dedup();
        Ok(Compiled { inputs, exact, warnings: messages.warnings })
    }

    fn profile(&self) -> [String; 8] {
        let checks = self.debug_assertions;
        [
            "profile.release.opt-level=3".into(),
            "profile.release.lto=\"fat\"".into(),
            "profile.release.codegen-units=1".into(),
            "profile.release.panic=\"abort\"".into(),
            "profile.release.debug=false".into(),
            format!("profile.release.debug-assertions={checks}"),
            format!("profile.release.overflow-checks={checks}"),
            format!("target.{TARGET}.linker=\"true\""),
        ]
    }
}

/// What cargo's JSON messages report: the compiler's errors and warnings, and the library.
#[derive(Default)]
struct Messages {
    errors: Vec<String>,
    warnings: Vec<String>,
    /// The name of the kernel crate's library.
    library: Option<String>,
}

impl Messages {
    fn new(stdout: &[u8], krate: &str) -> Self {
        let mut messages = Self::default();
        for line in stdout.split(|byte| *byte == b'\n') {
            let Ok(message) = serde_json::from_slice::<Value>(line) else { continue };
            match message["reason"].as_str() {
                Some("compiler-message") => messages.add(&message["message"], krate),
                Some("compiler-artifact") if message["target"]["crate_types"] == serde_json::json!(["cdylib"]) => {
                    messages.library = message["target"]["name"].as_str().map(|name| name.replace('-', "_"));
                }
                _ => {}
            }
        }
        messages
    }

    fn add(&mut self, diagnostic: &Value, krate: &str) {
        let (text, level) = (diagnostic["message"].as_str().unwrap_or(""), diagnostic["level"].as_str().unwrap_or(""));
        let rendered = name_files(diagnostic["rendered"].as_str().unwrap_or(text), krate);
        let all = match level {
            _ if text.starts_with("aborting due to") => return,
            // The warning that `ptxNN` is an unstable feature, which the builder itself enables.
            "warning" if text.contains("`-Ctarget-feature`") => return,
            "warning" => &mut self.warnings,
            level if level.starts_with("error") => &mut self.errors,
            _ => return,
        };
        if !all.contains(&rendered) {
            all.push(rendered);
        }
    }
}

/// Rewrites the paths in a message: the compiler names files relative to the kernel crate's folder, users expect them
/// relative to the package's.
fn name_files(rendered: &str, krate: &str) -> String {
    let name = |line: &str| {
        for arrow in ["--> ", "::: "] {
            let Some((indent, file)) = line.split_once(arrow) else { continue };
            if indent.trim().is_empty() && !file.starts_with('/') {
                return format!("{indent}{arrow}{krate}/{file}\n");
            }
        }
        format!("{line}\n")
    };
    rendered.lines().map(name).collect()
}

/// Returns the part of cargo's log that is about an error, or the whole log if there is no such part.
fn errors_of_cargo(log: &str) -> String {
    let errors: Vec<_> = log.lines().skip_while(|line| !line.starts_with("error")).collect();
    if errors.is_empty() { log.into() } else { errors.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_crate_are_named_from_where_the_package_is() {
        let rendered = "error: no\n --> src/lib.rs:3:5\n  |\n3 |     a --> b\n  ::: /std/lib.rs:1:1\n";
        let expected = "error: no\n --> kernels/src/lib.rs:3:5\n  |\n3 |     a --> b\n  ::: /std/lib.rs:1:1\n";
        assert_eq!(name_files(rendered, "kernels"), expected);
    }

    #[test]
    fn of_cargos_log_the_progress_is_left_out() {
        assert_eq!(
            errors_of_cargo("    Updating index\nerror: no such feature\n\nCaused by:\n"),
            "error: no such feature\n\nCaused by:"
        );
        assert_eq!(errors_of_cargo("killed"), "killed");
    }
}
