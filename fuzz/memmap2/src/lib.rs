//! A replacement for the parts of `memmap2` that the software device uses, for fuzzing: anonymous maps are allocated
//! from the heap.
//!
//! A script creates a dozen maps. Real ones would take longer than the rest of the script. The address sanitizer also
//! sees where heap allocations end.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::io;

const PAGE: usize = 4096;

/// The options of a map.
#[derive(Default)]
pub struct MmapOptions {
    len: usize,
}

impl MmapOptions {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&mut self, len: usize) -> &mut Self {
        self.len = len;
        self
    }

    /// Would set the offset in a file. It has no effect, because files are not mapped here.
    pub fn offset(&mut self, _offset: u64) -> &mut Self {
        self
    }

    /// Refuses to map a file.
    pub fn map_raw(&self, _file: &File) -> io::Result<MmapRaw> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Allocates zeroed pages.
    pub fn map_anon(&self) -> io::Result<MmapRaw> {
        let layout = Layout::from_size_align(self.len.max(1), PAGE).map_err(io::Error::other)?;
        // SAFETY: the size of the layout is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(MmapRaw { ptr, layout }) }
    }
}

/// Allocated memory, which is freed when this is dropped.
pub struct MmapRaw {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the value only owns memory from the heap, which belongs to no thread. Access through its address is `unsafe`,
// and the accessing code must synchronize it.
unsafe impl Send for MmapRaw {}
// SAFETY: a shared reference only gives the address. Access through it is `unsafe`, and the accessing code must
// synchronize it.
unsafe impl Sync for MmapRaw {}

impl MmapRaw {
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.ptr
    }
}

impl Drop for MmapRaw {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout, and `drop` has the only owner.
        unsafe { dealloc(self.ptr, self.layout) }
    }
}
