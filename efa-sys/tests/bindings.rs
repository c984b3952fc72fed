//! A comparison of `src/bindings.rs` with bindings generated from the installed headers.
//!
//! With `EFA_SYS_BLESS=65.0` (the release of the headers), the test replaces `src/bindings.rs` instead.
#![cfg(feature = "bindgen")]

use std::collections::BTreeMap;

const NEW: &str = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bindings.rs");

/// Returns the sizes and offsets that the bindings assert, for example `Size of ibv_wc`: 48.
fn layouts(bindings: &str) -> BTreeMap<String, u64> {
    let compact: String = bindings.split_whitespace().collect::<Vec<_>>().join(" ");
    let assertions = compact.split("[\"").skip(1).filter_map(|rest| {
        let (what, rest) = rest.split_once("\"]")?;
        let (assertion, _) = rest.split_once("usize]")?;
        let (_, value) = assertion.rsplit_once('-')?;
        Some((what.to_owned(), value.trim().parse().ok()?))
    });
    assertions.collect()
}

#[test]
fn structures_are_laid_out_as_the_installed_headers_say() {
    if let Ok(release) = std::env::var("EFA_SYS_BLESS") {
        let header = format!(
            "//! Made by bindgen from `infiniband/verbs.h` and `infiniband/efadv.h` of rdma-core {release}.\n//!\n\
             //! To make it anew: `EFA_SYS_BLESS={release} cargo test -p efa-sys --features bindgen --test bindings`, \
             then `cargo fmt`.\n\n"
        );
        std::fs::write(PATH, header + NEW).unwrap();
        return;
    }
    let (old, new) = (layouts(&std::fs::read_to_string(PATH).unwrap()), layouts(NEW));
    assert!(new.len() > 500, "{} assertions: the parser above is out of date", new.len());
    let show = |value: Option<&u64>| value.map_or("absent".into(), u64::to_string);
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    let differences: Vec<String> = keys
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("{key}: checked in {}, installed {}", show(old.get(key)), show(new.get(key))))
        .collect();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
