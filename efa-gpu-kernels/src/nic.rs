//! The software NIC as a kernel.

use efa_gpu_device::kernel;
use efa_gpu_nic::Tables;

/// Runs the NIC of these tables until the host stops it: [`efa_gpu_nic::run`]. More warps than queue pairs do nothing.
///
/// # Safety
/// As [`efa_gpu_nic::run`].
#[kernel]
pub unsafe fn nic(tables: *const Tables, seed: u64) {
    // SAFETY: the caller's promise is that of `run`.
    unsafe { efa_gpu_nic::run(tables, seed) };
}
