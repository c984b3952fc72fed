//! Completion queues and the channels that their events come through.

use crate::device::{Context, set_nonblocking, size, wait_readable};
use crate::error::Error;
use crate::object::{Object, of_one_device};
use crate::sys::*;
use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A completion event channel.
pub struct CompChannel {
    channel: Object<ibv_comp_channel, Arc<Context>>,
}

impl CompChannel {
    /// Creates one.
    ///
    /// # Errors
    /// The call failed.
    pub fn create(context: &Arc<Context>) -> Result<Self, Error> {
        let create = context.verbs().ibv_create_comp_channel()?;
        let destroy = ("ibv_destroy_comp_channel", context.verbs().ibv_destroy_comp_channel()?);
        // SAFETY: the context is open, and is all that a channel is made of.
        let channel =
            unsafe { Object::new("ibv_create_comp_channel", create(context.as_ptr()), destroy, context.clone())? };
        let channel = Self { channel };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    /// The descriptor that becomes readable with an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as `self.channel`; the library opened the descriptor with it, and closes it
        // when it destroys it.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        self.channel.parts()
    }

    /// Takes an event and acknowledges it; gives the handle of its completion queue. Does not wait.
    ///
    /// # Errors
    /// The call failed.
    pub fn take_event(&self) -> Result<Option<u32>, Error> {
        let verbs = self.context().verbs();
        let (get, acknowledge) = (verbs.ibv_get_cq_event()?, verbs.ibv_ack_cq_events()?);
        let (mut cq, mut cq_context) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
        // SAFETY: the channel lives as long as `self.channel`; the two pointers are this function's own. The call does
        // not wait: `create` made the descriptor non-blocking.
        if unsafe { get(self.channel.as_ptr(), &mut cq, &mut cq_context) } != 0 {
            return match Error::last("ibv_get_cq_event") {
                error if matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: the queue lives until the event is acknowledged, which happens here, once: destroying it waits until
        // as many events are as the kernel has handed out (`ibv_cmd_destroy_cq`), and hands out no more. Its number
        // does not change.
        unsafe {
            let handle = (*cq).handle;
            acknowledge(cq, 1);
            Ok(Some(handle))
        }
    }

    /// Waits at most `timeout` for an event, and takes it; whether one came. Neither signals nor others who take events here shorten that
    /// time.
    ///
    /// # Errors
    /// Whatever the operating system answers.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now().checked_add(timeout); // none: later than any clock goes
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

/// Memory of a DMA-BUF for a completion ring.
#[derive(Clone)]
pub struct ExternalRing<'f> {
    /// The DMA-BUF.
    pub fd: BorrowedFd<'f>,
    /// Where in it the ring begins, in bytes.
    pub offset: u64,
    /// Bytes of the ring.
    pub len: u64,
    /// Where this process sees the ring, if it does. libefa reads there, and nowhere else, if [`sys`](crate::sys) is
    /// used to poll.
    pub buffer: Option<NonNull<u8>>,
    /// Keeps the memory. It is kept until the queue is destroyed, and for good if that fails.
    pub owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// What a completion queue is to be like.
#[derive(Default)]
pub struct CqAttr<'a> {
    /// Entries, at least; libefa rounds up to a power of two.
    pub entries: u32,
    /// Where its events come, if it is to have some.
    pub channel: Option<&'a Arc<CompChannel>>,
    /// What libefa's own polling tells (`IBV_WC_EX_WITH_…`).
    pub wc_flags: u64,
    /// What entries tell (`EFADV_WC_EX_WITH_…`).
    pub efa_wc_flags: u64,
    /// Memory for the ring, if not libefa's.
    pub external: Option<ExternalRing<'a>>,
}

/// A completion queue.
pub struct Cq {
    cq: Object<ibv_cq, Parts>,
}

/// What a queue is made of.
struct Parts {
    context: Arc<Context>,
    _channel: Option<Arc<CompChannel>>,
    /// Keeps the ring's memory, if it is not libefa's.
    _memory: Option<Arc<dyn Any + Send + Sync>>,
}

impl Cq {
    /// Creates one (`efadv_create_cq`). Its entries have 32 bytes.
    ///
    /// # Errors
    /// The device refused: too many entries, or it has no events or takes no external memory. [`Error::TwoDevices`]:
    /// the channel is of another one.
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
        // SAFETY: the context is open, and the channel lives and is of this context: `parts` keeps both. Both
        // attributes are this function's own, and `efa` has the size that is told. The ring is libefa's, or the
        // DMA-BUF's, which the kernel keeps; so the queue uses nothing but `parts`.
        let cq = unsafe {
            let cq = ibv_cq_ex_to_cq(create(context.as_ptr(), &mut ex, &mut efa, size(&efa)));
            Object::new("efadv_create_cq", cq, destroy, parts)?
        };
        Ok(Self { cq })
    }

    /// The queue, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_cq_ex {
        // libefa made the extended form, which begins with the other.
        self.cq.as_ptr().cast()
    }

    /// The kernel's number of it, by which events name it.
    pub fn handle(&self) -> u32 {
        // SAFETY: it lives as long as `self.cq`, and the library set its number when it made it, and never again.
        unsafe { (*self.as_ptr()).handle }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.cq.parts().context
    }

    /// Its ring. Buffer and doorbell are valid as long as `self`; entries are those of each sub-queue. The doorbell is null on a queue without
    /// channel.
    ///
    /// # Errors
    /// The library is older than rdma-core 59.
    pub fn query(&self) -> Result<efadv_cq_attr, Error> {
        let mut attr = efadv_cq_attr::default();
        let query = self.context().libraries().efa()?.efadv_query_cq()?;
        // SAFETY: the queue lives as long as `self.cq`; `attr` is this function's own, and has the size that is told.
        let answer = unsafe { query(self.cq.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_cq", answer).map(|()| attr)
    }

    /// libefa's view of the queue, for [`efadv_wc_read_sgid`] and its like. It lives as long as `self`.
    ///
    /// # Errors
    /// The library is older than rdma-core 43.
    pub fn as_efadv(&self) -> Result<*mut efadv_cq, Error> {
        // SAFETY: the queue lives as long as `self.cq`, and is EFA's: `efadv_create_cq`, which made it, refuses other
        // devices.
        Ok(unsafe { self.context().libraries().efa()?.efadv_cq_from_ibv_cq_ex()?(self.as_ptr()) })
    }
}
