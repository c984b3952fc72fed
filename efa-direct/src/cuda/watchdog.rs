//! Watchdogs: how long kernels wait, and what they say of it.

use super::error::GpuError;
use super::gpu::Gpu;
use super::pinned::PinnedWords;
use efa_gpu_device::{TimeoutReport, WatchdogHandle};
use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::Duration;

/// What a kernel gets along so that it does not wait for ever: its time, and a place to say what it waited for in vain.
///
/// A kernel hands the [`handle`](Self::handle) to `efa_gpu_device::Watchdog`, whose deadline counts from the kernel's
/// start; the host waits with [`Running::wait_watched`](super::Running::wait_watched). One kernel at a time has a
/// watchdog.
#[derive(Debug)]
pub struct Watchdog {
    /// A [`TimeoutReport`].
    report: PinnedWords,
    timeout: Duration,
    grace: Duration,
}

impl Gpu {
    /// Makes a watchdog with this time.
    ///
    /// # Errors
    /// No memory.
    pub fn watchdog(&self, timeout: Duration) -> Result<Watchdog, GpuError> {
        let report = self.pinned_words(size_of::<TimeoutReport>() / 4)?;
        Ok(Watchdog { report, timeout, grace: Duration::from_secs(5) })
    }
}

impl Watchdog {
    /// The same, with another grace.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a kernel waits, from its start on.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How much longer the host waits for a kernel that should have given up; 5 s unless set. In this time a kernel has
    /// to find a place on the GPU, and end.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// What a kernel takes as its argument.
    pub fn handle(&self) -> WatchdogHandle {
        let timeout_ns = u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX);
        WatchdogHandle { report: self.report.addr(), timeout_ns }
    }

    /// What a kernel that is over has reported, if it has; the next kernel finds the place empty.
    pub fn take(&self) -> Option<TimeoutReport> {
        take(&self.report)
    }
}

/// Takes a [`TimeoutReport`] out of its words.
fn take(report: &[AtomicU32]) -> Option<TimeoutReport> {
    let [what, number, seen, wanted] = report else { return None };
    let waited = TimeoutReport {
        what: what.load(Acquire),
        number: number.swap(0, Relaxed),
        seen: seen.swap(0, Relaxed),
        wanted: wanted.swap(0, Relaxed),
    };
    what.store(TimeoutReport::NOTHING, Release);
    (waited.what != TimeoutReport::NOTHING).then_some(waited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_taken_once() {
        let report = [2, 7, 3, 4].map(AtomicU32::new);
        let waited = take(&report).unwrap();
        assert_eq!(waited, TimeoutReport { what: TimeoutReport::SEND_ROOM, number: 7, seen: 3, wanted: 4 });
        assert_eq!(take(&report), None);
        assert!(report.iter().all(|word| word.load(Relaxed) == 0));
    }
}
