//! Completion queues.

use crate::arch;
use crate::time::Deadline;
use crate::warp::{ALL, LANES, Warp};
use crate::watchdog::{TimedOut, TimeoutReport};
use efa_io::ring::CqDoorbell;
use efa_io::{Completion, CompletionRingHandle, CqCursor, Cqe32, DecodeError, Status};

/// A completion, taken from its queue: what it says, and, of a request, the right to post another. It can be released once, and only with
/// the queue that its request was posted to.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    cqe: Cqe32,
    /// Tag of the completion queue that it was taken from.
    cq: u32,
}

impl Entry {
    /// How the request went.
    #[inline(always)]
    pub fn status(&self) -> Status {
        self.cqe.status()
    }

    /// Everything that the entry says.
    ///
    /// # Errors
    /// The entry makes no sense.
    #[inline(always)]
    pub fn completion(&self) -> Result<Completion, DecodeError> {
        self.cqe.decode()
    }

    /// Whether it completes a request of this queue pair's send queue.
    #[inline(always)]
    pub(crate) fn is_send_of(&self, owner: Owner) -> bool {
        self.cqe.is_send() && self.is_of(owner)
    }

    /// Whether it completes a receive that was posted to this queue pair.
    #[inline(always)]
    pub(crate) fn is_receive_of(&self, owner: Owner) -> bool {
        !self.cqe.is_send() && !self.cqe.is_unsolicited() && self.is_of(owner)
    }

    #[inline(always)]
    fn is_of(&self, owner: Owner) -> bool {
        self.cq == owner.cq && u32::from(self.cqe.qpn()) == owner.qpn
    }
}

/// Whose a completion is: a queue pair's number, among those that complete in one completion queue. Devices have numbers of their own, and give one out
/// again; in one completion queue a number is one queue pair's as long as an entry of it may be there.
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
    /// The queue of `handle`; `None` if its entries have another size than 32 bytes.
    ///
    /// # Safety
    /// The handle is of a completion queue that was handed over to this thread or warp, and to nobody else; its
    /// addresses are valid here until the launch is over: a store may be under way after the queue is gone. A warp
    /// calls only the methods that say so, all lanes together; a thread only the others.
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
        // SAFETY: the entry is inside the ring.
        let first = unsafe { arch::load_acquire_pair(entry) };
        is_fresh(first[0], at).then(|| self.entry(entry, first))
    }

    /// The entry whose first half is `first`.
    #[inline(always)]
    fn entry(&self, entry: *mut u64, [first, second]: [u64; 2]) -> Entry {
        let half = Cqe32::from_words([first, second, 0, 0]);
        if half.is_all_in_first_half() {
            return Entry { cqe: half, cq: self.tag };
        }
        arch::rarely();
        // SAFETY: the entry is inside the ring.
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

    /// Takes as many completions as there are, `most` at most; gives their number. For one thread.
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

    /// Entries taken since the queue's creation: what the host asks for when it takes the ring back.
    #[inline(always)]
    pub fn consumed(&self) -> u32 {
        self.next.counter()
    }

    /// Takes as many completions as there are, one for each lane. All lanes have this value with the same counter in it, and call this together.
    #[inline(always)]
    pub fn poll_warp(&mut self, _: Warp) -> Option<Entry> {
        let entry = self.look(self.next.ahead(arch::lane()));
        let fresh = arch::ballot(ALL, entry.is_some());
        // Those without a gap before them: the device writes them in order, but lanes look at different moments.
        let count = self.at_most_a_lap(fresh.trailing_ones());
        self.next.advance(count);
        if count != 0 && !self.doorbell.is_null() {
            // When all lanes have what they took.
            arch::sync_warp(ALL);
            if arch::lane() == 0 {
                self.report();
            }
        }
        entry.filter(|_| arch::lane() < count)
    }

    /// Takes as many completions as there are, `N` for each lane at most, and hands them to `each`, in every lane one or none at a time; gives their
    /// number. All are loaded at once, so this takes more a second than [`poll_warp`](Self::poll_warp), where there are many; a single one comes later by
    /// a load. On a queue with events, whose device wants to know of what is taken before anything is done with it, it takes 32 at most. All lanes have
    /// this value with the same counter in it, and call this together.
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
            // SAFETY: the entry is inside the ring.
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
        // What the device wrote before these entries, before what is read after them: it writes them in their order, and the last one once more tells that
        // it came so far. A fence would do the same, and waits for this warp's stores as well.
        let last = self.next.ahead(count - 1);
        // SAFETY: the entry is inside the ring.
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

    /// Of `count` entries looked at, those that are no other's again: what lanes beyond the ring's end look at are entries of its beginning, as those of
    /// the next lap.
    #[inline(always)]
    fn at_most_a_lap(&self, count: u32) -> u32 {
        let entries = self.next.size().entries();
        if count < entries { count } else { entries }
    }

    /// Says how far this is, where somebody wants to know.
    #[inline(always)]
    fn report(&self) {
        if !self.doorbell.is_null() {
            // SAFETY: it is the queue's doorbell.
            unsafe { arch::store_doorbell(self.doorbell, CqDoorbell::consumed(self.consumed(), 0).value()) };
        }
    }
}

/// Returns `true` if this is the first word of the entry that belongs at `at` in this lap.
#[inline(always)]
fn is_fresh(first: u64, at: CqCursor) -> bool {
    Cqe32::from_words([first, 0, 0, 0]).phase() == at.phase()
}
