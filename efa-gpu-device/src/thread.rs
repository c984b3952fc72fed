//! Where this thread is and in which order others see what it does, under the names that `cuda_std` has for it. Grids have one dimension here.

use crate::arch;

/// Number of this thread's block.
#[inline(always)]
pub fn block_idx_x() -> u32 {
    arch::place()[0]
}

/// Blocks of the grid.
#[inline(always)]
pub fn grid_dim_x() -> u32 {
    arch::place()[1]
}

/// Number of this thread in its block.
#[inline(always)]
pub fn thread_idx_x() -> u32 {
    arch::place()[2]
}

/// Threads of a block.
#[inline(always)]
pub fn block_dim_x() -> u32 {
    arch::place()[3]
}

/// Number of this thread in the grid.
#[inline(always)]
pub fn index_1d() -> u32 {
    let [block, _, thread, threads] = arch::place();
    block * threads + thread
}

/// Whether this is the grid's first thread.
#[inline(always)]
pub fn first() -> bool {
    index_1d() == 0
}

/// Waits for all threads of the block, and sees what they stored before.
///
/// # Safety
/// All threads of the block come here together: what happens otherwise is not defined on a GPU (PTX ISA, `bar.sync`).
/// The [executor](crate::simt) on the host reports it.
#[inline(always)]
pub unsafe fn sync_threads() {
    arch::sync_block();
}

/// Orders what this thread has accessed before and what it accesses after, as all threads of this GPU see it (PTX `fence.acq_rel.gpu`).
#[inline(always)]
pub fn device_fence() {
    arch::fence_gpu();
}

/// The same as any observer in the system sees it: the NIC, the host, other GPUs (PTX `fence.acq_rel.sys`).
#[inline(always)]
pub fn system_fence() {
    arch::fence_system();
}

/// Does nothing for about `ns` nanoseconds, a millisecond at most: between two looks at something that takes its time.
#[inline(always)]
pub fn nanosleep(ns: u32) {
    arch::nanosleep(ns);
}
