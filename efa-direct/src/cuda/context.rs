//! CUDA's context of a GPU, which all objects of the GPU keep alive.

use super::arrivals::Arrivals;
use super::copier::{Copier, Copiers};
use super::driver::{self, Current, cuda, log};
use super::error::CudaError;
use super::info::GpuInfo;
#[cfg(test)]
use super::ordering::RdmaWritesOrdering;
use cudarc::driver::sys;
use std::sync::Arc;

/// What all objects of a GPU keep alive.
pub(super) struct Context {
    pub(super) device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    pub(super) info: GpuInfo,
    pub(super) copiers: Copiers,
    pub(super) arrivals: Arc<Arrivals>,
}

// SAFETY: CUDA's functions may be called from any thread, for any object.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of this GPU.
    pub(super) fn open(device: sys::CUdevice, info: GpuInfo) -> Result<Self, CudaError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the device exists; the pointer is valid for the call.
        unsafe { cuda!(cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let arrivals = Arrivals::new(&info.name, info.rdma_writes_ordering);
        let context = Self { device, context, info, copiers: Copiers::default(), arrivals };
        let current = context.enter()?;
        for _ in 0..Copiers::COUNT {
            context.copiers.put(Copier::new(&current)?);
        }
        drop(current);
        Ok(context)
    }

    /// One that no call can be made with.
    #[cfg(test)]
    pub(super) fn without_cuda() -> Self {
        let info = GpuInfo {
            ordinal: 0,
            name: "no GPU".into(),
            compute_capability: (0, 0),
            pci_id: String::new(),
            driver: (0, 0),
            dmabuf: false,
            coherent: false,
            rdma_writes_ordering: RdmaWritesOrdering::None,
            rdma_flush: false,
        };
        let arrivals = Arrivals::new(&info.name, info.rdma_writes_ordering);
        Self { device: 0, context: std::ptr::null_mut(), info, copiers: Copiers::default(), arrivals }
    }

    /// Whether both are the GPU's one context.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.context == other.context
    }

    /// Makes the context current.
    pub(super) fn enter(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: `open` has retained it; it is released when `self` is dropped.
        unsafe { driver::enter(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let copiers = self.copiers.take();
        match self.enter() {
            Ok(current) => copiers.into_iter().for_each(|copier| copier.free(&current)),
            Err(error) => log("freeing what a GPU copied with", Err(error)),
        }
        // SAFETY: it was retained once, by `open`.
        log("releasing a GPU's context", unsafe { cuda!(cuDevicePrimaryCtxRelease_v2(self.device)) });
    }
}
