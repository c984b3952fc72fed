//! Programs and networks that do as they please: the fuzz target `device`, on its corpus and on scripts of proptest's.

#[path = "../../../fuzz/device_body.rs"]
mod device_body;

use proptest::prelude::*;
use std::path::Path;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_script_makes_the_device_panic_or_touch_what_it_must_not(script in prop::collection::vec(any::<u8>(), 0..600)) {
        device_body::device(&script);
    }
}

#[test]
fn every_script_of_the_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/device");
    let scripts = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display()));
    let mut count = 0;
    for entry in scripts {
        let path = entry.unwrap().path();
        let script = std::fs::read(&path).unwrap();
        let passed = std::panic::catch_unwind(|| device_body::device(&script)).is_ok();
        assert!(passed, "{} fails, for the reason printed above", path.display());
        count += 1;
    }
    assert!(count > 0, "{} is empty", corpus.display());
}
