//! Finds links of the project's Markdown files that lead nowhere.
//!
//! A link to a Rust file whose text is code, as ``[`RingSize::slot`](efa-io/src/ring.rs)``, also promises that the file
//! has these names: so a document that walks through the code notices when the code moves.

use super::files;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// A link that leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) path: PathBuf,
    /// Its line's number, from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) problem: String,
}

/// Returns all broken links of the project's Markdown files.
pub(crate) fn find(project: &Path) -> Result<Vec<Broken>> {
    let found = files::read(project, "md")?.into_iter().flat_map(|(path, text)| {
        let folder = project.join(path.parent().unwrap_or(Path::new("")));
        let read = |target: &str| {
            let target = folder.join(target);
            target.exists().then(|| std::fs::read_to_string(target).unwrap_or_default())
        };
        let problems = broken(&text, &read).into_iter();
        problems.map(move |(line, problem)| Broken { path: path.clone(), line, problem })
    });
    Ok(found.collect())
}

/// Returns the lines and the problems of a text's broken links. `read` returns what is at a relative path.
fn broken(text: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (line, number) in text.lines().zip(1..) {
        is_code ^= line.trim_start().starts_with("```");
        for (label, target) in links(line).filter(|(_, target)| !is_code && !target.contains("://")) {
            let target = target.split('#').next().unwrap_or(target);
            if target.is_empty() {
                continue;
            }
            match read(target) {
                None => found.push((number, format!("{target} does not exist"))),
                Some(content) if target.ends_with(".rs") => found
                    .extend(missing(label, target, &content).map(|name| (number, format!("{target} has no `{name}`")))),
                Some(_) => {}
            }
        }
    }
    found
}

/// Returns the text and the target of each link of a line.
fn links(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices("](").filter_map(|(middle, _)| {
        let label = &line[line[..middle].rfind('[')? + 1..middle];
        let target = &line[middle + 2..];
        Some((label, &target[..target.find(')')?]))
    })
}

/// Returns the names of a label of code that a file does not have as words.
fn missing<'a>(label: &'a str, target: &'a str, content: &'a str) -> impl Iterator<Item = &'a str> {
    let code = label.strip_prefix('`').and_then(|label| label.strip_suffix('`'));
    // The label may be the file's own name, or a folder's.
    let code = code.filter(|code| !target.ends_with(code) && !code.contains('/')).unwrap_or_default();
    words(code).filter(move |name| words(content).all(|word| word != *name))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<(usize, String)> {
        broken(text, &|path| match path {
            "src/a.rs" => Some("impl Ring { fn slot(&self) {} }".into()),
            "other.md" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn a_link_to_a_file_that_is_not_there_is_broken() {
        assert_eq!(check("\n[a](other.md) and [b](gone.md#part)."), [(2, "gone.md does not exist".to_owned())]);
        assert_eq!(check("[a](https://example.org/gone.md) [b](#part)"), []);
        assert_eq!(check("```text\n[a](gone.md)\n```\n[a](gone.md)"), [(4, "gone.md does not exist".to_owned())]);
    }

    #[test]
    fn a_link_of_code_promises_that_the_file_has_its_names() {
        assert_eq!(check("[`Ring::slot`](src/a.rs) [`a.rs`](src/a.rs) [what it is](src/a.rs)"), []);
        assert_eq!(check("[`Ring::lap`](src/a.rs)"), [(1, "src/a.rs has no `lap`".to_owned())]);
    }
}
