//! The program's side of rings, and the only code that touches ring memory.
//!
//! A device reads and writes a ring while the program runs. So every access here is an atomic of one size, which gives
//! a race with the device a meaning, and each access whose order the device must see, or keep, has a barrier beside it
//! (`barrier.rs`). Queues above this file count requests; they never see an address.

use crate::barrier;
use efa_io::RingSize;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// A ring and its doorbell, as a provider hands them over: addresses, sizes, and the owner that keeps them mapped.
#[derive(Clone)]
pub struct RawRing {
    base: NonNull<u8>,
    doorbell: Option<NonNull<u32>>,
    size: RingSize,
    entry_size: usize,
    /// Offset of the last entry. Entries, and bytes of an entry, are powers of two, so these are the bits of an offset
    /// that remain when it wraps.
    mask: usize,
    write_combining: bool,
    io_doorbell: bool,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the addresses may move to another thread. This file accesses them only as atomics of the size that `new`'s
// caller promised, which any thread may do while the memory is valid, and `_owner`, which is `Send` and moves along,
// keeps it valid. All other fields are plain data.
unsafe impl Send for RawRing {}
// SAFETY: a shared reference allows only these atomic accesses. Nothing gives access to `_owner`, which is `Sync`
// besides.
unsafe impl Sync for RawRing {}

impl RawRing {
    /// Returns a ring of `size` entries of `entry_size` bytes at `base`, with its doorbell register, if it has one.
    ///
    /// With `write_combining`, the ring is device memory that is mapped write-combining: the CPU may delay and reorder
    /// stores to it, so they are fenced before a doorbell.
    ///
    /// # Safety
    /// While `owner` lives, `base` must be aligned to 8 bytes and valid for stores (and, for a completion ring, loads)
    /// of all entries, and `doorbell` aligned to 4 bytes and valid for stores. This program must access both only as
    /// whole atomic words: the ring as `AtomicU64`, the doorbell as `AtomicU32`. So bytes of a registered region, which
    /// are accessed as `AtomicU8`, cannot be a ring at the same time. Accesses by a device or another process do not
    /// count.
    pub unsafe fn new(
        base: NonNull<u8>,
        doorbell: Option<NonNull<u32>>,
        size: RingSize,
        entry_size: usize,
        write_combining: bool,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        assert!(
            base.cast::<u64>().is_aligned() && entry_size.is_power_of_two() && entry_size >= 8,
            "a ring entry is made of aligned words, a power of two of them"
        );
        let mask = (size.entries() as usize - 1) * entry_size;
        Self { base, doorbell, size, entry_size, mask, write_combining, io_doorbell: false, _owner: owner }
    }

    /// Marks the doorbell as a register of the NIC (I/O memory), not a word of ordinary memory. The CPU stores to both
    /// alike, but a GPU maps them in different ways.
    #[must_use]
    pub fn with_io_doorbell(mut self) -> Self {
        self.io_doorbell = true;
        self
    }

    /// Returns `true` if the ring is device memory that is mapped write-combining.
    pub fn is_write_combining(&self) -> bool {
        self.write_combining
    }

    /// Returns `true` if the doorbell is a register of the NIC.
    pub fn has_io_doorbell(&self) -> bool {
        self.io_doorbell
    }

    /// Returns the number of entries.
    pub fn size(&self) -> RingSize {
        self.size
    }

    /// Returns the size of an entry in bytes.
    pub fn entry_size(&self) -> usize {
        self.entry_size
    }

    /// Returns the address of the first entry.
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Returns the address of the doorbell register, or 0 if there is none.
    pub fn doorbell_addr(&self) -> u64 {
        self.doorbell.map_or(0, |doorbell| doorbell.as_ptr() as u64)
    }

    /// Returns a word of the entry at offset `at`, which may lie beyond the ring's end and then wraps.
    #[inline(always)]
    fn word(&self, at: usize, word: usize) -> &AtomicU64 {
        // SAFETY: `at & mask` is the offset of an entry of the ring, since entries and bytes of an entry are powers of
        // two. `word` is below `entry_size / 8`: `store` and `load_if` count to the words of the queue's entry type,
        // which the queues compare with `entry_size` when they are made (`qp.rs`, `recv.rs`) or before they load
        // (`cq.rs`). So this is a word of the ring, and aligned as `base` is. By the contract of `new` it is valid, and
        // accessed only as an `AtomicU64`, while `_owner` lives, and `self` keeps `_owner` longer than the result
        // lives.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add((at & self.mask) + word * 8).cast()) }
    }

    /// Stores an entry at offset `at`, which wraps. The device looks at it after the next doorbell, so the order of the
    /// stores does not matter here.
    #[inline(always)]
    pub(crate) fn store<const W: usize>(&self, at: usize, words: &[u64; W]) {
        debug_assert_eq!(W * 8, self.entry_size);
        for (i, word) in words.iter().enumerate() {
            self.word(at, i).store(*word, Relaxed);
        }
    }

    /// Loads entry number `counter`, which wraps, if its first word passes `is_fresh`.
    ///
    /// The device writes the word with the phase bit last. So the phase is loaded first, and nothing else before the
    /// barrier.
    #[inline(always)]
    pub(crate) fn load_if<const W: usize>(&self, counter: u32, is_fresh: impl FnOnce(u64) -> bool) -> Option<[u64; W]> {
        debug_assert!(W * 8 <= self.entry_size);
        let at = self.at(counter);
        let first = self.word(at, 0).load(Acquire);
        is_fresh(first).then(|| {
            barrier::after_completion();
            let mut words = [first; W];
            for (i, word) in words.iter_mut().enumerate().skip(1) {
                *word = self.word(at, i).load(Relaxed);
            }
            words
        })
    }

    /// Returns the offset of entry number `counter`; it may lie beyond the ring's end.
    #[inline(always)]
    pub(crate) fn at(&self, counter: u32) -> usize {
        counter as usize * self.entry_size
    }

    /// Stores `value` in the doorbell register after every entry stored before.
    ///
    /// Returns `true` if entries stored from now on may reach the device before this doorbell does. The ring is
    /// write-combining then, and the fence in here orders only the doorbell before this one.
    #[inline(always)]
    pub(crate) fn ring(&self, value: u32) -> bool {
        if self.write_combining {
            barrier::flush_write_combining();
        } else {
            barrier::before_doorbell();
        }
        if let Some(doorbell) = self.doorbell {
            // SAFETY: by the contract of `new` the doorbell is aligned, valid, and accessed only as an `AtomicU32`
            // while `_owner` lives, which `self` keeps.
            unsafe { AtomicU32::from_ptr(doorbell.as_ptr()) }.store(value, Release);
        }
        self.write_combining
    }

    /// Orders the last doorbell before entries that are stored from now on.
    #[inline(always)]
    pub(crate) fn order_doorbell(&self) {
        if self.write_combining {
            barrier::flush_write_combining();
        }
    }

    /// Treats the ring as device memory, so that tests see what is done about its order.
    #[cfg(all(test, feature = "soft"))]
    pub(crate) fn pretend_write_combining(&mut self) {
        self.write_combining = true;
    }
}
