//! The owner of a library's object, which every handle has inside.

use crate::error::Error;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// An object of the library together with its *parts*: the other objects and the memory that it uses.
///
/// Dropping it destroys the object, and then, only if that succeeded, drops the parts. In every other case (the kernel
/// refuses, or a panic unwinds) the parts are kept for the life of the process. So the device never writes to memory
/// that has been reused.
pub(crate) struct Object<T, P> {
    ptr: NonNull<T>,
    call: &'static str,
    destroy: unsafe extern "C" fn(*mut T) -> c_int,
    parts: ManuallyDrop<P>,
}

// SAFETY: libibverbs' objects belong to no thread: its functions may be called from any thread, for any object, at any
// time (`Documentation/libibverbs.md` of rdma-core). The exception is destroying, which only `drop` and `destroy` do.
// They own the only `Object` of the library's object. The parts are `Send` themselves.
unsafe impl<T, P: Send> Send for Object<T, P> {}
// SAFETY: libibverbs' functions may be called from several threads at once for the same object, except destroying,
// which needs an owned `Object` and is therefore impossible through a shared reference. The parts are `Sync`
// themselves.
unsafe impl<T, P: Sync> Sync for Object<T, P> {}

impl<T, P> Object<T, P> {
    /// Takes ownership of the object that the function named `create` has just returned.
    ///
    /// # Errors
    /// `ptr` is null: `create` failed. The error is in `errno`.
    ///
    /// # Safety
    /// `ptr` is null or a live object. `destroy.1`, whose name is `destroy.0`, destroys such objects, and nobody else
    /// calls it for this one. `parts` keeps everything that the library, the kernel and the device use for the object.
    pub(crate) unsafe fn new(
        create: &'static str,
        ptr: *mut T,
        destroy: (&'static str, unsafe extern "C" fn(*mut T) -> c_int),
        parts: P,
    ) -> Result<Self, Error> {
        // If nothing was created, `parts` is dropped here.
        let ptr = NonNull::new(ptr).ok_or_else(|| Error::last(create))?;
        Ok(Self { ptr, call: destroy.0, destroy: destroy.1, parts: ManuallyDrop::new(parts) })
    }

    /// Returns the object for functions of the library. The pointer is valid as long as `self`.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }

    /// Returns what the object uses.
    pub(crate) fn parts(&self) -> &P {
        &self.parts
    }

    /// Destroys the object and reports a failure, which dropping only logs.
    pub(crate) fn destroy(self) -> Result<(), Error> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `ManuallyDrop` keeps `drop` from calling it a second time, and `this` is not used afterwards.
        unsafe { this.destroy_once() }
    }

    /// Destroys the object and, if that succeeds, drops the parts.
    ///
    /// # Safety
    /// It is called once, and nothing of `self` is used afterwards.
    unsafe fn destroy_once(&mut self) -> Result<(), Error> {
        // SAFETY: by `new`'s contract the object lives until it is destroyed, and `destroy` destroys such objects. The
        // caller guarantees that this is the only call. The parts, which are all that the object uses, have not been
        // dropped yet.
        Error::check(self.call, unsafe { (self.destroy)(self.as_ptr()) })?;
        // SAFETY: only this line drops the parts. It runs once and nothing uses them afterwards, which the caller
        // guarantees.
        unsafe { ManuallyDrop::drop(&mut self.parts) };
        Ok(())
    }
}

impl<T, P> Drop for Object<T, P> {
    fn drop(&mut self) {
        // SAFETY: `drop` runs at most once, `destroy` prevents it, and nothing uses the object after `drop`.
        if let Err(error) = unsafe { self.destroy_once() } {
            // Objects are destroyed in the right order by construction, so a caller could not do anything about this. A
            // subscriber may panic here: the parts are kept already.
            tracing::error!(%error, "an object that could not be destroyed is kept for good, with its parts");
        }
    }
}
