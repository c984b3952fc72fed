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

/// A file descriptor that becomes readable when it is signaled, as a [`Waker`] does when a completion queue has an
/// event.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates a descriptor that is not readable yet.
    ///
    /// # Errors
    /// The operating system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable.
    pub fn signal(&self) {
        // It fails only if the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the events that are there. Returns `true` if there were any.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Waits for an event at most `timeout`, and takes it. Returns `true` if one came. Neither signals nor other
    /// threads that take events here shorten the wait.
    ///
    /// # Errors
    /// The error of `poll`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now().checked_add(timeout); // `None` is later than any clock goes
        loop {
            // Before the time is checked: an event that is there is taken, however late it is.
            if self.take() {
                return Ok(true);
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            // `poll` does not wait longer than this in one call.
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

/// A function that is called when an event of a completion queue is due.
///
/// It runs in the driver's thread, so it must be quick, and it must not call the device. If it panics it is not called
/// again, and the device goes on.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The wakers of a device, by the number of their completion queue, and the asynchronous events that nobody has
/// fetched.
#[derive(Default)]
pub(super) struct Waiters {
    wakers: Mutex<HashMap<u32, Waker>>,
    events: Mutex<VecDeque<AsyncEvent>>,
}

impl Waiters {
    /// Sets or removes the waker of a completion queue. While the lock is held none is called, so the one before is not
    /// called any more.
    pub(super) fn set_waker(&self, cqn: u32, waker: Option<Waker>) {
        let mut wakers = self.wakers.lock();
        match waker {
            Some(waker) => wakers.insert(cqn, waker),
            None => wakers.remove(&cqn),
        };
    }

    /// Returns the next asynchronous event that nobody has fetched.
    pub(super) fn next_event(&self) -> Option<AsyncEvent> {
        self.events.lock().pop_front()
    }

    /// Passes the device's events on to the wakers and to the program.
    pub(super) fn dispatch(&self, device: &mut Device) {
        while let Some(event) = device.poll_event() {
            match event {
                DeviceEvent::Completion(cqn) => {
                    let mut wakers = self.wakers.lock();
                    if wakers.get(&cqn).is_some_and(|wake| contain(|| wake()).is_none()) {
                        let gone = wakers.remove(&cqn);
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
        // The program must learn that the device is gone.
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
        // SAFETY: an action of zeros is valid (no flags, an empty mask), and its handler, set here, does nothing, so it
        // may interrupt any code. No other test of this program uses the signal.
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
            // SAFETY: `waiting` owns the thread and is joined only below, so its handle is valid.
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
