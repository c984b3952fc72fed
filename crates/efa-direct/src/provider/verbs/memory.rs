//! Registered memory, and getting it back.

use efa_soft::Access;
use efa_sys::Mr;
use efa_sys::sys::*;
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;

/// The verbs' names of what a region may be used for.
pub(super) fn access_flags(access: Access) -> ibv_access_flags {
    let mut flags = 0;
    // Verbs want memory that peers may write to be writable by its owner, too.
    if access.allows(Access::LOCAL_WRITE) || access.allows(Access::REMOTE_WRITE) {
        flags |= IBV_ACCESS_LOCAL_WRITE;
    }
    if access.allows(Access::REMOTE_WRITE) {
        flags |= IBV_ACCESS_REMOTE_WRITE;
    }
    if access.allows(Access::REMOTE_READ) {
        flags |= IBV_ACCESS_REMOTE_READ;
    }
    flags
}

/// What a [`Registration`](crate::provider::Registration) of this provider carries.
pub(super) struct Registered {
    mr: Mutex<Option<Mr>>,
    /// Keeps the bytes, if they are not borrowed.
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl Registered {
    pub(super) fn new(mr: Mr, owner: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { mr: Mutex::new(Some(mr)), owner }
    }

    /// Once this returns, nobody but this process touches the bytes; or they are kept for good, if they can be.
    pub(super) fn release(&self) {
        let Some(mr) = self.mr.lock().take() else { return };
        let Err(error) = mr.deregister() else { return };
        if matches!(error.errno(), Some(libc::EIO | libc::ENODEV)) {
            // With the device whoever could touch the memory is gone.
            tracing::warn!(%error, "deregistering memory of a device that is gone");
        } else if let Some(owner) = self.owner.clone() {
            tracing::error!(%error, "memory could not be deregistered: it is kept for good");
            std::mem::forget(owner);
        } else {
            tracing::error!(%error, "borrowed memory could not be deregistered, and peers may go on writing to it: aborting");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_peers_may_write_is_writable_here() {
        assert_eq!(access_flags(Access::LOCAL_READ), 0);
        assert_eq!(access_flags(Access::REMOTE_WRITE), IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_LOCAL_WRITE);
        assert_eq!(access_flags(Access::REMOTE_READ), IBV_ACCESS_REMOTE_READ);
        assert_eq!(
            access_flags(Access::ALL),
            IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ
        );
    }
}
