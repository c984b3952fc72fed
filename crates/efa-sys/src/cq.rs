//! Completion queues and the channels that their events come through.

use crate::device::{Context, destroyed, set_nonblocking, size, wait_readable};
use crate::error::Error;
use crate::pd::thread_safe;
use crate::sys::*;
use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

thread_safe!(CompChannel, Cq);

/// A completion event channel.
pub struct CompChannel {
    channel: NonNull<ibv_comp_channel>,
    context: Arc<Context>,
}

impl CompChannel {
    /// Creates one.
    ///
    /// # Errors
    /// The call failed.
    pub fn create(context: &Arc<Context>) -> Result<Self, Error> {
        // SAFETY: the context is open.
        let channel = unsafe { context.verbs().ibv_create_comp_channel()?(context.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| Error::last("ibv_create_comp_channel"))?;
        let channel = Self { channel, context: context.clone() };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    /// The descriptor that becomes readable with an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives, and its descriptor is open as long.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// Takes an event and acknowledges it; gives the handle of its completion queue. Does not wait.
    ///
    /// # Errors
    /// The call failed.
    pub fn take_event(&self) -> Result<Option<u32>, Error> {
        let verbs = self.context.verbs();
        let (get, acknowledge) = (verbs.ibv_get_cq_event()?, verbs.ibv_ack_cq_events()?);
        let (mut cq, mut cq_context) = (std::ptr::null_mut(), std::ptr::null_mut::<c_void>());
        // SAFETY: the channel lives; the rest is valid for the call, which does not wait: the descriptor is non-blocking.
        if unsafe { get(self.channel.as_ptr(), &mut cq, &mut cq_context) } != 0 {
            return match Error::last("ibv_get_cq_event") {
                error if matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: a queue with an event that was not acknowledged cannot be destroyed; it is acknowledged once.
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

impl Drop for CompChannel {
    fn drop(&mut self) {
        if let Ok(destroy) = self.context.verbs().ibv_destroy_comp_channel() {
            // SAFETY: it lives, and no completion queue uses it: that would keep it.
            destroyed("ibv_destroy_comp_channel", unsafe { destroy(self.channel.as_ptr()) });
        }
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
    /// Where this process sees the ring, if it does. libefa reads there if it is to poll.
    pub buffer: Option<NonNull<u8>>,
    /// Keeps the memory: it lives as long as the device writes there.
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
    cq: NonNull<ibv_cq_ex>,
    context: Arc<Context>,
    _channel: Option<Arc<CompChannel>>,
    /// Keeps the ring's memory, if it is not libefa's.
    memory: Option<Arc<dyn Any + Send + Sync>>,
}

impl Cq {
    /// Creates one (`efadv_create_cq`). Its entries have 32 bytes.
    ///
    /// # Errors
    /// The device refused: too many entries, or it has no events or takes no external memory.
    pub fn create(context: &Arc<Context>, attr: &CqAttr<'_>) -> Result<Self, Error> {
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
        // SAFETY: context and channel live, the attributes are valid for the call and as long as it is told.
        let cq = unsafe { create(context.as_ptr(), &mut ex, &mut efa, size(&efa)) };
        let cq = NonNull::new(cq).ok_or_else(|| Error::last("efadv_create_cq"))?;
        let memory = attr.external.as_ref().and_then(|ring| ring.owner.clone());
        Ok(Self { cq, context: context.clone(), _channel: attr.channel.cloned(), memory })
    }

    /// The queue, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_cq_ex {
        self.cq.as_ptr()
    }

    /// The kernel's number of it, by which events name it.
    pub fn handle(&self) -> u32 {
        // SAFETY: it lives, and its number does not change.
        unsafe { (*self.as_ptr()).handle }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Its ring. Buffer and doorbell are valid as long as `self`; entries are those of each sub-queue. The doorbell is null on a queue without
    /// channel.
    ///
    /// # Errors
    /// The library is older than rdma-core 59.
    pub fn query(&self) -> Result<efadv_cq_attr, Error> {
        let mut attr = efadv_cq_attr::default();
        let query = self.context.libraries().efa()?.efadv_query_cq()?;
        // SAFETY: the queue lives, the attributes are valid for the call and as long as it is told.
        let answer = unsafe { query(ibv_cq_ex_to_cq(self.as_ptr()), &mut attr, size(&attr)) };
        Error::check("efadv_query_cq", answer).map(|()| attr)
    }

    /// libefa's view of the queue, for [`efadv_wc_read_sgid`] and its like. It lives as long as `self`.
    ///
    /// # Errors
    /// The library is older than rdma-core 43.
    pub fn as_efadv(&self) -> Result<*mut efadv_cq, Error> {
        // SAFETY: the queue lives, and is EFA's.
        Ok(unsafe { self.context.libraries().efa()?.efadv_cq_from_ibv_cq_ex()?(self.as_ptr()) })
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        if let Ok(destroy) = self.context.verbs().ibv_destroy_cq() {
            // SAFETY: it lives, and no queue pair completes in it: that would keep it.
            let answer = unsafe { destroy(ibv_cq_ex_to_cq(self.as_ptr())) };
            destroyed("ibv_destroy_cq", answer);
            if answer != 0 {
                // The device may go on writing there.
                std::mem::forget(self.memory.take());
            }
        }
    }
}
