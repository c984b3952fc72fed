//! GPUs: finding and opening them.

use super::context::Context;
use super::driver::{self, cuda};
use super::error::GpuError;
use super::info::{GpuInfo, count, find};
use super::ordering::RdmaWritesOrdering;
use cudarc::driver::sys;
use std::sync::Arc;

/// An open GPU. Clones refer to the same GPU. It is closed when the last object made from it is gone.
///
/// It holds CUDA's primary context, which a program shares with all other users of CUDA in it. Every call makes the
/// context current for itself, and restores the previous one.
#[derive(Clone)]
pub struct Gpu {
    pub(super) context: Arc<Context>,
}

impl Gpu {
    /// Opens GPU number `ordinal`, in CUDA's order, from 0.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, [`GpuError::NoGpu`] if there are fewer GPUs, or
    /// CUDA's answer.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let (device, info) = find(ordinal)?;
        Ok(Self { context: Arc::new(Context::open(device, info)?) })
    }

    /// Returns the GPUs that CUDA sees.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, or CUDA's answer.
    pub fn list() -> Result<Vec<GpuInfo>, GpuError> {
        driver::load()?;
        (0..count()?).map(|ordinal| find(ordinal).map(|(_, info)| info)).collect::<Result<_, _>>()
    }

    /// Lets this GPU's kernels access the other one's memory, over NVLink or PCIe, by the addresses that it has there.
    /// [`rdma_writes_ordering`](Self::rdma_writes_ordering) of the other GPU tells whether they see what a NIC writes
    /// there in order.
    ///
    /// # Errors
    /// [`GpuError::NoPeer`] if the two GPUs cannot access each other's memory, or CUDA's answer.
    pub fn enable_peer_access(&self, other: &Gpu) -> Result<(), GpuError> {
        let (mut can, [from, to]) = (0, [self, other].map(|gpu| gpu.context.device));
        // SAFETY: both devices are those of open contexts. `can` is valid for the call, which writes it.
        unsafe { cuda!(cuDeviceCanAccessPeer(&mut can, from, to)) }.map_err(GpuError::from)?;
        if can == 0 {
            let [from, to] = [self, other].map(|gpu| gpu.info().ordinal);
            return Err(GpuError::NoPeer { from, to });
        }
        let _current = self.context.enter().map_err(GpuError::from)?;
        // SAFETY: `other` keeps its context retained. CUDA removes the access when one of the two contexts is
        // destroyed.
        let answer = unsafe { cuda!(cuCtxEnablePeerAccess(other.context.context, 0)) };
        match answer {
            Err(error) if error.code == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as u32 => Ok(()),
            answer => Ok(answer.map_err(GpuError::from)?),
        }
    }

    /// Returns which kernels see what a NIC writes into this GPU's memory in the order in which it was written. A
    /// kernel that polls for completions needs [`Owner`](RdmaWritesOrdering::Owner) for bytes in its own GPU's memory.
    /// For bytes in another GPU's memory ([peer access](Self::enable_peer_access)) that GPU must report
    /// [`AllDevices`](RdmaWritesOrdering::AllDevices).
    pub fn rdma_writes_ordering(&self) -> RdmaWritesOrdering {
        self.info().rdma_writes_ordering
    }

    /// Waits until running kernels, on every GPU, see what NICs wrote into this GPU's memory before completions that
    /// the caller has seen. Returns at once on GPUs that [order all of it](RdmaWritesOrdering::AllDevices).
    ///
    /// # Errors
    /// [`GpuError::NoFlush`] if the GPU does not support it, or CUDA's answer.
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
        // SAFETY: the call takes two numbers, and acts on the context that was made current above.
        Ok(unsafe { cuda!(cuFlushGPUDirectRDMAWrites(target, scope)) }?)
    }

    /// Declares that the program itself orders what NICs write: no kernel reads such bytes before the CPU has seen
    /// their completion and [flushed](Self::flush_rdma_writes). From here on kernels of this GPU may poll for
    /// completions while NICs write into its memory, even if the GPU does not [order](Self::rdma_writes_ordering) the
    /// two. A program that breaks this promise reads old bytes now and then.
    pub fn assume_rdma_writes_flushed(&self) {
        self.context.order_check.assume_flushed();
    }

    /// Returns the GPU's description.
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
            // A driver without a GPU: CUDA's own words.
            Err(error) => assert!(matches!(error, GpuError::Cuda(_) | GpuError::NoGpu { .. }), "{error}"),
        }
    }
}
