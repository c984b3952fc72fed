//! Rust toolchains that compile to PTX, and the search for one.

use crate::Error;
use crate::environment::{forget_the_outer_build, in_path, own_target_folder};
use std::cmp::Reverse;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest minor version of Rust 1 that compiles edition 2024's `core` for all of [`Arch`](crate::Arch). Tried with
/// 1.96.
const OLDEST: u32 = 88;

/// A Rust toolchain that compiles to PTX: a rustc, its cargo, and the sources of its `core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The folder that has `bin` and `lib/rustlib`.
    sysroot: PathBuf,
    /// The folder of its shared libraries, if the loader does not search there because the toolchain was unpacked and
    /// not installed.
    libraries: Option<PathBuf>,
    /// The compiler's version, for example `1.96.0 (ac68faa20 2026-05-25)`.
    version: String,
}

impl Toolchain {
    /// Finds the first usable toolchain in the order that the [crate's documentation](crate) gives.
    ///
    /// # Errors
    /// [`Error::BadToolchain`] if `EFA_PTX_TOOLCHAIN` names one that cannot be used; [`Error::NoToolchain`] if none was
    /// found.
    pub fn find() -> Result<Self, Error> {
        Self::find_for(own_target_folder().as_deref())
    }

    /// Finds the first usable toolchain, given cargo's target folder.
    pub(crate) fn find_for(target: Option<&Path>) -> Result<Self, Error> {
        let home = |variable, folder| {
            env::var_os(variable).map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(folder)))
        };
        Places {
            explicit: env::var_os("EFA_PTX_TOOLCHAIN").filter(|value| !value.is_empty()),
            rustup: home("RUSTUP_HOME", ".rustup"),
            path: env::var_os("PATH"),
            brought: target.map(|target| target.join("toolchain/root")),
        }
        .find()
    }

    /// Returns the folder that has `bin` and `lib/rustlib`.
    pub fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// Returns the compiler's version, for example `1.96.0 (ac68faa20 2026-05-25)`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the toolchain in this folder or in `usr` in it.
    ///
    /// # Errors
    /// A sentence that says what the toolchain lacks.
    fn at(folder: &Path) -> Result<Self, String> {
        let folder = if folder.join("usr/bin/rustc").is_file() { folder.join("usr") } else { folder.to_path_buf() };
        let lacks = |what: &str| format!("{} has no {what}", folder.display());
        for program in ["bin/rustc", "bin/cargo"] {
            if !folder.join(program).is_file() {
                return Err(lacks(program));
            }
        }
        if !folder.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            return Err(lacks("sources of the standard library"));
        }
        let sysroot = fs::canonicalize(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let libraries = multiarch_folder(&sysroot);
        let mut toolchain = Self { sysroot, libraries, version: String::new() };
        let output = toolchain.command("rustc").arg("--version").output();
        let output = output.map_err(|error| format!("{}: {error}", folder.display()))?;
        let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
        let said = said.trim();
        let version = said.strip_prefix("rustc ").filter(|_| output.status.success());
        let version = version.ok_or_else(|| format!("{}/bin/rustc does not run: {said}", folder.display()))?;
        let minor = version.strip_prefix("1.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if minor.is_none_or(|minor: u32| minor < OLDEST) {
            return Err(format!("{} has Rust {version}, 1.{OLDEST} or newer is needed", folder.display()));
        }
        toolchain.version = version.into();
        Ok(toolchain)
    }

    /// Returns a command that runs one of its programs in an environment without the outer build's variables.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        forget_the_outer_build(&mut command);
        if let Some(libraries) = &self.libraries {
            let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let all = [libraries.clone()].into_iter().chain(env::split_paths(&others));
            // If a folder's name contains a colon, there is no such list. The loader's own error then says what is
            // missing.
            command.env("LD_LIBRARY_PATH", env::join_paths(all).unwrap_or_default());
        }
        command
    }

    /// Returns the path of one of its programs.
    pub(crate) fn program(&self, program: &str) -> PathBuf {
        self.sysroot.join("bin").join(program)
    }
}

/// Prints for example `Rust 1.96.0 (ac68faa20 2026-05-25) in /usr`.
impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rust {} in {}", self.version, self.sysroot.display())
    }
}

/// Returns the folder of an unpacked Debian toolchain's shared libraries. The loader searches such a folder by itself
/// only below `/usr`.
fn multiarch_folder(sysroot: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(sysroot.join("lib")).into_iter().flatten().flatten();
    let mut folders = entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b"-linux-gnu"));
    folders.next().map(|entry| entry.path()).filter(|_| sysroot != Path::new("/usr"))
}

/// The places where toolchains may be.
struct Places {
    explicit: Option<OsString>,
    rustup: Option<PathBuf>,
    path: Option<OsString>,
    brought: Option<PathBuf>,
}

impl Places {
    fn find(&self) -> Result<Toolchain, Error> {
        if let Some(given) = &self.explicit {
            let bad = |lacks| Error::BadToolchain { given: given.to_string_lossy().into(), lacks };
            return self.explicit(given).and_then(|folder| Toolchain::at(&folder)).map_err(bad);
        }
        let rustc = |file: PathBuf| Some(fs::canonicalize(file).ok()?.parent()?.parent()?.to_path_buf());
        // Rustup's own `rustc` in PATH only starts another one; it is not part of a toolchain.
        let is_toolchain = |folder: &PathBuf| folder.join("lib/rustlib").is_dir();
        let system = in_path(self.path.clone(), "rustc").into_iter().filter_map(rustc).filter(is_toolchain);
        let brought = self.brought.iter().filter(|root| root.exists()).cloned();
        let mut found = Vec::new();
        for folder in brought.chain(self.rustups()).chain(system) {
            match Toolchain::at(&folder) {
                Ok(toolchain) => return Ok(toolchain),
                Err(lacks) if !found.contains(&lacks) => found.push(lacks),
                Err(_) => {}
            }
        }
        Err(Error::NoToolchain { found })
    }

    /// Returns the folder that the value of `EFA_PTX_TOOLCHAIN` refers to.
    fn explicit(&self, given: &OsStr) -> Result<PathBuf, String> {
        if Path::new(given).is_dir() {
            return Ok(given.into());
        }
        let name = given.to_string_lossy();
        let is_it = |folder: &PathBuf| {
            let rest = folder.file_name().and_then(OsStr::to_str).and_then(|folder| folder.strip_prefix(&*name));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        self.rustups().into_iter().find(is_it).ok_or_else(|| "neither a folder nor a toolchain of rustup".into())
    }

    /// Returns the folders of rustup's toolchains: nightlies first, and newer dates and versions before older ones.
    fn rustups(&self) -> Vec<PathBuf> {
        let folder = self.rustup.as_ref().map(|rustup| rustup.join("toolchains"));
        let entries = folder.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.path()).collect();
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        names.sort_by_key(|path| (!name(path).starts_with("nightly"), Reverse(name(path))));
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard};

    /// A test's own folder, which is removed when this is dropped. Only one test at a time has one: the tests write
    /// programs and start them, and a program cannot be started while a process that another thread has just forked
    /// still has it open for writing.
    struct Scratch(PathBuf, #[expect(dead_code)] MutexGuard<'static, ()>);

    static ONE: Mutex<()> = Mutex::new(());

    impl Scratch {
        fn new(test: &str) -> Self {
            let folder = env::temp_dir().join(format!("efa-gpu-builder-{test}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(fs::canonicalize(folder).unwrap(), ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
        }

        /// Creates files that look like a toolchain of this version, with the sources of `core` only if `sources` is
        /// `true`.
        fn toolchain(&self, at: &str, version: &str, sources: bool) -> PathBuf {
            let folder = self.0.join(at);
            fs::create_dir_all(folder.join("bin")).unwrap();
            fs::create_dir_all(folder.join("lib/rustlib/src/rust/library/core")).unwrap();
            for program in ["rustc", "cargo"] {
                let file = folder.join("bin").join(program);
                fs::write(&file, format!("#!/bin/sh\necho '{program} {version}'\n")).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            }
            if sources {
                fs::write(folder.join("lib/rustlib/src/rust/library/core/Cargo.toml"), "").unwrap();
            }
            folder
        }

        fn places(&self) -> Places {
            let path = Some(self.0.join("system/bin").into_os_string());
            Places { explicit: None, rustup: Some(self.0.join("rustup")), path, brought: Some(self.0.join("brought")) }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_explicit_setting_goes_before_what_was_brought_before_nightlies_before_others_before_the_system() {
        let scratch = Scratch::new("order");
        let mut places = scratch.places();
        let found = |places: &Places| places.find().unwrap().sysroot;
        let system = scratch.toolchain("system", "1.90.0", true);
        assert_eq!(found(&places), system);
        let stable = scratch.toolchain("rustup/toolchains/stable-x", "1.95.0", true);
        assert_eq!(found(&places), stable);
        let dated = scratch.toolchain("rustup/toolchains/nightly-2026-01-01-x", "1.94.0-nightly", true);
        assert_eq!(found(&places), dated);
        scratch.toolchain("rustup/toolchains/nightly-x", "1.99.0-nightly", false);
        assert_eq!(found(&places), dated, "the newer nightly has no sources");
        let brought = scratch.toolchain("brought/usr", "1.96.0", true);
        assert_eq!(found(&places), brought);
        places.explicit = Some("stable".into());
        assert_eq!(found(&places), stable);
        places.explicit = Some(scratch.0.join("brought").into());
        assert_eq!(found(&places), brought);
        assert_eq!(places.find().unwrap().version(), "1.96.0");
    }

    #[test]
    fn without_a_toolchain_the_error_says_what_to_install_and_what_the_others_lack() {
        let scratch = Scratch::new("none");
        let none = scratch.places().find().unwrap_err().to_string();
        assert!(none.contains("rustup toolchain install nightly --component rust-src"), "{none}");
        assert!(none.contains("rustc-web, cargo-web and rust-web-src") && none.contains("EFA_PTX_TOOLCHAIN"), "{none}");
        assert!(!none.contains('\n'), "{none}");
        scratch.toolchain("rustup/toolchains/stable-x", "1.95.0", false);
        scratch.toolchain("system", "1.87.0 (old)", true);
        let lacking = scratch.places().find().unwrap_err().to_string();
        assert!(lacking.contains("stable-x has no sources of the standard library"), "{lacking}");
        assert!(lacking.contains("system has Rust 1.87.0 (old), 1.88 or newer is needed"), "{lacking}");
    }

    #[test]
    fn an_explicit_setting_that_does_not_serve_is_an_error_even_where_another_toolchain_would() {
        let scratch = Scratch::new("explicit");
        scratch.toolchain("system", "1.96.0", true);
        let mut places = scratch.places();
        places.explicit = Some("nightly".into());
        let unknown = places.find().unwrap_err().to_string();
        assert_eq!(unknown, "EFA_PTX_TOOLCHAIN is nightly: neither a folder nor a toolchain of rustup");
        places.explicit = Some(scratch.0.clone().into());
        let empty = places.find().unwrap_err().to_string();
        assert!(empty.ends_with("has no bin/rustc"), "{empty}");
    }

    #[test]
    fn a_toolchain_that_was_unpacked_finds_its_shared_libraries() {
        let scratch = Scratch::new("libraries");
        let folder = scratch.toolchain("root/usr", "1.96.0", true);
        fs::create_dir_all(folder.join("lib/x86_64-linux-gnu")).unwrap();
        let command = Toolchain::at(&scratch.0.join("root")).unwrap().command("rustc");
        let path =
            command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH").and_then(|(_, value)| value).unwrap();
        assert_eq!(env::split_paths(path).next(), Some(folder.join("lib/x86_64-linux-gnu")));
    }
}
