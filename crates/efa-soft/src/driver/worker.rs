//! A driver's thread: its clock, how it waits, and how it ends.

use crate::Time;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Looks without work before a driver's thread starts to nap.
const SPINS: u32 = 200;
/// How long a nap is. A doorbell rung meanwhile waits for its end.
pub(super) const NAP: Duration = Duration::from_micros(50);

/// Time since the driver started.
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Time {
        // Time 0 is kept for "never".
        Time::from_nanos(self.0.elapsed().as_nanos() as u64 + 1)
    }
}

/// How idle a driver's thread is.
#[derive(Default)]
pub(super) struct Idle(u32);

impl Idle {
    /// Notes whether the last look found work; whether to nap now.
    pub(super) fn should_nap(&mut self, progress: bool) -> bool {
        if progress {
            self.0 = 0;
            return false;
        }
        self.0 = self.0.saturating_add(1);
        if self.0 < SPINS {
            // With fewer cores than spinning threads, whoever has work should get this one.
            std::thread::yield_now();
            return false;
        }
        true
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
