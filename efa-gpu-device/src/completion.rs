//! Completion queues.

use crate::arch;
use crate::time::Deadline;
use crate::warp::{ALL, LANES, Warp};
use crate::watchdog::{TimedOut, TimeoutReport};
use efa_io::ring::CqDoorbell;
use efa_io::{Completion, CompletionRingHandle, CqCursor, Cqe32, DecodeError, Status};

/// A completion that was taken from its queue. It is also the permit to post another request: it can be released once,
/// to the queue that its request was posted to.
#[must_use = "a queue has no room for another request until its completion is released"]
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    cqe: Cqe32,
    /// Tag of the completion queue that it was taken from.
    cq: u32,
}

impl Entry {
    /// Returns the status of the request.
    #[inline(always)]
    pub fn status(&self) -> Status {
        self.cqe.status()
    }

    /// Decodes the whole entry.
    ///
    /// # Errors
    /// The entry is invalid.
    #[inline(always)]
    pub fn completion(&self) -> Result<Completion, DecodeError> {
        self.cqe.decode()
    }

    /// Returns `true` if it completes a request of this queue pair's send queue.
    #[inline(always)]
    pub(crate) fn is_send_of(&self, owner: Owner) -> bool {
        self.cqe.is_send() && self.is_of(owner)
    }

    /// Returns `true` if it completes a receive that was posted to this queue pair.
    #[inline(always)]
    pub(crate) fn is_receive_of(&self, owner: Owner) -> bool {
        !self.cqe.is_send() && !self.cqe.is_unsolicited() && self.is_of(owner)
    }

    #[inline(always)]
    fn is_of(&self, owner: Owner) -> bool {
        self.cq == owner.cq && u32::from(self.cqe.qpn()) == owner.qpn
    }
}

/// The queue pair that a completion belongs to: its number, among the queue pairs of one completion queue. Several
/// devices may have the same number, and a device reuses numbers. In one completion queue a number belongs to one queue
/// pair as long as entries of it may be there.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) qpn: u32,
    /// The completion queue's tag.
    pub(crate) cq: u32,
}

/// A completion queue with entries of 32 bytes, polled by one thread, or by a warp whose lanes all have this value.
pub struct CompletionQueue {
    slots: *mut u64,
    doorbell: *mut u32,
    /// The next entry to take.
    next: CqCursor,
    tag: u32,
}

impl CompletionQueue {
    /// Makes the queue of `handle`. Returns `None` if its entries have another size than 32 bytes.
    ///
    /// # Safety
    /// The handle is of a completion queue that was handed over to this thread or warp, and to nobody else. Its
    /// addresses are valid here until the launch is over: a store may be under way after the queue is gone. A warp
    /// calls only the methods for warps, all lanes together; a thread only the others.
    #[inline(always)]
    pub unsafe fn new(handle: &CompletionRingHandle) -> Option<Self> {
        if handle.cqe_size as usize != Cqe32::SIZE {
            return None;
        }
        if handle.doorbell != 0 {
            // SAFETY: the caller's promise.
            unsafe { arch::lend(handle.doorbell, size_of::<u32>() as u64) };
        }
        Some(Self {
            slots: handle.ring as *mut u64,
            doorbell: handle.doorbell as *mut u32,
            next: CqCursor::new(handle.size(), handle.consumer),
            tag: handle.tag,
        })
    }

    /// Returns the address of the entry at `at`.
    #[inline(always)]
    fn slot(&self, at: CqCursor) -> *mut u64 {
        self.slots.wrapping_add(at.slot() as usize * 4)
    }

    /// Returns the entry at `at`, if the device has written it.
    #[inline(always)]
    fn look(&self, at: CqCursor) -> Option<Entry> {
        let entry = self.slot(at);
        // SAFETY: the entry is inside the ring, which `new`'s contract keeps valid.
        let first = unsafe { arch::load_acquire_pair(entry) };
        is_fresh(first[0], at).then(|| self.entry(entry, first))
    }

    /// Returns the entry at `entry`, whose first half was loaded.
    #[inline(always)]
    fn entry(&self, entry: *mut u64, [first, second]: [u64; 2]) -> Entry {
        let half = Cqe32::from_words([first, second, 0, 0]);
        if half.is_all_in_first_half() {
            return Entry { cqe: half, cq: self.tag };
        }
        arch::rarely();
        // SAFETY: the entry is inside the ring, which `new`'s contract keeps valid.
        let [third, fourth] = unsafe { arch::load_pair(entry.add(2)) };
        Entry { cqe: Cqe32::from_words([first, second, third, fourth]), cq: self.tag }
    }

    /// Takes the next completion, if there is one. For one thread.
    #[inline(always)]
    pub fn poll(&mut self) -> Option<Entry> {
        let entry = self.look(self.next)?;
        self.next.advance(1);
        self.report();
        Some(entry)
    }

    /// Takes as many completions as there are, `most` at most, and returns their number. For one thread.
    #[inline(always)]
    pub fn poll_many(&mut self, most: u32, mut each: impl FnMut(Entry)) -> u32 {
        let mut count = 0;
        while count < most
            && let Some(entry) = self.poll()
        {
            count += 1;
            each(entry);
        }
        count
    }

    /// Polls until there is a completion. For one thread.
    ///
    /// # Errors
    /// There was none before the deadline.
    #[inline(always)]
    pub fn wait(&mut self, deadline: Deadline) -> Result<Entry, TimedOut> {
        loop {
            if let Some(entry) = self.poll() {
                return Ok(entry);
            }
            if deadline.passed() {
                let (what, seen) = (TimeoutReport::COMPLETION, self.consumed());
                return Err(TimedOut(TimeoutReport { what, number: 0, seen, wanted: seen.wrapping_add(1) }));
            }
        }
    }

    /// Returns the number of entries taken since the queue's creation, which the host needs to take the ring back.
    #[inline(always)]
    pub fn consumed(&self) -> u32 {
        self.next.counter()
    }

    /// Takes as many completions as there are, one for each lane at most. For a warp: all lanes have this value with
    /// the same counter in it, and call this together.
    #[inline(always)]
    pub fn poll_warp(&mut self, _: Warp) -> Option<Entry> {
        let entry = self.look(self.next.ahead(arch::lane()));
        let fresh = arch::ballot(ALL, entry.is_some());
        // Only those without a gap before them: the device writes in order, but lanes look at different moments.
        let count = self.at_most_a_lap(fresh.trailing_ones());
        self.next.advance(count);
        if count != 0 && !self.doorbell.is_null() {
            // The device may overwrite the entries once it knows, so all lanes have loaded theirs before.
            arch::sync_warp(ALL);
            if arch::lane() == 0 {
                self.report();
            }
        }
        entry.filter(|_| arch::lane() < count)
    }

    /// Takes as many completions as there are, `N` for each lane at most, hands them to `each`, one or none per lane at
    /// a time, and returns their number. For a warp: all lanes have this value with the same counter in it, and call
    /// this together.
    ///
    /// All entries are loaded at once. Where there are many, this takes more per second than
    /// [`poll_warp`](Self::poll_warp); a single one arrives later by one load. On a queue with events it takes 32 at
    /// most, since the device has to learn what was taken before it is used.
    #[inline(always)]
    pub fn poll_many_warp<const N: usize>(&mut self, warp: Warp, mut each: impl FnMut(Option<Entry>)) -> u32 {
        if !self.doorbell.is_null() {
            let before = self.consumed();
            each(self.poll_warp(warp));
            return self.next.since(before);
        }
        let at = self.next.ahead(arch::lane());
        let slots = core::array::from_fn::<_, N, _>(|i| {
            let at = at.ahead(i as u32 * LANES);
            // SAFETY: the entry is inside the ring, which `new`'s contract keeps valid.
            (at, unsafe { arch::load_pair(self.slot(at)) })
        });
        let (mut count, mut goes_on) = (0, true);
        for (at, first) in slots {
            // Without a gap, from the first one on.
            let fresh = arch::ballot(ALL, is_fresh(first[0], at)).trailing_ones();
            count += if goes_on { fresh } else { 0 };
            goes_on &= fresh == LANES;
        }
        let count = self.at_most_a_lap(count);
        if count == 0 {
            return 0;
        }
        // These were relaxed loads. The device writes entries in order, so an acquire of the last one orders what it
        // wrote before all of them before what is read after this. A fence would do the same, but waits for this warp's
        // stores.
        let last = self.next.ahead(count - 1);
        // SAFETY: the entry is inside the ring, which `new`'s contract keeps valid.
        let is_there = is_fresh(unsafe { arch::load_acquire(self.slot(last)) }, last);
        if arch::ballot(ALL, is_there) != ALL {
            return 0;
        }
        self.next.advance(count);
        for (i, (at, first)) in slots.into_iter().enumerate() {
            let is_there = i as u32 * LANES + arch::lane() < count;
            each(is_there.then(|| self.entry(self.slot(at), first)));
        }
        count
    }

    /// Limits `count` to one lap: lanes beyond the ring's end have looked at its beginning again, as at entries of the
    /// next lap.
    #[inline(always)]
    fn at_most_a_lap(&self, count: u32) -> u32 {
        let entries = self.next.size().entries();
        if count < entries { count } else { entries }
    }

    /// Tells the device how many entries were taken, if the queue has a doorbell.
    #[inline(always)]
    fn report(&self) {
        if !self.doorbell.is_null() {
            // SAFETY: the queue's doorbell, which `new`'s contract keeps valid.
            unsafe { arch::store_doorbell(self.doorbell, CqDoorbell::consumed(self.consumed(), 0).value()) };
        }
    }
}

/// Returns `true` if this is the first word of the entry that belongs at `at` in this lap.
#[inline(always)]
fn is_fresh(first: u64, at: CqCursor) -> bool {
    Cqe32::from_words([first, 0, 0, 0]).phase() == at.phase()
}
