//! The watchdog of a kernel: how long it may wait, and what it reports to its host when something did not happen in
//! time.
//!
//! [`WatchdogHandle`] and [`TimeoutReport`] are what a host and a kernel tell each other. Both use this crate: the host
//! fills a handle in and reads the report, the kernel makes a [`Watchdog`] of it.

use crate::arch;
use crate::time::Deadline;
use bytemuck::{Pod, Zeroable};
use core::fmt;

/// How long a kernel may wait, and the address of its report: a host hands this to a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WatchdogHandle {
    /// Address of a [`TimeoutReport`], all zero, aligned to 4 bytes.
    pub report: u64,
    /// Nanoseconds from the kernel's start on.
    pub timeout_ns: u64,
}

/// What a kernel waited for when its time was up: words that it leaves for its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TimeoutReport {
    /// One of the constants of this type; [`NOTHING`](Self::NOTHING) as long as no wait timed out.
    pub what: u32,
    /// Number of the object that was waited for: a queue pair number; 0 where kernels know objects by no number.
    pub number: u32,
    /// How far the object was.
    pub seen: u32,
    /// How far it should have come.
    pub wanted: u32,
}

const _: () = assert!(size_of::<WatchdogHandle>() == 16 && size_of::<TimeoutReport>() == 16);

impl TimeoutReport {
    /// Nothing timed out.
    pub const NOTHING: u32 = 0;
    /// A completion: `seen` entries have been taken from the completion queue since its creation, one more is `wanted`.
    pub const COMPLETION: u32 = 1;
    /// Room in a send queue: `seen` more requests fit, `wanted` should.
    pub const SEND_ROOM: u32 = 2;
    /// A completion counter: it stands at `seen`.
    pub const COUNTER: u32 = 3;
    /// Something of the kernel's own.
    pub const OTHER: u32 = 4;
}

impl fmt::Display for TimeoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, seen, wanted, .. } = *self;
        match self.what {
            Self::NOTHING => f.write_str("nothing"),
            Self::COMPLETION => write!(f, "completion {wanted} of a completion queue, of which {seen} have come"),
            Self::SEND_ROOM => {
                write!(
                    f,
                    "room for {wanted} more requests in the send queue of queue pair {number}, which has it for {seen}"
                )
            }
            Self::COUNTER => write!(f, "a completion counter to reach {wanted}, which stands at {seen}"),
            what => write!(f, "event {what} of the kernel's own: number {number}, {seen} seen, {wanted} wanted"),
        }
    }
}

/// The error of a wait whose deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut(pub TimeoutReport);

/// A time limit for all waits of a kernel, with a place to report the one that exceeded it.
///
/// The host sets the time. A kernel waits for everything until the same [`deadline`](Self::deadline); when that has
/// passed, it [reports](Self::report) what it was waiting for and returns.
pub struct Watchdog {
    report: *mut u32,
    deadline: Deadline,
}

impl Watchdog {
    /// Starts the time.
    ///
    /// # Safety
    /// The address in `handle` is that of a [`TimeoutReport`] for whoever runs this, stays so, and is only accessed by
    /// watchdogs until the kernel is over.
    #[inline(always)]
    pub unsafe fn new(handle: &WatchdogHandle) -> Self {
        Self { report: handle.report as *mut u32, deadline: Deadline::after(handle.timeout_ns) }
    }

    /// Returns the moment until which the kernel may wait.
    #[inline(always)]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Writes the host's report. Only the first report is kept.
    #[inline]
    pub fn report(&self, TimedOut(report): TimedOut) {
        // SAFETY: `new`'s contract: these are the four words of a `TimeoutReport`, aligned, which only watchdogs access
        // while the kernel runs, and all of them atomically. The first is zero until somebody reports; the host reads
        // when the kernel is over.
        unsafe {
            if arch::compare_exchange_gpu(self.report, 0, report.what) == 0 {
                arch::store_gpu(self.report.add(1), report.number);
                arch::store_gpu(self.report.add(2), report.seen);
                arch::store_gpu(self.report.add(3), report.wanted);
            }
        }
    }
}
