//! A check that each crate's documentation names the files with unsafe code, so that readers know where to look.
//!
//! In the documentation of `lib.rs` or `main.rs`, a paragraph begins with "Unsafe code: " and names files and folders
//! of `src`. A crate without such a paragraph forbids unsafe code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the Rust files in a folder and its subfolders.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                return sources(&path);
            }
            if path.extension().is_some_and(|extension| extension == "rs") { vec![path] } else { vec![] }
        })
        .collect()
}

/// Returns `true` if the keyword is in this text, except in comments and in strings of one line.
fn has_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let outside_strings: String = line.replace("\\\"", "").split('"').step_by(2).collect();
        let code = outside_strings.split("//").next().unwrap_or_default();
        code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    })
}

/// Returns the files and folders that the paragraph names, if there is one.
fn named(docs: &str) -> Option<BTreeSet<String>> {
    let lines = docs.lines().map(|line| line.trim_start_matches("//!").trim());
    let paragraph = lines.skip_while(|line| !line.starts_with("Unsafe code: ")).take_while(|line| !line.is_empty());
    let text = paragraph.collect::<Vec<_>>().join(" ");
    let names = text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") || name.ends_with('/'));
    (!text.is_empty()).then(|| names.map(String::from).collect())
}

#[test]
fn every_crate_names_the_files_with_unsafe_code_or_forbids_it() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut problems = Vec::new();
    let mut seen = 0;
    let is_product = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("efa-");
    for entry in fs::read_dir(crates).unwrap().map(Result::unwrap).filter(is_product) {
        let folder = entry.path().join("src");
        let root = ["lib.rs", "main.rs"].map(|name| folder.join(name)).into_iter().find(|root| root.exists());
        let Some(root) = root else { continue };
        seen += 1;
        let relative = |path: &Path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        let files = sources(&folder).into_iter().filter(|file| has_unsafe(&fs::read_to_string(file).unwrap()));
        let files: BTreeSet<String> = files.map(|file| relative(&file)).collect();
        let first = fs::read_to_string(&root).unwrap();
        let Some(named) = named(&first) else {
            if !first.contains("#![forbid(unsafe_code)]") {
                problems.push(format!("{} neither names files nor forbids unsafe code: {files:?}", root.display()));
            }
            continue;
        };
        let covers = |name: &str, file: &str| file == name || name.ends_with('/') && file.starts_with(name);
        for file in &files {
            if !named.iter().any(|name| covers(name, file)) {
                problems.push(format!("{} does not name {file}, which has unsafe code", root.display()));
            }
        }
        for name in &named {
            if !files.iter().any(|file| covers(name, file)) {
                problems.push(format!("{} names {name}, where there is no unsafe code", root.display()));
            }
        }
    }
    assert!(seen > 8, "{seen} crates");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn comments_and_strings_are_no_code() {
    assert!(
        has_unsafe("let x = unsafe { y };") && has_unsafe("#[unsafe(no_mangle)]") && has_unsafe("f(\"a\", unsafe {")
    );
    assert!(
        !has_unsafe("// unsafe") && !has_unsafe("f(\"an `unsafe fn`: \\\"unsafe\\\"\")") && !has_unsafe("unsafe_op")
    );
    let docs = "//! One.\n//!\n//! Unsafe code: `a.rs` (as `b`),\n//! `c/`.\n//!\n//! `d.rs`";
    assert_eq!(named(docs), Some(BTreeSet::from(["a.rs".into(), "c/".into()])));
    assert_eq!(named("//! `a.rs`"), None);
}
