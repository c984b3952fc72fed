//! Errors of the builder.

use super::MemoryError;

/// Why an object could not be added, or the tables could not be laid out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An id of an object that this builder has not made.
    #[error("there is no {kind} {id} of this builder")]
    NoSuch {
        /// Kind of the object.
        kind: &'static str,
        /// Its number.
        id: u32,
    },
    /// More than the limit.
    #[error("{asked} {what}, {max} is the most")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The number asked for.
        asked: u64,
        /// The limit.
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
    /// An operation that the device or the queue pair lacks.
    #[error("the device has no {0}")]
    Unsupported(&'static str),
    /// Memory for queues or tables could not be allocated or reached.
    #[error("memory for {what}: {source}")]
    Memory {
        /// What the memory was for.
        what: &'static str,
        /// The error of the memory's provider.
        source: MemoryError,
    },
}
