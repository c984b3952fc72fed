//! Completion queues in memory that this process cannot access.

use crate::cq::CqConfig;
use crate::error::SetupError;
use crate::external::DmabufRange;
use crate::provider::{Provider, RawExternalCq};
use crate::shared::cq::{CompletionTarget, CqShared, HasCq};
use efa_io::{CompletionRingHandle, RingSize};
use std::any::Any;
use std::sync::Arc;

/// A completion queue in memory that this process cannot access. Whoever can access that memory polls it, for as long
/// as it exists.
pub struct ExternalCompletionQueue {
    shared: Arc<CqShared>,
    size: RingSize,
    entry_size: usize,
}

impl ExternalCompletionQueue {
    pub(crate) fn new(
        provider: Arc<dyn Provider>,
        config: CqConfig,
        memory: DmabufRange<'_>,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self, SetupError> {
        let RawExternalCq { cqn, size, entry_size } = provider.create_cq_in(config.attributes(), memory, owner)?;
        let shared = Arc::new(CqShared::new(provider, cqn, size.entries()));
        Ok(Self { shared, size, entry_size })
    }

    /// Returns the number of entries.
    pub fn entries(&self) -> u32 {
        self.size.entries()
    }

    /// Reports that the reader has found the ring empty. Shares and numbers of queue pairs that were dropped before
    /// become free.
    ///
    /// # Safety
    /// The reader found the ring empty after every one of these queue pairs was dropped.
    pub unsafe fn found_empty(&self) {
        self.shared.promises.found_empty(self.shared.promises.gone());
    }

    /// Returns what the ring's reader needs to know, if it sees the ring at `addr`. There is no doorbell, and the
    /// reader begins at the first entry.
    pub fn handle_at(&self, addr: u64) -> CompletionRingHandle {
        CompletionRingHandle {
            ring: addr,
            doorbell: 0,
            mask: self.size.mask(),
            shift: self.size.log2() as u16,
            cqe_size: self.entry_size as u16,
            consumer: 0,
            tag: self.shared.tag,
        }
    }
}

impl CompletionTarget for ExternalCompletionQueue {}
impl HasCq for ExternalCompletionQueue {
    fn shared(&self) -> &Arc<CqShared> {
        &self.shared
    }
}

impl std::fmt::Debug for ExternalCompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalCompletionQueue({} entries)", self.entries())
    }
}
