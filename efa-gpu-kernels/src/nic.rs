//! The software NIC as a kernel.

use efa_gpu_device::kernel;
use efa_gpu_nic::World;

/// Is the NIC of a world until its host says stop: [`efa_gpu_nic::run`].
///
/// # Safety
/// As there; a warp for each queue pair is the most that does something.
#[kernel]
pub unsafe fn nic(world: *const World, seed: u64) {
    // SAFETY: the caller's promise.
    unsafe { efa_gpu_nic::run(world, seed) };
}
