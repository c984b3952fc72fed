//! Completion channels: descriptors from which a program reads which completion queue has something new.

use crate::errno::{Errno, Outcome};
use crate::quota::Charge;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::pipe::PipeFlags;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Bytes of an event: the `user_handle` that the program gave its completion queue (`struct ib_uverbs_comp_event_desc`).
const EVENT: usize = 8;
/// Events that a pipe has room for.
const CAPACITY: usize = (64 << 10) / EVENT;

/// A completion channel: a pipe of events.
///
/// libibverbs reads events one by one, and destroys a queue only when the program has acknowledged as many events as were reported. So
/// it matters which were read: those that were not leave the pipe with their queue.
pub(crate) struct Channel {
    pipe: OwnedFd,
    /// Identifies the pipe, whichever descriptor of it the program shows.
    inode: u64,
    /// Events written for each queue, by the program's handle.
    written: Mutex<HashMap<u64, u32>>,
    /// An event was lost, and the log says so.
    has_overflown: AtomicBool,
    /// What it counts for.
    _charge: Option<Charge>,
}

impl Channel {
    /// A channel, and the end that the program gets.
    pub(crate) fn new(charge: Option<Charge>) -> Outcome<(Self, OwnedFd)> {
        let (read, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        let inode = rustix::fs::fstat(&pipe)?.st_ino;
        let channel =
            Self { pipe, inode, written: Mutex::default(), has_overflown: AtomicBool::new(false), _charge: charge };
        Ok((channel, read))
    }

    /// Whether `fd` is its other end.
    pub(crate) fn is(&self, fd: impl AsFd) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_ino == self.inode)
    }

    /// Whether the program still has its end.
    pub(crate) fn has_reader(&self) -> bool {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::empty())];
        // Even a call that does not wait may find a signal instead.
        let polled = retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())));
        polled.is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }

    /// Tells the program that a completion queue has something new.
    pub(crate) fn tell(&self, handle: u64) {
        let mut written = self.written.lock();
        match rustix::io::write(&self.pipe, &handle.to_ne_bytes()) {
            Ok(_) => *written.entry(handle).or_default() += 1,
            // A queue has at most one event that was not read, so only a program that writes here itself comes to this.
            Err(Errno::AGAIN) if self.has_overflown.swap(true, Relaxed) => {}
            Err(Errno::AGAIN) => {
                tracing::warn!("a completion channel is full of events that nobody reads: from now on they are lost");
            }
            Err(error) => tracing::debug!(%error, "a completion channel that nobody has any more"),
        }
    }

    /// The reading end, without changing how the program's own descriptor waits.
    pub(crate) fn reader(&self) -> Outcome<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// A completion queue is gone: takes back its events that were not read. How many were.
    pub(crate) fn forget(&self, handle: u64, reader: &OwnedFd) -> u32 {
        let mut written = self.written.lock();
        let mut count = written.remove(&handle).unwrap_or(0);
        let (mut others, mut event) = (Vec::new(), [0; EVENT]);
        // As often as there is room for events: a program that writes here as well must not keep this going.
        for _ in 0..CAPACITY {
            if rustix::io::read(reader, &mut event) != Ok(EVENT) {
                break;
            }
            if u64::from_ne_bytes(event) == handle {
                count = count.saturating_sub(1);
            } else {
                others.extend(event);
            }
        }
        for event in others.chunks_exact(EVENT) {
            // There is room: it was just made.
            let _ = rustix::io::write(&self.pipe, event);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_read_leaves_with_its_queue_and_the_rest_stays_in_order() {
        let (channel, end) = Channel::new(None).unwrap();
        let read = || {
            let mut event = [0; EVENT];
            assert_eq!(rustix::io::read(&end, &mut event), Ok(EVENT));
            u64::from_ne_bytes(event)
        };
        [1, 2, 1, 3, 1].iter().for_each(|&handle| channel.tell(handle));
        assert_eq!(read(), 1);
        let reader = channel.reader().unwrap();
        let forget = |handle| channel.forget(handle, &reader);
        assert_eq!(forget(1), 1, "one of three was read");
        assert_eq!((read(), read()), (2, 3));
        assert_eq!((forget(2), forget(3), forget(4)), (1, 1, 0));
        assert!(channel.is(&end) && channel.has_reader());
        drop((end, reader));
        assert!(!channel.has_reader());
        channel.tell(5); // nobody is there
    }
}
