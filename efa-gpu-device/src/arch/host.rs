//! The host's counterparts of GPU instructions, which the [executor](crate::simt) carries out.

use crate::simt::{self, Orders, Primitive};
use std::sync::atomic::Ordering::*;

/// Tells the executor that `bytes` bytes at `addr` stay until the launch is over.
///
/// # Safety
/// They are valid for writes, and accessed atomically, until then.
pub(crate) unsafe fn lend(addr: u64, bytes: u64) {
    // SAFETY: the caller's promise.
    unsafe { simt::lend(addr, bytes) };
}

/// Stores an entry.
///
/// # Safety
/// `to` is valid for writes of the entry, aligned to 16 bytes, and only accessed atomically.
#[inline(always)]
pub(crate) unsafe fn store_entry<const W: usize>(to: *mut u64, words: &[u64; W]) {
    for (i, word) in words.iter().enumerate() {
        // SAFETY: inside the entry, which the caller keeps valid.
        unsafe { simt::store(to.add(i) as usize, 8, *word, false) };
    }
}

/// Stores a doorbell's value.
///
/// # Safety
/// `to` is a doorbell.
#[inline(always)]
pub(crate) unsafe fn store_doorbell(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { simt::store(to as usize, 4, value.into(), false) };
}

/// Loads a word. An acquire: what was stored before the word is visible behind this load.
///
/// # Safety
/// `from` is a word of a ring.
#[inline(always)]
pub(crate) unsafe fn load_acquire(from: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 8, true) }
}

/// Loads two words, the first one first. An acquire: what was stored before the first is visible behind its load.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_acquire_pair(from: *mut u64) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe { [load_acquire(from), load_acquire(from.add(1))] }
}

/// Loads a word.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_relaxed(from: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 8, false) }
}

/// Loads two words, in no particular order.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_pair(from: *mut u64) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe { [load_relaxed(from), load_relaxed(from.add(1))] }
}

/// Stores two words, in no particular order.
///
/// # Safety
/// `to` is valid for writes of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_pair(to: *mut u64, words: [u64; 2]) {
    // SAFETY: the caller's promise.
    unsafe { store_entry(to, &words) };
}

/// Stores a word behind everything stored before, as any observer in the system sees it.
///
/// # Safety
/// `to` is a word of a ring.
#[inline(always)]
pub(crate) unsafe fn store_release(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { simt::store(to as usize, 8, value, true) };
}

/// Loads a doorbell's value. An acquire: what was stored before the value is visible behind this load.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_doorbell(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 4, true) as u32 }
}

/// Loads a word that other threads of this GPU write.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_gpu(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 4, false) as u32 }
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
    unsafe { simt::store(to as usize, 4, value.into(), false) };
}

/// Adds to a word that other threads of this GPU add to, and returns its value from before. Acquires and releases.
///
/// # Safety
/// `to` is valid for reads and writes, and only accessed atomically.
#[inline(always)]
pub(crate) unsafe fn fetch_add_gpu(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic(to, Orders::AcquireAndRelease, |word| word.fetch_add(value, AcqRel)) }
}

/// As [`fetch_add_gpu`], without any order with other memory.
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_relaxed_gpu(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic(to, Orders::Nothing, |word| word.fetch_add(value, Relaxed)) }
}

/// Adds to two numbers in one word, as [`fetch_add_gpu`] does to one.
///
/// # Safety
/// As [`fetch_add_gpu`]; aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn fetch_add_gpu_u64(to: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic_u64(to, Orders::AcquireAndRelease, |word| word.fetch_add(value, AcqRel)) }
}

/// As [`fetch_add_gpu_u64`], but only acquires.
///
/// # Safety
/// As [`fetch_add_gpu_u64`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_acquire_gpu_u64(to: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic_u64(to, Orders::Acquire, |word| word.fetch_add(value, Acquire)) }
}

/// As [`fetch_add_gpu_u64`], without any order with other memory.
///
/// # Safety
/// As [`fetch_add_gpu_u64`].
#[inline(always)]
pub(crate) unsafe fn fetch_add_relaxed_gpu_u64(to: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic_u64(to, Orders::Nothing, |word| word.fetch_add(value, Relaxed)) }
}

/// Loads a word that other threads of this GPU write.
///
/// # Safety
/// `from` is valid for reads.
#[inline(always)]
pub(crate) unsafe fn load_gpu_u64(from: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 8, false) }
}

/// Replaces a word and returns its value from before, without any order with other memory.
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn exchange_relaxed_gpu(to: *mut u32, new: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::atomic(to, Orders::Nothing, |word| word.swap(new, Relaxed)) }
}

/// Replaces a word if it is `current`, and returns its value from before; ordered like [`fetch_add_gpu`].
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange_gpu(to: *mut u32, current: u32, new: u32) -> u32 {
    let replace = |word: &std::sync::atomic::AtomicU32| match word.compare_exchange(current, new, AcqRel, Acquire) {
        Ok(was) | Err(was) => was,
    };
    // SAFETY: the caller's promise.
    unsafe { simt::atomic(to, Orders::AcquireAndRelease, replace) }
}

pub(crate) fn fence_gpu() {
    simt::order(false);
}

pub(crate) fn fence_system() {
    simt::order(true);
}

pub(crate) fn globaltimer() -> u64 {
    simt::clock()
}

pub(crate) fn lane() -> u32 {
    simt::place().1
}

pub(crate) fn ballot(mask: u32, predicate: bool) -> u32 {
    simt::meet(Primitive::Ballot, mask, predicate.into(), 0)
}

pub(crate) fn sync_warp(mask: u32) {
    simt::meet(Primitive::SyncWarp, mask, 0, 0);
}

pub(crate) fn active_mask() -> u32 {
    simt::here()
}

pub(crate) fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    simt::meet(Primitive::Shuffle, mask, value, from)
}

pub(crate) fn sync_block() {
    simt::meet_block();
}

/// Sleeps for about `ns` nanoseconds.
pub(crate) fn nanosleep(ns: u32) {
    simt::sleep(ns);
}

/// Returns the place in the grid: block, blocks, thread in the block, threads of a block.
pub(crate) fn place() -> [u32; 4] {
    simt::place().0
}

/// Returns zero.
pub(crate) fn opaque_zero() -> u32 {
    0
}

/// Marks a branch that is rarely taken.
#[inline(always)]
pub(crate) fn rarely() {}

/// Loads a byte.
///
/// # Safety
/// `from` is valid for reads, and aligned.
#[inline(always)]
pub(crate) unsafe fn load_u8_system(from: *const u8) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 1, false) as u8 }
}

/// Loads 32 bits.
///
/// # Safety
/// `from` is valid for reads, and aligned.
#[inline(always)]
pub(crate) unsafe fn load_u32_system(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { simt::load(from as usize, 4, false) as u32 }
}

/// Stores a byte.
///
/// # Safety
/// `to` is valid for writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn store_u8_system(to: *mut u8, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { simt::store(to as usize, 1, value.into(), false) };
}

/// Stores 32 bits.
///
/// # Safety
/// `to` is valid for writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn store_u32_system(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { simt::store(to as usize, 4, value.into(), false) };
}

/// Stores a word.
///
/// # Safety
/// `to` is valid for writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn store_u64_system(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { simt::store(to as usize, 8, value, false) };
}
