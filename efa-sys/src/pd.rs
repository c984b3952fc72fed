//! Protection domains, memory regions and address handles.

use crate::device::{Context, size};
use crate::error::Error;
use crate::object::Object;
use crate::sys::*;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// A protection domain: queue pairs, memory regions and address handles work together only within one.
pub struct Pd {
    pd: Object<ibv_pd, Arc<Context>>,
}

impl Pd {
    /// Allocates a protection domain.
    ///
    /// # Errors
    /// The call failed.
    pub fn alloc(context: &Arc<Context>) -> Result<Self, Error> {
        let alloc = context.verbs().ibv_alloc_pd()?;
        let dealloc = ("ibv_dealloc_pd", context.verbs().ibv_dealloc_pd()?);
        // SAFETY: the domain uses only its context, which the `Object` keeps open.
        Ok(Self { pd: unsafe { Object::new("ibv_alloc_pd", alloc(context.as_ptr()), dealloc, context.clone()) }? })
    }

    /// Returns the domain for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_pd {
        self.pd.as_ptr()
    }

    /// Returns the number that the kernel knows the domain by.
    pub fn handle(&self) -> u32 {
        // SAFETY: `self.pd` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).handle }
    }

    /// Returns the device that the domain belongs to.
    pub fn context(&self) -> &Arc<Context> {
        self.pd.parts()
    }
}

/// A memory region: registered memory that the device may access.
pub struct Mr {
    mr: Object<ibv_mr, Arc<Pd>>,
}

impl Mr {
    /// Registers `len` bytes of this process's memory at `addr`. Work requests use the same addresses. `access` is a
    /// combination of `IBV_ACCESS_…` flags.
    ///
    /// # Errors
    /// The device refuses, or the kernel cannot pin the memory.
    ///
    /// # Safety
    /// As long as the region exists, the device reads and writes the bytes, and peers do as far as `access` allows it.
    /// The memory must stay allocated, and all access to it must be atomic or volatile. If the kernel refuses to
    /// deregister the region, it exists for the life of the process. [`deregister`](Self::deregister) reports such a
    /// refusal; dropping the region only logs it.
    pub unsafe fn register(
        pd: &Arc<Pd>,
        addr: NonNull<u8>,
        len: usize,
        access: ibv_access_flags,
    ) -> Result<Self, Error> {
        let verbs = pd.context().verbs();
        let dereg = verbs.ibv_dereg_mr()?;
        // SAFETY: the region uses its domain, which the `Object` keeps, and the memory, for which the caller is
        // responsible.
        unsafe {
            let mr = if access < IBV_ACCESS_RELAXED_ORDERING {
                verbs.ibv_reg_mr()?(pd.as_ptr(), addr.as_ptr().cast(), len, access as c_int)
            } else {
                // The macro `ibv_reg_mr` in verbs.h does the same for flags that an older kernel may ignore.
                verbs.ibv_reg_mr_iova2()?(pd.as_ptr(), addr.as_ptr().cast(), len, addr.as_ptr() as u64, access)
            };
            Self::of(pd, mr, "ibv_reg_mr", dereg)
        }
    }

    /// Registers `len` bytes of a DMA-BUF, beginning at byte `offset`. In work requests, their addresses begin at
    /// `iova`.
    ///
    /// # Errors
    /// The device refuses, or it cannot access the memory.
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
        // SAFETY: the region uses its domain, which the `Object` keeps, and the DMA-BUF's memory, which the kernel
        // keeps as long as the region exists (`ib_umem_dmabuf_get`). No Rust object is in that memory.
        unsafe {
            let mr = register(pd.as_ptr(), offset, len, iova, fd.as_raw_fd(), access as c_int);
            Self::of(pd, mr, "ibv_reg_dmabuf_mr", dereg)
        }
    }

    /// Takes ownership of a region that `call` has just registered.
    ///
    /// # Safety
    /// `mr` is null or such a region of this domain. Its memory stays allocated as long as the region exists.
    unsafe fn of(
        pd: &Arc<Pd>,
        mr: *mut ibv_mr,
        call: &'static str,
        dereg: unsafe extern "C" fn(*mut ibv_mr) -> c_int,
    ) -> Result<Self, Error> {
        // SAFETY: `mr` is null or a region that nobody else owns, and its memory is kept: the caller guarantees both.
        // Apart from the memory it uses only its domain, which is its part.
        Ok(Self { mr: unsafe { Object::new(call, mr, ("ibv_dereg_mr", dereg), pd.clone()) }? })
    }

    /// Returns the region for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_mr {
        self.mr.as_ptr()
    }

    /// Returns the region's local key, by which this device's work requests name it.
    pub fn lkey(&self) -> u32 {
        // SAFETY: `self.mr` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).lkey }
    }

    /// Returns the region's remote key, by which peers' RDMA requests name it.
    pub fn rkey(&self) -> u32 {
        // SAFETY: `self.mr` keeps the object alive. The library writes this field only when it creates the object.
        unsafe { (*self.as_ptr()).rkey }
    }

    /// Returns the interconnects through which the device accesses the region.
    ///
    /// # Errors
    /// The driver does not report them, or the library is older than rdma-core 50.
    pub fn query(&self) -> Result<efadv_mr_attr, Error> {
        let mut attr = efadv_mr_attr::default();
        let query = self.mr.parts().context().libraries().efa()?.efadv_query_mr()?;
        // SAFETY: `self.mr` keeps the region alive; `attr` is a local of the size that is passed.
        let answer = unsafe { query(self.as_ptr(), &mut attr, size(&attr)) };
        Error::check("efadv_query_mr", answer).map(|()| attr)
    }

    /// Deregisters the region. After success, neither the device nor a peer accesses the memory.
    ///
    /// # Errors
    /// The kernel refuses. Then the region stays registered for the life of the process, and its memory must stay
    /// allocated as long. This also holds for `EIO` and `ENODEV`, which a kernel returns that has lost its device: they
    /// do not say that the device has stopped.
    pub fn deregister(self) -> Result<(), Error> {
        self.mr.destroy()
    }
}

/// An address handle: a peer's address in the form that work requests name it by.
pub struct Ah {
    ah: Object<ibv_ah, Arc<Pd>>,
    number: u16,
}

impl Ah {
    /// Creates an address handle for the device with this GID (in network order), which is reached through port 1.
    ///
    /// # Errors
    /// The device refuses.
    pub fn create(pd: &Arc<Pd>, gid: [u8; 16]) -> Result<Self, Error> {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid = ibv_gid { raw: gid };
        let (verbs, query) = (pd.context().verbs(), pd.context().libraries().efa()?.efadv_query_ah()?);
        let (create, destroy) = (verbs.ibv_create_ah()?, ("ibv_destroy_ah", verbs.ibv_destroy_ah()?));
        // SAFETY: an address handle uses only its domain, which the `Object` keeps; `attr` is a local.
        let ah = unsafe { Object::new("ibv_create_ah", create(pd.as_ptr(), &mut attr), destroy, pd.clone())? };
        let mut attr = efadv_ah_attr::default();
        // SAFETY: `ah` keeps the handle alive; `attr` is a local of the size that is passed.
        Error::check("efadv_query_ah", unsafe { query(ah.as_ptr(), &mut attr, size(&attr)) })?;
        Ok(Self { ah, number: attr.ahn })
    }

    /// Returns the number of the address handle in work requests. All handles of one domain with the same GID have the
    /// same number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the handle for functions of [`sys`](crate::sys). The pointer is valid as long as `self`.
    pub fn as_ptr(&self) -> *mut ibv_ah {
        self.ah.as_ptr()
    }
}

/// Returns the location of memory in a DMA-BUF, `offset` bytes from its beginning.
pub(crate) fn memory_in(fd: BorrowedFd<'_>, offset: u64) -> efadv_memory_location {
    let mut location = efadv_memory_location { type_: EFADV_MEMORY_LOCATION_DMABUF as u8, ..Default::default() };
    location.dmabuf.fd = fd.as_raw_fd();
    location.dmabuf.offset = offset;
    location
}

/// Returns the location of memory of this process.
pub(crate) fn memory_at(addr: NonNull<c_void>) -> efadv_memory_location {
    efadv_memory_location { ptr: addr.as_ptr().cast(), type_: EFADV_MEMORY_LOCATION_VA as u8, ..Default::default() }
}
