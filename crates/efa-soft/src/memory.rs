//! Memory that a device shares with a program: rings, doorbells, registered regions.
//!
//! The other side reads and writes it at any time, so nothing here ever makes a reference to its bytes. A region's bytes are
//! accessed as single relaxed atomic bytes, or by what is indistinguishable from that; the words of ring entries and doorbells as
//! relaxed atomic words. No location is accessed in two sizes, so that whatever races, the memory model gives it a meaning: a copy
//! that races with the other side sees some mixture of old and new bytes, as with DMA.

use memmap2::{MmapOptions, MmapRaw};
use std::any::Any;
use std::io;
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

    /// Copies out `dst.len()` bytes from `offset` on. The caller has checked the bounds.
    fn read(&self, offset: usize, dst: &mut [u8]);

    /// Copies `src` in at `offset`. The caller has checked the bounds.
    fn write(&self, offset: usize, src: &[u8]);
}

/// A page-aligned, zeroed piece of memory that a device and a program share. It lives as long as anyone holds it.
pub struct SharedMemory {
    map: MmapRaw,
}

impl SharedMemory {
    /// A new piece of at least `len` bytes, zeroed.
    ///
    /// # Errors
    /// The operating system has no memory.
    pub fn zeroed(len: usize) -> io::Result<Arc<Self>> {
        let whole_pages = len.max(1).checked_next_multiple_of(4096).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(whole_pages).map_anon()?;
        Ok(Arc::new(Self { map: map.into() }))
    }

    /// Bytes: whole pages.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: a piece has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first byte. Valid for atomic or volatile access while `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    fn word<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(
            end.is_some_and(|end| end <= self.len()) && offset.is_multiple_of(align_of::<T>()),
            "offset {offset} is no aligned word inside {} bytes",
            self.len()
        );
        self.map.as_mut_ptr().wrapping_add(offset).cast()
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

    fn read(&self, offset: usize, dst: &mut [u8]) {
        check(offset, dst.len(), self.map.len());
        // SAFETY: in bounds, and the mapping outlives `self`.
        unsafe { copy_out(self.map.as_mut_ptr().add(offset), dst) }
    }

    fn write(&self, offset: usize, src: &[u8]) {
        check(offset, src.len(), self.map.len());
        // SAFETY: in bounds, and the mapping outlives `self`.
        unsafe { copy_in(src, self.map.as_mut_ptr().add(offset)) }
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

    fn read(&self, offset: usize, dst: &mut [u8]) {
        check(offset, dst.len(), self.len);
        // SAFETY: in bounds; `from_raw`'s contract.
        unsafe { copy_out(self.ptr.as_ptr().add(offset), dst) }
    }

    fn write(&self, offset: usize, src: &[u8]) {
        check(offset, src.len(), self.len);
        // SAFETY: in bounds; `from_raw`'s contract.
        unsafe { copy_in(src, self.ptr.as_ptr().add(offset)) }
    }
}

fn check(offset: usize, count: usize, len: usize) {
    assert!(offset.checked_add(count).is_some_and(|end| end <= len), "{count} bytes at {offset} pass the end at {len}");
}

/// From this many bytes on a copy is worth the start of a string instruction.
const LONG: usize = 64;

/// Copies shared bytes into private ones.
///
/// # Safety
/// `src` is valid for reads of `dst.len()` bytes and only accessed as atomic bytes meanwhile.
pub unsafe fn copy_out(src: *const u8, dst: &mut [u8]) {
    if dst.len() >= LONG {
        // SAFETY: `src` is the caller's promise, `dst` is a slice, and private.
        unsafe { copy_long(src, dst.as_mut_ptr(), dst.len()) }
    } else {
        for (i, byte) in dst.iter_mut().enumerate() {
            // SAFETY: inside the `dst.len()` bytes that the caller vouches for.
            *byte = unsafe { AtomicU8::from_ptr(src.add(i).cast_mut()) }.load(Relaxed);
        }
    }
}

/// Copies private bytes into shared ones.
///
/// # Safety
/// `dst` is valid for writes of `src.len()` bytes and only accessed as atomic bytes meanwhile.
pub unsafe fn copy_in(src: &[u8], dst: *mut u8) {
    if src.len() >= LONG {
        // SAFETY: `dst` is the caller's promise, `src` is a slice, and private.
        unsafe { copy_long(src.as_ptr(), dst, src.len()) }
    } else {
        for (i, byte) in src.iter().enumerate() {
            // SAFETY: inside the `src.len()` bytes that the caller vouches for.
            unsafe { AtomicU8::from_ptr(dst.add(i)) }.store(*byte, Relaxed);
        }
    }
}

/// Copies bytes of which one side is shared.
///
/// # Safety
/// Both are valid for `len` bytes, do not overlap, and the shared one is only accessed as atomic bytes meanwhile.
unsafe fn copy_long(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
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
    #[cfg(not(target_arch = "x86_64"))]
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
                memory.write(0, &[0xee; 128]);
                let bytes: Vec<u8> = (0..len as u8).map(|b| b ^ 0x5a).collect();
                memory.write(offset, &bytes);
                let mut all = [0; 128];
                memory.read(0, &mut all);
                assert_eq!(all[offset..offset + len], bytes);
                assert!(all[..offset].iter().chain(&all[offset + len..]).all(|&b| b == 0xee));
                let mut back = vec![0; len];
                memory.read(offset, &mut back);
                assert_eq!(back, bytes);
            }
        }
    }

    #[test]
    #[should_panic(expected = "pass the end")]
    fn nothing_outside_is_read() {
        SharedMemory::zeroed(4096).unwrap().read(4090, &mut [0; 7]);
    }
}
