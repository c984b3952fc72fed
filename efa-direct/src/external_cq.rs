//! Completion queues in memory that this process cannot touch.

use crate::cq::CqConfig;
use crate::error::SetupError;
use crate::external::DmabufRange;
use crate::provider::{Provider, RawExternalCq};
use crate::shared::cq::{CompletionTarget, CqShared, Target};
use efa_io::{CompletionRingHandle, RingSize};
use std::any::Any;
use std::sync::Arc;

/// A completion queue whose ring is in memory that this process cannot touch: somebody else polls it, who sees that
/// memory. It stays theirs.
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

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.size.entries()
    }

    /// The reader has found the ring empty: what queue pairs that were dropped before had of it, their share and their
    /// number, is free again.
    ///
    /// # Safety
    /// The reader did find it empty, after every one of these queue pairs was dropped.
    pub unsafe fn found_empty(&self) {
        self.shared.promises.found_empty(self.shared.promises.gone());
    }

    /// What whoever polls it needs to know, who sees the ring at `addr`. There is no doorbell, and nothing has been
    /// polled.
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
impl Target for ExternalCompletionQueue {
    fn shared(&self) -> &Arc<CqShared> {
        &self.shared
    }
}

impl std::fmt::Debug for ExternalCompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalCompletionQueue({} entries)", self.entries())
    }
}
