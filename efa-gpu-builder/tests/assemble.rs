//! Compiles and assembles the kernel crate beside this file for every architecture. Needs a PTX toolchain: `cargo xtask
//! toolchain`.

use efa_gpu_builder::{Arch, PtxBuilder};
use std::fs;
use std::path::Path;

const NEEDS: &str = "cargo xtask toolchain brings what this needs";

#[test]
#[ignore = "needs a PTX toolchain and ptxas: cargo xtask toolchain"]
fn a_posting_kernel_stays_in_registers_on_every_architecture() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("assemble");
    let built = PtxBuilder::new("tests/kernels").out_dir(out).build().expect(NEEDS);
    let report = built.assemble().expect(NEEDS);
    println!("{report}");

    assert_eq!(built.warnings(), [""; 0]);
    assert_eq!(report.outside_registers().count(), 0, "\n{report}");
    for module in built.modules() {
        let kernel = report.get(module.arch, "post_rdma_writes").expect("the kernel is in the PTX");
        assert!(kernel.registers <= Some(40), "\n{report}");
        let ptx = fs::read_to_string(&module.path).unwrap();
        let lines = |start: &str| ptx.lines().filter(|line| line.trim_start().starts_with(start)).count();
        // The loop may be unrolled; the fence and the doorbell follow it.
        assert!(lines("st.v2.b64") > 0 && lines("st.v2.b64") % 4 == 0, "{ptx}");
        assert_eq!([lines("fence.acq_rel.sys"), lines("st.mmio.relaxed.sys.b32")], [1, 1], "{ptx}");
        assert!(!ptx.contains(".local") && !ptx.contains("call"), "{ptx}");
    }
    assert_eq!(built.modules().iter().map(|module| module.arch).collect::<Vec<_>>(), Arch::ALL);
}
