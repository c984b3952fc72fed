//! The state that all objects of a protection domain share.

use crate::error::SetupError;
use crate::provider::Provider;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A protection domain of a provider. Every object made in it keeps it alive.
pub(crate) struct DomainShared {
    pub(crate) provider: Arc<dyn Provider>,
    /// The domain's number at the provider.
    pub(crate) pd: u32,
    /// The domain's number in this process, which is unique across devices. Requests that mix domains are refused by
    /// it.
    pub(crate) tag: u32,
}

impl DomainShared {
    pub(crate) fn alloc(provider: Arc<dyn Provider>) -> Result<Arc<Self>, SetupError> {
        static TAGS: AtomicU32 = AtomicU32::new(1);
        let pd = provider.alloc_pd()?;
        let tag = TAGS.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { provider, pd, tag }))
    }
}

impl Drop for DomainShared {
    fn drop(&mut self) {
        self.provider.dealloc_pd(self.pd);
    }
}
