//! Compiles the preloaded library. The crate contains it as bytes, so it needs no other file at run time.

use std::env::var_os;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=preload");
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let folder = var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let linker = var_os("RUSTC_LINKER").map(|linker| {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        [std::ffi::OsString::from("-C"), option]
    });
    let status = Command::new(var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "efa_preload", "--target", &target])
        .args(["-C", "opt-level=2", "-C", "panic=abort", "-C", "strip=symbols", "--deny", "warnings"])
        .args(linker.into_iter().flatten())
        .arg("-o")
        .arg(Path::new(&folder).join("libefa_preload.so"))
        .arg("preload/preload.rs")
        .status()
        .expect("starting rustc");
    assert!(status.success(), "the preloaded library does not compile: {status}");
}
