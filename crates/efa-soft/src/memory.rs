//! Memory that a device shares with a program: rings, doorbells, registered regions.
//!
//! The other side reads and writes it at any time, so nothing here ever makes a reference to its bytes. A region's bytes are
//! accessed as single relaxed atomic bytes, or by what is indistinguishable from that; the words of ring entries and doorbells as
//! relaxed atomic words. No location is accessed in two sizes, so that whatever races, the memory model gives it a meaning: a copy
//! that races with the other side sees some mixture of old and new bytes, as with DMA.

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

/// What a memory region's bytes are kept in.
///
/// Host memory today; a DMA-BUF or GPU memory is another implementation.
pub trait Backing: Send + Sync {
    /// Bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies out `dst.len()` bytes from `offset` on. The caller has checked the bounds. `false`: the memory was taken back,
    /// and nothing was copied.
    #[must_use]
    fn read(&self, offset: usize, dst: &mut [u8]) -> bool;

    /// Copies `src` in at `offset`. The caller has checked the bounds. `false`: the memory was taken back, before or in the middle.
    #[must_use]
    fn write(&self, offset: usize, src: &[u8]) -> bool;

    /// Hands the memory to `f` for the length of the call, so that bytes can go straight from one region to another.
    /// `false`, and no call: it was taken back, or is no host memory, which is what this provided method says.
    #[must_use]
    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        let _ = f;
        false
    }
}

/// Copies `len` bytes from one memory to another; the caller has checked the bounds. They may overlap. `false`: one of them was taken
/// back.
#[must_use]
pub fn copy(src: &dyn Backing, from: usize, dst: &dyn Backing, to: usize, len: usize) -> bool {
    let mut copied = false;
    let lent = src.lend(&mut |src| {
        copied = dst.lend(&mut |dst| {
            check(from, len, src.len);
            check(to, len, dst.len);
            // SAFETY: both are in bounds and, as `HostMemory` vouches, valid and only accessed as atomic bytes. An overlap does no
            // harm: bytes move one after the other, lowest first.
            unsafe { copy_bytes(src.ptr.as_ptr().add(from), dst.ptr.as_ptr().add(to), len) }
        });
    });
    if lent && copied {
        return true;
    }
    let mut bounce = [0; 4096];
    for done in (0..len).step_by(bounce.len()) {
        let chunk = &mut bounce[..(len - done).min(4096)];
        if !(src.read(from + done, chunk) && dst.write(to + done, chunk)) {
            return false;
        }
    }
    true
}

/// A piece of memory that a device and a program share. It lives as long as anyone holds it.
pub struct SharedMemory {
    map: MmapRaw,
    /// What other processes map, if they can.
    file: Option<File>,
}

impl SharedMemory {
    /// A new piece of at least `len` bytes, in whole pages, zeroed.
    ///
    /// # Errors
    /// The operating system has no memory.
    pub fn zeroed(len: usize) -> io::Result<Arc<Self>> {
        let map = MmapOptions::new().len(whole_pages(len)?).map_anon()?;
        Ok(Arc::new(Self { map: map.into(), file: None }))
    }

    /// The same, in a file without a name that other processes can map: [`file`](Self::file).
    ///
    /// # Errors
    /// The operating system has no memory, or no more descriptors.
    pub fn shareable(len: usize) -> io::Result<Arc<Self>> {
        let len = whole_pages(len)?;
        let file = File::from(rustix::fs::memfd_create(c"efa-ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len as u64)?;
        // Whoever maps it can write, but not take it away from under the device.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::of_file(file, 0, len)
    }

    /// `len` bytes of a file, from byte `offset` on. The file must keep that length: access beyond its end would end this process.
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
        Ok(Arc::new(Self { map, file: Some(file) }))
    }

    /// The file it lies in, if another process can map it.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: the operating system maps no empty piece.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first byte. Valid for atomic or volatile access while `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Whether `bytes` bytes at `offset` are inside, and begin at an aligned 64-bit word.
    pub(crate) fn has_words(&self, offset: usize, bytes: usize) -> bool {
        let end = offset.checked_add(bytes);
        // The address, since the mapping of a file may begin at any byte.
        end.is_some_and(|end| end <= self.len()) && self.as_ptr().wrapping_add(offset).cast::<u64>().is_aligned()
    }

    fn word<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<T>();
        assert!(
            end.is_some_and(|end| end <= self.len()) && word.is_aligned(),
            "offset {offset} is no aligned word inside {} bytes",
            self.len()
        );
        word
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `word` checked bounds and alignment; the mapping lives as long as `self`, and is only accessed atomically.
        unsafe { AtomicU64::from_ptr(self.word(offset)) }
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u64_at`.
        unsafe { AtomicU32::from_ptr(self.word(offset)) }
    }

    /// Loads a doorbell, and everything that was stored before it was rung.
    pub fn load_doorbell(&self, offset: usize) -> u32 {
        self.u32_at(offset).load(Acquire)
    }

    /// Rings a doorbell: stores `value` behind everything stored before.
    pub fn store_doorbell(&self, offset: usize, value: u32) {
        self.u32_at(offset).store(value, Release);
    }

    /// Loads an aligned 64-bit word, and everything that was stored before it was.
    pub fn load_word(&self, offset: usize) -> u64 {
        self.u64_at(offset).load(Acquire)
    }

    /// Stores an aligned 64-bit word behind everything stored before.
    pub fn store_word(&self, offset: usize, value: u64) {
        self.u64_at(offset).store(value, Release);
    }

    /// Reads an entry of `W` words.
    pub fn load_entry<const W: usize>(&self, offset: usize) -> [u64; W] {
        std::array::from_fn(|i| self.u64_at(offset + 8 * i).load(Relaxed))
    }

    /// Writes an entry whose first word holds the phase bit: the others first, then the first one, released.
    pub fn publish_entry<const W: usize>(&self, offset: usize, words: &[u64; W]) {
        for (i, word) in words.iter().enumerate().skip(1) {
            self.u64_at(offset + 8 * i).store(*word, Relaxed);
        }
        self.u64_at(offset).store(words[0], Release);
    }
}

impl Backing for SharedMemory {
    fn len(&self) -> usize {
        self.map.len()
    }

    fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        check(offset, dst.len(), self.map.len());
        // SAFETY: in bounds, and the mapping outlives `self`.
        unsafe { copy_out(self.map.as_mut_ptr().add(offset), dst) }
        true
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        check(offset, src.len(), self.map.len());
        // SAFETY: in bounds, and the mapping outlives `self`.
        unsafe { copy_in(src, self.map.as_mut_ptr().add(offset)) }
        true
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        let Some(ptr) = NonNull::new(self.map.as_mut_ptr()) else { return false };
        f(&HostMemory { ptr, len: self.map.len(), _owner: None });
        true
    }
}

/// Host memory by address, kept alive by whatever owns it.
pub struct HostMemory {
    ptr: NonNull<u8>,
    len: usize,
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: the memory is only accessed atomically, from whichever thread, and `from_raw`'s caller vouches for its life.
unsafe impl Send for HostMemory {}
// SAFETY: as for `Send`.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The bytes must be valid for reads and writes until this value is dropped, and nobody may hold a Rust reference to
    /// them while a device can access them. `owner`, if given, is dropped with this value.
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
        // SAFETY: in bounds; `from_raw`'s contract.
        unsafe { copy_out(self.ptr.as_ptr().add(offset), dst) }
        true
    }

    fn write(&self, offset: usize, src: &[u8]) -> bool {
        check(offset, src.len(), self.len);
        // SAFETY: in bounds; `from_raw`'s contract.
        unsafe { copy_in(src, self.ptr.as_ptr().add(offset)) }
        true
    }

    fn lend(&self, f: &mut dyn FnMut(&HostMemory)) -> bool {
        f(self);
        true
    }
}

fn whole_pages(len: usize) -> io::Result<usize> {
    len.max(1).checked_next_multiple_of(4096).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn check(offset: usize, count: usize, len: usize) {
    assert!(offset.checked_add(count).is_some_and(|end| end <= len), "{count} bytes at {offset} pass the end at {len}");
}

/// From this many bytes on a copy is worth the start of a string instruction.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 64;

/// Copies shared bytes into private ones.
///
/// # Safety
/// `src` is valid for reads of `dst.len()` bytes and only accessed as atomic bytes meanwhile.
pub unsafe fn copy_out(src: *const u8, dst: &mut [u8]) {
    // SAFETY: `src` is the caller's promise, `dst` is a slice, and private.
    unsafe { copy_bytes(src, dst.as_mut_ptr(), dst.len()) }
}

/// Copies private bytes into shared ones.
///
/// # Safety
/// `dst` is valid for writes of `src.len()` bytes and only accessed as atomic bytes meanwhile.
pub unsafe fn copy_in(src: &[u8], dst: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    if src.len() >= LONG {
        // SAFETY: `dst` is the caller's promise, `src` is a slice, and private.
        return unsafe { copy_bytes(src.as_ptr(), dst, src.len()) };
    }
    // Not by `copy_bytes`: what is borrowed to be read cannot be looked at as atomic bytes.
    for (i, byte) in src.iter().enumerate() {
        // SAFETY: inside the `src.len()` bytes that the caller vouches for.
        unsafe { AtomicU8::from_ptr(dst.add(i)) }.store(*byte, Relaxed);
    }
}

/// Copies bytes of which at least one side is shared, lowest first.
///
/// # Safety
/// Both are valid for `len` bytes, and what is shared is only accessed as atomic bytes meanwhile.
unsafe fn copy_bytes(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= LONG {
        // SAFETY: `rep movsb` reads `len` bytes and writes `len` bytes, each once, as a loop of relaxed byte loads and stores
        // does; the direction flag is clear by the calling convention.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rsi") src => _,
                inout("rdi") dst => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    for i in 0..len {
        // SAFETY: inside the bytes that the caller vouches for.
        unsafe {
            let byte = AtomicU8::from_ptr(src.add(i).cast_mut()).load(Relaxed);
            AtomicU8::from_ptr(dst.add(i)).store(byte, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_exact_at_every_alignment_and_length() {
        let memory = SharedMemory::zeroed(256).unwrap();
        for offset in 0..17 {
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
    fn what_is_written_is_seen_through_the_file_that_cannot_shrink() {
        use std::os::unix::fs::FileExt;
        let memory = SharedMemory::shareable(5000).unwrap();
        assert_eq!(memory.len(), 8192);
        memory.store_doorbell(4096, 7);
        let file = File::from(memory.file().unwrap().try_clone_to_owned().unwrap());
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        assert!(file.set_len(4096).is_err());
        let half = SharedMemory::of_file(file, 4096, 4096).unwrap();
        assert_eq!(half.load_doorbell(0), 7);
        let file = File::from(half.file().unwrap().try_clone_to_owned().unwrap());
        assert!(SharedMemory::of_file(file, 8192, 1).is_err());
        assert!(SharedMemory::zeroed(1).unwrap().file().is_none());
    }

    #[test]
    #[should_panic(expected = "no aligned word")]
    fn words_of_a_file_mapped_from_an_odd_byte_on_are_not_aligned() {
        let memory = SharedMemory::shareable(4096).unwrap();
        let file = File::from(memory.file().unwrap().try_clone_to_owned().unwrap());
        SharedMemory::of_file(file, 20, 100).unwrap().load_word(0);
    }

    #[test]
    #[should_panic(expected = "pass the end")]
    fn nothing_outside_is_read() {
        let _ = SharedMemory::zeroed(4096).unwrap().read(4090, &mut [0; 7]);
    }
}
