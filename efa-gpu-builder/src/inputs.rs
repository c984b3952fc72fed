//! What PTX was made from: the list by which builder and cargo see whether it is up to date.

use crate::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The files that a crate was compiled from, according to the file of make's rules that cargo writes beside its output.
pub(crate) fn of_rules(rules: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(rules).ok()?;
    let (_, files) = text.lines().next()?.split_once(": ")?;
    // Blanks in names are escaped, those between names are not.
    let files = files.replace("\\ ", "\0");
    Some(files.split_whitespace().map(|file| file.replace('\0', " ").into()).collect())
}

/// The manifests, lock file and configuration that say how this folder's crate is compiled. Those of folders above count, too: a path
/// dependency may inherit from its workspace.
pub(crate) fn of_cargo(krate: &Path) -> Vec<PathBuf> {
    let above = krate.ancestors().map(|folder| folder.join("Cargo.toml"));
    let own = ["Cargo.lock", ".cargo/config.toml"].map(|file| krate.join(file));
    above.chain(own).filter(|file| file.is_file()).collect()
}

/// The folder of the crate that a source belongs to.
pub(crate) fn crate_of(source: &Path) -> Option<&Path> {
    source.ancestors().skip(1).find(|folder| folder.join("Cargo.toml").is_file())
}

/// A list of files as they are now, below a line that says how they are compiled.
pub(crate) struct Stamp {
    file: PathBuf,
    how: String,
}

impl Stamp {
    pub(crate) fn new(file: PathBuf, how: String) -> Self {
        Self { file, how }
    }

    /// The files, if neither they nor what is done with them changed.
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

    /// Notes the files as they are; `since` is when compiling began. If one changed or went away since then, nothing is noted, and the
    /// next build compiles again.
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

/// Removes a file, if it is there.
pub(crate) fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", file)(error)),
        _ => Ok(()),
    }
}

/// Length, time of the last change, path.
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
