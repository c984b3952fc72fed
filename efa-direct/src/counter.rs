//! Completion counters: progress as a number, without polling a completion queue.

use crate::error::SetupError;
use crate::provider::{CounterWord, Provider, RawCounter};
use crate::shared::counter::{AttachableCounter, CounterShared, HasCounter};
use efa_io::handle::CounterHandle;
use efa_types::{COUNTER_MAX, CounterValue};
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A completion counter. Attach it to queue pairs with [`QueuePair::attach_counter`](crate::QueuePair::attach_counter).
/// One that is attached to several queue pairs counts for all of them together. Completion entries are written with and
/// without it.
///
/// It has 31 bits and wraps, so compare values with [`completions_since`](Self::completions_since), not with `<`.
#[derive(Clone)]
pub struct CompletionCounter {
    inner: Arc<CounterShared>,
    words: Arc<[CounterWord; 2]>,
}

/// A completion counter in memory that this process cannot access, such as GPU memory. Whoever can access that memory
/// reads it.
#[derive(Clone)]
pub struct ExternalCompletionCounter {
    inner: Arc<CounterShared>,
}

macro_rules! counting {
    ($($counter:ty),*) => {$(
        impl AttachableCounter for $counter {}
        impl HasCounter for $counter {
            fn inner(&self) -> &Arc<CounterShared> {
                &self.inner
            }
        }
    )*};
}

counting!(CompletionCounter, ExternalCompletionCounter);

impl CompletionCounter {
    pub(crate) fn new(provider: Arc<dyn Provider>) -> Result<Self, SetupError> {
        let RawCounter { id, completions, errors } = provider.create_counter()?;
        Ok(Self { inner: Arc::new(CounterShared { provider, id }), words: Arc::new([completions, errors]) })
    }

    /// Returns the number of successful completions, modulo 2^31. All bytes that they stand for are visible after this.
    pub fn completions(&self) -> u64 {
        self.words[0].load()
    }

    /// Returns the number of completions with an error, modulo 2^31.
    pub fn errors(&self) -> u64 {
        self.words[1].load()
    }

    /// Returns the number of successful completions since [`completions`](Self::completions) returned `earlier`, if
    /// fewer than 2^31.
    pub fn completions_since(&self, earlier: u64) -> u64 {
        self.completions().wrapping_sub(earlier) & COUNTER_MAX
    }

    /// Returns what another reader of the counter needs to know. Addresses are those of this process.
    pub fn handle(&self) -> CounterHandle {
        let [completions, errors] = self.words.each_ref().map(CounterWord::addr);
        CounterHandle { completions, errors }
    }

    /// Sets one of the two numbers. If the device counts a completion meanwhile, that completion may be lost.
    ///
    /// # Errors
    /// The device refused.
    pub fn set(&self, which: CounterValue, value: u64) -> Result<(), SetupError> {
        self.inner.provider.set_counter(self.inner.id, which, value)
    }
}

impl ExternalCompletionCounter {
    pub(crate) fn new(
        provider: Arc<dyn Provider>,
        fd: BorrowedFd<'_>,
        completions: u64,
        errors: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self, SetupError> {
        let id = provider.create_counter_in(fd, completions, errors, owner)?;
        Ok(Self { inner: Arc::new(CounterShared { provider, id }) })
    }

    /// Sets one of the two numbers, like [`CompletionCounter::set`].
    ///
    /// # Errors
    /// The device refused.
    pub fn set(&self, which: CounterValue, value: u64) -> Result<(), SetupError> {
        self.inner.provider.set_counter(self.inner.id, which, value)
    }
}

impl std::fmt::Debug for ExternalCompletionCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalCompletionCounter({})", self.inner.id)
    }
}

impl std::fmt::Debug for CompletionCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompletionCounter({} completions, {} errors)", self.completions(), self.errors())
    }
}
