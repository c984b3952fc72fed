//! Memory that a device shares with a program: rings, doorbells, registered regions.
//!
//! The other side reads and writes it at any time, so this crate makes references to its bytes as atomics only. Rust's
//! memory model defines a race if all accesses to a location are atomic and of one size. An access to a word that races
//! with an access to one of its bytes is undefined behaviour, though every processor can do it. So a piece of memory is
//! of one kind for its whole life:
//!
//! | kind | unit of every access | contents |
//! | --- | --- | --- |
//! | [`RingMemory`] | `AtomicU64` | WQEs, receive descriptors, completion entries; completion counters |
//! | [`DoorbellMemory`] | `AtomicU32` | doorbells |
//! | [`SharedMemory`], [`HostMemory`], every [`Backing`] | `AtomicU8` | registered bytes |
//!
//! Rings and doorbells are not a [`Backing`]: safe code can make neither a region of them, nor a ring of a region.
//! Regions may overlap, and may share their bytes with memory that is only borrowed, since all of them are bytes.
//! `copy.rs` explains how bytes are copied fast nevertheless. A copy that races with the other side sees some mixture
//! of old and new bytes, as with DMA.
//!
//! Another process, or another mapping of the same file, is like a device: it does not access these addresses. It
//! changes the bytes behind them between two of this program's accesses, each of which the processor keeps whole.
//!
//! Unsafe code: `lib.rs`, `copy.rs` (access to shared memory).

#![deny(missing_docs)]

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use std::any::Any;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

mod copy;

use copy::copy_shared;
pub use copy::{copy_in, copy_out};

/// The memory behind a memory region.
///
/// [`SharedMemory`] and [`HostMemory`] are host memory. GPU memory and memory of another process have implementations
/// in the crates that know them.
pub trait Backing: Send + Sync {
    /// Returns the number of bytes.
    fn len(&self) -> usize;

    /// Returns `true` if there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `dst.len()` bytes from `offset` on to `dst`. The caller has checked the bounds. Returns `false` if the
    /// memory was taken back, and nothing was copied.
    #[must_use]
    fn read(&self, offset: usize, dst: &mut [u8]) -> bool;

    /// Copies `src` to the bytes from `offset` on. The caller has checked the bounds. Returns `false` if the memory was
    /// taken back, before the copy or in its middle.
    #[must_use]
    fn write(&self, offset: usize, src: &[u8]) -> bool;

    /// Calls `f` with the memory, so that bytes can go straight from one region to another. Returns `false` without a
    /// call if the memory was taken back, or is not host memory, which is what this provided method assumes.
    #[must_use]
    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        let _ = f;
        false
    }
}

/// Copies `len` bytes from one memory to another. The two may overlap, and the caller has checked the bounds. Returns
/// `false` if one of them was taken back.
#[must_use]
pub fn copy(src: &dyn Backing, from: usize, dst: &dyn Backing, to: usize, len: usize) -> bool {
    let mut copied = false;
    let lent = src.lend(&mut |src| {
        copied = dst.lend(&mut |dst| {
            check(from, len, src.len);
            check(to, len, dst.len);
            // SAFETY: `check` has found both ranges inside their memory. The callers of `HostMemory::from_raw`
            // guarantee that this memory is valid and accessed as atomic bytes only while the two values live, and both
            // are borrowed until this returns.
            unsafe { copy_shared(src.ptr.as_ptr().add(from), dst.ptr.as_ptr().add(to), len) }
        });
    });
    if lent && copied {
        return true;
    }
    // One of them has no host address: the bytes go through a buffer.
    let mut bounce = [0; 4096];
    for done in (0..len).step_by(bounce.len()) {
        let chunk = &mut bounce[..(len - done).min(4096)];
        if !(src.read(from + done, chunk) && dst.write(to + done, chunk)) {
            return false;
        }
    }
    true
}

/// A piece of memory that a device and a program share. Every access to it is of one unit `U`. It lives as long as
/// anyone holds it.
pub struct Shared<U> {
    map: MmapRaw,
    /// The file that other processes map, if they can.
    file: Option<File>,
    _unit: PhantomData<U>,
}

/// Memory of regions: bytes.
pub type SharedMemory = Shared<u8>;
/// Memory of rings, and of completion counters: 64-bit words.
pub type RingMemory = Shared<u64>;
/// Memory of doorbells: 32-bit words.
pub type DoorbellMemory = Shared<u32>;

/// A unit of access to shared memory: `u8`, `u32` or `u64`.
#[expect(private_bounds, reason = "sealed")]
pub trait Unit: Accessed + Send + Sync + 'static {}

/// The trait that seals [`Unit`].
///
/// # Safety
/// `Atomic` is the atomic integer with the unit's size, alignment and validity.
pub(crate) unsafe trait Accessed {
    type Atomic;
}

macro_rules! units {
    ($($unit:ty: $atomic:ty),*) => {$(
        impl Unit for $unit {}
        // SAFETY: the standard library guarantees that an atomic integer has the size and bit validity of the integer
        // of its name, and an alignment that is its size.
        unsafe impl Accessed for $unit {
            type Atomic = $atomic;
        }
    )*};
}

units!(u8: AtomicU8, u32: AtomicU32, u64: AtomicU64);

/// Memory of any unit that another process may be able to map.
pub trait Mappable: Send + Sync {
    /// Returns the file in which the memory is, if another process can map it.
    fn file(&self) -> Option<BorrowedFd<'_>>;
}

impl<U: Unit> Mappable for Shared<U> {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file()
    }
}

impl<U: Unit> Shared<U> {
    /// Creates a piece of at least `len` bytes, in whole pages, zeroed.
    ///
    /// # Errors
    /// The operating system has no memory.
    pub fn zeroed(len: usize) -> io::Result<Arc<Self>> {
        let map = MmapOptions::new().len(whole_pages(len)?).map_anon()?;
        Ok(Arc::new(Self { map: map.into(), file: None, _unit: PhantomData }))
    }

    /// Creates a piece of at least `len` bytes, in whole pages, zeroed. It is in a file without a name, which other
    /// processes can map ([`file`](Self::file)).
    ///
    /// # Errors
    /// The operating system has no memory, or no more descriptors.
    pub fn shareable(len: usize) -> io::Result<Arc<Self>> {
        let len = whole_pages(len)?;
        let file = File::from(rustix::fs::memfd_create(c"efa-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len as u64)?;
        // Who maps the file can write to it, but cannot shrink it: an access beyond its end would end this process.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::of_file(file, 0, len)
    }

    /// Maps `len` bytes of a file, from byte `offset` on. The file must keep that length: an access beyond its end
    /// would end this process.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped for reading and writing.
    pub fn of_file(file: File, offset: u64, len: usize) -> io::Result<Arc<Self>> {
        let size = rustix::fs::fstat(&file)?.st_size as u64;
        if len == 0 || offset.checked_add(len as u64).is_none_or(|end| end > size) {
            let problem = format!("{len} bytes at {offset} of a file of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let map = MmapOptions::new().offset(offset).len(len).map_raw(&file)?;
        Ok(Arc::new(Self { map, file: Some(file), _unit: PhantomData }))
    }

    /// Returns the file in which the memory is, if another process can map it.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns `false`: the operating system maps no empty piece.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the address of the first byte. It is valid while `self` lives, for atomic access in aligned units of `U`
    /// and in no other size.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Returns `true` if `bytes` bytes at `offset` are inside, and begin at an aligned unit.
    pub fn has_units(&self, offset: usize, bytes: usize) -> bool {
        let end = offset.checked_add(bytes);
        // The address is checked, not the offset, because the mapping of a file may begin at any byte.
        end.is_some_and(|end| end <= self.len()) && self.as_ptr().wrapping_add(offset).cast::<U::Atomic>().is_aligned()
    }

    /// Returns the unit at this byte offset.
    fn at(&self, offset: usize) -> &U::Atomic {
        assert!(
            self.has_units(offset, size_of::<U::Atomic>()),
            "offset {offset} is no aligned word inside {} bytes",
            self.len()
        );
        // SAFETY: the assertion has found the unit inside the mapping, and aligned. The constructors map it for reading
        // and writing, any bits are a valid integer, and the mapping stays until `self` is dropped, which the result's
        // lifetime prevents. All references into the mapping are made here, so they are to atomics of one size. Whoever
        // has its address from `as_ptr` must do the same: its documentation says so.
        unsafe { &*self.as_ptr().add(offset).cast::<U::Atomic>() }
    }
}

impl DoorbellMemory {
    /// Loads a doorbell. Everything that was stored before it was rung is visible after the load.
    pub fn load_doorbell(&self, offset: usize) -> u32 {
        self.at(offset).load(Acquire)
    }

    /// Rings a doorbell: stores `value`, after everything that this thread stored before.
    pub fn store_doorbell(&self, offset: usize, value: u32) {
        self.at(offset).store(value, Release);
    }
}

impl RingMemory {
    /// Loads an aligned 64-bit word. Everything that was stored before the word is visible after the load.
    pub fn load_word(&self, offset: usize) -> u64 {
        self.at(offset).load(Acquire)
    }

    /// Stores an aligned 64-bit word, after everything that this thread stored before.
    pub fn store_word(&self, offset: usize, value: u64) {
        self.at(offset).store(value, Release);
    }

    /// Loads an entry of `W` words.
    pub fn load_entry<const W: usize>(&self, offset: usize) -> [u64; W] {
        std::array::from_fn(|i| self.at(offset + 8 * i).load(Relaxed))
    }

    /// Stores an entry whose first word holds the phase bit. That word is stored last, so that whoever sees it sees the
    /// whole entry.
    pub fn publish_entry<const W: usize>(&self, offset: usize, words: &[u64; W]) {
        for (i, word) in words.iter().enumerate().skip(1) {
            self.at(offset + 8 * i).store(*word, Relaxed);
        }
        self.at(offset).store(words[0], Release);
    }
}

impl Backing for SharedMemory {
    fn len(&self) -> usize {
        self.map.len()
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        check(offset, dst.len(), self.map.len());
        // SAFETY: `check` has found the range inside the mapping, which stays while `self` is borrowed. It is memory of
        // bytes: this module accesses it as atomic bytes only, and so must whoever has its address from `as_ptr`.
        unsafe { copy_out(self.map.as_mut_ptr().add(offset), dst) }
        true
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        check(offset, src.len(), self.map.len());
        // SAFETY: `check` has found the range inside the mapping, which stays while `self` is borrowed. It is memory of
        // bytes: this module accesses it as atomic bytes only, and so must whoever has its address from `as_ptr`.
        unsafe { copy_in(src, self.map.as_mut_ptr().add(offset)) }
        true
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        let Some(ptr) = NonNull::new(self.map.as_mut_ptr()) else { return false };
        // SAFETY: the mapping has `len` bytes, which can be read and written and are accessed as atomic bytes only, as
        // `read` shows. It stays while `self` is borrowed, and `memory` is dropped before this returns.
        let memory = unsafe { HostMemory::from_raw(ptr, self.map.len(), None) };
        f(&memory);
        true
    }
}

/// Host memory by its address, kept alive by its owner.
pub struct HostMemory {
    ptr: NonNull<u8>,
    len: usize,
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: the value accesses its memory as atomic bytes only, which any thread may do while the memory is valid. The
// caller of `from_raw` guarantees that it is valid until the value is dropped. The owner is `Send`.
unsafe impl Send for HostMemory {}
// SAFETY: a shared reference allows such accesses only. The owner is `Sync`, and is not accessible through it.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Takes `len` bytes at `ptr`.
    ///
    /// # Safety
    /// Until this value is dropped, the bytes must be valid for reads and writes, and all others in this program must
    /// access them as atomic bytes: by [`copy_in`], [`copy_out`] or as `AtomicU8`. There must be no reference to them,
    /// no plain access, and no atomic access of another size, as rings have. `owner`, if given, is dropped with this
    /// value.
    pub unsafe fn from_raw(ptr: NonNull<u8>, len: usize, owner: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { ptr, len, _owner: owner }
    }
}

impl Backing for HostMemory {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        check(offset, dst.len(), self.len);
        // SAFETY: `check` has found the range inside the memory. The caller of `from_raw` guarantees that the memory is
        // valid, and accessed by others as atomic bytes only, while `self` lives.
        unsafe { copy_out(self.ptr.as_ptr().add(offset), dst) }
        true
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        check(offset, src.len(), self.len);
        // SAFETY: `check` has found the range inside the memory. The caller of `from_raw` guarantees that the memory is
        // valid, and accessed by others as atomic bytes only, while `self` lives.
        unsafe { copy_in(src, self.ptr.as_ptr().add(offset)) }
        true
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        f(self);
        true
    }
}

/// Rounds a length up to whole pages.
fn whole_pages(len: usize) -> io::Result<usize> {
    len.max(1).checked_next_multiple_of(4096).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Panics unless `count` bytes at `offset` are inside `len`: the callers' promise, on which memory safety must not
/// depend.
fn check(offset: usize, count: usize, len: usize) {
    assert!(offset.checked_add(count).is_some_and(|end| end <= len), "{count} bytes at {offset} pass the end at {len}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use static_assertions::{assert_impl_all, assert_not_impl_any};
    use std::thread;

    // Rings and doorbells cannot be registered, and what can be registered cannot be a ring.
    assert_impl_all!(SharedMemory: Backing);
    assert_not_impl_any!(RingMemory: Backing);
    assert_not_impl_any!(DoorbellMemory: Backing);

    /// Under Miri and the thread sanitizer this proves more than on its own.
    #[test]
    fn whatever_accesses_the_bytes_of_overlapping_regions_may_do_so_at_once() {
        const ROUNDS: u8 = if cfg!(miri) { 3 } else { 200 };
        let memory = SharedMemory::zeroed(4096).unwrap();
        let part = |offset: usize| {
            let ptr = NonNull::new(memory.as_ptr().wrapping_add(offset)).unwrap();
            // SAFETY: 200 bytes from `offset` on are inside the 4096 of `memory`, which the value keeps alive and
            // everyone accesses as atomic bytes.
            unsafe { HostMemory::from_raw(ptr, 200, Some(memory.clone())) }
        };
        let (first, second) = (part(3), part(50));
        thread::scope(|scope| {
            scope.spawn(|| (0..ROUNDS).for_each(|i| assert!(first.write(1, &[i; 150]) && first.write(60, &[i; 9]))));
            scope.spawn(|| (0..ROUNDS).for_each(|_| assert!(copy(&second, 1, &first, 0, 100))));
            scope.spawn(|| (0..ROUNDS).for_each(|_| assert!(copy(&first, 0, &second, 100, 21))));
            for len in [1, 8, 13, 70] {
                let mut bytes = vec![0; len];
                assert!((0..ROUNDS).all(|_| memory.read(52, &mut bytes)));
                assert!(bytes.iter().all(|&byte| byte < ROUNDS));
            }
        });
    }

    /// Under Miri and the thread sanitizer this proves more than it does alone.
    #[test]
    fn an_entry_is_complete_once_its_first_word_is_seen() {
        const ROUNDS: u64 = if cfg!(miri) { 5 } else { 10_000 };
        let (ring, doorbell) = (RingMemory::zeroed(4096).unwrap(), DoorbellMemory::zeroed(4096).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..=ROUNDS {
                    ring.publish_entry(64, &[i; 4]);
                    doorbell.store_doorbell(4, i as u32);
                    while ring.load_word(0) < i {
                        thread::yield_now();
                    }
                }
            });
            for i in 1..=ROUNDS {
                while u64::from(doorbell.load_doorbell(4)) < i {
                    thread::yield_now();
                }
                assert_eq!(ring.load_word(64), i);
                assert_eq!(ring.load_entry(64), [i; 4]);
                ring.store_word(0, i);
            }
        });
    }

    #[test]
    fn copies_are_exact_at_every_alignment_and_length() {
        let memory = SharedMemory::zeroed(256).unwrap();
        for offset in (0..17).step_by(if cfg!(miri) { 5 } else { 1 }) {
            for len in (0..40).chain(60..70) {
                assert!(memory.write(0, &[0xee; 128]));
                let bytes: Vec<u8> = (0..len as u8).map(|b| b ^ 0x5a).collect();
                assert!(memory.write(offset, &bytes));
                let mut all = [0; 128];
                assert!(memory.read(0, &mut all));
                assert_eq!(all[offset..offset + len], bytes);
                assert!(all[..offset].iter().chain(&all[offset + len..]).all(|&b| b == 0xee));
                let mut back = vec![0; len];
                assert!(memory.read(offset, &mut back));
                assert_eq!(back, bytes);
            }
        }
    }

    /// Memory without a host address.
    struct Distant(Arc<SharedMemory>);

    impl Backing for Distant {
        fn len(&self) -> usize {
            Backing::len(&*self.0)
        }
        fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
            self.0.read(offset, dst)
        }
        fn write(&self, offset: usize, src: &[u8]) -> bool {
            self.0.write(offset, src)
        }
    }

    #[test]
    fn bytes_go_from_any_memory_to_any_other() {
        let memory = || SharedMemory::zeroed(16384).unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        for (src_distant, dst_distant) in [(false, false), (false, true), (true, false), (true, true)] {
            let (src, dst) = (memory(), memory());
            assert!(src.write(100, &bytes));
            let (far_src, far_dst) = (Distant(src.clone()), Distant(dst.clone()));
            let from: &dyn Backing = if src_distant { &far_src } else { &*src };
            let to: &dyn Backing = if dst_distant { &far_dst } else { &*dst };
            assert!(copy(from, 100, to, 3, 9_999));
            let mut back = vec![0; 10_002];
            assert!(dst.read(1, &mut back));
            assert!(back[2..10_001] == bytes[..9_999] && back[..2] == [0; 2] && back[10_001] == 0);
        }
        let memory = memory();
        assert!(memory.write(0, &bytes));
        assert!(copy(&*memory, 0, &*memory, 1, 5_000), "an overlap is allowed");
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn what_is_written_is_seen_through_the_file_that_cannot_shrink() {
        use std::os::unix::fs::FileExt;
        let memory = DoorbellMemory::shareable(5000).unwrap();
        assert_eq!(memory.len(), 8192);
        memory.store_doorbell(4096, 7);
        let file = File::from(memory.file().unwrap().try_clone_to_owned().unwrap());
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        assert!(file.set_len(4096).is_err());
        let half = DoorbellMemory::of_file(file, 4096, 4096).unwrap();
        assert_eq!(half.load_doorbell(0), 7);
        let file = File::from(half.file().unwrap().try_clone_to_owned().unwrap());
        assert!(SharedMemory::of_file(file, 8192, 1).is_err());
        assert!(SharedMemory::zeroed(1).unwrap().file().is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    #[should_panic(expected = "no aligned word")]
    fn words_of_a_file_mapped_from_an_odd_byte_on_are_not_aligned() {
        let memory = RingMemory::shareable(4096).unwrap();
        let file = File::from(memory.file().unwrap().try_clone_to_owned().unwrap());
        RingMemory::of_file(file, 20, 100).unwrap().load_word(0);
    }

    #[test]
    #[should_panic(expected = "pass the end")]
    fn nothing_outside_is_read() {
        let _ = SharedMemory::zeroed(4096).unwrap().read(4090, &mut [0; 7]);
    }
}
