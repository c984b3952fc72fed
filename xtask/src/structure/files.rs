//! The project's own text files.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// Returns the project's files with this extension and their texts, by path from the project's folder. Hidden folders
/// and target folders are not the project's own.
pub(crate) fn read(project: &Path, extension: &str) -> Result<Vec<(PathBuf, String)>> {
    let is_ours = |entry: &DirEntry| {
        let name = entry.file_name().to_string_lossy();
        entry.depth() == 0 || !(name.starts_with('.') || entry.file_type().is_dir() && name == "target")
    };
    let mut files = Vec::new();
    for entry in WalkDir::new(project).sort_by_file_name().into_iter().filter_entry(is_ours) {
        let entry = entry?;
        if entry.path().extension().is_some_and(|found| found == extension) && entry.file_type().is_file() {
            let path = entry.path().strip_prefix(project)?.to_owned();
            let text = std::fs::read_to_string(entry.path()).with_context(|| format!("reading {}", path.display()))?;
            files.push((path, text));
        }
    }
    Ok(files)
}
