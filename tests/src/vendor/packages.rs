//! The vendor's packages, which `cargo xtask vendor` brings.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// The folders of the packages that `cargo xtask vendor` brought.
#[derive(Debug)]
pub struct Vendor {
    /// The folder of programs.
    bin: PathBuf,
    include: PathBuf,
    /// The folder of libraries.
    lib: PathBuf,
    loader: PathBuf,
}

impl Vendor {
    /// Finds the packages, once per process.
    ///
    /// # Panics
    /// They are not there.
    pub fn get() -> &'static Self {
        static VENDOR: OnceLock<Vendor> = OnceLock::new();
        VENDOR.get_or_init(|| {
            let root = target().join("vendor/root/usr");
            Self::find(&root).unwrap_or_else(|| {
                panic!("the vendor's programs are not in {}: `cargo xtask vendor` brings them", root.display())
            })
        })
    }

    fn find(root: &Path) -> Option<Self> {
        let entries = |folder: &str| fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let lib = entries("lib").map(|entry| entry.path()).find(|folder| folder.join("libibverbs.so.1").exists())?;
        let is_loader =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-linux"));
        let loader = entries("lib64").chain(entries("lib")).map(|entry| entry.path()).find(is_loader)?;
        Some(Self { bin: root.join("bin"), include: root.join("include"), lib, loader })
    }

    /// Returns the command line that starts one of the packaged programs.
    pub fn program(&self, name: &str) -> Vec<OsString> {
        self.loaded(&self.bin.join(name))
    }

    /// Returns the command line that starts a program with the packaged libraries.
    pub fn loaded(&self, program: &Path) -> Vec<OsString> {
        [self.loader.as_path(), Path::new("--library-path"), &self.lib, program].map(|word| word.into()).into()
    }

    /// Returns the environment variable that these programs need. Without it, libibverbs looks for providers only at
    /// fixed places.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        ("RDMAV_DRIVERS", self.lib.join("libibverbs/libefa"))
    }

    /// Returns the beginning of a shell script that starts these programs. `loaded PROGRAM ARGUMENTS…` executes one,
    /// `$BIN` is the folder of the packaged programs, and `$PEER` is [ours](super::Peer). Each gets at most two minutes
    /// of processor time, in case a test leaves it behind.
    pub fn prelude(&self) -> String {
        let [loader, lib, bin, peer] = [&self.loader, &self.lib, &self.bin, self.peer()].map(|path| path.display());
        format!(
            "ulimit -t 120\nloaded() {{ exec '{loader}' --library-path '{lib}' \"$@\"; }}\nBIN='{bin}' PEER='{peer}'\n"
        )
    }

    /// Returns the program of [`Peer`](super::Peer), which is compiled once per process.
    pub(super) fn peer(&self) -> &'static PathBuf {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        PROGRAM.get_or_init(|| self.compile("peer", &["peer.c", "external.c", "processes.c"]))
    }

    /// Compiles a C program of this package from these sources, against the vendor's library.
    ///
    /// # Panics
    /// The program does not compile.
    pub fn compile(&self, name: &str, sources: &[&str]) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
        let program = target().join("vendor").join(name);
        // It has a temporary name until it is complete, because other tests may start it at the same time.
        let partial = program.with_extension(std::process::id().to_string());
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&self.include);
        cc.args(sources.iter().map(|source| folder.join(source))).arg("-o").arg(&partial).arg("-L").arg(&self.lib);
        // The libraries need a newer C library than the one linked here. The packaged loader provides it.
        cc.args(["-libverbs", "-lefa", "-Wl,--allow-shlib-undefined"]);
        let output = cc.output().expect("the peer takes a C compiler named cc");
        assert!(output.status.success(), "{cc:?}: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&partial, &program).expect("renaming a file in its folder");
        program
    }
}

/// Prints that this machine does not support what a test needs. The test harness would hide ordinary output.
pub fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    // If writing fails, nobody reads it.
    let _ = writeln!(std::io::stderr(), "{name} SKIPPED: {why}");
}

/// Returns the workspace's target folder.
fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package is in a workspace");
    workspace.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
