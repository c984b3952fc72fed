//! The software NIC as a kernel.

use efa_gpu_device::kernel;
use efa_gpu_nic::Tables;

/// Is the NIC of these tables until the host says stop: [`efa_gpu_nic::run`].
///
/// # Safety
/// As there; a warp for each queue pair is the most that does something.
#[kernel]
pub unsafe fn nic(tables: *const Tables, seed: u64) {
    // SAFETY: the caller's promise.
    unsafe { efa_gpu_nic::run(tables, seed) };
}
