//! Completion queues: one ring, one reader.
//!
//! Completions come in any order: SRD does not order. Each carries the `wr_id` that its request was posted with, on
//! devices with 16-bit request ids too.

use crate::error::{EventError, HandOverError, Refused, SetupError};
use crate::ledger::QpLedgers;
use crate::provider::Provider;
use crate::ring::RawRing;
use crate::shared::cq::{CompletionTarget, CqShared, Target};
use efa_io::ring::CqDoorbell;
use efa_io::{CompletionRingHandle, Cqe, Cqe16, Cqe32, Event, OpCode, Status};
use efa_types::{CqAttributes, CqeSize};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};

pub use efa_io::cqe::Received;

/// What a completion queue is to be like.
#[derive(Clone, Copy, Debug)]
pub struct CqConfig {
    entries: u32,
    events: bool,
}

impl CqConfig {
    /// A queue of at least this many entries. It must hold what all rings that complete in it may have outstanding.
    pub const fn new(entries: u32) -> Self {
        Self { entries, events: false }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Entries are of 32 bytes, which hold everything that a completion may say.
    pub(crate) fn attributes(self) -> CqAttributes {
        CqAttributes { entries: self.entries, entry_size: CqeSize::Large, events: self.events }
    }

    /// One that can be waited on without polling: [`CpuCompletionQueue::wait_event`].
    pub const fn events(mut self) -> Self {
        self.events = true;
        self
    }
}

/// What became of a work request, or a message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's id of the request; 0 in an unsolicited receive, which had none.
    pub wr_id: u64,
    /// How it went.
    pub status: Status,
    /// Local queue pair.
    pub qpn: u16,
    /// What completed.
    pub kind: CompletionKind,
}

/// What completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionKind {
    /// A request of a send queue, with its operation.
    Send(OpCode),
    /// A message arrived. With a status other than ok its fields mean nothing.
    Receive(Received),
}

impl Default for Completion {
    /// For filling an array that is to be polled into.
    fn default() -> Self {
        Self { wr_id: 0, status: Status::Ok, qpn: 0, kind: CompletionKind::Send(OpCode::Send) }
    }
}

/// A completion ring that nobody reads.
pub struct CompletionQueue {
    shared: Arc<CqShared>,
    /// Entries taken so far, by sub-queue.
    consumers: Box<[u32]>,
}

/// A ring of a completion queue, and how far its reader is.
struct SubQueue {
    index: usize,
    ring: RawRing,
    /// Entries taken so far.
    consumer: u32,
}

/// A completion ring that this value's owner reads, on the CPU.
pub struct CpuCompletionQueue {
    /// The sub-queue whose turn it is; mostly there is no other.
    current: SubQueue,
    /// The others, the next one first.
    others: VecDeque<SubQueue>,
    /// There is something to be done after a poll.
    needs_after_poll: bool,
    /// Ledgers by queue pair number modulo the table's size, which a device keeps free of collisions.
    table: Box<[Option<Arc<QpLedgers>>]>,
    version: u32,
    skipped: u64,
    /// Events that came.
    sequence: u32,
    /// An event was asked for and has not come.
    armed: bool,
    shared: Arc<CqShared>,
}

/// A completion ring that a GPU reads. The CPU cannot: there is no method for it.
pub struct GpuCompletionQueue {
    queue: CompletionQueue,
}

macro_rules! target {
    ($($queue:ty => $($path:ident).+),*) => {$(
        impl CompletionTarget for $queue {}
        impl Target for $queue {
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

    /// Number of entries; of each sub-queue, on a device that has several.
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
            needs_after_poll: self.shared.events.is_some() || !subs.is_empty(),
            others: subs,
            table: (0..places).map(|_| None).collect(),
            version: 0,
            skipped: 0,
            sequence: 0,
            armed: false,
            shared: self.shared,
        }
    }

    /// Hands the ring to a GPU, or to anyone else who reads it through a [`CompletionRingHandle`].
    ///
    /// # Errors
    /// [`HandOverError::SubQueues`] on a device whose completion queues consist of several rings.
    pub fn into_gpu(self) -> Result<GpuCompletionQueue, Refused<Self>> {
        match self.consumers.len() {
            1 => Ok(GpuCompletionQueue { queue: self }),
            count => Err(Refused { value: self, error: HandOverError::SubQueues { count } }),
        }
    }
}

impl CpuCompletionQueue {
    /// Takes completions, as many as there are and `into` has room for; gives their number. Does not wait.
    pub fn poll(&mut self, into: &mut [Completion]) -> usize {
        let mut count = 0;
        for place in into {
            if self.take(|completion| *place = completion).is_none() {
                break;
            }
            count += 1;
        }
        if self.needs_after_poll && count > 0 {
            self.after_poll();
        }
        count
    }

    /// Takes the next completion, if there is one. Does not wait.
    #[inline]
    pub fn poll_one(&mut self) -> Option<Completion> {
        if self.needs_after_poll { self.poll_one_out_of_line() } else { self.take(|completion| completion) }
    }

    #[inline(never)]
    fn poll_one_out_of_line(&mut self) -> Option<Completion> {
        let completion = self.take(|completion| completion)?;
        self.after_poll();
        Some(completion)
    }

    /// After a poll that took something: tells the device how far this reader is, where it wants to know, and turns to
    /// the next sub-queue, where there are several.
    #[cold]
    fn after_poll(&mut self) {
        if self.shared.events.is_some() {
            self.ring_doorbell();
        }
        self.rotate();
    }

    /// Entries taken so far, from all sub-queues.
    fn taken(&self) -> u32 {
        self.others.iter().fold(self.current.consumer, |sum, sub| sum.wrapping_add(sub.consumer))
    }

    /// Tells the device how far this reader is and, until an event has come, that it wants one: what it said before may
    /// be overwritten here before the device looks.
    fn ring_doorbell(&self) {
        let doorbell = if self.armed { CqDoorbell::arm } else { CqDoorbell::consumed };
        self.current.ring.ring(doorbell(self.taken(), self.sequence).value());
    }

    /// Sub-queues take turns from poll to poll.
    #[cold]
    fn rotate(&mut self) {
        if let Some(next) = self.others.pop_front() {
            self.others.push_back(std::mem::replace(&mut self.current, next));
        }
    }

    /// Turns to a sub-queue with an entry that was not taken; whether there is one.
    fn find_ready(&mut self) -> bool {
        for _ in 0..self.others.len() {
            self.rotate();
            if self.fresh::<1>().is_some() {
                return true;
            }
        }
        false
    }

    /// Takes the next completion, if there is one, and hands it to `put`: from two places, so that for a send only a
    /// send's few words are written, not a copy of the longer receive.
    #[inline(always)]
    fn take<T>(&mut self, put: impl FnOnce(Completion) -> T) -> Option<T> {
        loop {
            // Asked before the ring is looked at: a queue pair that is gone by now writes nothing more.
            let gone = self.shared.promises.gone();
            // All that a send's entry says is in the first half.
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
            self.skip();
        }
    }

    /// Takes an entry that is there and is not a send's. `None`: malformed, or of a queue pair that is gone.
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

    /// The next entry, if the device has written it.
    #[inline(always)]
    fn fresh<const W: usize>(&self) -> Option<[u64; W]> {
        let phase = self.current.ring.size().cq_phase(self.current.consumer);
        self.current.ring.load_if(self.current.consumer, |first| Cqe::from_words([first]).phase() == phase)
    }

    /// Whose queue pair it is. `None`: one that is gone.
    #[inline(always)]
    fn ledgers(&mut self, qpn: u16) -> Option<&QpLedgers> {
        if self.version != self.shared.version.load(Acquire) {
            self.refresh();
        }
        let place = usize::from(qpn) & (self.table.len() - 1);
        self.table[place].as_deref().filter(|ledgers| ledgers.qpn == qpn)
    }

    #[cold]
    fn refresh(&mut self) {
        let ledgers = self.shared.ledgers.lock();
        self.version = self.shared.version.load(Acquire);
        self.table.fill(None);
        for ledgers in ledgers.iter() {
            self.table[usize::from(ledgers.qpn) & (self.table.len() - 1)] = Some(ledgers.clone());
        }
    }

    #[cold]
    fn skip(&mut self) {
        self.skipped += 1;
        if self.shared.events.is_some() {
            self.ring_doorbell(); // the device counts skipped entries as taken, too
        }
        tracing::debug!(cqn = self.shared.cqn, "a completion of no living queue pair");
    }

    /// Entries that were skipped: of queue pairs that are gone, or malformed.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Polls until there is a completion; `None` if there was none within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<Completion> {
        for _ in 0..128 {
            if let Some(completion) = self.poll_one() {
                return Some(completion);
            }
            std::hint::spin_loop();
        }
        let deadline = Instant::now().checked_add(timeout); // none: later than any clock goes
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if let Some(completion) = self.poll_one() {
                return Some(completion);
            }
            std::thread::yield_now();
        }
        self.poll_one()
    }

    /// Sleeps until there is a completion to poll, at most `timeout`; whether there is one. Neither signals nor events
    /// of completions that were polled already shorten that time. Rarely what there is belongs to a queue pair that is
    /// gone, and polling gives nothing.
    ///
    /// # Errors
    /// [`EventError::NotEnabled`] for a queue without [`CqConfig::events`], or whatever the operating system answers.
    pub fn wait_event(&mut self, timeout: Duration) -> Result<bool, EventError> {
        let deadline = Instant::now().checked_add(timeout); // none: later than any clock goes
        loop {
            if self.fresh::<1>().is_some() || self.find_ready() {
                return Ok(true);
            }
            self.arm()?;
            let Some(events) = &self.shared.events else { return Err(EventError::NotEnabled) };
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if events.wait(left).map_err(EventError::io("waiting for a completion event"))? {
                self.event_came();
            } else if left.is_zero() {
                return Ok(self.fresh::<1>().is_some() || self.find_ready());
            }
        }
    }

    /// Takes an event that has come, so that [`event_fd`](Self::event_fd) is not readable any more; whether there was
    /// one.
    ///
    /// # Errors
    /// As [`wait_event`](Self::wait_event).
    pub fn take_event(&mut self) -> Result<bool, EventError> {
        let events = self.shared.events.as_ref().ok_or(EventError::NotEnabled)?;
        let came = events.wait(Duration::ZERO).map_err(EventError::io("taking a completion event"))?;
        if came {
            self.event_came();
        }
        Ok(came)
    }

    fn event_came(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.armed = false;
    }

    /// Asks for an event with the next completion, or at once if one is there that was not polled. For event loops,
    /// which watch [`event_fd`](Self::event_fd), [`take_event`](Self::take_event) and poll;
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

    /// The descriptor that becomes readable with an event.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.shared.events.as_ref().map(|events| events.fd())
    }

    /// The entry at which the reader stands or, `back` entries earlier, one it has taken. For people who want to look
    /// at it: the device may have overwritten it.
    pub fn peek_back(&self, back: u32) -> Cqe32 {
        let counter = self.current.consumer.wrapping_sub(back);
        let words = if self.current.ring.entry_size() == Cqe32::SIZE {
            self.current.ring.load_if::<4>(counter, |_| true)
        } else {
            self.current.ring.load_if::<2>(counter, |_| true).map(|[a, b]| [a, b, 0, 0])
        };
        Cqe32::from_words(words.unwrap_or_default())
    }

    /// Takes the ring back from the CPU, its consumer counter carried over.
    ///
    /// # Errors
    /// Entries are there that were not polled.
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

    /// What whoever reads the ring needs to know. Addresses are those of this process.
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

    /// The reader has found the ring empty: what queue pairs that were dropped before had of it, their share and their
    /// number, is free again. A CPU's reader says this by itself.
    ///
    /// # Safety
    /// The reader did find it empty, after every one of these queue pairs was dropped.
    pub unsafe fn found_empty(&self) {
        let promises = &self.queue.shared.promises;
        promises.found_empty(promises.gone());
    }

    /// Takes the ring back, given how many entries its reader took, counted from the ring's creation.
    ///
    /// # Safety
    /// The reader has stopped, reads no more by any handle, and took so many entries. With another number entries would
    /// be taken twice, or be overwritten before they are.
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
