//! Memory that a device shares with a program: rings, doorbells, registered regions.
//!
//! The other side reads and writes it at any time, so nothing here ever makes a reference to its bytes. All access
//! goes through relaxed atomic loads and stores, eight bytes at a time where a whole aligned word is touched and
//! single bytes at the edges; on the machines that EFA exists on these are plain moves. A copy that races with the other side sees
//! some mixture of old and new bytes, as DMA does.

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
        let map = MmapOptions::new().len(len.max(1).next_multiple_of(4096)).map_anon()?;
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

/// Copies shared bytes into private ones.
///
/// # Safety
/// `src` is valid for reads of `dst.len()` bytes and only accessed atomically meanwhile.
pub unsafe fn copy_out(src: *const u8, dst: &mut [u8]) {
    let head = src.align_offset(8).min(dst.len());
    let (edge, rest) = dst.split_at_mut(head);
    let (words, tail) = rest.as_chunks_mut::<8>();
    // SAFETY: every address below lies in the `dst.len()` bytes from `src`; words are aligned because `head` made them so.
    unsafe {
        for (i, byte) in edge.iter_mut().enumerate() {
            *byte = AtomicU8::from_ptr(src.add(i).cast_mut()).load(Relaxed);
        }
        let aligned = src.add(head);
        for (i, word) in words.iter_mut().enumerate() {
            *word = AtomicU64::from_ptr(aligned.add(8 * i).cast_mut().cast()).load(Relaxed).to_ne_bytes();
        }
        let last = aligned.add(8 * words.len());
        for (i, byte) in tail.iter_mut().enumerate() {
            *byte = AtomicU8::from_ptr(last.add(i).cast_mut()).load(Relaxed);
        }
    }
}

/// Copies private bytes into shared ones.
///
/// # Safety
/// `dst` is valid for writes of `src.len()` bytes and only accessed atomically meanwhile.
pub unsafe fn copy_in(src: &[u8], dst: *mut u8) {
    let head = dst.align_offset(8).min(src.len());
    let (edge, rest) = src.split_at(head);
    let (words, tail) = rest.as_chunks::<8>();
    // SAFETY: every address below lies in the `src.len()` bytes from `dst`; words are aligned because `head` made them so.
    unsafe {
        for (i, byte) in edge.iter().enumerate() {
            AtomicU8::from_ptr(dst.add(i)).store(*byte, Relaxed);
        }
        let aligned = dst.add(head);
        for (i, word) in words.iter().enumerate() {
            AtomicU64::from_ptr(aligned.add(8 * i).cast()).store(u64::from_ne_bytes(*word), Relaxed);
        }
        let last = aligned.add(8 * words.len());
        for (i, byte) in tail.iter().enumerate() {
            AtomicU8::from_ptr(last.add(i)).store(*byte, Relaxed);
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
            for len in 0..40 {
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
