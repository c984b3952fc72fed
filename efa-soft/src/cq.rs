//! A completion queue, as the device sees it.
//!
//! The device writes entries and never waits. It knows the program's progress only from the queue's doorbell, which
//! queues with events have (libefa: `efa_update_cq_doorbell`).

use crate::Time;
use crate::config::DeviceConfig;
use efa_io::ring::CqDoorbell;
use efa_io::{Completion, CqCursor, RingSize};
use efa_memory::{DoorbellMemory, RingMemory};
use efa_types::{ControlError, CqAttributes, CqeSize};
use std::sync::Arc;
use std::time::Duration;

/// The longest time for which a program may leave completions in the ring before it counts as waiting for an event.
const PATIENCE: Duration = Duration::from_micros(100);

/// The outcome of writing a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is in the ring.
    Quietly,
    /// It is in the ring, and an event is due.
    WithEvent,
    /// It is lost, since the ring is full. The one before it was not.
    Overflow,
    /// It is lost, and so was the one before it.
    Lost,
}

/// The ring and the doorbell of a completion queue, as its program needs to know them.
#[derive(Clone)]
pub struct CqInfo {
    /// Number of the queue.
    pub cqn: u32,
    /// The memory in which the ring is.
    pub ring: Arc<RingMemory>,
    /// Byte offset of the ring in that memory.
    pub offset: usize,
    /// Entries of each sub-queue.
    pub entries: u32,
    /// Number of sub-queues. They lie one after the other in the ring, each with a position and a phase of its own.
    pub sub_queues: u16,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// The page whose first four bytes are the doorbell, if the queue has events.
    pub doorbell: Option<Arc<DoorbellMemory>>,
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    ring: Arc<RingMemory>,
    offset: usize,
    size: RingSize,
    entry_size: CqeSize,
    /// The next entry of each sub-queue.
    producers: Box<[CqCursor]>,
    /// The sub-queue that the next work queue gets.
    next_sub_queue: usize,
    /// The last completion was lost.
    overflown: bool,
    doorbell: Option<Arc<DoorbellMemory>>,
    last_doorbell: CqDoorbell,
    /// When that value was seen for the first time.
    last_doorbell_at: Time,
    /// The program has asked for an event.
    armed: bool,
    /// Sequence number of the request that the last event answered.
    answered: Option<u32>,
    /// Number of work queues that complete here.
    pub(crate) users: u32,
    /// An event of this queue waits to be fetched.
    pub(crate) event_waits: bool,
}

impl CompletionQueue {
    /// Creates a queue whose ring is in `memory`, at this byte offset, or in memory of its own.
    pub(crate) fn new(
        cqn: u32,
        asked: CqAttributes,
        memory: Option<(Arc<RingMemory>, usize)>,
        device: &DeviceConfig,
    ) -> Result<(Self, CqInfo), ControlError> {
        let max = device.attributes.max_cqe;
        let size = RingSize::at_least(asked.entries.max(1)).ok().filter(|size| size.entries() <= max).ok_or(
            ControlError::Limit { what: "completion queue entries", asked: asked.entries.into(), max: max.into() },
        )?;
        let subs = device.sub_cqs;
        let bytes = size.entries() as usize * asked.entry_size as usize * usize::from(subs);
        let (ring, offset) = match memory {
            None => (device.ring_memory(bytes)?, 0),
            Some((memory, offset)) => {
                if !memory.has_units(offset, bytes) {
                    let expected = "that of an aligned 64-bit word with room for the ring behind it";
                    return Err(ControlError::Invalid { what: "ring offset", value: offset as u64, expected });
                }
                (memory, offset)
            }
        };
        let doorbell = asked.events.then(|| device.ring_memory(4096)).transpose()?;
        let info = CqInfo {
            cqn,
            ring: ring.clone(),
            offset,
            entries: size.entries(),
            sub_queues: subs,
            entry_size: asked.entry_size as u32,
            doorbell: doorbell.clone(),
        };
        let queue = Self {
            ring,
            offset,
            size,
            entry_size: asked.entry_size,
            producers: vec![CqCursor::new(size, 0); usize::from(subs)].into(),
            next_sub_queue: 0,
            overflown: false,
            doorbell,
            last_doorbell: CqDoorbell::default(),
            last_doorbell_at: Time::ZERO,
            armed: false,
            answered: None,
            users: 0,
            event_waits: false,
        };
        Ok((queue, info))
    }

    /// Assigns a sub-queue to one more work queue that completes here. They take turns. A device tells the kernel
    /// driver which it assigned (`send_sub_cq_idx`, `recv_sub_cq_idx` in `efa_admin_cmds_defs.h`).
    pub(crate) fn assign(&mut self) -> u16 {
        let sub_queue = self.next_sub_queue;
        self.next_sub_queue = (sub_queue + 1) % self.producers.len();
        sub_queue as u16
    }

    /// Returns the number of entries written so far, in all sub-queues.
    fn written(&self) -> u32 {
        self.producers.iter().fold(0, |sum, producer| sum.wrapping_add(producer.counter()))
    }

    /// Returns `true` if the program has taken too few entries for one more to fit.
    ///
    /// Only a doorbell says how many it has taken: libefa stores the number with every poll. Without a doorbell, an
    /// entry that was not taken is overwritten unnoticed. The doorbell counts all sub-queues together, so one of
    /// several may overflow unnoticed.
    fn is_full(&self) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let taken = CqDoorbell::from_value(doorbell.load_doorbell(0)).consumer();
        let entries = self.size.entries() as usize * self.producers.len();
        usize::from((self.written() as u16).wrapping_sub(taken)) >= entries
    }

    /// Writes a completion in a sub-queue.
    pub(crate) fn push(&mut self, sub_queue: u16, completion: Completion) -> Pushed {
        let full = self.is_full();
        if std::mem::replace(&mut self.overflown, full) && full {
            return Pushed::Lost;
        }
        if full {
            return Pushed::Overflow;
        }
        let sub_queue = usize::from(sub_queue);
        let producer = &mut self.producers[sub_queue];
        let completion = Completion { phase: producer.phase(), ..completion };
        let place = sub_queue * self.size.entries() as usize + producer.slot() as usize;
        producer.advance(1);
        let offset = self.offset + place * self.entry_size as usize;
        match self.entry_size {
            CqeSize::Large => self.publish::<4>(offset, completion),
            CqeSize::Small => self.publish::<2>(offset, cut_length(completion)),
        }
        if self.armed {
            self.answer();
            Pushed::WithEvent
        } else {
            Pushed::Quietly
        }
    }

    fn publish<const W: usize>(&self, offset: usize, completion: Completion) {
        if let Ok(cqe) = completion.encode::<W>() {
            self.ring.publish_entry(offset, cqe.words());
        }
    }

    /// Notes that an event answers the latest request.
    fn answer(&mut self) {
        self.armed = false;
        self.answered = Some(self.last_doorbell.sequence());
    }

    /// Looks at the doorbell. Returns `true` if an event is due because there are completions that the program has not
    /// taken.
    ///
    /// Hardware sees every value that is stored; a look finds only the last one. libefa asks for an event, polls, and
    /// stores how far it has come (`efa_arm_cq`, `efa_poll_cq`), which may overwrite a request that nobody has seen. So
    /// a program that leaves completions in the ring for a while gets an event, although no request was seen. In either
    /// case there is one event for each sequence number, which moves on when the program takes an event
    /// (`efa_cq_event`).
    pub(crate) fn poll_doorbell(&mut self, now: Time) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let value = CqDoorbell::from_value(doorbell.load_doorbell(0));
        let unseen = value.consumer() != self.written() as u16;
        let is_new = value != self.last_doorbell;
        if is_new {
            (self.last_doorbell, self.last_doorbell_at) = (value, now);
        }
        if self.answered == Some(value.sequence()) {
            return false;
        }
        self.armed |= value.is_armed();
        let waits = value.is_armed() || now.since(self.last_doorbell_at) >= PATIENCE;
        let due = unseen && waits;
        if due {
            self.answer();
        }
        due
    }
}

/// Cuts the length of a received message to the 16 bits that a small entry has for it (`struct efa_io_rx_cdesc`).
fn cut_length(completion: Completion) -> Completion {
    match completion.event {
        efa_io::Event::Receive(r) => {
            let event = efa_io::Event::Receive(efa_io::cqe::Received { length: r.length & 0xffff, ..r });
            Completion { event, ..completion }
        }
        efa_io::Event::Send { .. } => completion,
    }
}
