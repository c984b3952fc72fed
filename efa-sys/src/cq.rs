//! Completion queues, and the channels that report their events.

use crate::device::{Context, of_one_device, set_nonblocking, size, wait_readable};
use crate::error::Error;
use crate::object::Object;
use crate::sys::*;
use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A completion event channel: it reports that a completion queue has a new entry.
pub struct CompChannel {
    channel: Object<ibv_comp_channel, Arc<Context>>,
}

impl CompChannel {
    /// Creates a channel.
    ///
    /// # Errors
    /// The call failed.
    pub fn create(context: &Arc<Context>) -> Result<Self, Error> {
        let create = context.verbs().ibv_create_comp_channel()?;
        let destroy = ("ibv_destroy_comp_channel", context.verbs().ibv_destroy_comp_channel()?);
        // SAFETY: the channel uses only its context, which the `Object` keeps open.
        let channel =
            unsafe { Object::new("ibv_create_comp_channel", create(context.as_ptr()), destroy, context.clone())? };
        let channel = Self { channel };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    /// Returns the descriptor that becomes readable when there is an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.channel` keeps the channel alive. The library opened the descriptor with the channel and closes
        // it only when it destroys the channel.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// Returns the device that the channel belongs to.
    pub fn context(&self) -> &Arc<Context> {
        self.channel.parts()
    }

    /// Takes an event, acknowledges it, and returns the handle of its completion queue. Returns `None` if there is no
    /// event; it never waits.
    ///
    /// # Errors
    /// The call failed.
    pub fn take_event(&self) -> Result<Option<u32>, Error> {
        let verbs = self.context().verbs();
        let (get, acknowledge) = (verbs.ibv_get_cq_event()?, verbs.ibv_ack_cq_events()?);
        let (mut cq, mut cq_context) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
        // The call does not wait: `create` made the descriptor non-blocking.
        // SAFETY: `self.channel` keeps the channel alive; the two pointers are locals.
        if unsafe { get(self.channel.as_ptr(), &mut cq, &mut cq_context) } != 0 {
            return match Error::last("ibv_get_cq_event") {
                error if matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: a queue cannot be destroyed while one of its events is not acknowledged: `ibv_cmd_destroy_cq` waits
        // for as many acknowledgements as the kernel has delivered events. This event is acknowledged here, once, after
        // the last access to the queue. The library never changes the number that is read.
        unsafe {
            let handle = (*cq).handle;
            acknowledge(cq, 1);
            Ok(Some(handle))
        }
    }

    /// Waits up to `timeout` for an event and takes it. Returns `true` if there was one. Neither a signal nor another
    /// thread that takes an event of this channel shortens that time.
    ///
    /// # Errors
    /// The operating system's error, if waiting or reading fails.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        // `None` if the deadline is beyond the range of the clock: then it waits without one.
        let deadline = Instant::now().checked_add(timeout);
        while wait_readable(self.fd(), deadline)? {
            match self.take_event() {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(error) => {
                    return Err(error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error));
                }
            }
        }
        Ok(false)
    }
}

/// Memory in a DMA-BUF that holds a completion queue's entries.
#[derive(Clone)]
pub struct ExternalRing<'f> {
    /// The DMA-BUF.
    pub fd: BorrowedFd<'f>,
    /// The offset of the ring in the DMA-BUF, in bytes.
    pub offset: u64,
    /// The size of the ring in bytes.
    pub len: u64,
    /// The address at which this process has the ring mapped, if it has. libefa reads entries only there, and only if
    /// it is asked to poll through [`sys`](crate::sys).
    pub buffer: Option<NonNull<u8>>,
    /// The owner of the memory. The queue keeps it until it is destroyed. If destroying fails, it is kept for the life
    /// of the process.
    pub owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// The configuration of a completion queue.
#[derive(Default)]
pub struct CqAttr<'a> {
    /// The minimum number of entries. libefa rounds it up to a power of two.
    pub entries: u32,
    /// The channel that reports the queue's events. Without one, the queue has no events.
    pub channel: Option<&'a Arc<CompChannel>>,
    /// The fields that libefa's own polling can read (`IBV_WC_EX_WITH_…`).
    pub wc_flags: u64,
    /// The additional fields of EFA's entries (`EFADV_WC_EX_WITH_…`).
    pub efa_wc_flags: u64,
    /// Memory for the ring. Without it, libefa allocates some.
    pub external: Option<ExternalRing<'a>>,
}

/// A completion queue.
pub struct Cq {
    cq: Object<ibv_cq, Parts>,
}

/// What a completion queue uses.
struct Parts {
    context: Arc<Context>,
    _channel: Option<Arc<CompChannel>>,
    /// The owner of the ring's memory, unless that is libefa's.
    _memory: Option<Arc<dyn Any + Send + Sync>>,
}

impl Cq {
    /// Creates a completion queue (`efadv_create_cq`). Its entries are 32 bytes large.
    ///
    /// # Errors
    /// The device refuses: there are too many entries, or it does not support events or external memory.
    /// [`Error::TwoDevices`] if the channel belongs to another open device.
    pub fn create(context: &Arc<Context>, attr: &CqAttr<'_>) -> Result<Self, Error> {
        if let Some(channel) = attr.channel {
            let others = [("completion channel", channel.context())];
            of_one_device("efadv_create_cq", ("completion queue", context), others)?;
        }
        let channel = attr.channel.map_or(std::ptr::null_mut(), |channel| channel.channel.as_ptr());
        let mut ex = ibv_cq_init_attr_ex { cqe: attr.entries, channel, wc_flags: attr.wc_flags, ..Default::default() };
        let mut efa = efadv_cq_init_attr { wc_flags: attr.efa_wc_flags, ..Default::default() };
        if let Some(ring) = &attr.external {
            efa.flags = EFADV_CQ_INIT_FLAGS_EXT_MEM_DMABUF.into();
            efa.ext_mem_dmabuf.buffer = ring.buffer.map_or(std::ptr::null_mut(), NonNull::as_ptr);
            efa.ext_mem_dmabuf.length = ring.len;
            efa.ext_mem_dmabuf.offset = ring.offset;
            efa.ext_mem_dmabuf.fd = ring.fd.as_raw_fd();
        }
        let create = context.libraries().efa()?.efadv_create_cq()?;
        let destroy = ("ibv_destroy_cq", context.verbs().ibv_destroy_cq()?);
        let parts = Parts {
            context: context.clone(),
            _channel: attr.channel.cloned(),
            _memory: attr.external.as_ref().and_then(|ring| ring.owner.clone()),
        };
        // SAFETY: `parts` keeps the context and the channel, and `of_one_device` checked that they belong together.
        // Both attributes are locals, and `efa` has the size that is passed. The ring is in libefa's memory or in the
        // DMA-BUF, which the kernel keeps. So `parts` keeps everything that the queue uses.
        let cq = unsafe {
            let cq = ibv_cq_ex_to_cq(create(context.as_ptr(), &mut ex, &mut efa, size(&efa)));
            Object::new("efadv_create_cq", cq, destroy, parts)?
        };
        Ok(Self { cq })
    }

    /// Returns the queue for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_cq_ex {
        // `efadv_create_cq` creates an `ibv_cq_ex`, whose first fields are those of `ibv_cq`.
        self.cq.as_ptr().cast()
    }

    /// Returns the number that the kernel knows the queue by. Events carry it.
    pub fn handle(&self) -> u32 {
        // SAFETY: `self.cq` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).handle }
    }

    /// Returns the device that the queue belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.cq.parts().context
    }

    /// Returns the location and size of the queue's ring. The buffer and the doorbell are valid as long as `self`.
    /// `num_entries` counts the entries of each sub-queue. The doorbell is null if the queue has no channel.
    ///
    /// # Errors
    /// The library is older than rdma-core 59.
    pub fn query(&self) -> Result<efadv_cq_attr, Error> {
        let mut attr = efadv_cq_attr::default();
        let query = self.context().libraries().efa()?.efadv_query_cq()?;
        // SAFETY: `self.cq` keeps the queue alive; `attr` is a local of the size that is passed.
        let answer = unsafe { query(self.cq.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_cq", answer).map(|()| attr)
    }

    /// Returns the queue as libefa's type, for [`efadv_wc_read_sgid`] and similar functions. The pointer is valid as
    /// long as `self`.
    ///
    /// # Errors
    /// The library is older than rdma-core 43.
    pub fn as_efadv(&self) -> Result<*mut efadv_cq, Error> {
        // SAFETY: `self.cq` keeps the queue alive. It is an EFA queue: `efadv_create_cq` created it and refuses all
        // other devices.
        Ok(unsafe { self.context().libraries().efa()?.efadv_cq_from_ibv_cq_ex()?(self.as_ptr()) })
    }
}
