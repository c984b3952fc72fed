//! Completion queues: one ring, one reader.
//!
//! Completions come in any order, since SRD does not order messages. Each carries the `wr_id` that its request was
//! posted with, also on devices with 16-bit request ids.
//!
//! # How an entry is found and accounted for
//!
//! The device writes entries in ring order, and inverts their phase bit with each lap of the ring. So the next entry is
//! new if its phase is that of the reader's lap, and the reader needs no index from the device.
//!
//! An entry names its queue pair by number. The reader looks up that queue pair's ledgers in a table, and releases the
//! credit of the request there. An entry without a living queue pair is skipped and counted. When the reader finds the
//! ring empty, shares and numbers of queue pairs that were destroyed before become free (`promises.rs`).
//!
//! Old devices have several rings in a completion queue (sub-queues). They take turns.

use crate::error::{EventError, HandOverError, Refused, SetupError};
use crate::ledger::QpLedgers;
use crate::provider::Provider;
use crate::ring::RawRing;
use crate::shared::cq::{CompletionTarget, CqShared, HasCq};
use efa_io::ring::CqDoorbell;
use efa_io::{CompletionRingHandle, CqCursor, Cqe, Cqe16, Cqe32, Event, OpCode, Status};
use efa_types::{CqAttributes, CqeSize};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

pub use efa_io::cqe::Received;

/// The configuration of a completion queue.
#[derive(Clone, Copy, Debug)]
pub struct CqConfig {
    entries: u32,
    events: bool,
}

impl CqConfig {
    /// Returns the configuration of a queue of at least this many entries. It must hold as many as all rings that
    /// complete in it may have outstanding.
    pub const fn new(entries: u32) -> Self {
        Self { entries, events: false }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Returns the attributes to ask the device for. Entries have 32 bytes, which hold everything that a completion may
    /// report.
    pub(crate) fn attributes(self) -> CqAttributes {
        CqAttributes { entries: self.entries, entry_size: CqeSize::Large, events: self.events }
    }

    /// Enables events, so that a thread can sleep until a completion arrives: [`CpuCompletionQueue::wait_event`].
    pub const fn events(mut self) -> Self {
        self.events = true;
        self
    }
}

/// A completion: the outcome of a work request, or a message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's id of the request; 0 in an unsolicited receive, which has no request.
    pub wr_id: u64,
    /// The outcome.
    pub status: Status,
    /// Number of the local queue pair.
    pub qpn: u16,
    /// The kind of work that completed.
    pub kind: CompletionKind,
}

/// The kind of work that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionKind {
    /// A request of a send queue, with its operation.
    Send(OpCode),
    /// A message that arrived. The fields are valid only if the status is ok.
    Receive(Received),
}

impl Default for Completion {
    /// Returns a placeholder, for an array to poll into.
    fn default() -> Self {
        Self { wr_id: 0, status: Status::Ok, qpn: 0, kind: CompletionKind::Send(OpCode::Send) }
    }
}

/// A completion ring that nobody reads.
pub struct CompletionQueue {
    shared: Arc<CqShared>,
    /// Number of entries taken so far, by sub-queue.
    consumers: Box<[u32]>,
}

/// A ring of a completion queue, and its reader's position.
struct SubQueue {
    index: usize,
    ring: RawRing,
    /// Number of entries taken so far.
    consumer: u32,
}

/// A completion ring that the owner of this value reads, on the CPU.
pub struct CpuCompletionQueue {
    /// The sub-queue whose turn it is. Current devices have only this one.
    current: SubQueue,
    /// The other sub-queues, the next one first.
    others: VecDeque<SubQueue>,
    /// `true` if each poll that took something is followed by [`after_poll`](Self::after_poll).
    needs_upkeep: bool,
    /// Ledgers of living queue pairs, by number modulo the table's size. A device has no two queue pairs with the same
    /// place.
    table: Box<[Option<Arc<QpLedgers>>]>,
    /// The version of `shared.ledgers` that the table was filled from.
    version: u32,
    skipped: u64,
    /// Number of events that arrived.
    sequence: u32,
    /// `true` if an event was asked for and has not arrived.
    armed: bool,
    shared: Arc<CqShared>,
}

/// A completion ring that a GPU reads. The CPU cannot: this type has no method for it.
pub struct GpuCompletionQueue {
    queue: CompletionQueue,
}

macro_rules! target {
    ($($queue:ty => $($path:ident).+),*) => {$(
        impl CompletionTarget for $queue {}
        impl HasCq for $queue {
            fn shared(&self) -> &Arc<CqShared> {
                &self.$($path).+
            }
        }
    )*};
}

target!(CompletionQueue => shared, CpuCompletionQueue => shared, GpuCompletionQueue => queue.shared);

impl CompletionQueue {
    pub(crate) fn new(provider: Arc<dyn Provider>, config: CqConfig) -> Result<Self, SetupError> {
        let raw = provider.create_cq(config.attributes())?;
        let well_formed = raw.rings.iter().all(|ring| [16, 32].contains(&ring.entry_size()));
        assert!(well_formed && !raw.rings.is_empty(), "the provider made a ring of other entries");
        let consumers = vec![0; raw.rings.len()].into();
        let mut shared = CqShared::new(provider, raw.cqn, raw.rings[0].size().entries());
        shared.rings = raw.rings.into();
        shared.events = raw.events;
        Ok(Self { shared: Arc::new(shared), consumers })
    }

    /// Returns the number of entries (of each sub-queue, on a device that has several).
    pub fn entries(&self) -> u32 {
        self.shared.entries
    }

    /// Hands the ring to the CPU.
    pub fn into_cpu(self) -> CpuCompletionQueue {
        let places = self.shared.provider.attributes().max_qp.clamp(1, 1 << 16).next_power_of_two();
        let subs = self.shared.rings.iter().zip(&self.consumers).enumerate();
        let mut subs: VecDeque<SubQueue> =
            subs.map(|(index, (ring, &consumer))| SubQueue { index, ring: ring.clone(), consumer }).collect();
        CpuCompletionQueue {
            current: subs.pop_front().expect("at least one sub-queue"),
            needs_upkeep: self.shared.events.is_some() || !subs.is_empty(),
            others: subs,
            table: (0..places).map(|_| None).collect(),
            version: 0,
            skipped: 0,
            sequence: 0,
            armed: false,
            shared: self.shared,
        }
    }

    /// Hands the ring to a GPU, or to another program that reads it through a [`CompletionRingHandle`].
    ///
    /// # Errors
    /// [`HandOverError::SubQueues`], with this queue, on a device whose completion queues consist of several rings.
    pub fn into_gpu(self) -> Result<GpuCompletionQueue, Refused<Self>> {
        match self.consumers.len() {
            1 => Ok(GpuCompletionQueue { queue: self }),
            count => Err(Refused { value: self, error: HandOverError::SubQueues { count } }),
        }
    }
}

impl CpuCompletionQueue {
    /// Takes up to `into.len()` completions, and returns their number. Does not wait.
    pub fn poll(&mut self, into: &mut [Completion]) -> usize {
        let mut count = 0;
        for place in into {
            if self.take(|completion| *place = completion).is_none() {
                break;
            }
            count += 1;
        }
        if self.needs_upkeep && count > 0 {
            self.after_poll();
        }
        count
    }

    /// Takes the next completion, if there is one. Does not wait.
    #[inline]
    pub fn poll_one(&mut self) -> Option<Completion> {
        if self.needs_upkeep { self.poll_one_with_upkeep() } else { self.take(|completion| completion) }
    }

    /// [`poll_one`](Self::poll_one) of a queue that needs upkeep, out of line to keep the common case short.
    #[inline(never)]
    fn poll_one_with_upkeep(&mut self) -> Option<Completion> {
        let completion = self.take(|completion| completion)?;
        self.after_poll();
        Some(completion)
    }

    /// Reports to the device how far this reader is, if the device wants to know (a queue with events), and passes the
    /// turn to the next sub-queue, if there are several. Called after a poll that took something.
    #[cold]
    fn after_poll(&mut self) {
        if self.shared.events.is_some() {
            self.ring_doorbell();
        }
        self.rotate();
    }

    /// Returns the number of entries taken so far from all sub-queues.
    fn taken(&self) -> u32 {
        self.others.iter().fold(self.current.consumer, |sum, sub| sum.wrapping_add(sub.consumer))
    }

    /// Reports to the device how far this reader is. While an event is asked for and has not arrived, the doorbell
    /// repeats that request: it is one word, and this value may overwrite an earlier one that the device has not seen.
    fn ring_doorbell(&self) {
        let doorbell = if self.armed { CqDoorbell::arm } else { CqDoorbell::consumed };
        self.current.ring.ring(doorbell(self.taken(), self.sequence).value());
    }

    /// Passes the turn to the next sub-queue.
    #[cold]
    fn rotate(&mut self) {
        if let Some(next) = self.others.pop_front() {
            self.others.push_back(std::mem::replace(&mut self.current, next));
        }
    }

    /// Passes the turn to a sub-queue that has a new entry. Returns `true` if there is one.
    fn find_ready(&mut self) -> bool {
        for _ in 0..self.others.len() {
            self.rotate();
            if self.fresh::<1>().is_some() {
                return true;
            }
        }
        false
    }

    /// Takes the next completion, if there is one, and passes it to `put`.
    ///
    /// Sends and receives call `put` in two places. So a send writes only the few words that it has, instead of a copy
    /// of the longer receive.
    #[inline(always)]
    fn take<T>(&mut self, put: impl FnOnce(Completion) -> T) -> Option<T> {
        loop {
            // Before the ring is looked at: only of queue pairs that are gone by now is it certain that no entry
            // follows.
            let gone = self.shared.promises.gone();
            // The first 16 bytes hold all fields of a send's entry.
            let Some(entry) = self.fresh().map(Cqe16::from_words) else {
                if self.find_ready() {
                    continue;
                }
                if gone != 0 {
                    self.shared.promises.found_empty(gone);
                }
                return None;
            };
            if let Ok(efa_io::Completion { req_id, status, qpn, event: Event::Send { op }, .. }) = entry.decode() {
                self.current.consumer = self.current.consumer.wrapping_add(1);
                if let Some(wr_id) = self.ledgers(qpn).and_then(|ledgers| ledgers.send.complete(req_id)) {
                    return Some(put(Completion { wr_id, status, qpn, kind: CompletionKind::Send(op) }));
                }
            } else if let Some(completion) = self.take_receive() {
                return Some(put(completion));
            }
            self.count_skipped();
        }
    }

    /// Takes a new entry that is not a send's. Returns `None` if it is malformed, or belongs to a queue pair that is
    /// gone.
    #[inline(never)]
    fn take_receive(&mut self) -> Option<Completion> {
        let decoded = if self.current.ring.entry_size() == Cqe32::SIZE {
            Cqe32::from_words(self.fresh()?).decode()
        } else {
            Cqe16::from_words(self.fresh()?).decode()
        };
        self.current.consumer = self.current.consumer.wrapping_add(1);
        let Ok(efa_io::Completion { req_id, status, qpn, event: Event::Receive(received), .. }) = decoded else {
            return None;
        };
        let ledgers = self.ledgers(qpn)?;
        let wr_id = if received.unsolicited { 0 } else { ledgers.recv.complete(req_id)? };
        Some(Completion { wr_id, status, qpn, kind: CompletionKind::Receive(received) })
    }

    /// Returns the next entry, if the device has written it.
    #[inline(always)]
    fn fresh<const W: usize>(&self) -> Option<[u64; W]> {
        let next = CqCursor::new(self.current.ring.size(), self.current.consumer);
        self.current.ring.load_if(next.counter(), |first| Cqe::from_words([first]).phase() == next.phase())
    }

    /// Returns the ledgers of a queue pair, or `None` if it is gone.
    #[inline(always)]
    fn ledgers(&mut self, qpn: u16) -> Option<&QpLedgers> {
        if self.version != self.shared.version.load(Acquire) {
            self.rebuild_table();
        }
        let place = usize::from(qpn) & (self.table.len() - 1);
        self.table[place].as_deref().filter(|ledgers| ledgers.qpn == qpn)
    }

    /// Fills the table again, after a queue pair was created or destroyed.
    #[cold]
    fn rebuild_table(&mut self) {
        let ledgers = self.shared.ledgers.lock();
        self.version = self.shared.version.load(Acquire);
        self.table.fill(None);
        for ledgers in ledgers.iter() {
            self.table[usize::from(ledgers.qpn) & (self.table.len() - 1)] = Some(ledgers.clone());
        }
    }

    /// Counts an entry that was taken and belongs to no living queue pair.
    #[cold]
    fn count_skipped(&mut self) {
        self.skipped += 1;
        if self.shared.events.is_some() {
            self.ring_doorbell(); // the device counts skipped entries as taken, too
        }
        tracing::debug!(cqn = self.shared.cqn, "a completion of no living queue pair");
    }

    /// Returns the number of skipped entries: malformed ones, and those of queue pairs that are gone.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Polls until a completion arrives. Returns `None` if none arrived within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<Completion> {
        for _ in 0..128 {
            if let Some(completion) = self.poll_one() {
                return Some(completion);
            }
            std::hint::spin_loop();
        }
        let deadline = Instant::now().checked_add(timeout); // `None`: beyond the range of the clock, so never
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if let Some(completion) = self.poll_one() {
                return Some(completion);
            }
            std::thread::yield_now();
        }
        self.poll_one()
    }

    /// Sleeps until there is a completion to poll, but at most for `timeout`. Returns `true` if there is one. Signals,
    /// and events of completions that were polled already, do not end the wait early. In rare cases the completion
    /// belongs to a queue pair that is gone, and polling returns nothing.
    ///
    /// # Errors
    /// [`EventError::NotEnabled`] for a queue without [`CqConfig::events`], or [`EventError::Io`] with the operating
    /// system's answer.
    pub fn wait_event(&mut self, timeout: Duration) -> Result<bool, EventError> {
        let deadline = Instant::now().checked_add(timeout); // `None`: beyond the range of the clock, so never
        loop {
            if self.fresh::<1>().is_some() || self.find_ready() {
                return Ok(true);
            }
            self.arm()?;
            let Some(events) = &self.shared.events else { return Err(EventError::NotEnabled) };
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if events.wait(left).map_err(EventError::io("waiting for a completion event"))? {
                self.note_event();
            } else if left.is_zero() {
                return Ok(self.fresh::<1>().is_some() || self.find_ready());
            }
        }
    }

    /// Takes an event that has arrived, so that [`event_fd`](Self::event_fd) is no longer readable. Returns `true` if
    /// there was one.
    ///
    /// # Errors
    /// As for [`wait_event`](Self::wait_event).
    pub fn take_event(&mut self) -> Result<bool, EventError> {
        let events = self.shared.events.as_ref().ok_or(EventError::NotEnabled)?;
        let came = events.wait(Duration::ZERO).map_err(EventError::io("taking a completion event"))?;
        if came {
            self.note_event();
        }
        Ok(came)
    }

    fn note_event(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.armed = false;
    }

    /// Asks for an event with the next completion, or at once if there is a completion that was not polled. Event loops
    /// call this, watch [`event_fd`](Self::event_fd), then [`take_event`](Self::take_event) and poll.
    /// [`wait_event`](Self::wait_event) does all of it.
    ///
    /// # Errors
    /// [`EventError::NotEnabled`] for a queue without [`CqConfig::events`].
    pub fn arm(&mut self) -> Result<(), EventError> {
        if self.shared.events.is_none() {
            return Err(EventError::NotEnabled);
        }
        self.armed = true;
        self.ring_doorbell();
        Ok(())
    }

    /// Returns the descriptor that becomes readable with an event; `None` without [`CqConfig::events`].
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.events.as_ref().map(|events| events.fd())
    }

    /// Returns, for inspection, the entry that the reader waits for or, with `back` above 0, one that it took `back`
    /// entries earlier. The device may have overwritten it.
    pub fn peek_back(&self, back: u32) -> Cqe32 {
        let counter = self.current.consumer.wrapping_sub(back);
        let words = if self.current.ring.entry_size() == Cqe32::SIZE {
            self.current.ring.load_if::<4>(counter, |_| true)
        } else {
            self.current.ring.load_if::<2>(counter, |_| true).map(|[a, b]| [a, b, 0, 0])
        };
        Cqe32::from_words(words.unwrap_or_default())
    }

    /// Takes the ring back from the CPU. Its consumer counter is carried over.
    ///
    /// # Errors
    /// [`HandOverError::Unpolled`], with this queue, if there are entries that were not polled.
    #[expect(clippy::result_large_err, reason = "the queue goes back whole, and rarely")]
    pub fn into_idle(mut self) -> Result<CompletionQueue, Refused<Self>> {
        if self.fresh::<1>().is_some() || self.find_ready() {
            return Err(Refused { value: self, error: HandOverError::Unpolled });
        }
        self.others.push_back(self.current);
        let mut consumers = vec![0; self.others.len()];
        for sub in &self.others {
            consumers[sub.index] = sub.consumer;
        }
        Ok(CompletionQueue { shared: self.shared, consumers: consumers.into() })
    }
}

impl GpuCompletionQueue {
    #[cfg(feature = "cuda")]
    pub(crate) fn raw_ring(&self) -> &RawRing {
        &self.queue.shared.rings[0]
    }

    /// Returns what the ring's reader needs to know. Addresses are those of this process.
    pub fn handle(&self) -> CompletionRingHandle {
        let ring = &self.queue.shared.rings[0];
        let size = ring.size();
        CompletionRingHandle {
            ring: ring.addr(),
            doorbell: ring.doorbell_addr(),
            mask: size.mask(),
            shift: size.log2() as u16,
            cqe_size: ring.entry_size() as u16,
            consumer: self.queue.consumers[0],
            tag: self.queue.shared.tag,
        }
    }

    /// Reports that the reader has found the ring empty. Shares and numbers of queue pairs that were dropped before
    /// become free. (A CPU's reader does this by itself.)
    ///
    /// # Safety
    /// The reader found the ring empty after every one of these queue pairs was dropped.
    pub unsafe fn found_empty(&self) {
        let promises = &self.queue.shared.promises;
        promises.found_empty(promises.gone());
    }

    /// Takes the ring back. `consumer` is the number of entries that its reader took, counted from the ring's creation.
    ///
    /// # Safety
    /// The reader has stopped, reads no more through any handle, and took so many entries. With another number, entries
    /// would be taken twice, or overwritten before they are taken.
    pub unsafe fn into_idle(self, consumer: u32) -> CompletionQueue {
        CompletionQueue { consumers: [consumer].into(), ..self.queue }
    }
}

macro_rules! debug {
    ($($queue:ident),*) => {$(
        impl std::fmt::Debug for $queue {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($queue), "({} entries)"), self.shared().entries)
            }
        }
    )*};
}

debug!(CompletionQueue, CpuCompletionQueue, GpuCompletionQueue);
