//! This thread's place in the grid, and fences, under the names of `cuda_std`. Grids have one dimension here.

use crate::arch;

/// Returns the number of this thread's block.
#[inline(always)]
pub fn block_idx_x() -> u32 {
    arch::place()[0]
}

/// Returns the number of blocks of the grid.
#[inline(always)]
pub fn grid_dim_x() -> u32 {
    arch::place()[1]
}

/// Returns the number of this thread in its block.
#[inline(always)]
pub fn thread_idx_x() -> u32 {
    arch::place()[2]
}

/// Returns the number of threads of a block.
#[inline(always)]
pub fn block_dim_x() -> u32 {
    arch::place()[3]
}

/// Returns the number of this thread in the grid.
#[inline(always)]
pub fn index_1d() -> u32 {
    let [block, _, thread, threads] = arch::place();
    block * threads + thread
}

/// Returns `true` in the grid's first thread.
#[inline(always)]
pub fn first() -> bool {
    index_1d() == 0
}

/// Waits for all threads of the block, and sees what they stored before.
///
/// # Safety
/// All threads of the block come here together. Otherwise the behaviour is undefined on a GPU (PTX ISA, `bar.sync`);
/// the [executor](crate::simt) on the host reports it.
#[inline(always)]
pub unsafe fn sync_threads() {
    arch::sync_block();
}

/// Orders this thread's accesses before the fence ahead of those after it, as all threads of this GPU see them (PTX
/// `fence.acq_rel.gpu`).
#[inline(always)]
pub fn device_fence() {
    arch::fence_gpu();
}

/// Orders this thread's accesses before the fence ahead of those after it, as every observer in the system sees them:
/// the NIC, the host, other GPUs (PTX `fence.acq_rel.sys`).
#[inline(always)]
pub fn system_fence() {
    arch::fence_system();
}

/// Sleeps for about `ns` nanoseconds, a millisecond at most (PTX `nanosleep`).
#[inline(always)]
pub fn nanosleep(ns: u32) {
    arch::nanosleep(ns);
}
