//! Completion counters.

use crate::arch;
use crate::time::Deadline;
use crate::watchdog::{TimedOut, TimeoutReport};
use efa_io::CounterHandle;

/// The bits of a counter that count: it goes back to 0 after 2^31 - 1 (`max_comp_count` of `efadv_query_device`).
const MASK: u32 = (1 << 31) - 1;

/// A completion counter: the number of requests that are done, which the device counts in memory. Nobody has to read
/// completion entries for it.
pub struct CompletionCounter {
    completions: *mut u64,
    errors: *mut u64,
}

/// Why a wait for a counter ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterError {
    /// The deadline has passed.
    TimedOut(TimedOut),
    /// Requests failed since the wait began; so many.
    Failed(u32),
}

impl From<TimedOut> for CounterError {
    #[inline(always)]
    fn from(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }
}

impl CompletionCounter {
    /// Makes the counter of `handle`.
    ///
    /// # Safety
    /// The addresses in `handle` are those of a counter, valid here as long as this value is used.
    #[inline(always)]
    pub unsafe fn new(handle: &CounterHandle) -> Self {
        Self { completions: handle.completions as *mut u64, errors: handle.errors as *mut u64 }
    }

    /// Returns the number of requests that succeeded, modulo 2^31. An acquire: the bytes that these requests moved are
    /// visible behind it.
    #[inline(always)]
    pub fn completions(&self) -> u32 {
        // SAFETY: `new`'s contract: a word that the device counts in, valid as long as this value is used.
        unsafe { arch::load_acquire(self.completions) as u32 & MASK }
    }

    /// Returns the number of requests that failed, modulo 2^31.
    #[inline(always)]
    pub fn errors(&self) -> u32 {
        // SAFETY: `new`'s contract: a word that the device counts in, valid as long as this value is used.
        unsafe { arch::load_acquire(self.errors) as u32 & MASK }
    }

    /// Waits until the counter has reached `target`, modulo 2^31. A counter that is less than 2^30 past it has reached
    /// it.
    ///
    /// # Errors
    /// The deadline has passed; or a request failed in the meantime, so that the target may never be reached.
    #[inline]
    pub fn wait_until(&self, target: u32, deadline: Deadline) -> Result<(), CounterError> {
        let failed = self.errors();
        loop {
            if self.completions().wrapping_sub(target) & MASK < 1 << 30 {
                return Ok(());
            }
            let failures = self.errors().wrapping_sub(failed) & MASK;
            if failures != 0 {
                return Err(CounterError::Failed(failures));
            }
            if deadline.passed() {
                let (what, seen) = (TimeoutReport::COUNTER, self.completions());
                return Err(TimedOut(TimeoutReport { what, number: 0, seen, wanted: target & MASK }).into());
            }
        }
    }
}
