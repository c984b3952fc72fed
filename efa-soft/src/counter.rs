//! A completion counter: two numbers in memory, one of which grows with every completion of the kinds to which the
//! counter is attached (`ibv_create_comp_cntr(3)`, `ibv_qp_attach_comp_cntr(3)`, `efadv_create_comp_cntr(3)`).
//!
//! EFA counts work requests, not bytes (rdma-core's `efa_create_comp_cntr_impl` takes no other type).

use efa_memory::{Backing, RingMemory};
use efa_types::{COUNTER_MAX, ControlError, CounterValue};
use std::sync::Arc;

/// The place of one of a counter's numbers: a 64-bit word.
#[derive(Clone)]
pub enum CounterPlace {
    /// At this byte offset of memory of words. It is stored in one piece.
    Shared(Arc<RingMemory>, usize),
    /// In eight bytes to which the device can only copy. A reader may see half a number.
    Backing(Arc<dyn Backing>),
}

impl CounterPlace {
    fn check(&self) -> Result<(), ControlError> {
        let (offset, fits) = match self {
            Self::Shared(memory, offset) => (*offset, memory.has_units(*offset, 8)),
            Self::Backing(memory) => (0, memory.len() >= 8),
        };
        if fits {
            return Ok(());
        }
        let expected = "that of an aligned 64-bit word inside the memory";
        Err(ControlError::Invalid { what: "counter offset", value: offset as u64, expected })
    }

    fn store(&self, value: u64) {
        match self {
            Self::Shared(memory, offset) => memory.store_word(*offset, value),
            // If the program has taken its memory back, nobody reads the number.
            Self::Backing(memory) => _ = memory.write(0, &value.to_le_bytes()),
        }
    }
}

/// A completion counter, as the device sees it.
pub(crate) struct CompletionCounter {
    completions: (u64, CounterPlace),
    errors: (u64, CounterPlace),
    /// Number of its attachments to kinds of queue pairs.
    pub(crate) users: u32,
}

impl CompletionCounter {
    pub(crate) fn new(completions: CounterPlace, errors: CounterPlace) -> Result<Self, ControlError> {
        for place in [&completions, &errors] {
            place.check()?;
        }
        let mut counter = Self { completions: (0, completions), errors: (0, errors), users: 0 };
        for which in [CounterValue::Completions, CounterValue::Errors] {
            counter.set(which, 0);
        }
        Ok(counter)
    }

    fn number(&mut self, which: CounterValue) -> &mut (u64, CounterPlace) {
        match which {
            CounterValue::Completions => &mut self.completions,
            CounterValue::Errors => &mut self.errors,
        }
    }

    /// Returns one of the two numbers.
    pub(crate) fn get(&self, which: CounterValue) -> u64 {
        match which {
            CounterValue::Completions => self.completions.0,
            CounterValue::Errors => self.errors.0,
        }
    }

    pub(crate) fn set(&mut self, which: CounterValue, value: u64) {
        let (number, place) = self.number(which);
        *number = value & COUNTER_MAX;
        place.store(*number);
    }

    pub(crate) fn add(&mut self, which: CounterValue, amount: u64) {
        self.set(which, self.get(which).wrapping_add(amount));
    }

    /// Counts a completion: a successful one, or one with an error.
    pub(crate) fn count(&mut self, ok: bool) {
        self.add(if ok { CounterValue::Completions } else { CounterValue::Errors }, 1);
    }
}
