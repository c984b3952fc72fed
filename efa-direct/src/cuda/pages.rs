//! Pages of this process that are registered with CUDA, so that GPUs access them.
//!
//! CUDA registers a page for all GPUs of the process (`cuMemHostRegister`), and refuses a page that is registered
//! already. But rings and doorbells share pages. So this module counts the users of each registered range: a new range
//! uses the pages that are registered, and registers the rest.

use super::context::Context;
use super::driver::{cuda, log_failure};
use super::error::{CudaError, GpuError};
use cudarc::driver::sys;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of this process to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
}

/// The kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ordinary memory that the GPU writes.
    Written,
    /// Ordinary memory that the GPU only reads. libefa maps completion rings read-only, so this process cannot write
    /// them either.
    Read,
    /// Device memory, or a device's register.
    Device,
}

impl Kind {
    /// Returns the flags to try with CUDA, one after the other, until it accepts. If it accepts none, the answer to the
    /// first is reported.
    fn flags(self) -> &'static [u32] {
        const ORDINARY: u32 = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        match self {
            Self::Written => &[ORDINARY],
            Self::Read => &[ORDINARY, ORDINARY | sys::CU_MEMHOSTREGISTER_READ_ONLY],
            // A software device under the vendor's library has ordinary memory in place of device memory. Real device
            // memory cannot be registered as ordinary memory, since the kernel pins only memory that has
            // `struct page`s.
            Self::Device => &[ORDINARY | sys::CU_MEMHOSTREGISTER_IOMEMORY, ORDINARY],
        }
    }
}

/// A range of pages that is registered with CUDA.
struct Entry {
    pages: Range<u64>,
    users: u32,
    /// The context that registered it, which also unregisters it.
    context: Arc<Context>,
}

/// The registered ranges, ordered by address. They do not overlap.
static REGISTERED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// Pages that stay registered until this is dropped, and the address at which the GPU sees the bytes in them.
pub(super) struct Pages {
    device_addr: u64,
    /// The first page of each registered range that is used.
    starts: Vec<u64>,
}

/// Returns the whole pages that contain these bytes.
fn pages_of(addr: u64, len: u64, page: u64) -> Range<u64> {
    let end = addr.saturating_add(len.max(1)).checked_next_multiple_of(page).unwrap_or(!(page - 1));
    addr & !(page - 1)..end
}

/// A part of a range of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// In the registered range that begins here.
    Registered(u64),
    /// Not registered.
    Missing(Range<u64>),
}

/// Returns the parts of `wanted`, in order, given the ordered ranges that are registered.
fn parts(there: impl Iterator<Item = Range<u64>>, wanted: &Range<u64>) -> Vec<Part> {
    let (mut parts, mut at) = (Vec::new(), wanted.start);
    for range in there.filter(|range| range.start < wanted.end && wanted.start < range.end) {
        if at < range.start {
            parts.push(Part::Missing(at..range.start));
        }
        parts.push(Part::Registered(range.start));
        at = range.end;
    }
    if at < wanted.end {
        parts.push(Part::Missing(at..wanted.end));
    }
    parts
}

/// Returns the size of a page in bytes.
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

impl Pages {
    /// Registers the pages of these bytes that are not registered, and finds the address at which `context` sees the
    /// bytes.
    pub(super) fn register(context: &Arc<Context>, bytes: Bytes) -> Result<Self, GpuError> {
        let wanted = pages_of(bytes.addr, bytes.len, page_bytes());
        // Made before the lock is taken, so that it is dropped after the lock is released: dropping `Pages` takes the
        // lock, to give back what it used before a failure.
        let mut pages = Self { device_addr: 0, starts: Vec::new() };
        let mut registered = REGISTERED.lock();
        let device_addr = pages.take(&mut registered, context, bytes, &wanted)?;
        pages.device_addr = device_addr + (bytes.addr - wanted.start);
        Ok(pages)
    }

    /// Returns the address at which the GPU sees the bytes.
    pub(super) fn device_addr(&self) -> u64 {
        self.device_addr
    }

    /// Uses all parts of `wanted`, and returns the GPU's address of its first page.
    fn take(
        &mut self,
        registered: &mut Vec<Entry>,
        context: &Arc<Context>,
        bytes: Bytes,
        wanted: &Range<u64>,
    ) -> Result<u64, GpuError> {
        let mut first = None;
        for part in parts(registered.iter().map(|entry| entry.pages.clone()), wanted) {
            let (start, from) = match part {
                Part::Registered(start) => (start, start.max(wanted.start)),
                Part::Missing(range) => {
                    register(context, &range, bytes.kind)?;
                    let start = range.start;
                    let place = registered.partition_point(|entry| entry.pages.start < start);
                    registered.insert(place, Entry { pages: range, users: 0, context: context.clone() });
                    (start, start)
                }
            };
            if let Some(entry) = registered.iter_mut().find(|entry| entry.pages.start == start) {
                entry.users += 1;
                self.starts.push(start);
            }
            // The GPU's address of the first page, if the GPU sees the parts at the same distances as this process
            // does.
            let seen = device_addr(context, from)?.wrapping_sub(from - wanted.start);
            if *first.get_or_insert(seen) != seen {
                return Err(GpuError::Scattered { addr: bytes.addr, len: bytes.len });
            }
        }
        Ok(first.unwrap_or(0))
    }

    /// Ends the use of all parts. Those without users are unregistered.
    fn give_back(&mut self, registered: &mut Vec<Entry>) {
        for start in self.starts.drain(..) {
            let Some(place) = registered.iter().position(|entry| entry.pages.start == start) else { continue };
            registered[place].users -= 1;
            if registered[place].users == 0 {
                let entry = registered.remove(place);
                let done = entry.context.enter().and_then(|_current| {
                    // SAFETY: `register` registered these pages by this address, and their last user is gone. Kernels
                    // that know the address have ended: that is the promise of whoever launched them.
                    unsafe { cuda!(cuMemHostUnregister(start as *mut _)) }
                });
                log_failure("unregistering pages", done);
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.give_back(&mut REGISTERED.lock());
    }
}

/// Registers pages with CUDA.
fn register(context: &Arc<Context>, pages: &Range<u64>, kind: Kind) -> Result<(), GpuError> {
    let _current = context.enter()?;
    let (addr, len) = (pages.start, pages.end - pages.start);
    let mut refused = None;
    for &flags in kind.flags() {
        // SAFETY: registering pins or maps pages, which changes nothing for this process. CUDA refuses addresses
        // without pages, or with pages of another kind. The pages stay as long as they are registered: `Mapped` owns
        // both the queue that they belong to and the `Pages`, and drops the `Pages` first.
        match unsafe { cuda!(cuMemHostRegister_v2(addr as *mut _, len as usize, flags)) } {
            Ok(()) => return Ok(()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(source) if kind == Kind::Device => Err(GpuError::IoMemory { addr, len, source }),
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Returns the GPU's address of a registered address.
fn device_addr(context: &Arc<Context>, addr: u64) -> Result<u64, CudaError> {
    let _current = context.enter()?;
    let mut seen = 0;
    // SAFETY: `seen` is valid for the call, which writes it. CUDA refuses an address that is not registered.
    unsafe { cuda!(cuMemHostGetDevicePointer_v2(&mut seen, addr as *mut _, 0)) }?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Gpu;
    use efa_memory::SharedMemory;
    use rustix::mm::{MapFlags, ProtFlags};

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn memory_that_this_process_cannot_write_is_mapped_for_reading() {
        let gpu = Gpu::open(0).unwrap();
        let memory = SharedMemory::shareable(8192).unwrap();
        // SAFETY: a new mapping of the file, at an address of the kernel's choice. Nobody unmaps it.
        let addr = unsafe {
            let file = memory.file().unwrap();
            rustix::mm::mmap(std::ptr::null_mut(), 8192, ProtFlags::READ, MapFlags::SHARED, file, 0).unwrap() as u64
        };
        let bytes = |kind| Bytes { addr: addr + 64, len: 4096, kind };
        println!("to be written: {:?}", Pages::register(&gpu.context, bytes(Kind::Written)).map(|_| ()));
        println!("device memory: {:?}", Pages::register(&gpu.context, bytes(Kind::Device)).map(|_| ()));
        let pages = Pages::register(&gpu.context, bytes(Kind::Read)).unwrap();
        assert_ne!(pages.device_addr(), 0);
        assert_eq!(pages.device_addr() % 4096, 64);
    }

    /// Without CUDA, calls into it panic. `Gpu::open` would have refused before.
    #[test]
    fn a_mapping_that_unwinds_lets_others_map() {
        if crate::cuda::driver::load().is_ok() {
            return; // A refusal is tested below.
        }
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..2 {
                let context = Arc::new(Context::without_cuda());
                let bytes = Bytes { addr: 4096, len: 4096, kind: Kind::Written };
                let register = || Pages::register(&context, bytes).map(|_| ());
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(register));
                std::mem::forget(context); // it would call CUDA
                done.send(outcome.is_err()).unwrap();
            }
        });
        let wait = || is_done.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!([wait(), wait()], [Ok(true); 2], "a thread waits for a lock that it holds");
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn a_refused_mapping_gives_back_what_it_took_and_lets_others_map() {
        let gpu = Gpu::open(0).unwrap();
        let memory = SharedMemory::zeroed(2 * 4096).unwrap();
        let addr = memory.as_ptr() as u64;
        let bytes = |addr, len| Bytes { addr, len, kind: Kind::Written };
        let first = Pages::register(&gpu.context, bytes(addr, 4096)).unwrap();
        // A page that is registered, with addresses of the kernel behind it; and an address without a page.
        for refused in [bytes(addr, 1 << 62), bytes(4096, 4096)] {
            assert!(Pages::register(&gpu.context, refused).is_err());
        }
        let there = || REGISTERED.lock().iter().map(|entry| (entry.pages.start, entry.users)).collect::<Vec<_>>();
        assert!(there().contains(&(addr, 1)) && there().iter().all(|&(start, _)| start != 4096));
        drop(first);
        assert!(there().iter().all(|&(start, _)| start != addr));
        drop(Pages::register(&gpu.context, bytes(addr, 8192)).unwrap());
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn pages_are_registered_once_and_unregistered_with_their_last_user() {
        let gpu = Gpu::open(0).unwrap();
        let memory = SharedMemory::zeroed(5 * 4096).unwrap();
        let at = |page: u64, pages: u64| Bytes {
            addr: memory.as_ptr() as u64 + page * 4096 + 8,
            len: pages * 4096 - 16,
            kind: Kind::Written,
        };
        let register = |page, pages| Pages::register(&gpu.context, at(page, pages)).unwrap();
        let registered = || {
            let start = memory.as_ptr() as u64;
            REGISTERED.lock().iter().filter(|entry| (start..start + 5 * 4096).contains(&entry.pages.start)).count()
        };
        let (first, again) = (register(1, 1), register(1, 1));
        assert_eq!((first.device_addr(), registered()), (again.device_addr(), 1));
        let all = register(0, 5);
        assert_eq!((first.device_addr() - all.device_addr(), registered()), (4096, 3));
        drop((first, again));
        assert_eq!(registered(), 3);
        drop(all);
        assert_eq!(registered(), 0);
        drop(register(0, 5));
    }

    #[test]
    fn device_memory_is_asked_for_as_such_and_what_is_only_read_may_be_read_only() {
        assert_eq!(Kind::Written.flags(), [3]);
        assert_eq!(Kind::Read.flags(), [3, 0xb]);
        assert_eq!(Kind::Device.flags(), [7, 3]);
    }

    #[test]
    fn bytes_take_whole_pages() {
        assert_eq!(pages_of(0x1000, 4096, 4096), 0x1000..0x2000);
        assert_eq!(pages_of(0x1004, 4, 4096), 0x1000..0x2000);
        assert_eq!(pages_of(0x1ffc, 8, 4096), 0x1000..0x3000);
        assert_eq!(pages_of(0x1_1000, 4096, 65536), 0x1_0000..0x2_0000);
        assert_eq!(pages_of(0x1000, 0, 4096), 0x1000..0x2000, "a page at least");
        assert_eq!(pages_of(u64::MAX - 1, 8, 4096).start, u64::MAX - 4095, "no overflow");
    }

    #[test]
    fn only_pages_that_are_missing_are_registered() {
        let there = || [0x1000..0x2000, 0x3000..0x5000].into_iter();
        assert_eq!(parts(std::iter::empty(), &(0x1000..0x3000)), [Part::Missing(0x1000..0x3000)]);
        assert_eq!(parts(there(), &(0x1000..0x2000)), [Part::Registered(0x1000)]);
        assert_eq!(parts(there(), &(0x4000..0x5000)), [Part::Registered(0x3000)]);
        assert_eq!(parts(there(), &(0x2000..0x3000)), [Part::Missing(0x2000..0x3000)]);
        assert_eq!(parts(there(), &(0x5000..0x6000)), [Part::Missing(0x5000..0x6000)]);
        assert_eq!(
            parts(there(), &(0x0..0x6000)),
            [
                Part::Missing(0x0..0x1000),
                Part::Registered(0x1000),
                Part::Missing(0x2000..0x3000),
                Part::Registered(0x3000),
                Part::Missing(0x5000..0x6000)
            ]
        );
    }
}
