//! The project's kernels, compiled for every architecture and assembled. Needs a PTX toolchain:
//! `cargo xtask toolchain`.

use efa_gpu_builder::PtxBuilder;
use std::path::Path;

const NEEDS: &str = "cargo xtask toolchain brings what this needs";

/// The most registers that kernels may use which post or poll, with their loops and their requests.
const MOST: &[(&str, u32)] = &[
    ("post_one", 40),
    // Of the oldest architecture; 40 on the others.
    ("post_thread", 44),
    // 42 on the others than the newest. Which doorbell is ordered, and where requests complete, took two.
    ("post_warp", 44),
    // Any of those who post to one queue may have to ring for all: 45, and 51 on the oldest.
    ("post_shared", 51),
    ("poll_thread", 24),
    ("poll_warp", 24),
    ("poll_warp_many", 64),
];

/// Most registers that a posting call costs a kernel which never takes it.
const DORMANT: u32 = 8;

#[test]
#[ignore = "needs a PTX toolchain and ptxas: cargo xtask toolchain"]
fn posting_and_polling_stay_in_registers_on_every_architecture() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let built = PtxBuilder::new("../efa-gpu-kernels").out_dir(out).build().expect(NEEDS);
    let report = built.assemble().expect(NEEDS);
    println!("{report}");
    assert_eq!(built.warnings(), [""; 0]);
    // No kernel of ours spills, or has anything in local memory.
    assert_eq!(report.outside_registers().count(), 0, "\n{report}");
    for module in built.modules() {
        let registers = |name| report.get(module.arch, name).and_then(|kernel| kernel.registers).expect("it is there");
        for &(name, most) in MOST {
            assert!(
                registers(name) <= most,
                "{name} for {}: {} registers, {most} at most",
                module.arch,
                registers(name)
            );
        }
        assert!(registers("dormant") <= registers("compute") + DORMANT, "\n{report}");
    }
}
