//! Hostile networks and programs: the fuzz targets of the device, on their corpora and on random scripts.

#[path = "../../fuzz/device/mod.rs"]
mod device;

use proptest::prelude::*;
use std::path::Path;

/// A function that executes a script, and panics if the device breaks a promise.
type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 3] =
    [("packets", device::packets), ("rings", device::rings), ("control", device::control)];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_script_makes_the_device_panic_or_touch_what_it_must_not(
        script in prop::collection::vec(any::<u8>(), 0..600),
        target in 0..TARGETS.len(),
    ) {
        TARGETS[target].1(&script);
    }
}

#[test]
fn every_script_of_every_corpus_passes() {
    for (name, body) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let scripts = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
        let mut count = 0;
        for entry in scripts {
            let path = entry.unwrap().path();
            let script = std::fs::read(&path).unwrap();
            let passed = std::panic::catch_unwind(|| body(&script)).is_ok();
            assert!(passed, "{} fails, for the reason printed above", path.display());
            count += 1;
        }
        assert!(count > 0, "{} is empty", corpus.display());
    }
}
