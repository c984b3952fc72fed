//! The input files of a PTX file, by which the builder and cargo decide whether it is up to date.

use crate::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the files that a crate was compiled from, read from the file of `make` rules that cargo writes beside its
/// output.
pub(crate) fn of_rules(rules: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(rules).ok()?;
    let (_, files) = text.lines().next()?.split_once(": ")?;
    // Spaces in names are escaped, spaces between names are not.
    let files = files.replace("\\ ", "\0");
    Some(files.split_whitespace().map(|file| file.replace('\0', " ").into()).collect())
}

/// Returns the manifests, the lock file and the configuration that determine how the crate in this folder is compiled.
/// Manifests in the folders above are among them, because a path dependency may inherit settings from its workspace.
pub(crate) fn of_cargo(krate: &Path) -> Vec<PathBuf> {
    let above = krate.ancestors().map(|folder| folder.join("Cargo.toml"));
    let own = ["Cargo.lock", ".cargo/config.toml"].map(|file| krate.join(file));
    above.chain(own).filter(|file| file.is_file()).collect()
}

/// Returns the folder of the crate that a source file belongs to.
pub(crate) fn crate_of(source: &Path) -> Option<&Path> {
    source.ancestors().skip(1).find(|folder| folder.join("Cargo.toml").is_file())
}

/// A file that records the inputs of a PTX file: a line that says how they were compiled, then a line with the size,
/// time and path of each.
pub(crate) struct Stamp {
    file: PathBuf,
    how: String,
}

impl Stamp {
    pub(crate) fn new(file: PathBuf, how: String) -> Self {
        Self { file, how }
    }

    /// Returns the recorded input files if neither they nor the way of compiling them has changed.
    pub(crate) fn unchanged(&self) -> Option<Vec<PathBuf>> {
        let text = fs::read_to_string(&self.file).ok()?;
        let mut lines = text.lines();
        if lines.next()? != self.how {
            return None;
        }
        let unchanged = |line: &str| {
            let path = PathBuf::from(line.splitn(3, ' ').nth(2)?);
            (state_of(&path)? == line).then_some(path)
        };
        lines.map(unchanged).collect()
    }

    /// Records the current state of the files. `since` is the time when compiling began. If a file changed or
    /// disappeared since then, the record is removed, and the next build compiles again.
    pub(crate) fn write(&self, files: &[PathBuf], since: SystemTime) -> Result<(), Error> {
        let settled = |file: &PathBuf| {
            let changed = fs::metadata(file).ok()?.modified().ok()?;
            state_of(file).filter(|_| changed <= since)
        };
        let lines: Option<Vec<_>> = files.iter().map(settled).collect();
        let Some(lines) = lines else { return self.remove() };
        let text = format!("{}\n{}\n", self.how, lines.join("\n"));
        fs::write(&self.file, text).map_err(Error::io("writing", &self.file))
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove(&self.file)
    }
}

/// Removes a file if it exists.
pub(crate) fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", file)(error)),
        _ => Ok(()),
    }
}

/// Returns a file's size, the time of its last change and its path, in one line.
fn state_of(file: &Path) -> Option<String> {
    let about = fs::metadata(file).ok()?;
    let changed = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", about.len(), changed.as_nanos(), file.to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_with_blanks_in_names_are_understood() {
        let file = std::env::temp_dir().join(format!("efa-gpu-builder-rules-{}.d", std::process::id()));
        fs::write(&file, "/out/k.ptx: /a/lib.rs /with\\ blank/b.rs\n\n/a/lib.rs:\n").unwrap();
        let files = of_rules(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!(files, Some(vec!["/a/lib.rs".into(), "/with blank/b.rs".into()]));
    }
}
