//! The control path: whoever creates objects.
//!
//! Creating a queue pair happens once, posting happens millions of times a second. So a provider creates objects and
//! hands back [`RawRing`]s; posting and polling over them is one piece of code for every provider and never comes back
//! here.
//!
//! Two providers are part of this crate: `soft.rs` over `efa-soft`, and `verbs/` over `efa-sys`, that is libibverbs and
//! libefa.

#[cfg(feature = "soft")]
pub(crate) mod soft;
#[cfg(feature = "verbs")]
pub(crate) mod verbs;

use efa_types::{Access, AsyncEvent, CounterOps, CounterValue, Counters, Gid};
/// The vocabulary of these calls.
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
    /// What to open it by.
    pub name: String,
    /// What it is.
    pub description: String,
    /// What is missing here, and what to do about it.
    pub missing: Vec<String>,
    /// Whether it can be opened in spite of that.
    pub usable: bool,
}

/// Host memory that is to be registered.
#[derive(Clone)]
pub struct HostRange {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl HostRange {
    /// First byte. Valid until the region is deregistered; this program accesses it as `AtomicU8`, as `efa_memory`
    /// does, or not at all.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whatever keeps the bytes alive, if they are not borrowed.
    pub fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.owner.clone()
    }
}

/// A registered region: its keys, and whatever its provider needs to take it back.
pub struct Registration {
    /// The keys.
    pub keys: RegionKeys,
    /// The provider's own.
    pub token: Option<Arc<dyn Any + Send + Sync>>,
}

/// A completion queue as a provider hands it over.
pub struct RawCq {
    /// Its number at the provider.
    pub cqn: u32,
    /// Its rings, one for each sub-queue, with one doorbell.
    pub rings: Vec<RawRing>,
    /// Where events arrive, if they were asked for.
    pub events: Option<Box<dyn EventSource>>,
}

/// A completion queue in memory that its provider cannot touch.
#[derive(Clone, Copy, Debug)]
pub struct RawExternalCq {
    /// Its number at the provider.
    pub cqn: u32,
    /// Its entries, from the first byte of the memory on.
    pub size: RingSize,
    /// Bytes of an entry.
    pub entry_size: usize,
}

/// Where a completion queue's events arrive.
pub trait EventSource: Send + Sync {
    /// Waits for an event at most `timeout`, and takes it; whether one came. A signal may end it early: callers look at
    /// the clock.
    ///
    /// # Errors
    /// The operating system refused.
    fn wait(&self, timeout: Duration) -> std::io::Result<bool>;

    /// The descriptor that becomes readable with an event, for event loops.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// A completion counter as a provider hands it over.
pub struct RawCounter {
    /// Its number at the provider.
    pub id: u32,
    /// Completions that went well.
    pub completions: CounterWord,
    /// Completions with an error.
    pub errors: CounterWord,
}

/// A 64-bit number that a device writes and a program reads.
pub struct CounterWord {
    word: NonNull<u64>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the address may go to another thread: all that is done with it is an atomic load of a word that, as `new`'s
// caller vouched, stays valid while `_owner` lives, which is `Send` and goes along.
unsafe impl Send for CounterWord {}
// SAFETY: a shared reference gives no more than such a load; `_owner`, which is `Sync`, cannot be reached through it.
unsafe impl Sync for CounterWord {}

impl CounterWord {
    /// The number at `word`.
    ///
    /// # Safety
    /// While `owner` lives, `word` must be valid for loads and aligned to 8 bytes, and this program may access it as
    /// `AtomicU64` only.
    pub unsafe fn new(word: NonNull<u64>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        assert!(word.is_aligned(), "a counter is an aligned word");
        Self { word, _owner: owner }
    }

    /// Where the number is.
    pub fn addr(&self) -> u64 {
        self.word.as_ptr() as u64
    }

    /// The number, and all that the device wrote before it.
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: aligned, and valid and accessed as a word only while `_owner` lives: `new`'s contract.
        let number = unsafe { AtomicU64::from_ptr(self.word.as_ptr()) }.load(Ordering::Acquire);
        barrier::after_completion();
        number
    }
}

/// A queue pair as a provider hands it over.
pub struct RawQp {
    /// Its number.
    pub qpn: u16,
    /// Tells this queue pair from earlier ones of its number; its low bits go into request ids.
    pub generation: u16,
    /// Its send ring.
    pub send: RawRing,
    /// Most WQEs between two doorbells of the send ring.
    pub send_max_batch: u32,
    /// Request ids of the send ring have 64 bits.
    pub req_id_64: bool,
    /// Its receive ring.
    pub recv: RawRing,
    /// Most descriptors between two doorbells of the receive ring.
    pub recv_max_batch: u32,
    /// What a WQE may ask for.
    pub limits: Limits,
}

/// One opened device: creates and destroys objects.
///
/// Destroying takes no answer. Objects are destroyed in the right order by construction, so a refusal would be a bug of
/// the provider, which logs it.
///
/// # Safety
/// Once [`deregister`](Self::deregister) has ended, nobody accesses the bytes of that registration any more, whatever
/// else has happened to the device, or they are owned ones and their owner is kept for good; nor those of one that
/// [`register`](Self::register) or [`register_external`](Self::register_external) refused. Unwinding is an end, too:
/// where code of others runs inside, such as what listens to `tracing`, the memory is taken back by a guard. Before
/// that, what runs in this program accesses them as `AtomicU8` only (`efa_memory` does).
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

    /// Registers host memory.
    ///
    /// # Errors
    /// The device refused.
    fn register(&self, pd: u32, range: HostRange, access: Access) -> Result<Registration, SetupError>;

    /// Registers memory that this process cannot touch, in one of the ways that it comes with. The registration keeps
    /// its owner.
    ///
    /// # Errors
    /// The device refused, or cannot, which is what this provided method says.
    fn register_external(
        &self,
        pd: u32,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Registration, SetupError> {
        let _ = (pd, memory, access);
        Err(SetupError::Control(ControlError::Unsupported("the registration of memory that the CPU cannot access")))
    }

    /// Deregisters memory. Once this returns nobody touches it.
    fn deregister(&self, registration: &Registration);

    /// Creates a completion queue.
    ///
    /// # Errors
    /// The device refused.
    fn create_cq(&self, request: CqAttributes) -> Result<RawCq, SetupError>;

    /// Creates a completion queue in memory that this process cannot touch: one ring, without doorbell. `owner` is kept
    /// until it is destroyed, and for good if that fails.
    ///
    /// # Errors
    /// The device refused, or cannot, which is what this provided method says.
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

    /// Takes a queue pair from Reset to ReadyToSend.
    ///
    /// # Errors
    /// The device refused.
    fn activate_qp(&self, qpn: u16, qkey: u32) -> Result<(), SetupError>;

    /// Puts a queue pair in the error state: everything outstanding is flushed.
    ///
    /// # Errors
    /// The device refused.
    fn fail_qp(&self, qpn: u16) -> Result<(), SetupError>;

    /// Destroys a queue pair.
    fn destroy_qp(&self, qpn: u16);

    /// Creates an address handle and gives its number.
    ///
    /// # Errors
    /// The device refused.
    fn create_ah(&self, pd: u32, gid: Gid) -> Result<u16, SetupError>;

    /// Destroys an address handle.
    fn destroy_ah(&self, pd: u32, ah: u16);

    /// Creates a completion counter.
    ///
    /// # Errors
    /// The device refused, or has none, which is what this provided method says.
    fn create_counter(&self) -> Result<RawCounter, SetupError> {
        Err(SetupError::Control(ControlError::Unsupported("completion counters")))
    }

    /// Creates a completion counter in memory that this process cannot touch: its two numbers are so many bytes from
    /// the beginning of a DMA-BUF. Gives the provider's number of it. `owner` is kept until it is destroyed, and for
    /// good if that fails.
    ///
    /// # Errors
    /// The device refused, or cannot, which is what this provided method says.
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

    /// Has a completion counter count completions of these kinds of a queue pair that is not active yet.
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

    /// The next asynchronous event that nobody has fetched.
    fn next_event(&self) -> Option<AsyncEvent> {
        None
    }

    /// Returns `true` if a kernel that has seen a completion sees the bytes that it stands for in GPU memory, on every
    /// GPU and without a flush: the device writes them by a copy that CUDA has finished before it writes the
    /// completion. Software devices do; a NIC's writes are as ordered as the GPU says.
    fn orders_gpu_writes(&self) -> bool {
        false
    }

    /// Returns the software device behind this one, if there is one.
    #[cfg(feature = "soft")]
    fn soft_port(&self) -> Option<Arc<dyn DeviceHandle>> {
        None
    }

    /// What the device has counted.
    fn counters(&self) -> Counters;

    /// Returns what a simulated network did to this device's packets; `None` on a real network.
    #[cfg(feature = "soft")]
    fn link_counters(&self) -> Option<LinkCounters> {
        None
    }
}

/// The size of a ring that a provider reported.
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
