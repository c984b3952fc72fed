//! `cargo xtask graph` draws the project's crates and modules; `cargo xtask structure` checks them, and the width of
//! lines ([`width`]) and the links of documents ([`links`]).
//!
//! A crate may depend only on crates of lower floors ([`crates`]). Within a crate, files may not use each other in
//! circles: [`source`] parses them, [`resolve`] follows each path to the file that defines the item, [`uses`] collects
//! what is used, and [`graph`] finds layers and circles.

mod crates;
mod draw;
mod files;
mod graph;
mod links;
mod resolve;
mod source;
#[cfg(test)]
mod tests;
mod uses;
mod width;

use anyhow::{Result, bail};
use crates::Crate;
use graph::Graph;
use source::Tree;
use std::path::Path;

/// Prints the graph of all crates, or of one; fails if it goes upward or in circles.
pub(crate) fn draw(only: Option<&str>, dot: bool) -> Result<()> {
    let crates = crates::read(project())?;
    if let Some(only) = only.filter(|only| crates.iter().all(|member| member.name != *only)) {
        bail!("no crate of the project is called {only}");
    }
    let targets = targets(crates.iter().filter(|member| only.is_none_or(|only| only == member.name)))?;
    if dot {
        print!("{}", draw::dot(if only.is_some() { &[] } else { &crates }, &targets));
    } else {
        if only.is_none() {
            println!("{}", draw::crates(&crates));
        }
        targets.iter().for_each(|(name, graph)| println!("{}", draw::modules(name, graph)));
    }
    let (count, faults) = faults(&crates, &targets);
    if dot {
        eprint!("{faults}")
    } else {
        print!("{faults}")
    }
    match count {
        0 => Ok(()),
        count => bail!("{count} dependencies go upward or in circles"),
    }
}

/// Checks that no crate depends upward, no modules use each other in circles, no line is wider than it may be, and no
/// document's link leads nowhere.
pub(crate) fn check() -> Result<()> {
    let crates = crates::read(project())?;
    let (count, faults) = faults(&crates, &targets(&crates)?);
    print!("{faults}");
    let wide = width::find(project())?;
    for line in &wide {
        println!("{}:{}: {} columns, {} are the limit", line.path.display(), line.line, line.columns, width::MAX);
    }
    let broken = links::find(project())?;
    for link in &broken {
        println!("{}:{}: {}", link.path.display(), link.line, link.problem);
    }
    if count + wide.len() + broken.len() > 0 {
        bail!(
            "{count} dependencies go upward or in circles, {} lines are too wide, {} links are broken",
            wide.len(),
            broken.len()
        );
    }
    Ok(())
}

/// Counts and describes what goes upward and what goes in circles; circles of the same modules count once.
fn faults(crates: &[Crate], targets: &[(String, Graph)]) -> (usize, String) {
    let upward = crates::upward(crates);
    let count = upward.len() + targets.iter().map(|(_, graph)| graph.knots().len()).sum::<usize>();
    let upward = upward.into_iter().map(|(from, to)| {
        format!(
            "{} (floor {}) depends on {} (floor {}): only lower floors\n\n",
            from.name, from.floor, to.name, to.floor
        )
    });
    let circles = targets.iter().map(|(name, graph)| draw::circles(name, graph, project()));
    (count, upward.chain(circles).collect())
}

/// Makes the graphs of these crates' libraries and programs, with their names.
fn targets<'a>(crates: impl IntoIterator<Item = &'a Crate>) -> Result<Vec<(String, Graph)>> {
    let graphs: Result<Vec<_>> = crates.into_iter().map(modules).collect();
    Ok(graphs?.into_iter().flatten().collect())
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
