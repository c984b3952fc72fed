//! Guarded memory: mapped files of programs whose pages may disappear at any time.
//!
//! A program hands over files and keeps them. It can cut holes into a file, shrink some files, or use up the memory
//! that their pages need. An access without a page raises `SIGBUS`, which would end the node and all its devices. Here,
//! a handler replaces the mapped file with zeros, marks the memory as gone, and lets the access continue. Code that has
//! accessed guarded memory checks [`Guarded::is_gone`] before it trusts the data.
//!
//! The handler is installed with the first mapping, for the whole process. Faults in other memory go to the handler
//! that was installed before.

use efa_memory::{Backing, HostMemory, Mappable, Shared, SharedMemory, Unit};
use parking_lot::Mutex;
use slab::Slab;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, OnceLock};

/// The smallest page size in bytes. Larger pages are multiples of it.
const PAGE: usize = 4096;

/// A piece of guarded memory.
struct Piece {
    /// The addresses of its pages.
    pages: Range<usize>,
    is_gone: Arc<AtomicBool>,
}

/// All guarded memory of this process.
static PIECES: Mutex<Slab<Piece>> = Mutex::new(Slab::new());

/// The handler of `SIGBUS` that was installed before, for faults in other memory.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once.
fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeros are a valid `sigaction`, and both structures are locals. `on_fault` has the signature that
        // `SA_SIGINFO` requires, and does only what a handler of a synchronous fault may do (see its comment). `BEFORE`
        // is set after the handler is installed. A `SIGBUS` in between has its default effect; it cannot be in guarded
        // memory, because there is none yet.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGBUS, &action, &mut before) == 0 {
                let _ = BEFORE.set(before);
            }
        }
    });
}

/// Handles `SIGBUS`.
///
/// The kernel raises the signal at the access itself, so the handler interrupts only that access. The interrupted
/// thread does not hold the lock of `PIECES`, because code that holds it accesses no guarded memory.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with `SA_SIGINFO`, and `__errno_location` is always
    // valid for its own thread.
    let (code, addr, errno) = unsafe { ((*info).si_code, (*info).si_addr() as usize, *libc::__errno_location()) };
    // The kernel's codes are positive; the codes of signals that a process sent are not.
    let is_ours = code > 0 && replace(addr);
    // SAFETY: `__errno_location` is always valid for its own thread.
    unsafe { *libc::__errno_location() = errno };
    if !is_ours {
        pass_on(signal, info, context);
    }
}

/// Replaces the guarded memory around this address with zeros. Returns `true` if there is guarded memory at the
/// address.
fn replace(addr: usize) -> bool {
    // Another thread holds the lock only for a moment, so waiting here is safe.
    let pieces = loop {
        match PIECES.try_lock() {
            Some(pieces) => break pieces,
            None => std::thread::yield_now(),
        }
    };
    let mut found = false;
    for (_, piece) in pieces.iter().filter(|(_, piece)| piece.pages.contains(&addr)) {
        let (start, len) = (piece.pages.start, piece.pages.len());
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // Stored first, so that a thread that reads the zeros also sees the mark.
        piece.is_gone.store(true, Release);
        // SAFETY: these pages are a mapping of a `Guarded`'s memory: `Guarded` puts them in the list after mapping and
        // removes them before unmapping. No other object is in them. The memory is shared with a program, so all
        // accesses to it are prepared for bytes that change at any time.
        let mapped = unsafe { libc::mmap(start as *mut c_void, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        found |= mapped as usize == start;
    }
    found
}

/// Handles a fault in other memory as it would be handled without this module.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    match BEFORE.get() {
        Some(before) if !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            // SAFETY: `sigaction` returned this handler for this signal, and its flags say which of the two signatures
            // it has.
            unsafe {
                if before.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                        std::mem::transmute(before.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(c_int) = std::mem::transmute(before.sa_sigaction);
                    handler(signal);
                }
            }
        }
        // SAFETY: `SIG_DFL` is a valid action. The access is repeated after the handler returns, and the default action
        // then ends the process.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

/// Shared memory that may lose its pages without ending this process.
pub(crate) struct Guarded<M: ?Sized = SharedMemory> {
    /// The index in `PIECES`.
    number: usize,
    bytes: usize,
    is_gone: Arc<AtomicBool>,
    /// `true` if the loss was logged.
    is_logged: AtomicBool,
    memory: Arc<M>,
}

impl<U: Unit> Guarded<Shared<U>> {
    /// Guards memory as long as this lives. Other owners of the memory must not access it after this is dropped.
    pub(crate) fn new(memory: Arc<Shared<U>>) -> Self {
        let (start, len) = (memory.as_ptr() as usize, memory.len());
        Self::at(start, len, memory)
    }
}

impl Guarded<dyn Mappable> {
    /// Guards memory that the program maps; the type of its words is not needed.
    pub(crate) fn mappable<U: Unit>(memory: Arc<Shared<U>>) -> Self {
        let (start, len) = (memory.as_ptr() as usize, memory.len());
        Self::at(start, len, memory)
    }
}

impl<M: ?Sized> Guarded<M> {
    fn at(start: usize, bytes: usize, memory: Arc<M>) -> Self {
        install();
        let pages = start / PAGE * PAGE..(start + bytes).next_multiple_of(PAGE);
        let is_gone = Arc::new(AtomicBool::new(false));
        let number = PIECES.lock().insert(Piece { pages, is_gone: is_gone.clone() });
        Self { number, bytes, is_gone, is_logged: AtomicBool::new(false), memory }
    }

    /// Returns the memory. After its pages are gone, it contains zeros.
    pub(crate) fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Returns `true` if an access has found a page gone. Then the whole memory has been replaced with zeros.
    pub(crate) fn is_gone(&self) -> bool {
        let is_gone = self.is_gone.load(Acquire);
        if is_gone && !self.is_logged.swap(true, Relaxed) {
            let bytes = self.bytes;
            tracing::warn!(
                bytes,
                "memory that a program has handed over is gone (SIGBUS): accesses to it fail from here on"
            );
        }
        is_gone
    }
}

impl<M: ?Sized> Drop for Guarded<M> {
    fn drop(&mut self) {
        // Before the memory is unmapped: fields are dropped after this.
        PIECES.lock().remove(self.number);
    }
}

impl Backing for Guarded {
    fn len(&self) -> usize {
        Backing::len(&*self.memory)
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.memory.read(offset, dst) && !self.is_gone()
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.memory.write(offset, src) && !self.is_gone()
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        self.memory.lend(f) && !self.is_gone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use efa_memory::{DoorbellMemory, copy};
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn map(file: &File, offset: u64, len: usize) -> Arc<SharedMemory> {
        SharedMemory::of_file(file.try_clone().unwrap(), offset, len).unwrap()
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_mapped_costs_its_memory_and_not_the_process() {
        let shrinking = file(5 << 12);
        let (gone, other) =
            (Guarded::new(map(&shrinking, 100, 4 << 12)), Guarded::new(map(&file(1 << 12), 0, 1 << 12)));
        let mut bytes = [7; 1000];
        assert!(gone.write(3 << 12, &bytes) && gone.read(3 << 12, &mut bytes) && other.write(0, &bytes));
        assert!(copy(&gone, 0, &other, 0, 4096) && !gone.is_gone());
        shrinking.set_len(1 << 12).unwrap();
        assert!(!copy(&other, 0, &gone, 2 << 12, 4096), "what was written is not there");
        assert!(!gone.read(0, &mut bytes) && !gone.write(0, &bytes) && !copy(&gone, 0, &other, 0, 10));
        assert!(gone.is_gone() && !other.is_gone());
        assert!(
            other.read(0, &mut bytes) && bytes == [0; 1000],
            "the first page of the other file is as it was copied"
        );
        // A page with two doorbells is guarded twice, and both are marked.
        let page = file(1 << 12);
        let (one, two) = {
            let page = DoorbellMemory::of_file(page.try_clone().unwrap(), 0, 1 << 12).unwrap();
            (Guarded::new(page.clone()), Guarded::new(page))
        };
        page.set_len(0).unwrap();
        one.memory().store_doorbell(64, 3);
        assert_eq!(one.memory().load_doorbell(64), 3, "words can still be accessed");
        assert!(one.is_gone() && two.is_gone());
    }

    #[test]
    fn many_threads_that_find_their_memory_gone_go_on() {
        let threads = (0..8).map(|_| {
            std::thread::spawn(|| {
                for _ in 0..200 {
                    let file = file(2 << 12);
                    let memory = Guarded::new(map(&file, 0, 2 << 12));
                    file.set_len(0).unwrap();
                    assert!(!memory.read(1 << 12, &mut [0; 100]));
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_fault_of_other_memory_ends_the_process_as_ever() {
        const NAME: &str = "guard::tests::a_fault_of_other_memory_ends_the_process_as_ever";
        if std::env::var_os("EFA_TEST_FAULT").is_some() {
            let (guarded, other) = (file(1 << 12), file(1 << 12));
            let (_guarded, memory) = (Guarded::new(map(&guarded, 0, 1 << 12)), map(&other, 0, 1 << 12));
            other.set_len(0).unwrap();
            let _ = memory.read(0, &mut [0]);
            std::process::exit(0);
        }
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        let output = program.args(["--exact", NAME]).env("EFA_TEST_FAULT", "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }
}
