//! What every handle has inside: an object of the library, and all that it is made of.

use crate::device::Context;
use crate::error::Error;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

/// An object of the library with its parts: all that it uses, other objects and memory. It is destroyed when this is
/// dropped; only then, and only if that went well, are the parts let go of.
///
/// To keep the parts for good is what happens if nothing else does: the kernel refuses, or somebody unwinds. So a
/// device never has an object whose memory is somebody else's again.
pub(crate) struct Object<T, P> {
    ptr: NonNull<T>,
    call: &'static str,
    destroy: unsafe extern "C" fn(*mut T) -> c_int,
    parts: ManuallyDrop<P>,
}

// SAFETY: the object has no thread of its own: libibverbs' functions may be called from any thread, for any object, at
// any time (`Documentation/libibverbs.md` of rdma-core), but for destroying, which `drop` and `destroy` do: they have
// the only `Object` there is of it. The parts are sendable themselves.
unsafe impl<T, P: Send> Send for Object<T, P> {}
// SAFETY: as for `Send`; through a shared reference nothing is destroyed, and the parts may be shared themselves.
unsafe impl<T, P: Sync> Sync for Object<T, P> {}

impl<T, P> Object<T, P> {
    /// What `create` made, if it made something.
    ///
    /// # Errors
    /// It made nothing: `errno`, as `create` left it.
    ///
    /// # Safety
    /// `ptr` is null or a live object; `destroy.1`, which is named `destroy.0`, destroys it, and nobody else calls that
    /// for it. Whatever the library, the kernel and the device use for it stays as long as `parts` does.
    pub(crate) unsafe fn new(
        create: &'static str,
        ptr: *mut T,
        destroy: (&'static str, unsafe extern "C" fn(*mut T) -> c_int),
        parts: P,
    ) -> Result<Self, Error> {
        // Of nothing there is nothing to keep.
        let ptr = NonNull::new(ptr).ok_or_else(|| Error::last(create))?;
        Ok(Self { ptr, call: destroy.0, destroy: destroy.1, parts: ManuallyDrop::new(parts) })
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }

    pub(crate) fn parts(&self) -> &P {
        &self.parts
    }

    /// Destroys the object, and tells what came of it.
    pub(crate) fn destroy(self) -> Result<(), Error> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used again, nor dropped.
        unsafe { this.end() }
    }

    /// # Safety
    /// It is called once, and nothing of `self` is used afterwards.
    unsafe fn end(&mut self) -> Result<(), Error> {
        // SAFETY: by `new`'s contract the object lives until this call, which is the only one, and all that it uses is
        // still there: the parts are.
        Error::check(self.call, unsafe { (self.destroy)(self.as_ptr()) })?;
        // SAFETY: they are dropped here alone, and not used again, as the caller says.
        unsafe { ManuallyDrop::drop(&mut self.parts) };
        Ok(())
    }
}

impl<T, P> Drop for Object<T, P> {
    fn drop(&mut self) {
        // SAFETY: nothing is used after `drop`.
        if let Err(error) = unsafe { self.end() } {
            // Objects are destroyed in the right order by construction, so this is news that nobody can act upon. A
            // subscriber may panic over it: the parts are kept by then.
            tracing::error!(%error, "an object that could not be destroyed is kept for good, with its parts");
        }
    }
}

/// Refuses a call that brings objects of several open devices together. The kernel takes their numbers for those of one
/// device, and would use, or destroy, whatever has such a number there.
pub(crate) fn of_one_device<const N: usize>(
    call: &'static str,
    (what, context): (&'static str, &Arc<Context>),
    others: [(&'static str, &Arc<Context>); N],
) -> Result<(), Error> {
    match others.into_iter().find(|(_, other)| !Arc::ptr_eq(context, other)) {
        None => Ok(()),
        Some((other, its)) => {
            Err(Error::TwoDevices { call, what, device: context.name().into(), other, other_device: its.name().into() })
        }
    }
}
