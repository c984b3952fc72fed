//! Memory that the NIC reaches, wherever it is.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Why memory could not be had, or reached.
pub type MemoryError = Box<dyn std::error::Error + Send + Sync>;

/// Memory that whoever runs the NIC reaches: a GPU's, or the host's.
pub trait Memory {
    /// Allocates `bytes` bytes, all zero, aligned to `align`, a power of two of 256 at most; gives their address as the NIC sees it.
    ///
    /// # Errors
    /// There is no such memory.
    fn allocate(&mut self, bytes: usize, align: usize) -> Result<u64, MemoryError>;

    /// Writes bytes to memory that was allocated.
    ///
    /// # Errors
    /// It cannot be reached.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Reads bytes of memory that was allocated.
    ///
    /// # Errors
    /// It cannot be reached.
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), MemoryError>;
}

/// The host's memory, for a NIC that runs on the host. It is freed when this is dropped.
#[derive(Debug, Default)]
pub struct HostMemory {
    allocated: Vec<(usize, Layout)>,
}

impl HostMemory {
    /// Where `bytes` bytes at `addr` are.
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
        // SAFETY: the layout has a size.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(format!("the host has no {bytes} bytes of memory").into());
        }
        self.allocated.push((start as usize, layout));
        Ok(start as u64)
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let to = self.find(to, bytes.len())?;
        // SAFETY: inside an allocation; a queue's user and the NIC leave alone what the host writes.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.find(from, into.len())?;
        // SAFETY: inside an allocation, and initialized from the beginning.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for (start, layout) in self.allocated.drain(..) {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(start as *mut u8, layout) };
        }
    }
}
