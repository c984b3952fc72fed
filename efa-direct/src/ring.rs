//! Rings as the program's side sees them: the one place where ring memory is touched.

use crate::barrier;
use efa_io::RingSize;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// Where a ring and its doorbell are, as a provider hands them over.
#[derive(Clone)]
pub struct RawRing {
    base: NonNull<u8>,
    doorbell: Option<NonNull<u32>>,
    size: RingSize,
    entry_size: usize,
    /// Offset of the last entry: the bits of an offset that count.
    mask: usize,
    write_combining: bool,
    io_doorbell: bool,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the addresses may go to another thread: what is done with them here is atomic access in the one size that
// `new`'s caller vouched for, which any thread may do while the memory is valid, that is while `_owner` lives, which is
// `Send` and goes along. The rest is plain data.
unsafe impl Send for RawRing {}
// SAFETY: a shared reference gives no more than such accesses; `_owner`, which is `Sync`, cannot be reached through it.
unsafe impl Sync for RawRing {}

impl RawRing {
    /// A ring of `size` entries of `entry_size` bytes at `base`, and its doorbell register, if it has one.
    ///
    /// `write_combining` says that the ring is device memory mapped so; stores to it are then fenced before a doorbell.
    ///
    /// # Safety
    /// While `owner` lives, `base` must be valid for stores (and, for a completion ring, loads) of all entries and
    /// aligned to 8 bytes, `doorbell` valid for stores and aligned to 4; and this program must access neither but as
    /// whole atomic words: the ring as `AtomicU64`, the doorbell as `AtomicU32`. Bytes of a registered region, which
    /// are accessed as `AtomicU8`, cannot be a ring at the same time. What a device or another process does is not
    /// meant.
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

    /// The same ring, its doorbell register being the NIC's own (I/O memory) and not a word of ordinary memory. The CPU
    /// stores to both alike; a GPU has to be told.
    #[must_use]
    pub fn with_io_doorbell(mut self) -> Self {
        self.io_doorbell = true;
        self
    }

    /// Whether the ring is device memory, mapped write-combining.
    pub fn is_write_combining(&self) -> bool {
        self.write_combining
    }

    /// Whether the doorbell is a register of the NIC's.
    pub fn has_io_doorbell(&self) -> bool {
        self.io_doorbell
    }

    /// Number of entries.
    pub fn size(&self) -> RingSize {
        self.size
    }

    /// Bytes of an entry.
    pub fn entry_size(&self) -> usize {
        self.entry_size
    }

    /// Address of the first entry.
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Address of the doorbell register, 0 if there is none.
    pub fn doorbell_addr(&self) -> u64 {
        self.doorbell.map_or(0, |doorbell| doorbell.as_ptr() as u64)
    }

    /// A word of the entry that is `at` bytes into the ring, which wraps.
    #[inline(always)]
    fn word(&self, at: usize, word: usize) -> &AtomicU64 {
        // SAFETY: what the mask leaves of any number is the offset of an entry of the ring: entries are a power of two,
        // and so are an entry's bytes. `word` is below `entry_size / 8`: `store` and `load_if` count up to the words of
        // the queue's entries, which the queues compare with `entry_size` when they are made (`qp.rs`, `recv.rs`) or
        // before they load (`cq.rs`). So the word is one of the ring's, and aligned since `base` is. It is valid and
        // accessed as a word only while `_owner` lives, which outlives the result: `new`'s contract.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add((at & self.mask) + word * 8).cast()) }
    }

    /// Stores the entry that is `at` bytes into the ring.
    #[inline(always)]
    pub(crate) fn store<const W: usize>(&self, at: usize, words: &[u64; W]) {
        debug_assert_eq!(W * 8, self.entry_size);
        for (i, word) in words.iter().enumerate() {
            self.word(at, i).store(*word, Relaxed);
        }
    }

    /// Loads the entry at the place of `counter`, if its first word passes `is_fresh`.
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

    /// Offset of the place of `counter`.
    #[inline(always)]
    pub(crate) fn at(&self, counter: u32) -> usize {
        counter as usize * self.entry_size
    }

    /// Stores `value` in the doorbell register, behind every entry stored before. Says whether entries stored from here
    /// on may overtake it: then it is the doorbell before this one that they cannot.
    #[inline(always)]
    pub(crate) fn ring(&self, value: u32) -> bool {
        if self.write_combining {
            barrier::flush_write_combining();
        } else {
            barrier::before_doorbell();
        }
        if let Some(doorbell) = self.doorbell {
            // SAFETY: aligned, and valid and accessed as a 32-bit word only while `_owner` lives: `new`'s contract.
            unsafe { AtomicU32::from_ptr(doorbell.as_ptr()) }.store(value, Release);
        }
        self.write_combining
    }

    /// Orders the last doorbell before entries that are stored from here on.
    #[inline(always)]
    pub(crate) fn order_doorbell(&self) {
        if self.write_combining {
            barrier::flush_write_combining();
        }
    }

    /// The same ring, as if it were device memory: what is done about its order can be tested then.
    #[cfg(all(test, feature = "soft"))]
    pub(crate) fn pretend_write_combining(&mut self) {
        self.write_combining = true;
    }
}
