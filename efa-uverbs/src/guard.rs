//! Memory whose pages can go away while it is mapped, and what happens then.
//!
//! A program hands over files, and keeps them: it can cut holes into them, shrink some, or leave the kernel without the pages that they
//! need. An access that finds no page raises `SIGBUS`, which would end the node, and with it every other program's devices. Here it ends
//! the memory instead: a handler puts zeros where the file was, notes that it is gone, and the access goes on. Whoever accessed it asks
//! [`Guarded::is_gone`] before believing what was read or written.
//!
//! The handler is this process's, from the first mapping on. Faults of memory that is not guarded go to the handler that was there before.

use efa_memory::{Backing, HostMemory, Mappable, Shared, SharedMemory, Unit};
use parking_lot::Mutex;
use slab::Slab;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, OnceLock};

/// The smallest page there is; larger ones are multiples.
const PAGE: usize = 4096;

/// A piece of guarded memory.
struct Piece {
    /// Its pages' addresses.
    pages: Range<usize>,
    is_gone: Arc<AtomicBool>,
}

/// All guarded memory of this process.
static PIECES: Mutex<Slab<Piece>> = Mutex::new(Slab::new());

/// What is done about a `SIGBUS` that has nothing to do with guarded memory.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Has the handler be there.
fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeros are an empty action, of which the rest is filled in; `before` is valid for writes. The handler does only what a
        // handler of a fault may: see there. It is set before `BEFORE` is, and until then `SIGBUS` is of no guarded memory,
        // since there is none yet: it then has its default effect.
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

/// Answers `SIGBUS`. It is raised by the access itself, so this interrupts nothing but that access: the thread is not inside this module with
/// the lock held, since what is done there touches no guarded memory.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid structure, and this thread's `errno` is its own.
    let (code, addr, errno) = unsafe { ((*info).si_code, (*info).si_addr() as usize, *libc::__errno_location()) };
    // Positive codes come from the kernel, by an access; others were sent by someone.
    let is_ours = code > 0 && replace(addr);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !is_ours {
        pass_on(signal, info, context);
    }
}

/// Puts zeros where the guarded memory around this address was; whether there is any.
fn replace(addr: usize) -> bool {
    // Another thread holds the lock for a moment at most.
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
        // Noted first: whoever sees zeros sees this.
        piece.is_gone.store(true, Release);
        // SAFETY: these are the pages of a mapping that a `Guarded` keeps, and nobody else's: it is mapped as long as it is in the list.
        // What is accessed there is accessed as bytes that anyone may change at any time, so it may change to zeros.
        let mapped = unsafe { libc::mmap(start as *mut c_void, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        found |= mapped as usize == start;
    }
    found
}

/// Has someone else's fault do what it would do without this module.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    match BEFORE.get() {
        Some(before) if !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            // SAFETY: it is the handler that was set for this signal, with the arguments that its flags say.
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
        // SAFETY: the default action of this signal ends the process, as soon as the access is tried again.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

/// Shared memory that may lose its pages without this process losing its life.
pub(crate) struct Guarded<M: ?Sized = SharedMemory> {
    number: usize,
    bytes: usize,
    is_gone: Arc<AtomicBool>,
    was_told: AtomicBool,
    memory: Arc<M>,
}

impl<U: Unit> Guarded<Shared<U>> {
    /// Guards memory as long as this lives. Whoever else holds the memory must not access it any longer than that.
    pub(crate) fn new(memory: Arc<Shared<U>>) -> Self {
        let (start, len) = (memory.as_ptr() as usize, memory.len());
        Self::at(start, len, memory)
    }
}

impl Guarded<dyn Mappable> {
    /// The same, of which only the program that maps it needs to know what is in it.
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
        Self { number, bytes, is_gone, was_told: AtomicBool::new(false), memory }
    }

    /// The memory. What is read there is zeros once it is gone.
    pub(crate) fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Whether some of it was gone when it was accessed, by now.
    pub(crate) fn is_gone(&self) -> bool {
        let is_gone = self.is_gone.load(Acquire);
        if is_gone && !self.was_told.swap(true, Relaxed) {
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
        // Before the memory goes, which is dropped after this.
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
        // Guarded twice, as a page with two doorbells is: both know.
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
