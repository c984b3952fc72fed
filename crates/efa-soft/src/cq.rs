//! Completion queues, the device's side.

use crate::error::ControlError;
use crate::memory::SharedMemory;
use efa_io::ring::CqDoorbell;
use efa_io::{Completion, RingSize};
use std::sync::Arc;

/// Bytes of a completion entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CqeSize {
    /// 16 bytes.
    Small = 16,
    /// 32 bytes, what libefa always asks for.
    #[default]
    Large = 32,
}

/// What a completion queue is to be like.
#[derive(Clone, Copy, Debug)]
pub struct CqConfig {
    /// Entries; rounded up to a power of two.
    pub entries: u32,
    /// Bytes of an entry.
    pub entry_size: CqeSize,
    /// Events can be asked for: there is a doorbell.
    pub channel: bool,
}

/// Where a completion queue's ring is.
#[derive(Clone)]
pub struct CqInfo {
    /// Its number.
    pub cqn: u32,
    /// The ring, from byte 0 on.
    pub ring: Arc<SharedMemory>,
    /// Entries.
    pub entries: u32,
    /// Bytes of an entry.
    pub entry_size: u32,
    /// The page whose first four bytes are the doorbell, if events can be asked for.
    pub doorbell: Option<Arc<SharedMemory>>,
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    ring: Arc<SharedMemory>,
    size: RingSize,
    entry_size: CqeSize,
    producer: u32,
    doorbell: Option<Arc<SharedMemory>>,
    last_doorbell: CqDoorbell,
    armed: bool,
    /// Queue pairs that report here.
    pub(crate) users: u32,
}

impl CompletionQueue {
    pub(crate) fn new(cqn: u32, config: CqConfig, max: u32) -> Result<(Self, CqInfo), ControlError> {
        let size = RingSize::at_least(config.entries.max(1)).ok().filter(|size| size.entries() <= max).ok_or(
            ControlError::Limit { what: "completion queue entries", asked: config.entries.into(), max: max.into() },
        )?;
        let bytes = size.entries() as usize * config.entry_size as usize;
        let no_memory = |_| ControlError::NoMemory(bytes);
        let ring = SharedMemory::zeroed(bytes).map_err(no_memory)?;
        let doorbell = config.channel.then(|| SharedMemory::zeroed(4096)).transpose().map_err(no_memory)?;
        let info = CqInfo {
            cqn,
            ring: ring.clone(),
            entries: size.entries(),
            entry_size: config.entry_size as u32,
            doorbell: doorbell.clone(),
        };
        let queue = Self {
            ring,
            size,
            entry_size: config.entry_size,
            producer: 0,
            doorbell,
            last_doorbell: CqDoorbell::default(),
            armed: false,
            users: 0,
        };
        Ok((queue, info))
    }

    /// Writes a completion; whether an event is due.
    pub(crate) fn push(&mut self, completion: Completion) -> bool {
        let completion = Completion { phase: self.size.cq_phase(self.producer), ..completion };
        let offset = self.size.slot(self.producer) as usize * self.entry_size as usize;
        match self.entry_size {
            CqeSize::Large => self.publish::<4>(offset, completion),
            CqeSize::Small => self.publish::<2>(offset, cut_length(completion)),
        }
        self.producer = self.producer.wrapping_add(1);
        std::mem::take(&mut self.armed)
    }

    fn publish<const W: usize>(&self, offset: usize, completion: Completion) {
        if let Ok(cqe) = completion.encode::<W>() {
            self.ring.publish_entry(offset, cqe.words());
        }
    }

    /// Looks at the doorbell; whether an event is due because completions are there that the program had not seen.
    pub(crate) fn poll_doorbell(&mut self) -> bool {
        let Some(doorbell) = &self.doorbell else { return false };
        let value = CqDoorbell::from_value(doorbell.load_doorbell(0));
        if value == self.last_doorbell {
            return false;
        }
        self.last_doorbell = value;
        let unseen = value.is_armed() && value.consumer() != self.producer as u16;
        self.armed = value.is_armed() && !unseen;
        unseen
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
