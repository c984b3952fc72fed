//! Queues that are mapped into a GPU, so that kernels access their rings.

use super::error::GpuError;
use super::gpu::Gpu;
use super::order_check::{ActiveUse, Use};
use super::pages::{Bytes, Kind, Pages};
use crate::counter::CompletionCounter;
use crate::cq::GpuCompletionQueue;
use crate::error::Refused;
use crate::provider::Provider;
use crate::recv::GpuRecvQueue;
use crate::ring::RawRing;
use crate::send::GpuSendQueue;
use crate::shared::counter::HasCounter;
use crate::shared::cq::{CompletionTarget, CqShared, HasCq};
use efa_io::handle::{CompletionRingHandle, CounterHandle, RecvRingHandle, SendRingHandle};
use std::sync::Arc;

/// A queue or counter that can be mapped into a GPU: [`GpuSendQueue`], [`GpuRecvQueue`], [`GpuCompletionQueue`] and
/// [`CompletionCounter`]. Sealed.
#[expect(private_bounds, reason = "sealed")]
pub trait Mappable: HasAddresses {
    /// The handle that a kernel takes as its argument.
    type Handle: bytemuck::Pod;
}

/// Seals [`Mappable`].
pub(crate) trait HasAddresses {
    /// Returns the two ranges of this process that a handle has addresses of; `None` for one that does not exist.
    fn ranges(&self) -> [Option<Bytes>; 2];

    /// Returns the provider whose completions a kernel reads there, if it reads completions.
    fn completions_of(&self) -> Option<&dyn Provider> {
        None
    }

    /// Returns the handle, with these addresses.
    fn handle_at(&self, addrs: [u64; 2]) -> Self::Handle
    where
        Self: Mappable;
}

/// Returns the range of a ring's entries.
fn entries(ring: &RawRing, kind: Kind) -> Option<Bytes> {
    let len = u64::from(ring.size().entries()) * ring.entry_size() as u64;
    let kind = if ring.is_write_combining() { Kind::Device } else { kind };
    Some(Bytes { addr: ring.addr(), len, kind })
}

/// Returns the range of a ring's doorbell, if it has one.
fn doorbell(ring: &RawRing) -> Option<Bytes> {
    let addr = ring.doorbell_addr();
    let kind = if ring.has_io_doorbell() { Kind::Device } else { Kind::Written };
    (addr != 0).then_some(Bytes { addr, len: 4, kind })
}

macro_rules! mappable {
    ($($queue:ty => $handle:ident, $kind:ident $(, completions: $shared:ident)?);*) => {$(
        impl Mappable for $queue {
            type Handle = $handle;
        }
        impl HasAddresses for $queue {
            fn ranges(&self) -> [Option<Bytes>; 2] {
                [entries(self.raw_ring(), Kind::$kind), doorbell(self.raw_ring())]
            }

            $(fn completions_of(&self) -> Option<&dyn Provider> {
                Some(&*self.$shared().provider)
            })?

            fn handle_at(&self, [ring, doorbell]: [u64; 2]) -> $handle {
                $handle { ring, doorbell, ..self.handle() }
            }
        }
    )*};
}

mappable!(
    GpuSendQueue<8> => SendRingHandle, Written;
    GpuSendQueue<16> => SendRingHandle, Written;
    GpuRecvQueue => RecvRingHandle, Written;
    GpuCompletionQueue => CompletionRingHandle, Read, completions: shared
);

impl Mappable for CompletionCounter {
    type Handle = CounterHandle;
}

impl HasAddresses for CompletionCounter {
    fn ranges(&self) -> [Option<Bytes>; 2] {
        let CounterHandle { completions, errors } = self.handle();
        [completions, errors].map(|addr| Some(Bytes { addr, len: 8, kind: Kind::Read }))
    }

    fn completions_of(&self) -> Option<&dyn Provider> {
        Some(&*self.inner().provider)
    }

    fn handle_at(&self, [completions, errors]: [u64; 2]) -> CounterHandle {
        CounterHandle { completions, errors }
    }
}

/// A queue or counter that is mapped into a GPU. It is inside this value for as long, so nobody else can post to it or
/// hand it over.
///
/// No kernel may use its handles after it was [unmapped](Self::unmap) or dropped: that is part of the promise of
/// whoever [launches](super::Kernel::launch) one.
#[must_use = "the queue is unmapped, and lost, when this is dropped"]
pub struct Mapped<Q: Mappable> {
    // Dropped in this order: the pages are unregistered while the memory still exists.
    pages: [Option<Pages>; 2],
    queue: Q,
    polled: Option<ActiveUse>,
}

impl Gpu {
    /// Maps a queue's ring and doorbell, or a counter's words, into this GPU, so that kernels access them. A queue is
    /// mapped into one GPU.
    ///
    /// # Errors
    /// A [`Refused`] with the queue. [`GpuError::IoMemory`](super::GpuError::IoMemory) if CUDA does not map the NIC's
    /// own memory, or another answer of CUDA. [`GpuError::Unordered`](super::GpuError::Unordered) if kernels would poll
    /// for a NIC's completions while a NIC writes into memory of the GPU ([`GpuRegion`](super::GpuRegion)), and the GPU
    /// does not order the two.
    pub fn map<Q: Mappable>(&self, queue: Q) -> Result<Mapped<Q>, Refused<Q, GpuError>> {
        let [first, second] = queue.ranges();
        let register = |bytes: Option<Bytes>| bytes.map(|bytes| Pages::register(&self.context, bytes)).transpose();
        let claim = |provider| self.context.order_check.begin(Use::KernelsPoll, provider);
        let mapped = queue.completions_of().map_or(Ok(None), claim);
        match mapped.and_then(|polled| Ok((polled, [register(first)?, register(second)?]))) {
            Ok((polled, pages)) => Ok(Mapped { pages, queue, polled }),
            Err(error) => Err(Refused { value: queue, error }),
        }
    }
}

impl<Q: Mappable> Mapped<Q> {
    /// Returns what a kernel needs to know of the queue, with addresses as the GPU sees them. The counters in it are
    /// those of the hand-over. A kernel that continues where another has stopped gets its counters from the caller.
    pub fn handle(&self) -> Q::Handle {
        self.queue.handle_at([0, 1].map(|i: usize| self.pages[i].as_ref().map_or(0, Pages::device_addr)))
    }

    /// Returns the queue, for inspection.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Takes the queue back from the GPU. Handles of it become invalid.
    pub fn unmap(self) -> Q {
        let Self { pages, queue, polled } = self;
        drop((pages, polled));
        queue
    }
}

impl CompletionTarget for Mapped<GpuCompletionQueue> {}
impl HasCq for Mapped<GpuCompletionQueue> {
    fn shared(&self) -> &Arc<CqShared> {
        self.queue.shared()
    }
}

impl<Q: Mappable + std::fmt::Debug> std::fmt::Debug for Mapped<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({:?})", self.queue)
    }
}
