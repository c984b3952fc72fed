//! Completion queues, the device's side.

use crate::Time;
use crate::config::DeviceConfig;
use efa_io::ring::CqDoorbell;
use efa_io::{Completion, RingSize};
use efa_memory::{DoorbellMemory, RingMemory};
use efa_types::{ControlError, CqAttributes, CqeSize};
use std::sync::Arc;
use std::time::Duration;

/// How long a program may leave completions alone before it counts as one that waits for an event.
const PATIENCE: Duration = Duration::from_micros(100);

/// What became of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is in the ring.
    Quietly,
    /// It is in the ring, and an event is due.
    WithEvent,
    /// The ring is full: it is lost, and the first such for a while.
    Overflow,
    /// It is lost like others before it.
    Lost,
}

/// Where a completion queue's ring is.
#[derive(Clone)]
pub struct CqInfo {
    /// Its number.
    pub cqn: u32,
    /// The memory with the ring.
    pub ring: Arc<RingMemory>,
    /// Where in it the ring begins, in bytes.
    pub offset: usize,
    /// Entries of each sub-queue.
    pub entries: u32,
    /// Sub-queues, one after the other in the ring, each with a counter and a phase of its own.
    pub sub_queues: u16,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// The page whose first four bytes are the doorbell, if events can be asked for.
    pub doorbell: Option<Arc<DoorbellMemory>>,
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    ring: Arc<RingMemory>,
    offset: usize,
    size: RingSize,
    entry_size: CqeSize,
    /// Entries written so far, by sub-queue.
    producers: Box<[u32]>,
    /// The sub-queue that the next work queue gets.
    next_sub: usize,
    overflown: bool,
    doorbell: Option<Arc<DoorbellMemory>>,
    last_doorbell: CqDoorbell,
    /// When that value was seen first.
    last_heard: Time,
    armed: bool,
    /// Sequence number of the arming that the last event answered.
    answered: Option<u32>,
    /// Queue pairs that report here.
    pub(crate) users: u32,
    /// An event of it waits to be fetched.
    pub(crate) event_waits: bool,
}

impl CompletionQueue {
    /// A queue whose ring is in `memory`, at this byte offset; or, without, in memory of its own.
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
            producers: vec![0; usize::from(subs)].into(),
            next_sub: 0,
            overflown: false,
            doorbell,
            last_doorbell: CqDoorbell::default(),
            last_heard: Time::ZERO,
            armed: false,
            answered: None,
            users: 0,
            event_waits: false,
        };
        Ok((queue, info))
    }

    /// The sub-queue of one more work queue that reports here: they take turns, as the vendor's driver is told by its device
    /// (`send_sub_cq_idx`, `recv_sub_cq_idx`).
    pub(crate) fn assign(&mut self) -> u16 {
        let sub = self.next_sub;
        self.next_sub = (sub + 1) % self.producers.len();
        sub as u16
    }

    /// Entries written so far, in all sub-queues.
    fn written(&self) -> u32 {
        self.producers.iter().fold(0, |sum, &producer| sum.wrapping_add(producer))
    }

    /// Whether the program has taken too few entries for one more to fit. Only the doorbell tells, where there is one (libefa says with
    /// every poll how far it is); without it an entry is overwritten unnoticed. The doorbell counts all sub-queues together, so of
    /// several one may overflow unnoticed.
    fn is_full(&self) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let taken = CqDoorbell::from_value(doorbell.load_doorbell(0)).consumer();
        let entries = self.size.entries() as usize * self.producers.len();
        usize::from((self.written() as u16).wrapping_sub(taken)) >= entries
    }

    /// Writes a completion in a sub-queue.
    pub(crate) fn push(&mut self, sub: u16, completion: Completion) -> Pushed {
        let full = self.is_full();
        if std::mem::replace(&mut self.overflown, full) && full {
            return Pushed::Lost;
        }
        if full {
            return Pushed::Overflow;
        }
        let sub = usize::from(sub);
        let producer = self.producers[sub];
        let completion = Completion { phase: self.size.cq_phase(producer), ..completion };
        let place = sub * self.size.entries() as usize + self.size.slot(producer) as usize;
        let offset = self.offset + place * self.entry_size as usize;
        match self.entry_size {
            CqeSize::Large => self.publish::<4>(offset, completion),
            CqeSize::Small => self.publish::<2>(offset, cut_length(completion)),
        }
        self.producers[sub] = producer.wrapping_add(1);
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

    /// An event answers the latest arming.
    fn answer(&mut self) {
        self.armed = false;
        self.answered = Some(self.last_doorbell.sequence());
    }

    /// Looks at the doorbell; whether an event is due because completions are there that the program had not seen.
    ///
    /// Hardware hears every value that is stored; a look finds only the last one. libefa asks for an event, polls, and says with the next
    /// value how far it is (`efa_arm_cq`, `efa_poll_cq`), which may overwrite a request that nobody has seen. So a program that leaves
    /// completions alone for a while gets an event without having asked visibly. Either way there is one event for each sequence
    /// number, which moves on when the program takes an event (`efa_cq_event`).
    pub(crate) fn poll_doorbell(&mut self, now: Time) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let value = CqDoorbell::from_value(doorbell.load_doorbell(0));
        let unseen = value.consumer() != self.written() as u16;
        let is_new = value != self.last_doorbell;
        if is_new {
            (self.last_doorbell, self.last_heard) = (value, now);
        }
        if self.answered == Some(value.sequence()) {
            return false;
        }
        self.armed |= value.is_armed();
        let waits = value.is_armed() || now.since(self.last_heard) >= PATIENCE;
        let due = unseen && waits;
        if due {
            self.answer();
        }
        due
    }
}

/// The completion with a length that fits a small entry: its low 16 bits, as the format has it.
fn cut_length(completion: Completion) -> Completion {
    match completion.event {
        efa_io::Event::Receive(r) => {
            let event = efa_io::Event::Receive(efa_io::cqe::Received { length: r.length & 0xffff, ..r });
            Completion { event, ..completion }
        }
        efa_io::Event::Send { .. } => completion,
    }
}
