//! The measuring kernels, compiled for every architecture and assembled. Takes a PTX toolchain: `cargo xtask toolchain`.

use efa_gpu_builder::PtxBuilder;
use std::path::Path;

const NEEDS: &str = "cargo xtask toolchain brings what this needs";

/// Most registers of a posting kernel, its loops and its requests included. The aim is 40 (`results/gpu.md` says what is missing).
const MOST: u32 = 56;

#[test]
#[ignore = "needs a PTX toolchain and ptxas: cargo xtask toolchain"]
fn posting_and_polling_stay_in_registers_on_every_architecture() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let built = PtxBuilder::new("../efa-gpu-kernels").out_dir(out).build().expect(NEEDS);
    let report = built.assemble().expect(NEEDS);
    println!("{report}");
    assert_eq!(built.warnings(), [""; 0]);
    assert_eq!(report.outside_registers().count(), 0, "\n{report}");
    for module in built.modules() {
        for name in ["post_thread", "post_warp", "poll_thread", "poll_warp"] {
            let kernel = report.get(module.arch, name).expect("the kernel is in the PTX");
            assert!(kernel.registers <= Some(MOST), "\n{report}");
        }
    }
}
