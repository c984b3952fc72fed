//! The state that a completion counter's owners share with the queue pairs that it is attached to.

use crate::provider::Provider;
use std::sync::Arc;

/// A counter that can be attached to queue pairs, whoever reads it. Sealed: implemented by the counters of this crate.
#[expect(private_bounds, reason = "sealed")]
pub trait AttachableCounter: HasCounter {}

/// Seals [`AttachableCounter`].
pub(crate) trait HasCounter {
    fn inner(&self) -> &Arc<CounterShared>;
}

/// The shared state of a counter. It keeps the device's object alive.
pub(crate) struct CounterShared {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) id: u32,
}

impl Drop for CounterShared {
    fn drop(&mut self) {
        self.provider.destroy_counter(self.id);
    }
}
