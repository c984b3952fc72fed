//! GPUs: finding and opening them.

use super::context::Context;
use super::driver::{self, cuda};
use super::error::GpuError;
use super::info::{GpuInfo, count, find};
use super::ordering::RdmaWritesOrdering;
use cudarc::driver::sys;
use std::sync::Arc;

/// An open GPU. Clones are the same one; it is let go when the last object made from it is gone.
///
/// It is CUDA's primary context, which a program shares with whatever else in it uses CUDA. Every call makes it current
/// for itself, and puts back what was current before.
#[derive(Clone)]
pub struct Gpu {
    pub(super) context: Arc<Context>,
}

impl Gpu {
    /// Opens GPU number `ordinal`, in CUDA's order.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, [`GpuError::NoGpu`] where there are fewer GPUs, or
    /// what CUDA answers.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let (device, info) = find(ordinal)?;
        Ok(Self { context: Arc::new(Context::open(device, info)?) })
    }

    /// The GPUs that CUDA sees.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, or what CUDA answers.
    pub fn list() -> Result<Vec<GpuInfo>, GpuError> {
        driver::load()?;
        (0..count()?).map(|ordinal| find(ordinal).map(|(_, info)| info)).collect::<Result<_, _>>()
    }

    /// From here on this GPU's kernels reach the other one's memory, under the addresses that it has there: over NVLink
    /// or PCIe. Whether they see what a NIC writes there in order, [the other one](Self::rdma_writes_ordering) tells.
    ///
    /// # Errors
    /// [`GpuError::NoPeer`] if the two do not reach each other, or what CUDA answers.
    pub fn enable_peer_access(&self, other: &Gpu) -> Result<(), GpuError> {
        let (mut can, [from, to]) = (0, [self, other].map(|gpu| gpu.context.device));
        // SAFETY: both devices exist; the number is valid for the call.
        unsafe { cuda!(cuDeviceCanAccessPeer(&mut can, from, to)) }.map_err(GpuError::from)?;
        if can == 0 {
            let [from, to] = [self, other].map(|gpu| gpu.info().ordinal);
            return Err(GpuError::NoPeer { from, to });
        }
        let _current = self.context.enter().map_err(GpuError::from)?;
        // SAFETY: the other context is retained. It stays reachable as long as either context lives, which hurts
        // nobody.
        let answer = unsafe { cuda!(cuCtxEnablePeerAccess(other.context.context, 0)) };
        match answer {
            Err(error) if error.code == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as u32 => Ok(()),
            answer => Ok(answer.map_err(GpuError::from)?),
        }
    }

    /// Which kernels see what a NIC writes into this GPU's memory in the order in which it was written. A kernel that
    /// polls for completions needs [`Owner`](RdmaWritesOrdering::Owner) for bytes in its own GPU's memory, and
    /// [`AllDevices`](RdmaWritesOrdering::AllDevices), of the other GPU, for bytes in memory that it
    /// [reaches](Self::enable_peer_access).
    pub fn rdma_writes_ordering(&self) -> RdmaWritesOrdering {
        self.info().rdma_writes_ordering
    }

    /// Waits until kernels that run, on every GPU, see what NICs wrote into this GPU's memory before completions that
    /// the caller has seen. Nothing is to be done, nor is it, where GPUs [see that
    /// anyway](RdmaWritesOrdering::AllDevices).
    ///
    /// # Errors
    /// [`GpuError::NoFlush`] if the GPU cannot, or what CUDA answers.
    pub fn flush_rdma_writes(&self) -> Result<(), GpuError> {
        let info = self.info();
        if info.rdma_writes_ordering >= RdmaWritesOrdering::AllDevices {
            return Ok(());
        }
        if !info.rdma_flush {
            return Err(GpuError::NoFlush { gpu: info.name.clone(), ordering: info.rdma_writes_ordering });
        }
        let (target, scope) = (
            sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
            sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES,
        );
        let _current = self.context.enter()?;
        // SAFETY: takes two numbers, for the context that was just made current.
        Ok(unsafe { cuda!(cuFlushGPUDirectRDMAWrites(target, scope)) }?)
    }

    /// From here on the GPU's kernels may poll for completions while NICs write into its memory, although it
    /// [orders](Self::rdma_writes_ordering) neither: the program sees to it that no kernel reads what a NIC wrote
    /// before the CPU has seen its completion and [flushed](Self::flush_rdma_writes). A program that does not will find
    /// old bytes where new ones should be, now and then.
    pub fn assume_rdma_writes_flushed(&self) {
        self.context.arrivals.assume_flushed();
    }

    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.context.info
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GpuInfo { ordinal, name, pci_id, .. } = self.info();
        write!(f, "Gpu({ordinal}: {name} at {pci_id})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_cuda_says_so_instead_of_panicking() {
        match Gpu::open(0) {
            Ok(gpu) => assert_eq!(Gpu::list().unwrap()[0], *gpu.info()),
            Err(error @ GpuError::NoCuda) => {
                assert!(error.to_string().contains("libcuda.so.1, cannot be loaded: install"), "{error}");
                assert!(matches!(Gpu::list(), Err(GpuError::NoCuda)));
            }
            // A driver, and no GPU: CUDA's own words.
            Err(error) => assert!(matches!(error, GpuError::Cuda(_) | GpuError::NoGpu { .. }), "{error}"),
        }
    }
}
