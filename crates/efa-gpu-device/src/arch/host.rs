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

/// Loads two words, the first one first, and everything that was stored before it was.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_acquire_pair(from: *mut u64) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe { [AtomicU64::from_ptr(from).load(Acquire), AtomicU64::from_ptr(from.add(1)).load(Relaxed)] }
}

/// Loads a word.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_relaxed(from: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(from.cast_mut()) }.load(Relaxed)
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

/// Stores two words, in no particular order.
///
/// # Safety
/// `to` is valid for writes of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_pair(to: *mut u64, words: [u64; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        AtomicU64::from_ptr(to).store(words[0], Relaxed);
        AtomicU64::from_ptr(to.add(1)).store(words[1], Relaxed);
    }
}

/// Stores a word behind everything stored before, as any observer in the system sees it.
///
/// # Safety
/// `to` is a word of a ring.
#[inline(always)]
pub(crate) unsafe fn store_release(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(to) }.store(value, Release);
}

/// Loads a doorbell's value, and everything that was stored before it was.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_doorbell(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(from.cast_mut()) }.load(Acquire)
}

/// Loads a word that other threads of this GPU write.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_gpu(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(from.cast_mut()) }.load(Relaxed)
}

/// Loads four words that other threads of this GPU write, each whole, in no particular order.
///
/// # Safety
/// `from` is valid for reads, and aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_four_gpu(from: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    std::array::from_fn(|i| unsafe { load_gpu(from.add(i)) })
}

/// Stores a word that other threads of this GPU read.
///
/// # Safety
/// `to` is valid for writes, and only accessed atomically.
#[inline(always)]
pub(crate) unsafe fn store_gpu(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.store(value, Relaxed);
}

/// Adds to a word that other threads of this GPU add to, and gives what it was; sees what they stored before they added, and is seen by them.
///
/// # Safety
/// `to` is valid for reads and writes, and only accessed atomically.
#[inline(always)]
pub(crate) unsafe fn fetch_add_gpu(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.fetch_add(value, AcqRel)
}

/// The same, and only sees.
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_acquire_gpu(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.fetch_add(value, Acquire)
}

/// The same, without any order with other memory.
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_relaxed_gpu(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.fetch_add(value, Relaxed)
}

/// Replaces a word and gives what it was, without any order with other memory.
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn exchange_relaxed_gpu(to: *mut u32, new: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU32::from_ptr(to) }.swap(new, Relaxed)
}

/// Replaces a word if it is `current`, and gives what it was; ordered like [`fetch_add_gpu`].
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange_gpu(to: *mut u32, current: u32, new: u32) -> u32 {
    // SAFETY: the caller's promise.
    match unsafe { AtomicU32::from_ptr(to) }.compare_exchange(current, new, AcqRel, Acquire) {
        Ok(was) | Err(was) => was,
    }
}

#[inline(always)]
pub(crate) fn fence_gpu() {
    fence(SeqCst);
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

pub(crate) fn sync_block() {}

/// Does nothing for about so long.
pub(crate) fn nanosleep(_ns: u32) {
    std::thread::yield_now();
}

/// Place in the grid: block, blocks, thread in the block, threads of a block.
pub(crate) fn place() -> [u32; 4] {
    [0, 1, 0, 1]
}

/// Marks what happens seldom.
#[inline(always)]
pub(crate) fn rarely() {}
