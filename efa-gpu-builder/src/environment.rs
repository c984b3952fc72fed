//! The build script's surroundings, and what of them a toolchain may see.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables that say how to reach registries and how many jobs to run: the inner cargo keeps them.
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

/// Variables that cargo and rustc read, or that cargo sets for a build script: they are the outer build's own.
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

/// Takes the outer cargo and rustc out of a command's environment.
pub(crate) fn forget_the_outer_build(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| is_the_outer_builds(&name.to_string_lossy())) {
        command.env_remove(name);
    }
}

fn is_the_outer_builds(name: &str) -> bool {
    // What ends in an underscore is a prefix.
    let is = |entry: &&str| name == *entry || entry.ends_with('_') && name.starts_with(*entry);
    DROPPED.iter().any(is) && !KEPT.iter().any(is)
}

/// Cargo's target folder, given a folder somewhere below it; the folder itself, where that is not below one.
pub(crate) fn target_folder(below: &Path) -> &Path {
    below.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).unwrap_or(below)
}

/// The target folder of the build that this runs in, if it runs in one: of a build script, or else of the program that calls.
pub(crate) fn own_target_folder() -> Option<PathBuf> {
    let below = env::var_os("OUT_DIR").map(PathBuf::from).or_else(|| env::current_exe().ok())?;
    Some(target_folder(&below).to_path_buf())
}

/// All files of this name in `PATH`.
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
