//! The GPU's clock, how long to wait, and how to say what was waited for in vain.

use crate::arch;
use efa_io::handle::{Waited, WatchdogHandle};

/// A clock of the whole GPU: nanoseconds since some moment (PTX `%globaltimer`). On many GPUs it moves in steps of 32 ns, or of a
/// microsecond.
#[inline(always)]
pub fn globaltimer() -> u64 {
    arch::globaltimer()
}

/// A moment by [`globaltimer`], until which somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// In `ns` nanoseconds.
    #[inline(always)]
    pub fn after(ns: u64) -> Self {
        Self(globaltimer().saturating_add(ns))
    }

    /// Whether it is over.
    #[inline(always)]
    pub fn passed(self) -> bool {
        globaltimer() >= self.0
    }
}

/// What was waited for has not happened before the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut(pub Waited);

/// What keeps a kernel from waiting for ever, and tells its host what it waited for.
///
/// A kernel's host sets the time; all that the kernel waits for it waits for until the same [`deadline`](Self::deadline), and when that has passed it
/// [reports](Self::report) and returns.
pub struct Watchdog {
    report: *mut u32,
    deadline: Deadline,
}

impl Watchdog {
    /// Starts the time.
    ///
    /// # Safety
    /// The address in `handle` is that of a [`Waited`] for whoever runs this, stays so, and is only accessed by watchdogs until the kernel is over.
    #[inline(always)]
    pub unsafe fn new(handle: &WatchdogHandle) -> Self {
        Self { report: handle.report as *mut u32, deadline: Deadline::after(handle.timeout_ns) }
    }

    /// When patience ends.
    #[inline(always)]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Tells the host what was waited for in vain. The first report counts.
    #[inline]
    pub fn report(&self, TimedOut(waited): TimedOut) {
        // SAFETY: `new`'s contract: these are the words of a `Waited`, whose first is zero until somebody reports. The host reads when the kernel
        // is over.
        unsafe {
            if arch::compare_exchange_gpu(self.report, 0, waited.what) == 0 {
                arch::store_gpu(self.report.add(1), waited.number);
                arch::store_gpu(self.report.add(2), waited.seen);
                arch::store_gpu(self.report.add(3), waited.wanted);
            }
        }
    }
}
