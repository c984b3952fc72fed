//! Stands in for `memmap2` while fuzzing, as far as `efa-soft` uses it: anonymous maps, from the heap. A script makes a dozen of them,
//! which takes longer than all else that it does if the kernel has to; and the address sanitizer sees where they end.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::io;

const PAGE: usize = 4096;

/// How a map is to be made.
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

    /// Of a file: has no effect, since files are not mapped here.
    pub fn offset(&mut self, _offset: u64) -> &mut Self {
        self
    }

    /// A file is refused.
    pub fn map_raw(&self, _file: &File) -> io::Result<MmapRaw> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Zeroed pages.
    pub fn map_anon(&self) -> io::Result<MmapRaw> {
        let layout = Layout::from_size_align(self.len.max(1), PAGE).map_err(io::Error::other)?;
        // SAFETY: the layout has a size.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(MmapRaw { ptr, layout }) }
    }
}

/// A piece of memory.
pub struct MmapRaw {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: it is memory like any other; whoever asks for its address answers for the accesses.
unsafe impl Send for MmapRaw {}
// SAFETY: as for `Send`.
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
        // SAFETY: it was allocated with this layout, and nobody has it any more.
        unsafe { dealloc(self.ptr, self.layout) }
    }
}
