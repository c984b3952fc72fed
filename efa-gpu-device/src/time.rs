//! The GPU's clock and deadlines.

use crate::arch;

/// A clock of the whole GPU: nanoseconds since some moment (PTX `%globaltimer`). On many GPUs it moves in steps of 32 ns, or of a
/// microsecond.
#[inline(always)]
pub fn globaltimer() -> u64 {
    arch::globaltimer()
}

/// A moment by [`globaltimer`], until which somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// In `ns` nanoseconds.
    #[inline(always)]
    pub fn after(ns: u64) -> Self {
        Self(globaltimer().saturating_add(ns))
    }

    /// Whether it is over.
    #[inline(always)]
    pub fn passed(self) -> bool {
        globaltimer() >= self.0
    }
}
