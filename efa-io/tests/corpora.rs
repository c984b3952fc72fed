//! Replays the fuzz targets' corpora: every input that a fuzzer found interesting.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// A body: it panics where the contract is broken.
type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 5] = [
    ("wqe64", bodies::wqe64),
    ("wqe128", bodies::wqe128),
    ("rx_desc", bodies::rx_desc),
    ("cqe16", bodies::cqe16),
    ("cqe32", bodies::cqe32),
];

/// What lies in a folder of `fuzz/`, sorted, so that a run is the same everywhere.
fn files_in(folder: &str) -> BTreeSet<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn every_fuzz_target_is_replayed() {
    let targets = files_in("fuzz_targets");
    let named: BTreeSet<_> = targets.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let here = TARGETS.iter().map(|(name, _)| *name);
    let in_efa_soft = ["packets", "rings", "control"]; // its test `hostile`
    assert_eq!(named, here.chain(in_efa_soft).collect());
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn every_input_of_every_corpus_passes() {
    let mut failed = Vec::new();
    for (name, body) in TARGETS {
        let corpus = files_in(&format!("corpus/{name}"));
        assert!(!corpus.is_empty(), "the corpus of {name} is empty");
        for file in corpus {
            let data = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            if std::panic::catch_unwind(|| body(&data)).is_err() {
                failed.push(file);
            }
        }
    }
    assert!(failed.is_empty(), "these inputs fail, for the reasons printed above: {failed:#?}");
}
