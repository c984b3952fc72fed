//! Protection domains: groups of memory, queue pairs and peers that may work together.
//!
//! A request that mixes domains is refused before it is posted.

use crate::error::SetupError;
use crate::external::ExternalMemory;
use crate::external_region::ExternalRegion;
use crate::peer::{Endpoint, Peer};
use crate::provider::Provider;
use crate::qp::{QpConfig, QueuePair};
use crate::region::{BorrowedRegion, Region};
use crate::shared::cq::CompletionTarget;
use crate::shared::domain::DomainShared;
use efa_io::{SendWqe, Wqe};
use efa_types::Access;
use std::sync::Arc;

/// A protection domain.
///
/// Regions borrow their domain, so no region outlives it. A program that keeps both in one structure puts the domain in
/// an `Arc` and uses [`allocate_shared`](Self::allocate_shared), whose regions share the domain instead.
pub struct ProtectionDomain {
    pub(crate) inner: Arc<DomainShared>,
}

impl ProtectionDomain {
    pub(crate) fn new(provider: Arc<dyn Provider>) -> Result<Self, SetupError> {
        Ok(Self { inner: DomainShared::alloc(provider)? })
    }

    /// Allocates `len` zeroed bytes, aligned to a page, and registers them.
    ///
    /// # Errors
    /// [`SetupError::Io`] if there is no memory, or the device refused.
    pub fn allocate(&self, len: usize, access: Access) -> Result<Region<'_>, SetupError> {
        Region::allocate(self.inner.clone(), len, access)
    }

    /// Allocates and registers `len` zeroed bytes, in a region that keeps the domain alive instead of borrowing it.
    ///
    /// # Errors
    /// [`SetupError::Io`] if there is no memory, or the device refused.
    pub fn allocate_shared(self: &Arc<Self>, len: usize, access: Access) -> Result<Region<'static>, SetupError> {
        Region::allocate(self.inner.clone(), len, access)
    }

    /// Registers the caller's own bytes for as long as `f` runs.
    ///
    /// A call lends the bytes, not a value, because a value can be leaked: then the device would go on writing to bytes
    /// that belong to somebody else by now. For the same reason the process is aborted if the kernel refuses to
    /// deregister the bytes, since an EFA may still write to them. (Memory with an owner is kept forever instead.)
    ///
    /// ```
    /// # use efa_direct::{Device, Access};
    /// let device = Device::open("soft0")?;
    /// let pd = device.alloc_pd()?;
    /// let mut bytes = vec![0u8; 100];
    /// let sum = pd.with_borrowed(&mut bytes, Access::LOCAL_WRITE, |region| {
    ///     region.write(10, b"hello")?;
    ///     region.read_vec(10..15)
    /// })??;
    /// assert_eq!(sum, b"hello");
    /// assert_eq!(bytes[10..15], *b"hello");
    /// # Ok::<(), efa_direct::Error>(())
    /// ```
    ///
    /// # Errors
    /// The device refused.
    pub fn with_borrowed<T>(
        &self,
        bytes: &mut [u8],
        access: Access,
        f: impl FnOnce(&Region<'_>) -> T,
    ) -> Result<T, SetupError> {
        let scoped = BorrowedRegion::new(self.inner.clone(), bytes, access)?;
        Ok(f(scoped.region()))
    }

    /// Registers memory that this process cannot access.
    ///
    /// # Errors
    /// [`SetupError::DmabufMisaligned`], or the device refused every way to the memory.
    pub fn register_external(&self, memory: ExternalMemory<'_>, access: Access) -> Result<ExternalRegion, SetupError> {
        ExternalRegion::register(self.inner.clone(), memory, access)
    }

    /// Creates a destination for work requests of this domain.
    ///
    /// RDMA needs a peer on both sides, even on the side that never posts: a device refuses RDMA from an initiator that
    /// it has no address handle for (status 14, unknown peer).
    ///
    /// # Errors
    /// The device refused.
    pub fn peer(&self, endpoint: &Endpoint) -> Result<Peer, SetupError> {
        Peer::new(self.inner.clone(), endpoint)
    }

    /// Creates a queue pair whose sends complete in `send_cq` and whose receives complete in `recv_cq`, which may be
    /// the same queue.
    ///
    /// # Errors
    /// The device refused; [`SetupError::CompletionQueueTooSmall`] if a completion queue cannot hold what the rings may
    /// have outstanding; [`SetupError::ForeignCompletionQueue`], [`SetupError::WqeSize`] or
    /// [`SetupError::NumbersInUse`].
    pub fn create_qp<const W: usize>(
        &self,
        send_cq: &impl CompletionTarget,
        recv_cq: &impl CompletionTarget,
        config: QpConfig<W>,
    ) -> Result<QueuePair<W>, SetupError>
    where
        Wqe<W>: SendWqe,
    {
        QueuePair::new(self.inner.clone(), send_cq.shared(), recv_cq.shared(), config)
    }
}
