//! What the owners of a completion counter and the queue pairs that it is attached to share.

use crate::provider::Provider;
use std::sync::Arc;

/// A counter that queue pairs can count in, whoever reads it. Sealed: the kinds of this crate.
#[expect(private_bounds, reason = "sealed")]
pub trait AttachableCounter: Counts {}

/// What seals [`AttachableCounter`].
pub(crate) trait Counts {
    fn inner(&self) -> &Arc<CounterShared>;
}

/// What a counter's owners and the queue pairs it is attached to keep alive.
pub(crate) struct CounterShared {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) id: u32,
}

impl Drop for CounterShared {
    fn drop(&mut self) {
        self.provider.destroy_counter(self.id);
    }
}
