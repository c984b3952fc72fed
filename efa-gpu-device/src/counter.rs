//! Completion counters.

use crate::arch;
use crate::time::Deadline;
use crate::watchdog::{TimedOut, TimeoutReport};
use efa_io::CounterHandle;

/// The bits of a counter that count: it goes back to 0 after 2^31 - 1 (`max_comp_count` of `efadv_query_device`).
const MASK: u32 = (1 << 31) - 1;

/// A completion counter: the device adds to it, and completion entries need not be read to know how many requests are done.
pub struct CompletionCounter {
    completions: *mut u64,
    errors: *mut u64,
}

/// Why a wait for a counter ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterError {
    /// The deadline was there first.
    TimedOut(TimedOut),
    /// So many errors more than there were when the wait began.
    Failed(u32),
}

impl From<TimedOut> for CounterError {
    #[inline(always)]
    fn from(timed_out: TimedOut) -> Self {
        Self::TimedOut(timed_out)
    }
}

impl CompletionCounter {
    /// The counter of `handle`.
    ///
    /// # Safety
    /// The addresses in `handle` are those of a counter, for whoever runs this, and stay so.
    #[inline(always)]
    pub unsafe fn new(handle: &CounterHandle) -> Self {
        Self { completions: handle.completions as *mut u64, errors: handle.errors as *mut u64 }
    }

    /// Requests that went well, modulo 2^31. Whoever sees the number sees what their completion says is there.
    #[inline(always)]
    pub fn completions(&self) -> u32 {
        // SAFETY: `new`'s contract.
        unsafe { arch::load_acquire(self.completions) as u32 & MASK }
    }

    /// Requests that failed, modulo 2^31.
    #[inline(always)]
    pub fn errors(&self) -> u32 {
        // SAFETY: `new`'s contract.
        unsafe { arch::load_acquire(self.errors) as u32 & MASK }
    }

    /// Waits until the counter has reached `target`, modulo 2^31; what is less than 2^30 behind it counts as reached.
    ///
    /// # Errors
    /// The deadline passed, or a request failed meanwhile, which the target may then wait for in vain.
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
