//! The control path: the interface to what creates and destroys a device's objects.
//!
//! A queue pair is created once, and posts happen millions of times a second. So a provider creates objects and hands
//! over their [`RawRing`]s. One piece of code posts to them and polls them, whatever the provider, and never calls it.
//!
//! Two providers are part of this crate: `soft.rs` on top of `efa-soft`, and `verbs/` on top of `efa-sys`, that is
//! libibverbs and libefa.

#[cfg(feature = "soft")]
pub(crate) mod soft;
#[cfg(feature = "verbs")]
pub(crate) mod verbs;

use efa_types::{Access, AsyncEvent, CounterOps, CounterValue, Counters, Gid};
/// The types of these calls.
#[doc(no_inline)]
pub use efa_types::{ControlError, CqAttributes, CqeSize, DeviceAttributes, QpAttributes, RegionKeys};

use crate::barrier;
use crate::error::SetupError;
use crate::external::{DmabufRange, ExternalMemory};
use crate::ring::RawRing;
use efa_io::{Limits, RingSize};
#[cfg(feature = "soft")]
use efa_soft::{LinkCounters, driver::DeviceHandle};
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The name to open it by.
    pub name: String,
    /// A description for people.
    pub description: String,
    /// What is missing on this machine, and how to add it.
    pub missing: Vec<String>,
    /// `true` if the device can be opened in spite of that.
    pub usable: bool,
}

/// Host memory to register.
#[derive(Clone)]
pub struct HostRange {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl HostRange {
    /// Returns the first byte. The bytes are valid until the region is deregistered. This program accesses them only as
    /// `AtomicU8`, as `efa_memory` does.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns what keeps the bytes alive; `None` if they are borrowed.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.clone()
    }
}

/// A registered region: its keys, and what its provider needs to deregister it.
pub struct Registration {
    /// The region's keys.
    pub keys: RegionKeys,
    /// Data of the provider.
    pub token: Option<Arc<dyn Any + Send + Sync>>,
}

/// A completion queue as a provider hands it over.
pub struct RawCq {
    /// The object's number at the provider.
    pub cqn: u32,
    /// The rings, one for each sub-queue. They have one doorbell in common.
    pub rings: Vec<RawRing>,
    /// Where events arrive, if they were asked for.
    pub events: Option<Box<dyn EventSource>>,
}

/// A completion queue in memory that the CPU cannot access, as a provider hands it over.
#[derive(Clone, Copy, Debug)]
pub struct RawExternalCq {
    /// The object's number at the provider.
    pub cqn: u32,
    /// Number of entries, from the first byte of the memory on.
    pub size: RingSize,
    /// Bytes of an entry.
    pub entry_size: usize,
}

/// The source of a completion queue's events.
pub trait EventSource: Send + Sync {
    /// Waits for an event for at most `timeout`, and takes it. Returns `true` if one arrived. A signal may end the wait
    /// early, so callers look at the clock.
    ///
    /// # Errors
    /// The operating system refused.
    fn wait(&self, timeout: Duration) -> std::io::Result<bool>;

    /// Returns the descriptor that becomes readable with an event, for event loops.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// A completion counter as a provider hands it over.
pub struct RawCounter {
    /// The object's number at the provider.
    pub id: u32,
    /// The number of successful completions.
    pub completions: CounterWord,
    /// The number of completions with an error.
    pub errors: CounterWord,
}

/// A 64-bit number that a device writes and this program reads.
pub struct CounterWord {
    word: NonNull<u64>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the address may move to another thread. This file only loads that word atomically, which any thread may do
// while it is valid. By the contract of `new`, `_owner`, which is `Send` and moves along, keeps it valid.
unsafe impl Send for CounterWord {}
// SAFETY: a shared reference allows only atomic loads. Nothing gives access to `_owner`, which is `Sync` besides.
unsafe impl Sync for CounterWord {}

impl CounterWord {
    /// Returns the number at `word`.
    ///
    /// # Safety
    /// While `owner` lives, `word` must be aligned to 8 bytes and valid for loads, and this program must access it only
    /// as `AtomicU64`.
    pub unsafe fn new(word: NonNull<u64>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        assert!(word.is_aligned(), "a counter is an aligned word");
        Self { word, _owner: owner }
    }

    /// Returns the number's address.
    pub fn addr(&self) -> u64 {
        self.word.as_ptr() as u64
    }

    /// Loads the number. Everything that the device wrote before the number is visible after this.
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: by the contract of `new` the word is aligned, valid, and accessed only as an `AtomicU64` while
        // `_owner` lives, which `self` keeps.
        let number = unsafe { AtomicU64::from_ptr(self.word.as_ptr()) }.load(Ordering::Acquire);
        barrier::after_completion();
        number
    }
}

/// A queue pair as a provider hands it over.
pub struct RawQp {
    /// The queue pair's number.
    pub qpn: u16,
    /// A number that differs from one queue pair to the next with the same number. Its low bits are part of request
    /// ids.
    pub generation: u16,
    /// The send ring.
    pub send: RawRing,
    /// Most WQEs between two doorbells of the send ring.
    pub send_max_batch: u32,
    /// `true` if request ids of the send ring have 64 bits.
    pub req_id_64: bool,
    /// The receive ring.
    pub recv: RawRing,
    /// Most descriptors between two doorbells of the receive ring.
    pub recv_max_batch: u32,
    /// The limits of a WQE.
    pub limits: Limits,
}

/// An open device: creates and destroys objects.
///
/// Destroying returns no result. The types of this crate destroy objects in the right order, so a refusal would be a
/// fault of the provider, which logs it.
///
/// # Safety
/// - Once [`deregister`](Self::deregister) has returned or unwound, nobody accesses the bytes of that registration,
///   whatever happened to the device. The alternative is that their owner is kept forever. The same holds for bytes
///   that [`register`](Self::register) or [`register_external`](Self::register_external) refused.
/// - Unwinding counts as an end, because code of others may run inside these calls, such as a subscriber of `tracing`.
///   A guard that takes the memory back handles this.
/// - Before that, code of this program accesses the bytes only as `AtomicU8` (`efa_memory` does).
pub unsafe trait Provider: Send + Sync + 'static {
    /// Returns the name that the device was opened by.
    fn name(&self) -> &str;

    /// Returns what the device can do.
    fn attributes(&self) -> &DeviceAttributes;

    /// Creates a protection domain.
    ///
    /// # Errors
    /// The device refused.
    fn alloc_pd(&self) -> Result<u32, SetupError>;

    /// Destroys a protection domain.
    fn dealloc_pd(&self, pd: u32);

    /// Registers host memory. The registration keeps the range's owner.
    ///
    /// # Errors
    /// The device refused.
    fn register(&self, pd: u32, range: HostRange, access: Access) -> Result<Registration, SetupError>;

    /// Registers memory that this process cannot access, in one of the ways that it comes with. The registration keeps
    /// its owner.
    ///
    /// # Errors
    /// The device refused, or does not support this, which is the answer of the provided method.
    fn register_external(
        &self,
        pd: u32,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Registration, SetupError> {
        let _ = (pd, memory, access);
        Err(SetupError::Control(ControlError::Unsupported("the registration of memory that the CPU cannot access")))
    }

    /// Deregisters memory. Once this has returned, nobody accesses it.
    fn deregister(&self, registration: &Registration);

    /// Creates a completion queue.
    ///
    /// # Errors
    /// The device refused.
    fn create_cq(&self, request: CqAttributes) -> Result<RawCq, SetupError>;

    /// Creates a completion queue in memory that this process cannot access: one ring, without a doorbell. `owner` is
    /// kept until the queue is destroyed, and forever if that fails.
    ///
    /// # Errors
    /// The device refused, or does not support this, which is the answer of the provided method.
    fn create_cq_in(
        &self,
        request: CqAttributes,
        memory: DmabufRange<'_>,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<RawExternalCq, SetupError> {
        let _ = (request, memory, owner);
        Err(SetupError::Control(ControlError::Unsupported("completion queues in memory that the CPU cannot access")))
    }

    /// Destroys a completion queue.
    fn destroy_cq(&self, cqn: u32);

    /// Creates a queue pair.
    ///
    /// # Errors
    /// The device refused.
    fn create_qp(&self, request: QpAttributes) -> Result<RawQp, SetupError>;

    /// Changes a queue pair's state from Reset to ReadyToSend.
    ///
    /// # Errors
    /// The device refused.
    fn activate_qp(&self, qpn: u16, qkey: u32) -> Result<(), SetupError>;

    /// Puts a queue pair into the error state, which flushes all outstanding requests.
    ///
    /// # Errors
    /// The device refused.
    fn fail_qp(&self, qpn: u16) -> Result<(), SetupError>;

    /// Destroys a queue pair.
    fn destroy_qp(&self, qpn: u16);

    /// Creates an address handle and returns its number.
    ///
    /// # Errors
    /// The device refused.
    fn create_ah(&self, pd: u32, gid: Gid) -> Result<u16, SetupError>;

    /// Destroys an address handle.
    fn destroy_ah(&self, pd: u32, ah: u16);

    /// Creates a completion counter.
    ///
    /// # Errors
    /// The device refused, or has no counters, which is the answer of the provided method.
    fn create_counter(&self) -> Result<RawCounter, SetupError> {
        Err(SetupError::Control(ControlError::Unsupported("completion counters")))
    }

    /// Creates a completion counter in memory that this process cannot access, and returns its number at the provider.
    /// `completions` and `errors` are the offsets of its two numbers in the DMA-BUF, in bytes. `owner` is kept until
    /// the counter is destroyed, and forever if that fails.
    ///
    /// # Errors
    /// The device refused, or does not support this, which is the answer of the provided method.
    fn create_counter_in(
        &self,
        fd: BorrowedFd<'_>,
        completions: u64,
        errors: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<u32, SetupError> {
        let _ = (fd, completions, errors, owner);
        Err(SetupError::Control(ControlError::Unsupported("completion counters in memory that the CPU cannot access")))
    }

    /// Attaches a completion counter to a queue pair that is not active yet, for these kinds of completions.
    ///
    /// # Errors
    /// The device refused.
    fn attach_counter(&self, qpn: u16, id: u32, ops: CounterOps) -> Result<(), SetupError> {
        let _ = (qpn, id, ops);
        Err(SetupError::Control(ControlError::Unsupported("completion counters")))
    }

    /// Sets one of a completion counter's numbers.
    ///
    /// # Errors
    /// The device refused.
    fn set_counter(&self, id: u32, which: CounterValue, value: u64) -> Result<(), SetupError> {
        let _ = (id, which, value);
        Err(SetupError::Control(ControlError::Unsupported("completion counters")))
    }

    /// Destroys a completion counter.
    fn destroy_counter(&self, id: u32) {
        let _ = id;
    }

    /// Returns the next asynchronous event that was not fetched yet.
    fn next_event(&self) -> Option<AsyncEvent> {
        None
    }

    /// Returns `true` if a kernel that has seen a completion also sees the bytes that it stands for in GPU memory, on
    /// every GPU and without a flush. Software devices return `true`: they write these bytes by a copy that CUDA has
    /// finished before they write the completion. A NIC's writes are only as ordered as the GPU reports.
    fn orders_gpu_writes(&self) -> bool {
        false
    }

    /// Returns the software device behind this one, if there is one.
    #[cfg(feature = "soft")]
    fn soft_device(&self) -> Option<Arc<dyn DeviceHandle>> {
        None
    }

    /// Returns what the device has counted.
    fn counters(&self) -> Counters;

    /// Returns what a simulated network did to this device's packets; `None` on a real network.
    #[cfg(feature = "soft")]
    fn link_counters(&self) -> Option<LinkCounters> {
        None
    }
}

/// Converts the size of a ring that a device reported.
#[cfg(any(feature = "soft", feature = "verbs"))]
pub(crate) fn ring_size(entries: u32) -> Result<RingSize, SetupError> {
    RingSize::new(entries).map_err(|_| {
        SetupError::Control(ControlError::Invalid {
            what: "ring entries reported by the device",
            value: entries.into(),
            expected: "a power of two",
        })
    })
}
