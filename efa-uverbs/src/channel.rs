//! Completion channels: descriptors from which a program reads which completion queue has a new entry.

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

/// The size of an event in bytes. It is the `user_handle` that the program gave its completion queue
/// (`struct ib_uverbs_comp_event_desc`).
const EVENT: usize = 8;
/// The number of events that a pipe has room for.
const CAPACITY: usize = (64 << 10) / EVENT;

/// A completion channel: a pipe of events.
///
/// libibverbs reads events one by one. When it destroys a queue, it waits until the program has acknowledged as many
/// events as the kernel reports for that queue. So the number of events that were read must be exact; unread events are
/// removed from the pipe with their queue.
pub(crate) struct Channel {
    pipe: OwnedFd,
    /// The inode of the pipe, which identifies it whichever descriptor the program passes.
    inode: u64,
    /// The number of events written for each queue, by the program's handle.
    written: Mutex<HashMap<u64, u32>>,
    /// `true` if an event was lost. This is logged once.
    has_overflown: AtomicBool,
    /// Counts the pipe as one of the program's descriptors.
    _charge: Option<Charge>,
}

impl Channel {
    /// Creates a channel, and returns it with the end that the program reads from.
    pub(crate) fn new(charge: Option<Charge>) -> Outcome<(Self, OwnedFd)> {
        let (read, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        let inode = rustix::fs::fstat(&pipe)?.st_ino;
        let channel =
            Self { pipe, inode, written: Mutex::default(), has_overflown: AtomicBool::new(false), _charge: charge };
        Ok((channel, read))
    }

    /// Returns `true` if `fd` is the other end of this channel.
    pub(crate) fn is(&self, fd: impl AsFd) -> bool {
        rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_ino == self.inode)
    }

    /// Returns `true` if the program still has its end open.
    pub(crate) fn has_reader(&self) -> bool {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::empty())];
        // A signal can interrupt even a call that does not wait.
        let polled = retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())));
        polled.is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }

    /// Writes an event: the completion queue with this handle has a new entry.
    pub(crate) fn tell(&self, handle: u64) {
        let mut written = self.written.lock();
        match rustix::io::write(&self.pipe, &handle.to_ne_bytes()) {
            Ok(_) => *written.entry(handle).or_default() += 1,
            // A queue has at most one unread event, so the pipe is full only if the program itself writes to it.
            Err(Errno::AGAIN) if self.has_overflown.swap(true, Relaxed) => {}
            Err(Errno::AGAIN) => {
                tracing::warn!("a completion channel is full of events that nobody reads: from now on they are lost");
            }
            Err(error) => tracing::debug!(%error, "a completion channel that nobody has any more"),
        }
    }

    /// Opens the reading end again. This one is non-blocking; the program's own descriptor is not changed.
    pub(crate) fn reader(&self) -> Outcome<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Removes the unread events of a completion queue that was destroyed. Returns the number of its events that were
    /// read.
    pub(crate) fn forget(&self, handle: u64, reader: &OwnedFd) -> u32 {
        let mut written = self.written.lock();
        let mut count = written.remove(&handle).unwrap_or(0);
        let (mut others, mut event) = (Vec::new(), [0; EVENT]);
        // The number of reads is limited, so that a program that keeps writing to its own pipe cannot keep the node
        // here.
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
            // There is room, because the events were just read.
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
