//! Errors, one type for each kind of call.
//!
//! | calls that | fail with |
//! | --- | --- |
//! | find or open a device | [`OpenError`] |
//! | create, register, attach, activate, set | [`SetupError`] |
//! | take or copy a range of bytes | [`RangeError`] |
//! | post | [`PostError`] |
//! | wait for events | [`EventError`] |
//! | hand a ring over, or take it back | [`HandOverError`], in a [`Refused`] with the ring |
//! | use a GPU | `cuda::GpuError` |
//! | simulate | `sim::SimError` |
//!
//! All of them convert into [`Error`], so that a program that makes many kinds of calls needs one type and `?`.

use efa_io::EncodeError;
use efa_types::ControlError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An object was not created or changed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A range of bytes is invalid.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A request was not posted.
    #[error(transparent)]
    Post(#[from] PostError),
    /// A completion queue cannot be waited on.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A ring did not change hands.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// A simulation refused.
    #[cfg(feature = "soft")]
    #[error(transparent)]
    Sim(#[from] crate::sim::SimError),
    /// A call concerning a GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] crate::cuda::GpuError),
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        Self::Setup(error.into())
    }
}

#[cfg(feature = "cuda")]
impl From<crate::cuda::CudaError> for Error {
    fn from(error: crate::cuda::CudaError) -> Self {
        Self::Gpu(error.into())
    }
}

/// An error of finding or opening a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No device has this name.
    #[error("there is no device {name:?}: {hint}")]
    NoSuchDevice {
        /// The name asked for.
        name: String,
        /// The names that exist.
        hint: String,
    },
    /// The name is no valid name of a software device.
    #[error("device name {name:?} is invalid: {problem}")]
    InvalidName {
        /// The name.
        name: String,
        /// The invalid part, and what is expected there.
        problem: String,
    },
    /// The software device cannot be started.
    #[error("software device {name:?} cannot be started: {source}")]
    CannotStart {
        /// The device's name.
        name: String,
        /// The operating system's answer, or the reason.
        source: std::io::Error,
    },
    /// The program was built without devices of this kind.
    #[error("{what} need the feature `{feature}` of the crate efa-direct, which this program was built without")]
    NotBuilt {
        /// The kind of devices, as a plural.
        what: &'static str,
        /// The missing feature.
        feature: &'static str,
    },
    /// libibverbs or libefa is missing, too old, or refused a call.
    #[cfg(feature = "verbs")]
    #[error(transparent)]
    Verbs(#[from] efa_sys::Error),
}

/// An error of a call that creates or changes an object. Nothing was created or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The device refused.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// libibverbs or libefa refused, or is too old.
    #[cfg(feature = "verbs")]
    #[error(transparent)]
    Verbs(#[from] efa_sys::Error),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The completion queue is too small for another ring.
    #[error(
        "the completion queue holds {entries} entries, {reserved} are promised to other rings, {asked} more were asked for: \
         make it larger, or give this ring a smaller share"
    )]
    CompletionQueueTooSmall {
        /// Entries of the completion queue.
        entries: u32,
        /// Entries that other rings have.
        reserved: u32,
        /// Entries asked for.
        asked: u32,
    },
    /// The device's send ring has WQEs of another size than asked for.
    #[error(
        "the device's send ring has WQEs of {found} bytes, {asked} were asked for: 128-byte WQEs need a device that has them"
    )]
    WqeSize {
        /// Bytes of a WQE that the queue pair's type stands for.
        asked: usize,
        /// Bytes of a WQE in the ring.
        found: usize,
    },
    /// The device offers only queue pair numbers whose earlier completions may still be in the completion queue.
    #[error(
        "completions of earlier queue pairs with the numbers {numbers:?} may lie in the completion queue, and the device has no other number ({source}): \
         poll the queue until it is empty, then create the queue pair"
    )]
    NumbersInUse {
        /// The numbers that the device offered.
        numbers: Vec<u16>,
        /// The device's reason for offering no more.
        source: Box<SetupError>,
    },
    /// The completion queue belongs to another device.
    #[error("the completion queue belongs to another device than the queue pair: create both from one `Device`")]
    ForeignCompletionQueue,
    /// The completion counter belongs to another device.
    #[error("the completion counter belongs to another device than the queue pair: create both from one `Device`")]
    ForeignCounter,
    /// The device gave a memory region an lkey that no WQE can hold.
    #[error("the device gave the region the lkey {lkey:#x}, a WQE holds lkeys of 24 bits (up to 0xffffff)")]
    InvalidKey {
        /// The lkey.
        lkey: u32,
    },
    /// The device can reach the memory neither as a DMA-BUF nor by address.
    #[error("the memory can be registered neither as a DMA-BUF ({dmabuf}) nor by address ({by_address})")]
    ExternalMemory {
        /// The reason against the DMA-BUF.
        dmabuf: String,
        /// The reason against the address.
        by_address: String,
    },
    /// A piece of a DMA-BUF and its address begin at different offsets in a page.
    #[error(
        "the piece begins at offset {offset:#x} of its DMA-BUF, and its address is {addr:#x}: both have the same place in \
         a page of 4096 bytes, so the address has to end in {:#05x}",
        offset % 4096
    )]
    DmabufMisaligned {
        /// Address of the first byte, as work requests name it.
        addr: u64,
        /// Offset of the first byte in the DMA-BUF.
        offset: u64,
    },
}

impl SetupError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// An error of taking a slice of memory, or of copying bytes to or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The range is not inside the memory.
    #[error("bytes {start}..{end} are out of range: the memory has {len} bytes")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of the memory.
        len: u64,
    },
    /// The slice is longer than one work request can describe.
    #[error("a slice of {len} bytes is too long: one request describes at most {max} bytes, use several")]
    SliceTooLong {
        /// Bytes asked for.
        len: u64,
        /// Most bytes of a slice.
        max: u64,
    },
}

/// An error of waiting for events of a completion queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The completion queue was created without events.
    #[error("this completion queue has no events: create it with `CqConfig::events`, or poll it")]
    NotEnabled,
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl EventError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// The reason why a request was not posted. Nothing was written, and the queue is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The ring is full.
    #[error("the ring holds {entries}, {outstanding} are outstanding: poll completions and try again")]
    RingFull {
        /// Most work requests that the ring takes.
        entries: u32,
        /// Work requests without completion.
        outstanding: u32,
    },
    /// The completion queue might have no room for the completion.
    #[error(
        "the ring's share of its completion queue is {share}, {outstanding} are outstanding: poll completions and try again"
    )]
    CompletionQueueFull {
        /// Entries of the completion queue that belong to this ring.
        share: u32,
        /// Work requests without completion.
        outstanding: u32,
    },
    /// A region or a peer belongs to another protection domain.
    #[error("the {what} belongs to protection domain {given}, the queue pair to {own}: use one of the same domain")]
    ForeignDomain {
        /// The foreign object: "region" or "peer".
        what: &'static str,
        /// The object's domain (the process's count).
        given: u32,
        /// The queue pair's domain.
        own: u32,
    },
    /// The remote slice is longer or shorter than the local one.
    #[error(
        "the local slice has {local} bytes, the remote one {remote}: both sides of an RDMA operation have one length"
    )]
    LengthMismatch {
        /// Bytes of the local slice.
        local: u64,
        /// Bytes of the remote slice.
        remote: u64,
    },
    /// A receive has no buffers, or more than the queue takes.
    #[error("a receive of {given} buffers: this queue takes 1 to {max}")]
    ReceiveBuffers {
        /// Buffers given.
        given: usize,
        /// Most buffers of a receive, as the queue pair was created.
        max: usize,
    },
    /// A receive buffer is longer than its descriptor can describe.
    #[error("a receive buffer of {given} bytes: a descriptor holds at most 65535")]
    ReceiveTooLong {
        /// Bytes of the buffer.
        given: u64,
    },
    /// The request does not fit a WQE of this queue.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The reason why a ring did not change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// The ring is not drained.
    #[error("{outstanding} work requests are outstanding: poll their completions first")]
    Outstanding {
        /// Work requests without completion.
        outstanding: u32,
    },
    /// The completion queue is not empty.
    #[error("completions have arrived that were not polled: poll until there are none")]
    Unpolled,
    /// The completion queue consists of several rings, and the GPU side reads one.
    #[error("completion queues of this device consist of {count} rings each, which only the CPU side can read")]
    SubQueues {
        /// Number of rings.
        count: usize,
    },
    /// The completion queue is in GPU memory, which the CPU cannot read.
    #[cfg(feature = "cuda")]
    #[error("the completion queue is in GPU memory, which the CPU cannot read: place it in host memory")]
    InGpuMemory,
}

/// A refused call that had consumed a value: the value, which can still be used, and the reason.
///
/// `?` drops the value and converts the reason into an [`Error`].
#[derive(Debug)]
pub struct Refused<T, E = HandOverError> {
    /// The value. The call did not change what it owns, except that a CPU's queue has rung for what was posted.
    pub value: T,
    /// The reason.
    pub error: E,
}

impl<T, E: std::fmt::Display> std::fmt::Display for Refused<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: std::fmt::Debug, E: std::error::Error> std::error::Error for Refused<T, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<T, E> From<Refused<T, E>> for Error
where
    Self: From<E>,
{
    fn from(refused: Refused<T, E>) -> Self {
        refused.error.into()
    }
}
