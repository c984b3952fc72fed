//! The project's crates: what each is, on which floor it stands, and which it depends on.

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package, TargetKind};
use std::path::{Path, PathBuf};

/// The project's crates by floor, from the ground up. A crate may depend only on crates of lower floors; what its tests need does not count.
///
/// | name | floor | role |
const FLOORS: &[(&str, u8, &str)] = &[
    ("efa-io", 0, "the formats: WQEs, completion entries, statuses, rings"),
    ("efa-types", 1, "the vocabulary of the control path"),
    ("efa-gpu-macros", 1, "the attribute `#[kernel]`"),
    ("efa-sys", 2, "libibverbs and libefa, loaded at run time"),
    ("efa-soft", 2, "the EFA device in software"),
    ("efa-gpu-device", 2, "queues for GPU kernels"),
    ("efa-gpu-builder", 2, "compiles crates of GPU kernels to PTX"),
    ("efa-gpu-nic", 3, "a NIC that runs as a GPU kernel"),
    ("efa-uverbs", 3, "the kernel's side of libibverbs, on software devices"),
    ("efa-direct", 4, "the safe host API"),
    ("efa-gpu-kernels", 5, "the project's own GPU kernels"),
    ("efa-cli", 6, "the command `efa`"),
    ("efa-tests", 6, "tests across the crates"),
    ("efa-fuzz", 6, "fuzz targets"),
    ("xtask", 6, "the project's chores"),
];

/// Folders of crates that are workspaces of their own.
const APART: &[&str] = &["efa-gpu-kernels", "fuzz"];

/// A crate of the project.
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) floor: u8,
    pub(crate) role: &'static str,
    /// The project's crates that it depends on.
    pub(crate) needs: Vec<String>,
    /// The root files of its library and its programs.
    pub(crate) roots: Vec<PathBuf>,
}

/// Reads all manifests.
pub(crate) fn read(project: &Path) -> Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for folder in std::iter::once(&"").chain(APART) {
        let manifest = project.join(folder).join("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(&manifest).no_deps().exec();
        let metadata = metadata.with_context(|| format!("reading {}", manifest.display()))?;
        for package in metadata.packages {
            crates.push(describe(&package)?);
        }
    }
    crates.sort_by_key(|member| (member.floor, place(&member.name)));
    Ok(crates)
}

fn describe(package: &Package) -> Result<Crate> {
    let Some((_, floor, role)) = place(&package.name).map(|place| FLOORS[place]) else {
        bail!(
            "{} has no floor: name it in FLOORS of xtask/src/structure/crates.rs, one floor above all that it depends on",
            package.name
        );
    };
    let counts = |kind| matches!(kind, DependencyKind::Normal | DependencyKind::Build);
    let needs = package.dependencies.iter().filter(|needed| counts(needed.kind) && needed.path.is_some());
    let mut needs: Vec<String> = needs.map(|needed| needed.name.clone()).collect();
    needs.sort();
    needs.dedup();
    let source = package.manifest_path.with_file_name("src");
    let roots = package.targets.iter().filter(|target| {
        let is_product = |kind: &TargetKind| {
            matches!(
                kind,
                TargetKind::Lib | TargetKind::Bin | TargetKind::ProcMacro | TargetKind::CDyLib | TargetKind::RLib
            )
        };
        target.kind.iter().any(is_product) && target.src_path.starts_with(&source)
    });
    let roots = roots.map(|target| target.src_path.clone().into()).collect();
    Ok(Crate { name: package.name.to_string(), floor, role, needs, roots })
}

/// Returns where a crate is in [`FLOORS`].
fn place(name: &str) -> Option<usize> {
    FLOORS.iter().position(|(known, ..)| *known == name)
}

/// Returns each crate that depends on one which is not below it, and that one.
pub(crate) fn upward(crates: &[Crate]) -> Vec<(&Crate, &Crate)> {
    let find = |name: &str| crates.iter().find(|known| known.name == name);
    let above = |from: &&Crate, to: &&Crate| to.floor >= from.floor;
    let pairs = crates.iter().flat_map(|from| from.needs.iter().filter_map(move |to| Some((from, find(to)?))));
    pairs.filter(|(from, to)| above(from, to)).collect()
}
