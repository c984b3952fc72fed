//! The project's own GPU kernels.
//!
//! | file | what its kernels do |
//! | --- | --- |
//! | `measure.rs` | measure how long posting and polling take, for each kind of queue |
//! | `nic.rs` | the software NIC, `efa-gpu-nic` |
//! | `ptx.rs` | no kernels: finds their PTX, for hosts |
//! | `traffic.rs` | post a list of jobs, and record what completes: for tests |
//!
//! Unsafe code: `measure.rs`, `nic.rs`, `traffic.rs` (kernels, which are given addresses), `lib.rs` (the trap of a
//! panic).

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, stdarch_nvptx))]

pub mod measure;
pub mod nic;
#[cfg(not(target_arch = "nvptx64"))]
mod ptx;
pub mod traffic;

#[cfg(not(target_arch = "nvptx64"))]
pub use ptx::{VARIABLE, ptx};

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: ends the kernel with an error.
    unsafe { core::arch::nvptx::trap() }
}
