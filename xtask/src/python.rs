//! A Python with pip: the machine's own, or else Debian's, unpacked as long as it is needed.

use crate::apt::{Apt, Archive, INSTALLED, run};
use crate::common::remove;
use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python with pip.
pub(crate) struct Python {
    program: PathBuf,
    /// The folder of its shared libraries, if the loader does not search there because Python was unpacked and not
    /// installed.
    libraries: Vec<PathBuf>,
}

impl Python {
    /// Finds the machine's own Python, or else unpacks one from Debian's archive into this folder.
    pub(crate) fn find_or_bring(folder: &Path) -> Result<Self> {
        let own = Self { program: "python3".into(), libraries: Vec::new() };
        match own.has_pip() {
            Ok(()) => Ok(own),
            Err(lacks) => Self::bring(folder).with_context(|| {
                format!("this machine's Python has no pip ({lacks:#}), and none could be brought; Debian's package python3-pip is one")
            }),
        }
    }

    /// Returns a command that runs Python with these arguments.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        if !self.libraries.is_empty() {
            let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let all = self.libraries.iter().cloned().chain(std::env::split_paths(&others));
            // If a folder's name contains a colon, there is no such list. The loader's own error then says what is
            // missing.
            command.env("LD_LIBRARY_PATH", std::env::join_paths(all).unwrap_or_default());
        }
        command
    }

    fn has_pip(&self) -> Result<()> {
        run(&mut self.command(["-m", "pip", "--version"])).map(drop)
    }

    fn bring(folder: &Path) -> Result<Self> {
        let (archive, security) = Archive::of_this_machine()?;
        println!("fetching Python and pip from Debian {}", archive.suite);
        let suites: Vec<_> = [archive].into_iter().chain(security).collect();
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = fs::canonicalize(folder)?;
        let installed = fs::read_to_string(INSTALLED).with_context(|| format!("reading {INSTALLED}"))?;
        let status = folder.join("status");
        fs::write(&status, without_python(&installed))?;
        let (apt, root) = (folder.join("apt"), folder.join("root"));
        let private = Apt::new(&apt, &suites, Some(&status))?;
        private.download(&["python3-pip"])?;
        private.unpack(&root)?;
        remove(&apt)?;
        let libraries = ["usr/lib", "lib"].iter().flat_map(|lib| multiarch_folders(&root.join(lib))).collect();
        let python = Self { program: root.join("usr/bin/python3"), libraries };
        python.has_pip()?;
        Ok(python)
    }
}

/// Returns dpkg's list of installed packages without Python's: an unpacked Python finds its parts beside itself and not
/// below `/usr`.
fn without_python(status: &str) -> String {
    let is_python = |stanza: &str| {
        let name = stanza.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or("");
        name.starts_with("python") || name.starts_with("libpython")
    };
    let stanzas = status.split("\n\n").map(str::trim_end).filter(|stanza| !stanza.is_empty() && !is_python(stanza));
    stanzas.map(|stanza| format!("{stanza}\n\n")).collect()
}

/// Returns the folders of shared libraries in a folder such as `/usr/lib`.
fn multiarch_folders(lib: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(lib).into_iter().flatten().flatten();
    let is_one = |name: OsString| name.as_encoded_bytes().ends_with(b"-linux-gnu");
    entries.filter(|entry| is_one(entry.file_name())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::without_python;

    #[test]
    fn of_what_is_installed_python_alone_comes_anew() {
        let stanza = |name: &str| format!("Package: {name}\nStatus: install ok installed\nVersion: 1\n\n");
        let kept = [stanza("libc6"), stanza("libssl3"), stanza("zlib1g")].concat();
        let all =
            [stanza("libc6"), stanza("python3"), stanza("libssl3"), stanza("libpython3.11-stdlib"), stanza("zlib1g")];
        assert_eq!(without_python(&all.concat()), kept);
        assert_eq!(without_python(&(kept.clone() + stanza("python3-minimal").trim_end())), kept);
    }
}
