//! Protection domains, and what belongs to one and is no queue: memory regions and address handles.

use crate::device::{Context, destroyed, size};
use crate::error::Error;
use crate::sys::*;
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Declares the pointer of a handle sendable: `class` is what it points to.
macro_rules! thread_safe {
    ($($handle:ty),*) => {$(
        // SAFETY: libibverbs' functions may be called from any thread, for any object, but for destroying one, which takes the
        // only handle there is.
        unsafe impl Send for $handle {}
        // SAFETY: as for `Send`.
        unsafe impl Sync for $handle {}
    )*};
}
pub(crate) use thread_safe;

thread_safe!(Pd, Mr, Ah);

/// A protection domain.
pub struct Pd {
    pd: NonNull<ibv_pd>,
    context: Arc<Context>,
}

impl Pd {
    /// Allocates one.
    ///
    /// # Errors
    /// The call failed.
    pub fn alloc(context: &Arc<Context>) -> Result<Self, Error> {
        // SAFETY: the context is open.
        let pd = unsafe { context.verbs().ibv_alloc_pd()?(context.as_ptr()) };
        let pd = NonNull::new(pd).ok_or_else(|| Error::last("ibv_alloc_pd"))?;
        Ok(Self { pd, context: context.clone() })
    }

    /// The domain, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }

    /// The kernel's number of it.
    pub fn handle(&self) -> u32 {
        // SAFETY: it lives, and its number does not change.
        unsafe { (*self.as_ptr()).handle }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        if let Ok(dealloc) = self.context.verbs().ibv_dealloc_pd() {
            // SAFETY: whatever belongs to the domain is destroyed: it keeps the domain.
            destroyed("ibv_dealloc_pd", unsafe { dealloc(self.as_ptr()) });
        }
    }
}

/// A memory region.
pub struct Mr {
    mr: NonNull<ibv_mr>,
    pd: Arc<Pd>,
}

impl Mr {
    /// Registers `len` bytes of this process at `addr`, which work requests name by these addresses. `access` is a sum of `IBV_ACCESS_…`.
    ///
    /// # Errors
    /// The device refused, or the kernel cannot pin the memory.
    ///
    /// # Safety
    /// As long as the region exists, the device and, as far as `access` allows it, peers read and write the bytes: they must stay
    /// allocated, and nobody may rely on what is in them except through atomic or volatile access.
    pub unsafe fn register(
        pd: &Arc<Pd>,
        addr: NonNull<u8>,
        len: usize,
        access: ibv_access_flags,
    ) -> Result<Self, Error> {
        let verbs = pd.context.verbs();
        // SAFETY: the domain lives; the caller vouches for the memory.
        let mr = unsafe {
            if access < IBV_ACCESS_RELAXED_ORDERING {
                verbs.ibv_reg_mr()?(pd.as_ptr(), addr.as_ptr().cast(), len, access as c_int)
            } else {
                // As the headers do for flags that an older kernel is allowed to ignore.
                verbs.ibv_reg_mr_iova2()?(pd.as_ptr(), addr.as_ptr().cast(), len, addr.as_ptr() as u64, access)
            }
        };
        Self::of(pd, mr, "ibv_reg_mr")
    }

    /// Registers `len` bytes of a DMA-BUF, from `offset` on, which work requests name by addresses from `iova` on.
    ///
    /// # Errors
    /// The device refused, or it cannot reach the memory.
    pub fn register_dmabuf(
        pd: &Arc<Pd>,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        iova: u64,
        access: ibv_access_flags,
    ) -> Result<Self, Error> {
        let register = pd.context.verbs().ibv_reg_dmabuf_mr()?;
        // SAFETY: the domain lives; the kernel keeps the buffer as long as the region.
        let mr = unsafe { register(pd.as_ptr(), offset, len, iova, fd.as_raw_fd(), access as c_int) };
        Self::of(pd, mr, "ibv_reg_dmabuf_mr")
    }

    fn of(pd: &Arc<Pd>, mr: *mut ibv_mr, call: &'static str) -> Result<Self, Error> {
        let mr = NonNull::new(mr).ok_or_else(|| Error::last(call))?;
        Ok(Self { mr, pd: pd.clone() })
    }

    /// The region, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// Its local key.
    pub fn lkey(&self) -> u32 {
        // SAFETY: it lives, and its keys do not change.
        unsafe { (*self.as_ptr()).lkey }
    }

    /// Its remote key.
    pub fn rkey(&self) -> u32 {
        // SAFETY: as in `lkey`.
        unsafe { (*self.as_ptr()).rkey }
    }

    /// Which interconnects of the device reach it.
    ///
    /// # Errors
    /// The driver cannot tell, or the library is older than rdma-core 50.
    pub fn query(&self) -> Result<efadv_mr_attr, Error> {
        let mut attr = efadv_mr_attr::default();
        let query = self.pd.context.libraries().efa()?.efadv_query_mr()?;
        // SAFETY: the region lives, the attributes are valid for the call and as long as it is told.
        let answer = unsafe { query(self.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_mr", answer).map(|()| attr)
    }

    /// Deregisters it: once this returns well, nobody but this process touches the memory.
    ///
    /// # Errors
    /// The kernel refused. The region stays registered, for good.
    pub fn deregister(self) -> Result<(), Error> {
        let region = ManuallyDrop::new(self);
        // SAFETY: `region` is not used again, so this moves the domain out, once.
        let pd = unsafe { std::ptr::read(&region.pd) };
        let dereg = pd.context.verbs().ibv_dereg_mr();
        // SAFETY: it lives, and `region` is not used again.
        let outcome = dereg.and_then(|dereg| Error::check("ibv_dereg_mr", unsafe { dereg(region.as_ptr()) }));
        if outcome.is_err() {
            // The region still belongs to it.
            std::mem::forget(pd);
        }
        outcome
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if let Ok(dereg) = self.pd.context.verbs().ibv_dereg_mr() {
            // SAFETY: it lives, and is not used again.
            destroyed("ibv_dereg_mr", unsafe { dereg(self.as_ptr()) });
        }
    }
}

/// An address handle.
pub struct Ah {
    ah: NonNull<ibv_ah>,
    number: u16,
    pd: Arc<Pd>,
}

impl Ah {
    /// A handle of the device with this GID, reached through port 1.
    ///
    /// # Errors
    /// The device refused.
    pub fn create(pd: &Arc<Pd>, gid: [u8; 16]) -> Result<Self, Error> {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid = ibv_gid { raw: gid };
        let query = pd.context.libraries().efa()?.efadv_query_ah()?;
        // SAFETY: the domain lives, the attributes are valid for the call.
        let ah = unsafe { pd.context.verbs().ibv_create_ah()?(pd.as_ptr(), &mut attr) };
        let ah = NonNull::new(ah).ok_or_else(|| Error::last("ibv_create_ah"))?;
        let mut handle = Self { ah, number: 0, pd: pd.clone() };
        let mut attr = efadv_ah_attr::default();
        // SAFETY: the handle lives, the attributes are valid for the call and as long as it is told.
        Error::check("efadv_query_ah", unsafe { query(ah.as_ptr(), &mut attr, size(&attr)) })?;
        handle.number = attr.ahn;
        Ok(handle)
    }

    /// Its number, as work requests name it. A device gives all handles of a domain and a GID the same.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The handle, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_ah {
        self.ah.as_ptr()
    }
}

impl Drop for Ah {
    fn drop(&mut self) {
        if let Ok(destroy) = self.pd.context.verbs().ibv_destroy_ah() {
            // SAFETY: it lives, and is not used again.
            destroyed("ibv_destroy_ah", unsafe { destroy(self.as_ptr()) });
        }
    }
}

/// Where memory of a DMA-BUF is that a device is to write to.
pub(crate) fn memory_in(fd: BorrowedFd<'_>, offset: u64) -> efadv_memory_location {
    let mut location = efadv_memory_location { type_: EFADV_MEMORY_LOCATION_DMABUF as u8, ..Default::default() };
    location.dmabuf.fd = fd.as_raw_fd();
    location.dmabuf.offset = offset;
    location
}

/// Where memory is that a device is to write to.
pub(crate) fn memory_at(addr: NonNull<c_void>) -> efadv_memory_location {
    efadv_memory_location { ptr: addr.as_ptr().cast(), type_: EFADV_MEMORY_LOCATION_VA as u8, ..Default::default() }
}
