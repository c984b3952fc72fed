//! What can be wrong with what a builder is asked for.

use super::MemoryError;

/// Why something could not be added, or laid out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that this builder has not given.
    #[error("there is no {kind} {id} of this builder")]
    NoSuch {
        /// Kind of the object.
        kind: &'static str,
        /// Its number.
        id: u32,
    },
    /// More than there can be.
    #[error("{asked} {what}, {max} is the most")]
    Limit {
        /// What.
        what: &'static str,
        /// How many were asked for.
        asked: u64,
        /// How many there can be.
        max: u64,
    },
    /// A completion queue that could overflow.
    #[error(
        "completion queue {cq} holds {holds} entries, its queue pairs can have {needs} requests outstanding: make it larger"
    )]
    CqTooSmall {
        /// Its number.
        cq: u32,
        /// Entries.
        holds: u32,
        /// Requests that can be outstanding together.
        needs: u64,
    },
    /// A region that wraps around the end of the address space.
    #[error("{len} bytes at {base:#x} end past 2^64")]
    RegionWraps {
        /// Address of the region.
        base: u64,
        /// Its bytes.
        len: u64,
    },
    /// Something that the device or the queue pair cannot do.
    #[error("the device has no {0}")]
    Unsupported(&'static str),
    /// Memory for the queues and tables.
    #[error("memory for {what}: {source}")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// What its provider says.
        source: MemoryError,
    },
}
