//! Protection domains: what belongs together.
//!
//! Memory, queue pairs and peers of one domain work together; a request that mixes domains is refused before it is
//! posted.

use crate::error::SetupError;
use crate::external::ExternalMemory;
use crate::external_region::ExternalRegion;
use crate::peer::{Endpoint, Peer};
use crate::provider::Provider;
use crate::qp::{QpConfig, QueuePair};
use crate::region::{Region, Scoped};
use crate::shared::cq::CompletionTarget;
use crate::shared::domain::DomainShared;
use efa_io::{SendWqe, Wqe};
use efa_types::Access;
use std::sync::Arc;

/// A protection domain.
///
/// Regions borrow their domain, so none outlives it. A program that keeps both in one structure puts the domain in an
/// `Arc` and uses [`allocate_shared`](Self::allocate_shared), whose regions share it instead.
pub struct ProtectionDomain {
    pub(crate) inner: Arc<DomainShared>,
}

impl ProtectionDomain {
    pub(crate) fn new(provider: Arc<dyn Provider>) -> Result<Self, SetupError> {
        Ok(Self { inner: DomainShared::alloc(provider)? })
    }

    /// Allocates `len` zeroed bytes, page-aligned, and registers them.
    ///
    /// # Errors
    /// No memory, or the device refused.
    pub fn allocate(&self, len: usize, access: Access) -> Result<Region<'_>, SetupError> {
        Region::allocate(self.inner.clone(), len, access)
    }

    /// The same, for a region that keeps the domain alive instead of borrowing it.
    ///
    /// # Errors
    /// No memory, or the device refused.
    pub fn allocate_shared(self: &Arc<Self>, len: usize, access: Access) -> Result<Region<'static>, SetupError> {
        Region::allocate(self.inner.clone(), len, access)
    }

    /// Registers the caller's own bytes for as long as `f` runs.
    ///
    /// They are lent for the duration of a call rather than of a value because a value can be leaked: the device would
    /// go on writing to bytes that are long somebody else's. For the same reason the process is aborted should the
    /// kernel refuse to deregister them: an EFA may still write there then. Memory with an owner is kept for good
    /// instead.
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
        let scoped = Scoped::new(self.inner.clone(), bytes, access)?;
        Ok(f(scoped.region()))
    }

    /// Registers memory that this process cannot touch.
    ///
    /// # Errors
    /// The device refused, in all ways in which it could reach the memory; or [`SetupError::DmabufMisaligned`].
    pub fn register_external(&self, memory: ExternalMemory<'_>, access: Access) -> Result<ExternalRegion, SetupError> {
        ExternalRegion::register(self.inner.clone(), memory, access)
    }

    /// A destination.
    ///
    /// For RDMA both sides need one of the other, even the side that never posts: a device refuses RDMA from an
    /// initiator that it has no address handle for (status 14, unknown peer).
    ///
    /// # Errors
    /// The device refused.
    pub fn peer(&self, endpoint: &Endpoint) -> Result<Peer, SetupError> {
        Peer::new(self.inner.clone(), endpoint)
    }

    /// Creates an SRD queue pair whose sends complete in `send_cq` and whose receives complete in `recv_cq`; they may
    /// be the same.
    ///
    /// # Errors
    /// The device refused, or a completion queue cannot hold what the rings may have outstanding.
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
