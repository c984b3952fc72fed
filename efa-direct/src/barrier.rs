//! What keeps a CPU's accesses and a device's in order.
//!
//! Rust's atomics order what the threads of a program see of each other. A device on a bus is no such thread: on
//! aarch64 it may be in another shareability domain than the CPUs, and a ring may be write-combining memory, whose
//! stores no atomic orders. So each ordering that a ring takes has a function here, to be called beside the atomic
//! access. On x86-64 all but one are no instruction at all.
//!
//! | ordering | x86-64 | aarch64 | rdma-core (`util/udma_barrier.h`) |
//! | --- | --- | --- | --- |
//! | [`before_doorbell`] | nothing | `dmb oshst` | `udma_to_device_barrier` |
//! | [`flush_write_combining`] | `sfence` | `dsb st` | `mmio_flush_writes`, `mmio_wc_start` |
//! | [`after_completion`] | nothing | `dmb oshld` | `udma_from_device_barrier` |
//!
//! rdma-core before 54.0 had `dsb st` and `dsb ld` for the first and the last on aarch64. Those wait until accesses are
//! complete, while only their order is wanted, which `dmb` gives: an Armv8 store that one observer of a shareability
//! domain sees all see. The domain is the outer shareable one, since the observer is a device and not another core (Arm
//! ARM, "Data Memory Barrier"; Linux has the same two for `dma_wmb` and `dma_rmb`, in
//! `arch/arm64/include/asm/barrier.h`). `mmio_ordered_writes_hack`, which is `mmio_flush_writes` again, rdma-core's EFA
//! provider does not need, and neither does this crate.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!(
    "efa-direct knows how to keep a CPU's and a NIC's accesses in order on x86_64 and aarch64 alone; EFA is on no other \
     machine. Another target needs its barriers in efa-direct/src/barrier.rs"
);

/// An instruction that orders memory accesses and does nothing else.
#[cfg(target_arch = "aarch64")]
macro_rules! barrier {
    ($instruction:literal) => {
        // SAFETY: it touches neither registers, nor flags, nor the stack. Without `nomem` the compiler keeps all
        // accesses on their side.
        unsafe { std::arch::asm!($instruction, options(nostack, preserves_flags)) }
    };
}

/// Orders stores to ordinary memory, of WQEs and of what they send, before the doorbell that tells a device of them.
///
/// x86-64 keeps stores in order by itself, to ordinary memory and to registers (Intel SDM volume 3, "Memory Ordering");
/// what a program wrote with non-temporal stores it has to fence itself, as with rdma-core.
#[inline(always)]
pub(crate) fn before_doorbell() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb oshst");
}

/// Orders stores to write-combining memory, and to ordinary memory, before later stores, and has them leave the CPU at
/// once: before the doorbell of a ring in device memory. It also keeps later stores to that memory behind the doorbell
/// before it, for which rdma-core has the same instruction under another name, `mmio_wc_start`; how seldom that takes a
/// fence of its own is said in `send.rs`.
#[inline(always)]
pub(crate) fn flush_write_combining() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a store fence touches no memory; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(target_arch = "aarch64")]
    barrier!("dsb st");
}

/// Orders the load of what tells that a device wrote something, such as a completion's phase, before the loads of what
/// it wrote before that.
///
/// x86-64 keeps loads of ordinary memory in order by itself. rdma-core has an `lfence` there.
#[inline(always)]
pub(crate) fn after_completion() {
    #[cfg(target_arch = "aarch64")]
    barrier!("dmb oshld");
}
