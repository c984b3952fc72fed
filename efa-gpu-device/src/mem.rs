//! Accesses to memory that others see while a kernel runs: the host, a NIC, other GPUs, other threads.
//!
//! A plain load or store does not define when, or whether, somebody else sees it. These do: `relaxed` ones are seen
//! whole, at some time; `acquire` and `release` order the accesses around them (PTX ISA, "Memory consistency model").
//! `system` is for all observers, `device` for the threads of this GPU.
//!
//! On a GPU a store may be under way when the kernel goes on, until a [fence](crate::thread::system_fence) behind it or
//! the kernel's end. So whoever frees memory waits for one of them, and says to nobody before the fence that it may be
//! freed. On the host a store is complete when the function returns, except to memory that was [lent](crate::simt) to
//! the run.

use crate::arch;

/// Loads a word.
///
/// # Safety
/// `from` is valid for reads, aligned to 8 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_relaxed_system(from: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_relaxed(from) }
}

/// Loads a word. An acquire: what was stored before the word is visible behind this load.
///
/// # Safety
/// As [`load_relaxed_system`].
#[inline(always)]
pub unsafe fn load_acquire_system(from: *const u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_acquire(from.cast_mut()) }
}

/// Loads 32 bits: a doorbell, as the device reads it. An acquire: what was stored before them is visible behind this
/// load.
///
/// # Safety
/// `from` is valid for reads, aligned to 4 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_acquire_system_u32(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_doorbell(from) }
}

/// Loads two words at once.
///
/// # Safety
/// `from` is valid for reads of two words, aligned to 16 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_pair_system(from: *const u64) -> [u64; 2] {
    // SAFETY: the caller's promise.
    unsafe { arch::load_pair(from.cast_mut()) }
}

/// Stores two words, each whole, in no particular order. A [fence](crate::thread::system_fence) orders them before what
/// this thread stores after it.
///
/// # Safety
/// `to` is valid for writes of two words, aligned to 16 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn store_pair(to: *mut u64, words: [u64; 2]) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_pair(to, words) }
}

/// Stores a word behind everything stored before.
///
/// # Safety
/// `to` is valid for writes, aligned to 8 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn store_release_system(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_release(to, value) }
}

/// Stores to a device's register: exactly one store of this size, that nothing merges or repeats. It orders nothing.
///
/// # Safety
/// `to` is a register.
#[inline(always)]
pub unsafe fn store_mmio(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_doorbell(to, value) }
}

/// Loads a word that other threads of this GPU store.
///
/// # Safety
/// `from` is valid for reads, aligned to 4 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_relaxed_device(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_gpu(from) }
}

/// Adds to a word of this GPU's threads and returns its value from before. Acquires what others stored before they
/// added, and releases what this thread stored.
///
/// # Safety
/// `to` is valid for reads and writes, aligned to 4 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn fetch_add_device(to: *mut u32, value: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { arch::fetch_add_gpu(to, value) }
}

/// Replaces a word of this GPU's threads if it is `current`, and returns its value from before; ordered like
/// [`fetch_add_device`].
///
/// # Safety
/// As [`fetch_add_device`].
#[inline(always)]
pub unsafe fn compare_exchange_device(to: *mut u32, current: u32, new: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { arch::compare_exchange_gpu(to, current, new) }
}

/// Loads a byte.
///
/// # Safety
/// `from` is valid for reads, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_relaxed_system_u8(from: *const u8) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_u8_system(from) }
}

/// Loads 32 bits.
///
/// # Safety
/// `from` is valid for reads, aligned to 4 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn load_relaxed_system_u32(from: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { arch::load_u32_system(from) }
}

/// Stores a word.
///
/// # Safety
/// `to` is valid for writes, aligned to 8 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn store_relaxed_system(to: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_u64_system(to, value) }
}

/// Stores a byte.
///
/// # Safety
/// `to` is valid for writes, and only accessed atomically.
#[inline(always)]
pub unsafe fn store_relaxed_system_u8(to: *mut u8, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_u8_system(to, value) }
}

/// Stores 32 bits.
///
/// # Safety
/// `to` is valid for writes, aligned to 4 bytes, and only accessed atomically.
#[inline(always)]
pub unsafe fn store_relaxed_system_u32(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { arch::store_u32_system(to, value) }
}
