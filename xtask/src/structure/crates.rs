//! The project's crates: what each is, on which floor it stands, and which it depends on.

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::path::{Path, PathBuf};

/// The project's crates from the ground up, each with its floor and its role. A crate may depend only on crates of
/// lower floors; what its tests need does not count.
const FLOORS: &[(&str, u8, &str)] = &[
    ("efa-io", 0, "the formats: WQEs, completion entries, statuses, rings"),
    ("efa-memory", 0, "memory that a device shares with a program"),
    ("efa-types", 0, "the vocabulary of the control path"),
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

/// Where to change it.
const TABLE: &str = "FLOORS in xtask/src/structure/crates.rs";

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
    if let Some((gone, ..)) = FLOORS.iter().find(|(name, ..)| crates.iter().all(|member| member.name != *name)) {
        bail!("{TABLE} names {gone}, which is no crate of the project");
    }
    crates.sort_by_key(|member| FLOORS.iter().position(|(name, ..)| *name == member.name));
    Ok(crates)
}

fn describe(package: &Package) -> Result<Crate> {
    let (_, floor, role) = FLOORS[place(&package.name)?];
    let counts = |kind| matches!(kind, DependencyKind::Normal | DependencyKind::Build);
    let needs = package.dependencies.iter().filter(|needed| counts(needed.kind) && needed.path.is_some());
    let mut needs: Vec<String> = needs.map(|needed| needed.name.clone()).collect();
    needs.sort();
    needs.dedup();
    let source = package.manifest_path.with_file_name("src");
    let roots = package.targets.iter().map(|target| &target.src_path).filter(|root| root.starts_with(&source));
    let roots = roots.map(|root| root.clone().into()).collect();
    Ok(Crate { name: package.name.to_string(), floor, role, needs, roots })
}

/// Returns where a crate is in [`FLOORS`].
fn place(name: &str) -> Result<usize> {
    let place = FLOORS.iter().position(|(known, ..)| *known == name);
    place.with_context(|| format!("{name} has no floor: name it in {TABLE}, one floor above all that it depends on"))
}

/// Returns each crate that depends on one which is not below it, and that one.
pub(crate) fn upward(crates: &[Crate]) -> Vec<(&Crate, &Crate)> {
    let find = |name: &str| crates.iter().find(|known| known.name == name);
    let above = |from: &&Crate, to: &&Crate| to.floor >= from.floor;
    let pairs = crates.iter().flat_map(|from| from.needs.iter().filter_map(move |to| Some((from, find(to)?))));
    pairs.filter(|(from, to)| above(from, to)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, floor: u8, needs: &[&str]) -> Crate {
        let needs = needs.iter().map(|name| (*name).to_owned()).collect();
        Crate { name: name.into(), floor, role: "", needs, roots: Vec::new() }
    }

    #[test]
    fn a_dependency_upward_or_on_the_same_floor_is_found() {
        let crates = [
            member("low", 0, &["high"]),
            member("mid", 1, &["low"]),
            member("high", 2, &["mid", "peer"]),
            member("peer", 2, &[]),
        ];
        let names = upward(&crates).into_iter().map(|(from, to)| (from.name.as_str(), to.name.as_str()));
        assert_eq!(names.collect::<Vec<_>>(), [("low", "high"), ("high", "peer")]);
    }

    #[test]
    fn a_crate_without_a_floor_is_told_what_to_do() {
        assert_eq!(
            place("efa-new").unwrap_err().to_string(),
            "efa-new has no floor: name it in FLOORS in xtask/src/structure/crates.rs, one floor above all that it \
             depends on"
        );
    }

    #[test]
    fn the_table_goes_from_the_ground_up_and_names_a_crate_once() {
        assert!(FLOORS.is_sorted_by_key(|(_, floor, _)| *floor));
        for (name, ..) in FLOORS {
            assert_eq!(FLOORS.iter().filter(|(other, ..)| other == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn what_only_tests_need_does_not_count() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let crates = read(project).unwrap();
        let needs = |name: &str| &crates.iter().find(|member| member.name == name).unwrap().needs;
        assert_eq!(*needs("efa-gpu-device"), ["efa-gpu-macros", "efa-io"]);
        assert!(needs("efa-fuzz").contains(&"efa-soft".to_owned()), "it has a workspace of its own");
    }
}
