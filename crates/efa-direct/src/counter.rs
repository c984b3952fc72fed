//! Completion counters: progress as a number, without polling a completion queue.

use crate::error::Error;
use crate::provider::{Provider, RawCounter};
use efa_io::handle::CounterHandle;
use efa_soft::{COUNTER_MAX, CounterValue};
use std::sync::Arc;

/// A counter of completions. Attach it to queue pairs with [`QueuePair::attach_counter`](crate::QueuePair::attach_counter); one that is
/// attached to several counts for all of them together. Completion entries are written as without it.
///
/// It has 31 bits and wraps: compare values with [`completions_since`](Self::completions_since), not with `<`.
#[derive(Clone)]
pub struct CompletionCounter {
    pub(crate) inner: Arc<CounterInner>,
}

/// What a counter's owners and the queue pairs it is attached to keep alive.
pub(crate) struct CounterInner {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) raw: RawCounter,
}

impl Drop for CounterInner {
    fn drop(&mut self) {
        self.provider.destroy_counter(self.raw.id);
    }
}

impl CompletionCounter {
    pub(crate) fn new(provider: Arc<dyn Provider>) -> Result<Self, Error> {
        let raw = provider.create_counter()?;
        Ok(Self { inner: Arc::new(CounterInner { provider, raw }) })
    }

    /// Completions that went well, modulo 2^31. All bytes that they stand for are in place.
    pub fn completions(&self) -> u64 {
        self.inner.raw.completions.load()
    }

    /// Completions with an error, modulo 2^31.
    pub fn errors(&self) -> u64 {
        self.inner.raw.errors.load()
    }

    /// How many completions went well since [`completions`](Self::completions) was `earlier`, if fewer than 2^31.
    pub fn completions_since(&self, earlier: u64) -> u64 {
        self.completions().wrapping_sub(earlier) & COUNTER_MAX
    }

    /// What whoever else reads it needs to know. Addresses are those of this process.
    pub fn handle(&self) -> CounterHandle {
        let raw = &self.inner.raw;
        CounterHandle { completions: raw.completions.addr(), errors: raw.errors.addr() }
    }

    /// Sets one of the two numbers. The device must not be counting meanwhile, or some of what it counts is lost.
    ///
    /// # Errors
    /// The device refused.
    pub fn set(&self, which: CounterValue, value: u64) -> Result<(), Error> {
        self.inner.provider.set_counter(self.inner.raw.id, which, value)
    }
}

impl std::fmt::Debug for CompletionCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompletionCounter({} completions, {} errors)", self.completions(), self.errors())
    }
}
