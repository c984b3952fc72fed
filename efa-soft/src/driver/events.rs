//! Waiting for completions without polling.

use crate::contain::{contain, log};
use crate::device::MAX_EVENTS;
use crate::{Device, DeviceEvent};
use efa_types::AsyncEvent;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file descriptor that becomes readable when an armed completion queue gets an entry.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// One that is not readable yet.
    ///
    /// # Errors
    /// The operating system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // Cannot fail in a way that matters: a full counter is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the events that are there; whether there were any.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Waits for an event at most `timeout`, and takes it; whether one came. Neither signals nor others who take events here shorten
    /// that time.
    ///
    /// # Errors
    /// Whatever `poll` answers.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now().checked_add(timeout); // none: later than any clock goes
        loop {
            // First of all: an event that is there is taken, however late it is.
            if self.take() {
                return Ok(true);
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            // What `poll` cannot wait for in one go, it is asked for again.
            let seconds = left.as_secs().min(i32::MAX as u64) as i64;
            let left = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Is called when an event of a completion queue is due. It must be quick, and must not call the device. One that panics is not called
/// again; the device goes on.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Who waits for which completion queue of a device, and what waits for the program.
#[derive(Default)]
pub(super) struct Waiters {
    completions: Mutex<HashMap<u32, Waker>>,
    events: Mutex<VecDeque<AsyncEvent>>,
}

impl Waiters {
    pub(super) fn wake(&self, cqn: u32, waker: Option<Waker>) {
        let mut completions = self.completions.lock();
        match waker {
            Some(waker) => completions.insert(cqn, waker),
            None => completions.remove(&cqn),
        };
    }

    /// The next asynchronous event.
    pub(super) fn next_event(&self) -> Option<AsyncEvent> {
        self.events.lock().pop_front()
    }

    /// Hands the device's events to whoever waits for them.
    pub(super) fn dispatch(&self, device: &mut Device) {
        while let Some(event) = device.poll_event() {
            match event {
                DeviceEvent::Completion(cqn) => {
                    let mut completions = self.completions.lock();
                    if completions.get(&cqn).is_some_and(|wake| contain(|| wake()).is_none()) {
                        let gone = completions.remove(&cqn);
                        contain(|| drop(gone));
                        log!(error, cqn, "what waits for a completion queue panicked: it is not called any more");
                    }
                }
                DeviceEvent::Async(event) => {
                    log!(info, ?event, device = %device.gid(), "asynchronous event");
                    self.tell(event);
                }
            }
        }
    }

    /// Keeps an event for the program.
    pub(super) fn tell(&self, event: AsyncEvent) {
        let mut events = self.events.lock();
        // That the device is gone is not to be lost.
        if events.len() < MAX_EVENTS || event == AsyncEvent::DeviceFatal {
            events.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::thread::JoinHandleExt;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    const WHILE: Duration = Duration::from_millis(300);

    #[test]
    fn an_event_ends_a_wait_and_is_taken() {
        let fd = EventFd::new().unwrap();
        assert!(!fd.wait(Duration::ZERO).unwrap());
        fd.signal();
        assert!(fd.wait(Duration::ZERO).unwrap(), "it is there");
        assert!(!fd.wait(Duration::ZERO).unwrap(), "it was taken");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| fd.wait(Duration::MAX).unwrap());
            fd.signal();
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn signals_do_not_shorten_a_wait() {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: the action is filled in, and its handler does nothing; no other test uses this signal.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
        }
        let fd = Arc::new(EventFd::new().unwrap());
        let waiting = thread::spawn({
            let fd = fd.clone();
            move || {
                let start = Instant::now();
                (fd.wait(WHILE).unwrap(), start.elapsed(), fd.wait(Duration::from_secs(60)).unwrap())
            }
        });
        let start = Instant::now();
        while start.elapsed() < 2 * WHILE {
            // SAFETY: the thread was not joined: its handle is valid. It waits for the event below.
            unsafe { libc::pthread_kill(waiting.as_pthread_t(), libc::SIGUSR2) };
            thread::sleep(Duration::from_millis(5));
        }
        fd.signal();
        let (came, after, came_later) = waiting.join().unwrap();
        assert!(!came && after >= WHILE, "{came} after {after:?}");
        assert!(came_later);
    }

    #[test]
    fn who_finds_an_event_taken_by_another_waits_for_the_next() {
        let (fd, over) = (EventFd::new().unwrap(), AtomicBool::new(false));
        let until_over = |work: &dyn Fn()| {
            while !over.load(Relaxed) {
                work();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| until_over(&|| fd.signal()));
            scope.spawn(|| until_over(&|| _ = fd.take()));
            let came = (0..20_000).all(|_| fd.wait(Duration::from_secs(3600)).is_ok_and(|came| came));
            over.store(true, Relaxed);
            assert!(came);
        });
    }
}
