//! Completion counters: a number in memory that grows with every completion of the kinds it is attached to
//! (`ibv_create_comp_cntr(3)`, `ibv_qp_attach_comp_cntr(3)`, `efadv_create_comp_cntr(3)`).
//!
//! EFA counts work requests, not bytes (`efa_create_comp_cntr_impl` takes no other type).

use crate::error::ControlError;
use crate::memory::SharedMemory;
use std::ops::BitOr;
use std::sync::Arc;

/// Highest value of a counter; one more is 0. A device reports its own (`max_value`); that it is this one is assumed, after the
/// vendor's libfabric, whose tests have it.
pub const COUNTER_MAX: u64 = (1 << 31) - 1;

/// Kinds of completions that a counter counts (`enum ibv_qp_attach_comp_cntr_op`, by its bits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CounterOps(u32);

impl CounterOps {
    /// Sends of the queue pair.
    pub const SEND: Self = Self(1);
    /// Receives of the queue pair, writes with immediate among them.
    pub const RECV: Self = Self(1 << 1);
    /// RDMA reads of the queue pair.
    pub const RDMA_READ: Self = Self(1 << 2);
    /// RDMA reads that peers made through the queue pair; those that fail are not counted here (the device has no event for them).
    pub const REMOTE_RDMA_READ: Self = Self(1 << 3);
    /// RDMA writes of the queue pair.
    pub const RDMA_WRITE: Self = Self(1 << 4);
    /// RDMA writes that peers made through the queue pair; likewise.
    pub const REMOTE_RDMA_WRITE: Self = Self(1 << 5);
    /// Number of kinds.
    pub(crate) const KINDS: usize = 6;

    /// The kinds with these bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Numbers of the kinds, below [`Self::KINDS`].
    pub(crate) fn kinds(self) -> impl Iterator<Item = usize> {
        (0..Self::KINDS).filter(move |kind| self.0 >> kind & 1 != 0)
    }
}

impl BitOr for CounterOps {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// Which of a counter's two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterValue {
    /// Completions that went well.
    Completions,
    /// Completions with an error.
    Errors,
}

/// Where a counter's numbers are: 64-bit words in shared memory, aligned.
#[derive(Clone)]
pub struct CounterInfo {
    /// Its number.
    pub id: u32,
    /// The memory.
    pub memory: Arc<SharedMemory>,
    /// Byte offset of the number of completions.
    pub completions: usize,
    /// Byte offset of the number of errors.
    pub errors: usize,
}

/// A completion counter, the device's side.
pub(crate) struct CompletionCounter {
    info: CounterInfo,
    /// Attachments.
    pub(crate) users: u32,
}

impl CompletionCounter {
    /// A counter whose numbers are in `memory`, or in memory of its own.
    pub(crate) fn new(
        id: u32,
        memory: Option<(Arc<SharedMemory>, usize, usize)>,
    ) -> Result<(Self, CounterInfo), ControlError> {
        let (memory, completions, errors) = match memory {
            Some(given) => given,
            None => (SharedMemory::zeroed(4096).map_err(|_| ControlError::NoMemory(4096))?, 0, 64),
        };
        for offset in [completions, errors] {
            let fits = offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= memory.len());
            if !fits {
                let expected = "that of an aligned 64-bit word inside the memory";
                return Err(ControlError::Invalid { what: "counter offset", value: offset as u64, expected });
            }
        }
        let info = CounterInfo { id, memory, completions, errors };
        Ok((Self { info: info.clone(), users: 0 }, info))
    }

    fn offset(&self, which: CounterValue) -> usize {
        match which {
            CounterValue::Completions => self.info.completions,
            CounterValue::Errors => self.info.errors,
        }
    }

    pub(crate) fn set(&self, which: CounterValue, value: u64) {
        self.info.memory.store_word(self.offset(which), value & COUNTER_MAX);
    }

    pub(crate) fn add(&self, which: CounterValue, amount: u64) {
        let offset = self.offset(which);
        self.set(which, self.info.memory.load_word(offset).wrapping_add(amount));
    }

    /// Counts a completion.
    pub(crate) fn count(&self, ok: bool) {
        self.add(if ok { CounterValue::Completions } else { CounterValue::Errors }, 1);
    }
}
