//! Memory that the NIC reaches: a GPU's, or the host's.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Why memory could not be allocated, or reached.
pub type MemoryError = Box<dyn std::error::Error + Send + Sync>;

/// Memory that the NIC reaches.
pub trait Memory {
    /// Allocates `bytes` bytes, all zero, aligned to `align`, a power of two of 256 at most. Returns their address as
    /// the NIC sees it.
    ///
    /// # Errors
    /// There is not enough memory.
    fn allocate(&mut self, bytes: usize, align: usize) -> Result<u64, MemoryError>;

    /// Writes bytes to memory that was allocated.
    ///
    /// # Errors
    /// The memory cannot be reached.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Reads bytes of memory that was allocated.
    ///
    /// # Errors
    /// The memory cannot be reached.
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), MemoryError>;
}

/// The host's memory, for a NIC that runs on the host. It is freed when this is dropped.
///
/// It is written and read by atomic accesses, as the NIC and posters do, also while they run. What is read then is old
/// or new, each aligned word by itself, or each byte outside of one.
#[derive(Debug, Default)]
pub struct HostMemory {
    allocated: Vec<(usize, Layout)>,
}

impl HostMemory {
    /// Returns the address of `bytes` allocated bytes at `addr`.
    fn find(&self, addr: u64, bytes: usize) -> Result<*mut u8, MemoryError> {
        let inside = |&&(start, layout): &&(usize, Layout)| {
            let offset = (addr as usize).wrapping_sub(start);
            offset <= layout.size() && bytes <= layout.size() - offset
        };
        let found = self.allocated.iter().find(inside).map(|_| addr as *mut u8);
        found.ok_or_else(|| format!("{bytes} bytes at {addr:#x} were not allocated here").into())
    }
}

impl Memory for HostMemory {
    fn allocate(&mut self, bytes: usize, align: usize) -> Result<u64, MemoryError> {
        let layout = Layout::from_size_align(bytes.max(1), align)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(format!("the host has no {bytes} bytes of memory").into());
        }
        self.allocated.push((start as usize, layout));
        Ok(start as u64)
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let to = self.find(to, bytes.len())?;
        let mut at = 0;
        while at < bytes.len() {
            let to = to.wrapping_add(at);
            // SAFETY: `find` has checked that the bytes are inside an allocation of ours, and the word is aligned. The
            // NIC and posters access it atomically, too.
            unsafe {
                match bytes[at..].first_chunk() {
                    Some(word) if to.cast::<u64>().is_aligned() => {
                        AtomicU64::from_ptr(to.cast()).store(u64::from_ne_bytes(*word), Relaxed);
                        at += 8;
                    }
                    _ => {
                        AtomicU8::from_ptr(to).store(bytes[at], Relaxed);
                        at += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.find(from, into.len())?;
        let mut at = 0;
        while at < into.len() {
            let from = from.wrapping_add(at);
            // SAFETY: as in `write`; the memory is initialized from the beginning.
            unsafe {
                match into[at..].first_chunk_mut() {
                    Some(word) if from.cast::<u64>().is_aligned() => {
                        *word = AtomicU64::from_ptr(from.cast()).load(Relaxed).to_ne_bytes();
                        at += 8;
                    }
                    _ => {
                        into[at] = AtomicU8::from_ptr(from).load(Relaxed);
                        at += 1;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for (start, layout) in self.allocated.drain(..) {
            // SAFETY: it was allocated with this layout. Nobody accesses it any more: whoever runs a NIC on it keeps it
            // until the NIC has ended (`run`'s contract).
            unsafe { dealloc(start as *mut u8, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_written_at_every_alignment_and_others_stay() {
        let mut memory = HostMemory::default();
        for (offset, len) in (0..9).flat_map(|offset| (0..40).map(move |len| (offset, len))) {
            let addr = memory.allocate(64, 64).unwrap();
            let bytes: Vec<u8> = (1..=len).collect();
            memory.write(addr + offset, &bytes).unwrap();
            let (mut back, mut all) = (vec![0; bytes.len()], [0; 64]);
            memory.read(addr + offset, &mut back).unwrap();
            memory.read(addr, &mut all).unwrap();
            assert_eq!(back, bytes);
            let (before, rest) = all.split_at(offset as usize);
            assert!(before.iter().chain(&rest[bytes.len()..]).all(|byte| *byte == 0), "{offset} {len}");
        }
    }

    #[test]
    fn what_was_not_allocated_is_refused() {
        let mut memory = HostMemory::default();
        let addr = memory.allocate(64, 64).unwrap();
        for (at, len) in [(addr - 1, 1), (addr, 65), (addr + 64, 1), (addr + 63, 2)] {
            assert!(memory.write(at, &vec![0; len]).is_err() && memory.read(at, &mut vec![0; len]).is_err());
        }
        assert!(memory.write(addr + 64, &[]).is_ok());
    }
}
