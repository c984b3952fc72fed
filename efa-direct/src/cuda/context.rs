//! CUDA's context of a GPU. All objects of the GPU keep it alive.

use super::copier::{Copier, Copiers};
use super::driver::{self, Current, cuda, log_failure};
use super::error::CudaError;
use super::info::GpuInfo;
use super::order_check::OrderCheck;
#[cfg(test)]
use super::ordering::RdmaWritesOrdering;
use cudarc::driver::sys;
use std::sync::Arc;

/// A GPU's primary context, with the state that its objects share.
pub(super) struct Context {
    pub(super) device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    pub(super) info: GpuInfo,
    pub(super) copiers: Copiers,
    pub(super) order_check: Arc<OrderCheck>,
}

// SAFETY: the fields that are not `Send` are handles of CUDA's driver. Its functions may be called from any thread with
// any handle.
unsafe impl Send for Context {}
// SAFETY: as for `Send`; `copiers` and `order_check` have their own locks.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of this GPU.
    pub(super) fn open(device: sys::CUdevice, info: GpuInfo) -> Result<Self, CudaError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: `find` got `device` from CUDA, and devices exist as long as the process. `context` is valid for the
        // call, which writes it.
        unsafe { cuda!(cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let order_check = OrderCheck::new(&info.name, info.rdma_writes_ordering);
        let context = Self { device, context, info, copiers: Copiers::default(), order_check };
        let current = context.enter()?;
        for _ in 0..Copiers::COUNT {
            context.copiers.give_back(Copier::new(&current)?);
        }
        drop(current);
        Ok(context)
    }

    /// Returns a context that no call can be made with.
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
        let order_check = OrderCheck::new(&info.name, info.rdma_writes_ordering);
        Self { device: 0, context: std::ptr::null_mut(), info, copiers: Copiers::default(), order_check }
    }

    /// Returns `true` if both are the same context, which a GPU has one of.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.context == other.context
    }

    /// Makes the context this thread's current one.
    pub(super) fn enter(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: `open` retained the context, and only dropping `self`, which the result borrows, releases it.
        unsafe { driver::enter(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let copiers = self.copiers.take_idle();
        match self.enter() {
            Ok(current) => copiers.into_iter().for_each(|copier| copier.free(&current)),
            Err(error) => log_failure("freeing the streams and memory for copies", Err(error)),
        }
        // SAFETY: `open` retained the context once. This is its last use: nothing but `self` and its `Current`s, which
        // borrow it, has the handle.
        log_failure("releasing a GPU's context", unsafe { cuda!(cuDevicePrimaryCtxRelease_v2(self.device)) });
    }
}
