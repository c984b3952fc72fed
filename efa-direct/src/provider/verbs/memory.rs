//! Registered memory, and how it is taken back from a device.
//!
//! The kernel may refuse to deregister a region, and then the device may still write to it. So the bytes must not be
//! reused: their owner is kept forever, and if the bytes were only borrowed, the process is aborted. Both happen in a
//! guard, because code of others (a subscriber of `tracing`) may unwind on the way.

use efa_sys::Mr;
use efa_sys::sys::*;
use efa_types::Access;
use parking_lot::Mutex;
use std::any::Any;
use std::io::Write;
use std::sync::Arc;

/// Converts access rights into libibverbs' flags.
pub(super) fn access_flags(access: Access) -> ibv_access_flags {
    let mut flags = 0;
    // libibverbs requires local write access for memory that peers may write.
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

/// The token of a [`Registration`](crate::provider::Registration) of this provider: the region, until it is
/// deregistered.
pub(super) struct Registered(Mutex<Option<DeregisterOnDrop>>);

impl Registered {
    pub(super) fn new(mr: Mr, bytes: Bytes) -> Self {
        Self(Mutex::new(Some(DeregisterOnDrop { parts: Some((mr, bytes)) })))
    }

    /// Takes the bytes back from the device. Once this has returned or unwound, only this process accesses them, or
    /// they are kept forever.
    pub(super) fn deregister(&self) {
        let region = self.0.lock().take();
        drop(region); // outside the lock
    }
}

/// A region, and what keeps its bytes. Dropping it takes the bytes back from the device, in [`Registered::deregister`]
/// or wherever else it is dropped.
struct DeregisterOnDrop {
    /// `Some` until it is dropped.
    parts: Option<(Mr, Bytes)>,
}

impl Drop for DeregisterOnDrop {
    fn drop(&mut self) {
        let Some((mr, bytes)) = self.parts.take() else { return };
        let guard = KeepUnlessReleased(Some(bytes));
        match mr.deregister() {
            Ok(()) => guard.release(),
            // Whatever the reason: even errors that report a lost device (`EIO`, `ENODEV`) do not promise that the
            // device has stopped.
            Err(error) => {
                tracing::error!(%error, "memory could not be deregistered, and peers may go on writing to it")
            }
        }
    }
}

/// The owner of a region's bytes.
pub(super) enum Bytes {
    /// The bytes are valid as long as this value lives.
    Owned(Arc<dyn Any + Send + Sync>),
    /// The kernel keeps the bytes as long as the region exists.
    Kernel,
    /// Nobody keeps the bytes: they belong to somebody else again as soon as the region is reported gone.
    Borrowed,
}

/// Bytes that a device may still access. Unless they are [released](Self::release), dropping this keeps them from being
/// reused: it leaks their owner or, if nobody owns them, aborts the process.
struct KeepUnlessReleased(Option<Bytes>);

impl KeepUnlessReleased {
    /// The device accesses the bytes no more.
    fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for KeepUnlessReleased {
    fn drop(&mut self) {
        match self.0.take() {
            None | Some(Bytes::Kernel) => {}
            Some(Bytes::Owned(owner)) => std::mem::forget(owner),
            Some(Bytes::Borrowed) => {
                // There may be neither a subscriber of `tracing` nor a standard error, so failures are ignored.
                let _ = writeln!(std::io::stderr(), "efa-direct: borrowed memory could not be deregistered, aborting");
                std::process::abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verbs;
    use super::super::fake::{contexts, object_counts, refuse};
    use super::*;
    use crate::Device;
    use crate::external::{DmabufRange, ExternalMemory};
    use crate::panics::Panics;
    use crate::provider::{HostRange, Provider};
    use efa_types::{CqAttributes, CqeSize};
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::process::Command;
    use std::sync::Weak;

    const BYTES: usize = 4096;

    fn verbs() -> Arc<Verbs> {
        let [context, _] = contexts();
        Arc::new(Verbs::new("fake0", context).unwrap())
    }

    fn owner() -> (Arc<dyn Any + Send + Sync>, Weak<dyn Any + Send + Sync>) {
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(vec![0u8; BYTES]);
        let weak = Arc::downgrade(&owner);
        (owner, weak)
    }

    fn external(null: &File) -> ExternalMemory<'_> {
        ExternalMemory::dmabuf(DmabufRange { fd: null.as_fd(), offset: 0, len: BYTES as u64 }, 0x10000)
    }

    /// Calls `f`, with a subscriber that panics if `panics` says so.
    fn under(panics: bool, f: impl FnOnce()) {
        if panics {
            let outcome = tracing::subscriber::with_default(Panics, || catch_unwind(AssertUnwindSafe(f)));
            assert!(outcome.is_err(), "it is logged");
        } else {
            f();
        }
    }

    #[test]
    fn an_owner_is_kept_as_long_as_what_it_owns_is_registered_and_no_longer() {
        let (verbs, null) = (verbs(), File::open("/dev/null").unwrap());
        let pd = verbs.alloc_pd().unwrap();
        let host = |owner| HostRange { ptr: std::ptr::NonNull::dangling(), len: BYTES, owner: Some(owner) };
        let register: [&dyn Fn(Arc<dyn Any + Send + Sync>) -> _; 2] =
            [&|owner| verbs.register(pd, host(owner), Access::ALL).unwrap(), &|owner| {
                verbs.register_external(pd, external(&null).owned_by(owner), Access::ALL).unwrap()
            }];
        for register in register {
            let (kept, is) = owner();
            let registration = register(kept);
            assert!(is.upgrade().is_some() && object_counts(&verbs.context).mrs == 1);
            verbs.deregister(&registration);
            assert!(is.upgrade().is_none() && object_counts(&verbs.context).mrs == 0);
            verbs.deregister(&registration);
            // Dropping the registration is enough.
            let (kept, is) = owner();
            drop(register(kept));
            assert!(is.upgrade().is_none() && object_counts(&verbs.context).mrs == 0);
        }
        // Rings and counters keep their owners in the same way.
        let ((ring, ring_is), (word, word_is)) = (owner(), owner());
        let range = DmabufRange { fd: null.as_fd(), offset: 0, len: BYTES as u64 };
        let cq = verbs
            .create_cq_in(CqAttributes { entries: 128, entry_size: CqeSize::Large, events: false }, range, Some(ring))
            .unwrap();
        let counter = verbs.create_counter_in(null.as_fd(), 0, 64, Some(word)).unwrap();
        assert!(ring_is.upgrade().is_some() && word_is.upgrade().is_some());
        verbs.destroy_cq(cq.cqn);
        verbs.destroy_counter(counter);
        assert!(ring_is.upgrade().is_none() && word_is.upgrade().is_none());
    }

    #[test]
    fn an_owner_is_kept_for_good_if_the_kernel_does_not_deregister_even_if_logging_that_panics() {
        for panics in [false, true] {
            for errno in [libc::EBUSY, libc::EIO, libc::ENODEV] {
                let (verbs, null) = (verbs(), File::open("/dev/null").unwrap());
                let device = Device::from_provider(verbs.clone());
                let pd = device.alloc_pd().unwrap();
                let (owned, allocated) = (owner(), pd.allocate(BYTES, Access::ALL).unwrap());
                let region = pd.register_external(external(&null).owned_by(owned.0), Access::ALL).unwrap();
                allocated.write(0, &[7; BYTES]).unwrap();
                let peer_sees = allocated.addr() as *const u8;
                let ((ring, ring_is), (word, word_is)) = (owner(), owner());
                let range = DmabufRange { fd: null.as_fd(), offset: 0, len: BYTES as u64 };
                let cq = verbs
                    .create_cq_in(
                        CqAttributes { entries: 128, entry_size: CqeSize::Large, events: false },
                        range,
                        Some(ring),
                    )
                    .unwrap();
                let counter = verbs.create_counter_in(null.as_fd(), 0, 64, Some(word)).unwrap();
                refuse(&verbs.context, errno);
                under(panics, || drop(region));
                under(panics, || drop(allocated));
                under(panics, || verbs.destroy_cq(cq.cqn));
                under(panics, || verbs.destroy_counter(counter));
                assert!(owned.1.upgrade().is_some() && ring_is.upgrade().is_some() && word_is.upgrade().is_some());
                // SAFETY: the guard under test keeps the region's memory forever. If it did not, this load would fault,
                // and the test would fail.
                assert_eq!(unsafe { peer_sees.read_volatile() }, 7);
                let counts = object_counts(&verbs.context);
                assert_eq!((counts.mrs, counts.cqs, counts.counters, counts.twice), (2, 1, 1, 0));
                refuse(&verbs.context, 0);
            }
        }
    }

    /// Each case runs in its own process, which aborts.
    #[test]
    fn borrowed_bytes_are_not_given_back_if_the_kernel_does_not_deregister() {
        const CHILD: &str = "EFA_VERBS_BORROWED";
        const NAME: &str =
            concat!(module_path!(), "::borrowed_bytes_are_not_given_back_if_the_kernel_does_not_deregister");
        let name = NAME.split_once("::").unwrap().1;
        if let Ok(told) = std::env::var(CHILD) {
            let words: Vec<&str> = told.split(' ').collect();
            let [way, panics, errno] = words[..] else { panic!("{told}") };
            let (verbs, null) = (verbs(), File::open("/dev/null").unwrap());
            let pd = Device::from_provider(verbs.clone()).alloc_pd().unwrap();
            let mut bytes = vec![0u8; BYTES];
            let refuse = || refuse(&verbs.context, errno.parse().unwrap());
            under(panics == "panics", || match way {
                "lent" => drop(pd.with_borrowed(&mut bytes, Access::ALL, |_| refuse())),
                _ => {
                    // A piece that the fake does not take.
                    let (addr, len) = (bytes.as_ptr() as u64, BYTES as u64);
                    let piece = DmabufRange { fd: null.as_fd(), offset: 4096 + addr % 4096, len };
                    let memory = ExternalMemory::dmabuf(piece, addr);
                    // SAFETY: `bytes` outlives the region, and nobody reads it.
                    let region = pd.register_external(unsafe { memory.by_address() }, Access::LOCAL_READ).unwrap();
                    refuse();
                    drop(region);
                }
            });
            println!("the bytes were given back");
            return;
        }
        for way in ["lent", "by-address"] {
            for panics in ["quiet", "panics"] {
                for errno in [libc::EBUSY, libc::EIO, libc::ENODEV] {
                    let mut child = Command::new(std::env::current_exe().unwrap());
                    child.args([name, "--exact", "--nocapture"]).env(CHILD, format!("{way} {panics} {errno}"));
                    let output = child.output().unwrap();
                    let told = [output.stdout, output.stderr].concat();
                    let told = String::from_utf8_lossy(&told);
                    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{way} {panics} {errno}: {told}");
                    assert!(told.contains("borrowed memory could not be deregistered"), "{told}");
                }
            }
        }
    }

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
