//! A driver's thread: its clock, how it waits, and how it ends.

use crate::Time;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread::JoinHandle;
use std::time::Duration;

/// Looks without work before a driver's thread starts to nap.
const SPINS: u32 = 200;
/// How long a nap is. A doorbell rung meanwhile waits for its end.
const NAP: Duration = Duration::from_micros(50);
/// How long the naps of a sleeper become.
const LONGEST_NAP: Duration = Duration::from_millis(5);

/// Time by the system's monotonic clock, so that what devices of one host tell of each other can be put side by side.
pub(super) fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Time 0 is kept for "never".
    Time::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 1)
}

/// What a driver's thread does when there is nothing to do. Programs ring doorbells without a system call, so only a look
/// finds them: how soon that comes is what is chosen here. Packets wake a device on UDP at once in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdleMode {
    /// It looks again at once, and keeps a core busy.
    Spin,
    /// It naps 50 µs at a time.
    #[default]
    Nap,
    /// Its naps grow to 5 ms while nothing happens: next to no processor time, but the first doorbell after a pause waits.
    Sleep,
}

/// How idle a driver's thread is.
pub(super) struct Idle {
    mode: IdleMode,
    looks: u32,
    nap: Duration,
}

impl Idle {
    pub(super) fn new(mode: IdleMode) -> Self {
        Self { mode, looks: 0, nap: NAP }
    }

    /// Notes whether the last look found work; for how long to nap now, if at all.
    pub(super) fn nap(&mut self, progress: bool) -> Option<Duration> {
        if progress {
            (self.looks, self.nap) = (0, NAP);
            return None;
        }
        self.looks = self.looks.saturating_add(1);
        if self.looks < SPINS || self.mode == IdleMode::Spin {
            // With fewer cores than spinning threads, whoever has work should get this one.
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

/// A thread that runs until this value is dropped.
pub(super) struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that calls `run`, which returns soon after its argument says so.
    pub(super) fn start(name: &str, run: impl FnOnce(&AtomicBool) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&told))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_naps_longer_and_longer_and_is_awake_again_when_there_is_work() {
        let naps = |mode, looks: u32| {
            let mut idle = Idle::new(mode);
            let naps: Vec<Duration> = (0..looks).filter_map(|_| idle.nap(false)).collect();
            assert_eq!(idle.nap(true), None);
            assert!((0..SPINS - 1).all(|_| idle.nap(false).is_none()), "it looks a while before it naps");
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
