//! Waiting for completions without polling.

use crate::contain::{contain, log};
use crate::device::MAX_EVENTS;
use crate::{AsyncEvent, Device, DeviceEvent};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

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

    /// Waits for an event at most `timeout`, and takes it; whether one came.
    ///
    /// # Errors
    /// Whatever `poll` answers.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
            Ok(_) => Ok(self.take()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
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
