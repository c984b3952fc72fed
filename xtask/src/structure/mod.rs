//! `cargo xtask graph`: the project's crates and modules, who knows whom, and what is wrong with that.
//!
//! A crate may depend only on crates of lower floors ([`crates`]). Within a crate, files may not use each other in circles: [`source`] parses them,
//! [`resolve`] follows each path to the file that defines the item, [`uses`] collects what is used, and [`graph`] finds layers and circles.

mod crates;
mod draw;
mod graph;
mod resolve;
mod source;
mod uses;

use anyhow::{Result, bail};
use crates::Crate;
use graph::Graph;
use source::Tree;
use std::path::Path;

/// Prints the graph of all crates, or of one; fails if a crate depends upward, or modules use each other in circles.
pub(crate) fn draw(only: Option<&str>, dot: bool) -> Result<()> {
    let project = project();
    let crates = crates::read(project)?;
    if let Some(only) = only.filter(|only| crates.iter().all(|member| member.name != *only)) {
        bail!("no crate of the project is called {only}");
    }
    let mut targets = Vec::new();
    for member in crates.iter().filter(|member| only.is_none_or(|only| only == member.name)) {
        targets.extend(modules(member)?);
    }
    if dot {
        print!("{}", draw::dot(if only.is_some() { &[] } else { &crates }, &targets));
    } else {
        if only.is_none() {
            println!("{}", draw::crates(&crates));
        }
        for (name, graph) in &targets {
            println!("{}", draw::modules(name, graph, project));
        }
    }
    let upward = crates::upward(&crates);
    for (from, to) in &upward {
        eprintln!(
            "{} (floor {}) depends on {} (floor {}), which is not below it",
            from.name, from.floor, to.name, to.floor
        );
    }
    let knots: usize = targets.iter().map(|(_, graph)| graph.knots().len()).sum();
    if !upward.is_empty() || knots > 0 {
        bail!("{} dependencies upward, {knots} groups of modules in circles", upward.len());
    }
    Ok(())
}

/// Makes the graph of each target of a crate.
fn modules(member: &Crate) -> Result<Vec<(String, Graph)>> {
    let parse = |root: &std::path::PathBuf| {
        let tree = Tree::parse(root, &|path| std::fs::read_to_string(path).ok())?;
        let file = root.file_name().unwrap_or_default().to_string_lossy();
        let name = if member.roots.len() > 1 { format!("{} ({file})", member.name) } else { member.name.clone() };
        Ok((name, uses::graph(&tree)))
    };
    member.roots.iter().map(parse).collect()
}

/// The project's folder.
fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
