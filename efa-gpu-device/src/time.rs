//! The GPU's clock and deadlines.

use crate::arch;

/// Returns the time of a clock of the whole GPU: nanoseconds since an unspecified moment (PTX `%globaltimer`). On many
/// GPUs it moves in steps of 32 ns, or of a microsecond.
#[inline(always)]
pub fn globaltimer() -> u64 {
    arch::globaltimer()
}

/// A moment of [`globaltimer`] at which a wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// The moment `ns` nanoseconds from now.
    #[inline(always)]
    pub fn after(ns: u64) -> Self {
        Self(globaltimer().saturating_add(ns))
    }

    /// Returns `true` if the moment has passed.
    #[inline(always)]
    pub fn passed(self) -> bool {
        globaltimer() >= self.0
    }
}
