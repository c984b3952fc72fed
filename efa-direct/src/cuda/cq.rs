//! Completion queues that a GPU polls, in memory of the caller's choice.

use super::arrivals::{Claim, Role};
use super::gpu::Gpu;
use super::mapped::Mapped;
use super::memory::GpuMemory;
use crate::cq::{CqConfig, GpuCompletionQueue};
use crate::device::Device;
use crate::error::{Error, HandOverError, Refused};
use crate::external::DmabufRange;
use crate::external_cq::ExternalCompletionQueue;
use crate::shared::cq::{CompletionTarget, CqShared, HasCq};
use efa_io::{Cqe32, handle::CompletionRingHandle};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Where a completion ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqPlace {
    /// In memory of the GPU that polls: quick to poll, and written by the NIC across the PCI bus. The CPU never sees
    /// it. Not every NIC can, and no software device.
    GpuMemory,
    /// In host memory, where every device can have it, mapped into the GPU.
    PinnedHost,
}

/// A completion queue that a GPU polls.
#[derive(Debug)]
pub struct PlacedCompletionQueue {
    inner: Placed,
}

#[derive(Debug)]
enum Placed {
    Gpu { queue: ExternalCompletionQueue, memory: GpuMemory, _polled: Option<Claim> },
    Host(Mapped<GpuCompletionQueue>),
}

/// Bytes of a ring of at least so many entries. Libraries and devices round them up to a power of two.
fn ring_bytes(entries: u32) -> u64 {
    u64::from(entries.max(1)).next_power_of_two() * Cqe32::SIZE as u64
}

impl Device {
    /// Creates a completion queue that `gpu` polls. Its place is the caller's choice: if it cannot be there, that is an
    /// error.
    ///
    /// # Errors
    /// The device refused; it cannot write completions into GPU memory; the GPU exports no memory
    /// ([`GpuError::NoDmabuf`](super::GpuError::NoDmabuf)); or CUDA does not map the queue.
    /// [`GpuError::Unordered`](super::GpuError::Unordered) as for [`Gpu::map`].
    pub fn create_cq_on(&self, gpu: &Gpu, config: CqConfig, place: CqPlace) -> Result<PlacedCompletionQueue, Error> {
        let inner = match place {
            CqPlace::PinnedHost => Placed::Host(gpu.map(self.create_cq(config)?.into_gpu()?)?),
            CqPlace::GpuMemory => {
                let provider = &*self.provider;
                let _polled = gpu.context.arrivals.claim(Role::Polled, provider)?;
                let memory = gpu.allocate(ring_bytes(config.entries()))?;
                let dmabuf = memory.dmabuf()?;
                // The ring is the memory's beginning, and a whole number of pages.
                let range = DmabufRange { fd: dmabuf.as_fd(), offset: 0, len: memory.len().next_multiple_of(4096) };
                let queue = self.create_cq_in(config, range, Some(Arc::new(memory.clone())))?;
                Placed::Gpu { queue, memory, _polled }
            }
        };
        Ok(PlacedCompletionQueue { inner })
    }
}

impl PlacedCompletionQueue {
    /// What a kernel needs to know, with addresses as the GPU sees them. Nothing has been polled yet: a kernel that
    /// goes on where another has stopped is told so by the caller, in `consumer`.
    pub fn handle(&self) -> CompletionRingHandle {
        match &self.inner {
            Placed::Gpu { queue, memory, .. } => queue.handle_at(memory.addr()),
            Placed::Host(queue) => queue.handle(),
        }
    }

    /// Where it is.
    pub fn place(&self) -> CqPlace {
        match self.inner {
            Placed::Gpu { .. } => CqPlace::GpuMemory,
            Placed::Host(_) => CqPlace::PinnedHost,
        }
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.handle().size().entries()
    }

    /// The mapped queue, which the CPU can take back.
    ///
    /// # Errors
    /// This, as it was, if it is in GPU memory.
    pub fn into_mapped(self) -> Result<Mapped<GpuCompletionQueue>, Refused<Self>> {
        match self.inner {
            Placed::Host(queue) => Ok(queue),
            inner => Err(Refused { value: Self { inner }, error: HandOverError::InGpuMemory }),
        }
    }
}

impl CompletionTarget for PlacedCompletionQueue {}
impl HasCq for PlacedCompletionQueue {
    fn shared(&self) -> &Arc<CqShared> {
        match &self.inner {
            Placed::Gpu { queue, .. } => queue.shared(),
            Placed::Host(queue) => queue.shared(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_room_for_a_power_of_two_of_entries() {
        assert_eq!(ring_bytes(0), 32);
        assert_eq!(ring_bytes(100), 128 * 32);
        assert_eq!(ring_bytes(u32::MAX), (1 << 32) * 32);
    }
}
