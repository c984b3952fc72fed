//! Memory barriers between a CPU and a device.
//!
//! Rust's atomics order accesses among the threads of a program. A device on a bus is no thread: on aarch64 it may be
//! in another shareability domain than the CPUs, and a ring may be write-combining memory, whose stores no atomic
//! orders. So each ordering that a ring needs has a function here, which is called beside the atomic access. On x86-64
//! all but one of them are no instruction.
//!
//! | ordering | x86-64 | aarch64 | rdma-core (`util/udma_barrier.h`) |
//! | --- | --- | --- | --- |
//! | [`before_doorbell`] | nothing | `dmb oshst` | `udma_to_device_barrier` |
//! | [`flush_write_combining`] | `sfence` | `dsb st` | `mmio_flush_writes`, `mmio_wc_start` |
//! | [`after_completion`] | nothing | `dmb oshld` | `udma_from_device_barrier` |
//!
//! rdma-core before 54.0 had `dsb st` and `dsb ld` for the first and the last on aarch64. Those wait until accesses are
//! complete. Only their order is needed, and `dmb` gives it: if one observer in a shareability domain sees an Armv8
//! store, all see it. The domain is the outer shareable one, since the observer is a device and not another core (Arm
//! ARM, "Data Memory Barrier"; Linux uses the same two for `dma_wmb` and `dma_rmb`, in
//! `arch/arm64/include/asm/barrier.h`). rdma-core's EFA provider does not need `mmio_ordered_writes_hack`, which is
//! another name of `mmio_flush_writes`, and neither does this crate.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!(
    "efa-direct has memory barriers for x86_64 and aarch64, the machines that EFA is in. Another target needs its barriers \
     in efa-direct/src/barrier.rs"
);

/// An instruction that orders memory accesses and does nothing else.
#[cfg(target_arch = "aarch64")]
macro_rules! barrier {
    ($instruction:literal) => {
        // SAFETY: barriers change no registers, flags or stack. Without the option `nomem` the compiler moves no access
        // across them.
        unsafe { std::arch::asm!($instruction, options(nostack, preserves_flags)) }
    };
}

/// Orders stores to ordinary memory (WQEs, and the bytes that they send) before the doorbell that follows.
///
/// x86-64 keeps stores in order by itself, to ordinary memory and to registers (Intel SDM volume 3, "Memory Ordering").
/// A program that wrote with non-temporal stores has to fence them itself, as with rdma-core.
#[inline(always)]
pub(crate) fn before_doorbell() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb oshst");
}

/// Orders stores to write-combining and to ordinary memory before later stores, and makes them leave the CPU at once.
/// It belongs before the doorbell of a ring in device memory. It also keeps later stores to that memory behind the
/// previous doorbell, for which rdma-core has the same instruction under the name `mmio_wc_start`. `send.rs` explains
/// how rarely that takes a fence of its own.
#[inline(always)]
pub(crate) fn flush_write_combining() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a store fence accesses no memory, and every x86-64 processor has it (SSE).
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(target_arch = "aarch64")]
    barrier!("dsb st");
}

/// Orders the load that shows that a device has written something, such as a completion's phase, before the loads of
/// what the device wrote earlier.
///
/// x86-64 keeps loads of ordinary memory in order by itself (rdma-core uses `lfence`).
#[inline(always)]
pub(crate) fn after_completion() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb oshld");
}
