//! What can go wrong, with the numbers and what to do about it.

use efa_io::EncodeError;
use efa_types::ControlError;

/// Why a control call failed. Nothing was created or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No device has this name.
    #[error("there is no device {name:?}: {hint}")]
    NoSuchDevice {
        /// The name asked for.
        name: String,
        /// What names there are.
        hint: String,
    },
    /// A device's name says something that it cannot, or the device that it names cannot be had.
    #[error("device name {name:?}: {problem}")]
    BadDeviceName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Devices of a kind that this program was built without.
    #[error("{what} need the feature `{feature}` of the crate efa-direct, which this program was built without")]
    NotBuilt {
        /// The devices.
        what: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// The device refused.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// libibverbs or libefa refused, or is missing.
    #[cfg(feature = "verbs")]
    #[error(transparent)]
    Verbs(#[from] efa_sys::Error),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// A range that passes the end of its region.
    #[error("bytes {start}..{end} of a region of {len} bytes")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes in the region.
        len: u64,
    },
    /// A slice that one request cannot describe.
    #[error("a slice of {len} bytes: one request describes at most {max}, use several")]
    SliceTooLong {
        /// Bytes asked for.
        len: u64,
        /// Most that one slice holds.
        max: u64,
    },
    /// Rings whose completions would not fit the completion queue.
    #[error(
        "the completion queue holds {entries} entries, {reserved} are promised to other rings, {asked} more were asked for: \
         make it larger, or give this ring a smaller share"
    )]
    CompletionQueueTooSmall {
        /// Entries of the completion queue.
        entries: u32,
        /// Entries that rings already have.
        reserved: u32,
        /// Entries asked for.
        asked: u32,
    },
    /// A device whose send ring has WQEs of another size than asked for.
    #[error(
        "the device's send ring has WQEs of {found} bytes, {asked} were asked for: 128-byte WQEs need a device that has them"
    )]
    WqeSize {
        /// Bytes of a WQE that the queue pair's type stands for.
        asked: usize,
        /// Bytes of a WQE in the ring.
        found: usize,
    },
    /// Queue pair numbers of which completions of an earlier life may lie in a completion queue, and no other number
    /// was to be had.
    #[error(
        "completions of earlier queue pairs with the numbers {numbers:?} may lie in the completion queue, and the device has no other number ({source}): \
         poll the queue until it is empty, then create the queue pair"
    )]
    NumbersInUse {
        /// The numbers that the device gave.
        numbers: Vec<u16>,
        /// Why it gave no more.
        source: Box<Error>,
    },
    /// A completion queue of another device.
    #[error("the completion queue belongs to another device")]
    ForeignCompletionQueue,
    /// A completion counter of another device.
    #[error("the completion counter belongs to another device")]
    ForeignCounter,
    /// A completion queue that one reader without sub-queues cannot read.
    #[error("completion queues of this device consist of {count} rings each, which only the CPU side can read")]
    SubQueues {
        /// How many.
        count: usize,
    },
    /// A completion queue that has no event channel.
    #[error("this completion queue cannot be waited on: create it with `CqConfig::events`")]
    NoEvents,
    /// A ring that cannot change hands.
    #[error("{outstanding} work requests are outstanding: poll their completions first")]
    NotDrained {
        /// Work requests without completion.
        outstanding: u32,
    },
    /// Memory of another device or program that the NIC could not be given in any way.
    #[error("the memory can be registered neither as a DMA-BUF ({dmabuf}) nor by address ({by_address})")]
    ExternalMemory {
        /// What came of its DMA-BUF.
        dmabuf: String,
        /// What came of its address.
        by_address: String,
    },
    /// A piece of a DMA-BUF that is to be named by addresses at another place of a page than it has there.
    #[error(
        "bytes of a DMA-BUF from {offset:#x} on, named by addresses from {addr:#x} on: pages have 4096 bytes, so the address has to end in {:#05x}",
        offset % 4096
    )]
    DmabufPlace {
        /// Address of the first byte, as work requests would name it.
        addr: u64,
        /// Where it is in the DMA-BUF.
        offset: u64,
    },
    /// Whatever goes wrong with a GPU.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] crate::cuda::GpuError),
    /// A request refused before anything was written.
    #[error(transparent)]
    Post(#[from] PostError),
}

#[cfg(feature = "cuda")]
impl From<crate::cuda::CudaError> for Error {
    fn from(error: crate::cuda::CudaError) -> Self {
        Self::Gpu(error.into())
    }
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Why a request was not posted. Not a byte was written, and the queue is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The ring has no room.
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
        /// Entries of the completion queue that are this ring's.
        share: u32,
        /// Work requests without completion.
        outstanding: u32,
    },
    /// A region or a peer of another protection domain.
    #[error("the {what} belongs to protection domain {given}, the queue pair to {own}")]
    ForeignDomain {
        /// What is foreign.
        what: &'static str,
        /// Its domain (the process's count).
        given: u32,
        /// The queue pair's domain.
        own: u32,
    },
    /// The remote slice is not as long as the local one.
    #[error("{local} bytes here, {remote} bytes there: both sides of an RDMA operation have one length")]
    LengthMismatch {
        /// Bytes of the local slice.
        local: u64,
        /// Bytes of the remote slice.
        remote: u64,
    },
    /// More buffers than a receive takes, or none.
    #[error("a receive of {given} buffers: this queue takes 1 to {max}")]
    ReceiveBuffers {
        /// Buffers given.
        given: usize,
        /// Most that the queue pair was created for.
        max: usize,
    },
    /// A receive buffer that its descriptor cannot describe.
    #[error("a receive buffer of {given} bytes: a descriptor holds at most 65535")]
    ReceiveTooLong {
        /// Bytes of the buffer.
        given: u64,
    },
    /// The request does not fit a WQE of this queue.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A ring that could not change hands, and why.
#[derive(Debug)]
pub struct NotDrained<Q> {
    /// The queue, as it was.
    pub queue: Q,
    /// Work requests without completion.
    pub outstanding: u32,
}

impl<Q> From<NotDrained<Q>> for Error {
    fn from(refused: NotDrained<Q>) -> Self {
        Self::NotDrained { outstanding: refused.outstanding }
    }
}
