//! Completion counters in GPU memory.

use super::gpu::Gpu;
use super::memory::GpuMemory;
use super::order_check::{ActiveUse, Use};
use crate::counter::ExternalCompletionCounter;
use crate::device::Device;
use crate::error::Error;
use crate::shared::counter::{AttachableCounter, CounterShared, HasCounter};
use efa_io::handle::CounterHandle;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Offset of a counter's number of errors: on a cache line of its own.
const ERRORS: u64 = 64;

/// A completion counter in GPU memory, which kernels read and the CPU does not. (A counter in host memory that both
/// read is a [`CompletionCounter`](crate::CompletionCounter), [mapped](Gpu::map).)
#[derive(Debug)]
pub struct PlacedCompletionCounter {
    counter: ExternalCompletionCounter,
    memory: GpuMemory,
    _polled: Option<ActiveUse>,
}

impl Device {
    /// Creates a completion counter in memory of `gpu`.
    ///
    /// # Errors
    /// The device refused, or does not support this; or the GPU cannot export memory
    /// ([`GpuError::NoDmabuf`](super::GpuError::NoDmabuf)). [`GpuError::Unordered`](super::GpuError::Unordered) as for
    /// [`Gpu::map`].
    pub fn create_counter_on(&self, gpu: &Gpu) -> Result<PlacedCompletionCounter, Error> {
        let _polled = gpu.context.order_check.begin(Use::KernelsPoll, &*self.provider)?;
        let memory = gpu.allocate(ERRORS + 8)?;
        let dmabuf = memory.dmabuf()?;
        let counter = self.create_counter_in(dmabuf.as_fd(), 0, ERRORS, Some(Arc::new(memory.clone())))?;
        Ok(PlacedCompletionCounter { counter, memory, _polled })
    }
}

impl PlacedCompletionCounter {
    /// Returns what a kernel needs to know of the counter, with addresses as the GPU sees them.
    pub fn handle(&self) -> CounterHandle {
        CounterHandle { completions: self.memory.addr(), errors: self.memory.addr() + ERRORS }
    }
}

impl AttachableCounter for PlacedCompletionCounter {}
impl HasCounter for PlacedCompletionCounter {
    fn inner(&self) -> &Arc<CounterShared> {
        self.counter.inner()
    }
}
