//! The thread of a driver: its clock, how it waits, and how it ends.

use crate::Time;
use crate::contain::{contain, log};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread::JoinHandle;
use std::time::Duration;

/// The time for which a thread goes on looking for work before it naps.
const SPIN: Duration = Duration::from_micros(20);
/// The length of a nap. A doorbell that is rung meanwhile waits for its end.
const NAP: Duration = Duration::from_micros(50);
/// The longest nap in [`IdleMode::Sleep`].
const LONGEST_NAP: Duration = Duration::from_millis(5);

/// Returns the time by the system's monotonic clock. All processes of a host share it, so their traces can be put side
/// by side.
pub(super) fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // At least 1: the device uses time 0 for "not yet".
    Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 1)
}

/// The behaviour of a driver's thread when there is nothing to do.
///
/// A program rings doorbells without a system call, so the thread finds them only when it looks. The mode decides how
/// soon that is. A packet wakes the thread of a device on UDP at once in any mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdleMode {
    /// The thread looks again at once, and keeps a core busy.
    Spin,
    /// The thread naps for 50 µs at a time.
    #[default]
    Nap,
    /// The naps grow to 5 ms while nothing happens. This takes next to no processor time, but the first doorbell after
    /// a pause waits.
    Sleep,
}

/// The idle time of a thread, and so how it waits.
pub(super) struct Idle {
    mode: IdleMode,
    /// When there was work for the last time.
    since: Time,
    nap: Duration,
}

impl Idle {
    pub(super) fn new(mode: IdleMode) -> Self {
        Self { mode, since: Time::ZERO, nap: NAP }
    }

    /// Notes whether the look at `now` found work (`progress`). Returns how long to nap, or `None` to look again at
    /// once.
    pub(super) fn nap(&mut self, now: Time, progress: bool) -> Option<Duration> {
        if progress {
            (self.since, self.nap) = (now, NAP);
            return None;
        }
        if now.since(self.since) < SPIN || self.mode == IdleMode::Spin {
            // If there are fewer cores than spinning threads, a thread that has work gets this one.
            std::thread::yield_now();
            return None;
        }
        let nap = self.nap;
        if self.mode == IdleMode::Sleep {
            self.nap = (nap * 2).min(LONGEST_NAP);
        }
        Some(nap)
    }
}

/// The life of a driver's thread: whether the thread still runs, and in which process.
#[derive(Clone)]
pub(super) struct Life {
    failed: Arc<AtomicBool>,
    /// The process in which the thread runs: threads do not survive a fork, and what they had locked stays locked in
    /// the child.
    process: u32,
}

impl Life {
    fn new() -> Self {
        Self { failed: Arc::default(), process: std::process::id() }
    }

    /// Returns `true` if the thread ended by a panic.
    pub(super) fn is_over(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Returns `true` if the thread belongs to another process, of which this one is a child by `fork`. Then no lock
    /// may be taken that the thread could have held.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.process != std::process::id()
    }
}

/// A thread that runs until this value is dropped.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    life: Life,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that calls `run`, which must return soon after its argument becomes `true`. If `run` panics,
    /// `failed` is called.
    pub(super) fn start(
        name: &str,
        run: impl FnOnce(&AtomicBool) + Send + 'static,
        failed: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, life) = (Arc::new(AtomicBool::new(false)), Life::new());
        let (told, failing) = (stop.clone(), life.clone());
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if contain(|| run(&told)).is_none() {
                failing.failed.store(true, Relaxed);
                contain(failed);
                log!(error, "a software device failed: nothing on it completes any more");
            }
        })?;
        Ok(Self { stop, life, thread: Some(thread) })
    }

    /// Returns what says whether the thread can still be used.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.life.is_elsewhere() {
            // The thread is not in this process: it can be neither joined nor detached.
            std::mem::forget(thread);
            return;
        }
        self.stop.store(true, Relaxed);
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_naps_longer_and_longer_and_is_awake_again_when_there_is_work() {
        let naps = |mode, looks: u64| {
            let mut idle = Idle::new(mode);
            let at = |look: u64| Time::ZERO + SPIN * look as u32 / 10;
            assert_eq!(idle.nap(at(10), true), None);
            assert!((10..20).all(|look| idle.nap(at(look), false).is_none()), "it looks a while before it naps");
            let naps: Vec<Duration> = (20..looks).filter_map(|look| idle.nap(at(look), false)).collect();
            assert_eq!(idle.nap(at(looks), true), None);
            assert_eq!(idle.nap(at(looks + 1), false), None);
            naps
        };
        assert!(naps(IdleMode::Spin, 1000).is_empty());
        assert!(naps(IdleMode::Nap, 300).iter().all(|&nap| nap == NAP));
        let sleeper = naps(IdleMode::Sleep, 300);
        assert!(sleeper.is_sorted() && sleeper[0] == NAP && sleeper.last() == Some(&LONGEST_NAP));
    }

    #[test]
    fn time_goes_on() {
        let earlier = now();
        assert!(now() >= earlier && earlier > Time::ZERO);
    }
}
