//! On a processor: a warp is one lane, and memory is accessed as atomic words.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};
use std::time::Instant;

/// Stores an entry.
///
/// # Safety
/// `to` is valid for writes of the entry, aligned to 16 bytes, and only accessed atomically.
#[inline(always)]
pub(crate) unsafe fn store_entry<const W: usize>(to: *mut u64, words: &[u64; W]) {
    for (i, word) in words.iter().enumerate() {
        // SAFETY: inside the entry.
        unsafe { AtomicU64::from_ptr(to.add(i)) }.store(*word, Relaxed);
    }
}

/// Stores a doorbell's value.
///
/// # Safety
/// `to` is a doorbell.
#[inline(always)]
pub(crate) unsafe fn store_doorbell(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.store(value, Release);
}

/// Loads a word, and everything that was stored before it was.
///
/// # Safety
/// `from` is a word of a ring.
#[inline(always)]
pub(crate) unsafe fn load_acquire(from: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(from) }.load(Acquire)
}

/// Loads two words, in no particular order.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_pair(from: *mut u64) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe { [AtomicU64::from_ptr(from).load(Relaxed), AtomicU64::from_ptr(from.add(1)).load(Relaxed)] }
}

#[inline(always)]
pub(crate) fn fence_system() {
    fence(SeqCst);
}

pub(crate) fn globaltimer() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Number of the only lane.
pub(crate) fn lane() -> u32 {
    0
}

pub(crate) fn ballot(_mask: u32, predicate: bool) -> u32 {
    predicate.into()
}

pub(crate) fn sync_warp(_mask: u32) {}

pub(crate) fn active_mask() -> u32 {
    1
}

pub(crate) fn shuffle(_mask: u32, value: u32, _from: u32) -> u32 {
    value
}

/// Place in the grid: block, blocks, thread in the block, threads of a block.
pub(crate) fn place() -> [u32; 4] {
    [0, 1, 0, 1]
}

/// Marks what happens seldom.
#[inline(always)]
pub(crate) fn rarely() {}
