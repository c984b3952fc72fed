//! Protection domains, and what belongs to one and is no queue: memory regions and address handles.

use crate::device::{Context, size};
use crate::error::Error;
use crate::object::Object;
use crate::sys::*;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// A protection domain.
pub struct Pd {
    pd: Object<ibv_pd, Arc<Context>>,
}

impl Pd {
    /// Allocates one.
    ///
    /// # Errors
    /// The call failed.
    pub fn alloc(context: &Arc<Context>) -> Result<Self, Error> {
        let alloc = context.verbs().ibv_alloc_pd()?;
        let dealloc = ("ibv_dealloc_pd", context.verbs().ibv_dealloc_pd()?);
        // SAFETY: the context is open, and is all that a domain is made of.
        Ok(Self { pd: unsafe { Object::new("ibv_alloc_pd", alloc(context.as_ptr()), dealloc, context.clone()) }? })
    }

    /// The domain, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }

    /// The kernel's number of it.
    pub fn handle(&self) -> u32 {
        // SAFETY: it lives as long as `self.pd`, and the library set its number when it made it, and never again.
        unsafe { (*self.as_ptr()).handle }
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        self.pd.parts()
    }
}

/// A memory region.
pub struct Mr {
    mr: Object<ibv_mr, Arc<Pd>>,
}

impl Mr {
    /// Registers `len` bytes of this process at `addr`, which work requests name by these addresses. `access` is a sum of `IBV_ACCESS_…`.
    ///
    /// # Errors
    /// The device refused, or the kernel cannot pin the memory.
    ///
    /// # Safety
    /// As long as the region exists, the device and, as far as `access` allows it, peers read and write the bytes: they
    /// must stay allocated, and nobody may rely on what is in them except through atomic or volatile access. A region
    /// that the kernel refuses to deregister exists for good. [`deregister`](Self::deregister) tells; dropping the
    /// region only logs it.
    pub unsafe fn register(
        pd: &Arc<Pd>,
        addr: NonNull<u8>,
        len: usize,
        access: ibv_access_flags,
    ) -> Result<Self, Error> {
        let verbs = pd.context().verbs();
        let dereg = verbs.ibv_dereg_mr()?;
        // SAFETY: the domain lives, and is all that a region is made of but for the memory, for which the caller
        // vouches.
        unsafe {
            let mr = if access < IBV_ACCESS_RELAXED_ORDERING {
                verbs.ibv_reg_mr()?(pd.as_ptr(), addr.as_ptr().cast(), len, access as c_int)
            } else {
                // As the headers do for flags that an older kernel is allowed to ignore.
                verbs.ibv_reg_mr_iova2()?(pd.as_ptr(), addr.as_ptr().cast(), len, addr.as_ptr() as u64, access)
            };
            Self::of(pd, mr, "ibv_reg_mr", dereg)
        }
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
        let register = pd.context().verbs().ibv_reg_dmabuf_mr()?;
        let dereg = pd.context().verbs().ibv_dereg_mr()?;
        // SAFETY: the domain lives, and is all that a region is made of but for the memory, which is the DMA-BUF's: the
        // kernel holds that as long as the region exists (`ib_umem_dmabuf_get`), and it is no Rust object's.
        unsafe {
            let mr = register(pd.as_ptr(), offset, len, iova, fd.as_raw_fd(), access as c_int);
            Self::of(pd, mr, "ibv_reg_dmabuf_mr", dereg)
        }
    }

    /// # Safety
    /// `mr` is null or a region of this domain that was just registered by `call`, and its memory is kept.
    unsafe fn of(
        pd: &Arc<Pd>,
        mr: *mut ibv_mr,
        call: &'static str,
        dereg: unsafe extern "C" fn(*mut ibv_mr) -> c_int,
    ) -> Result<Self, Error> {
        // SAFETY: the caller's; but for memory, a region uses its domain alone.
        Ok(Self { mr: unsafe { Object::new(call, mr, ("ibv_dereg_mr", dereg), pd.clone()) }? })
    }

    /// The region, for functions of [`sys`](crate::sys). It lives as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// Its local key.
    pub fn lkey(&self) -> u32 {
        // SAFETY: it lives as long as `self.mr`, and the library set its keys when it made it, and never again.
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
        let query = self.mr.parts().context().libraries().efa()?.efadv_query_mr()?;
        // SAFETY: the region lives as long as `self.mr`; `attr` is this function's own, and has the size that is told.
        let answer = unsafe { query(self.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_mr", answer).map(|()| attr)
    }

    /// Deregisters it: once this returns well, nobody but this process touches the memory.
    ///
    /// # Errors
    /// The kernel refused, whatever its reason: the region stays registered, for good, and so its memory has to stay.
    /// `EIO` and `ENODEV`, with which refuses who has lost its device, are no exception: nobody says that the device
    /// has stopped.
    pub fn deregister(self) -> Result<(), Error> {
        self.mr.destroy()
    }
}

/// An address handle.
pub struct Ah {
    ah: Object<ibv_ah, Arc<Pd>>,
    number: u16,
}

impl Ah {
    /// A handle of the device with this GID, reached through port 1.
    ///
    /// # Errors
    /// The device refused.
    pub fn create(pd: &Arc<Pd>, gid: [u8; 16]) -> Result<Self, Error> {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid = ibv_gid { raw: gid };
        let (verbs, query) = (pd.context().verbs(), pd.context().libraries().efa()?.efadv_query_ah()?);
        let (create, destroy) = (verbs.ibv_create_ah()?, ("ibv_destroy_ah", verbs.ibv_destroy_ah()?));
        // SAFETY: the domain lives, and is all that an address handle is made of; `attr` is this function's own.
        let ah = unsafe { Object::new("ibv_create_ah", create(pd.as_ptr(), &mut attr), destroy, pd.clone())? };
        let mut attr = efadv_ah_attr::default();
        // SAFETY: the handle lives as long as `ah`; `attr` is this function's own, and has the size that is told.
        Error::check("efadv_query_ah", unsafe { query(ah.as_ptr(), &mut attr, size(&attr)) })?;
        Ok(Self { ah, number: attr.ahn })
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
