//! Watchdogs, which limit how long kernels wait.

use super::error::GpuError;
use super::gpu::Gpu;
use super::pinned::PinnedWords;
use efa_gpu_device::{TimeoutReport, WatchdogHandle};
use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::Duration;

/// A limit on how long a kernel waits, and a place where the kernel reports what it waited for.
///
/// A kernel passes the [`handle`](Self::handle) to `efa_gpu_device::Watchdog`, whose deadline counts from the kernel's
/// start. The host waits with [`Running::wait_watched`](super::Running::wait_watched). One kernel at a time uses a
/// watchdog.
#[derive(Debug)]
pub struct Watchdog {
    /// The words of a [`TimeoutReport`].
    report: PinnedWords,
    timeout: Duration,
    grace: Duration,
}

impl Gpu {
    /// Makes a watchdog that lets a kernel wait for `timeout`.
    ///
    /// # Errors
    /// CUDA's answer, usually that there is no memory.
    pub fn watchdog(&self, timeout: Duration) -> Result<Watchdog, GpuError> {
        let report = self.pinned_words(size_of::<TimeoutReport>() / 4)?;
        Ok(Watchdog { report, timeout, grace: Duration::from_secs(5) })
    }
}

impl Watchdog {
    /// Sets the grace: see [`grace`](Self::grace).
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Returns how long a kernel waits, from its start on.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns how much longer the host waits for a kernel that should have given up; 5 s by default. In this time the
    /// kernel must get a place on the GPU, and end.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Returns what a kernel takes as its argument.
    pub fn handle(&self) -> WatchdogHandle {
        let timeout_ns = u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX);
        WatchdogHandle { report: self.report.addr(), timeout_ns }
    }

    /// Takes the report of a kernel that has ended, if it made one. The next kernel finds the place empty.
    pub fn take(&self) -> Option<TimeoutReport> {
        take(&self.report)
    }
}

/// Takes a [`TimeoutReport`] out of its words, and clears them.
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
