//! The build script's environment variables and folders, and which of the variables a toolchain may see.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables that the inner cargo keeps: they say how to reach registries and how many jobs to run. A name that ends
/// with `_` is a prefix.
const KEPT: &[&str] = &[
    "CARGO_BUILD_JOBS",
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

/// Variables that the inner cargo does not see: those that cargo and rustc read, and those that cargo sets for a build
/// script. They are about the outer build. A name that ends with `_` is a prefix.
const DROPPED: &[&str] = &[
    "CARGO",
    "CARGO_",
    "CLIPPY_",
    "DEBUG",
    "DEP_",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "TARGET",
];

/// Removes the outer build's variables from a command's environment.
pub(crate) fn forget_the_outer_build(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| is_the_outer_builds(&name.to_string_lossy())) {
        command.env_remove(name);
    }
}

fn is_the_outer_builds(name: &str) -> bool {
    let is = |entry: &&str| name == *entry || entry.ends_with('_') && name.starts_with(*entry);
    DROPPED.iter().any(is) && !KEPT.iter().any(is)
}

/// Returns cargo's target folder, given a folder anywhere below it. Returns `below` itself if it is not below a target
/// folder.
pub(crate) fn target_folder(below: &Path) -> &Path {
    below.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).unwrap_or(below)
}

/// Returns the target folder of the running build script, or else of the running program.
pub(crate) fn own_target_folder() -> Option<PathBuf> {
    let below = env::var_os("OUT_DIR").map(PathBuf::from).or_else(|| env::current_exe().ok())?;
    Some(target_folder(&below).to_path_buf())
}

/// Returns all files of this name in the folders of `PATH`.
pub(crate) fn in_path(path: Option<OsString>, program: &str) -> Vec<PathBuf> {
    let path = path.unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(program)).filter(|file| file.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::is_the_outer_builds;

    #[test]
    fn what_steers_the_outer_build_is_dropped_and_what_reaches_registries_is_kept() {
        let steers = [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "TARGET",
        ];
        for name in steers {
            assert!(is_the_outer_builds(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "PATH", "HOME", "TARGETS"]
        {
            assert!(!is_the_outer_builds(name), "{name}");
        }
    }
}
