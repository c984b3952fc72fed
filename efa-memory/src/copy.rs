//! Copies of bytes of which at least one side is shared.
//!
//! In Rust's terms every copy is a loop of relaxed atomic loads and stores of one byte each. Whoever accesses the same
//! bytes at the same time sees, and leaves, some mixture of old and new bytes. Compilers do not join such accesses, so
//! a loop in Rust would copy byte by byte. On x86-64 the copy is therefore made of instructions that the compiler does
//! not look into. They read every byte once and write it once, in an order that they do not promise. Relaxed atomics
//! promise none either: whatever the instructions do, the loop may do. This is all that the compiler has to know about
//! them.
//!
//! - Long copies are `rep movsb`. It is as fast as `memcpy`, which uses the same instruction from some size on.
//! - Short copies are loads and stores of 8 bytes, and of single bytes for the rest. A processor may tear them between
//!   bytes, but not within one.
//!
//! Nobody sees a store after a copy before the copy itself: x86-64 keeps stores in order, and those of a string
//! instruction before all that follow it (Intel SDM 3A, 9.2.4 "Fast-String Operation and Out-of-Order Stores").
//!
//! Miri and the sanitizers do not look into instructions either. For them (`cfg(efa_bytewise)`), and on other
//! processors, the copy is the loop.

#[cfg(all(target_arch = "x86_64", not(any(miri, efa_bytewise))))]
use instructions as how;
#[cfg(not(all(target_arch = "x86_64", not(any(miri, efa_bytewise)))))]
use loops as how;

/// Copies shared bytes into private ones.
///
/// # Safety
/// `src` is valid for reads of `dst.len()` bytes. Meanwhile all other code of this program accesses them only as atomic
/// bytes, that is through this module or as `AtomicU8`.
#[inline]
pub unsafe fn copy_out(src: *const u8, dst: &mut [u8]) {
    // SAFETY: the caller guarantees that `src` is valid and that others access it as atomic bytes only. `dst` is an
    // exclusive slice, so it is valid for writes and nobody else accesses it.
    unsafe { how::copy_out(src, dst.as_mut_ptr(), dst.len()) }
}

/// Copies private bytes into shared ones.
///
/// # Safety
/// `dst` is valid for writes of `src.len()` bytes. Meanwhile all other code of this program accesses them only as
/// atomic bytes, that is through this module or as `AtomicU8`.
#[inline]
pub unsafe fn copy_in(src: &[u8], dst: *mut u8) {
    // SAFETY: the caller guarantees that `dst` is valid and that others access it as atomic bytes only. `src` is a
    // shared slice, so it is valid for reads and nobody writes it.
    unsafe { how::copy_in(src.as_ptr(), dst, src.len()) }
}

/// Copies shared bytes to shared ones. If the two overlap, the result is some mixture of both.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes. Meanwhile all other code of this program accesses both
/// only as atomic bytes, that is through this module or as `AtomicU8`.
#[inline]
pub(super) unsafe fn copy_shared(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller guarantees that both sides are valid for `len` bytes and that others access them as atomic
    // bytes only.
    unsafe { how::copy_shared(src, dst, len) }
}

/// Copies by instructions of x86-64. It makes no difference to them which side is shared.
#[cfg(all(target_arch = "x86_64", not(any(miri, efa_bytewise))))]
mod instructions {
    use std::arch::asm;

    pub(super) use {copy as copy_in, copy as copy_out, copy as copy_shared};

    /// Fewest bytes of a copy for which a string instruction is worth its start.
    const LONG: usize = 64;

    /// # Safety
    /// `src` is valid for reads and `dst` for writes of `len` bytes. Meanwhile others access either side as atomic
    /// bytes or not at all.
    #[inline]
    pub(crate) unsafe fn copy(mut src: *const u8, mut dst: *mut u8, mut len: usize) {
        if len >= LONG {
            // SAFETY: the instruction reads `len` bytes from `src` on and writes `len` bytes from `dst` on, which the
            // caller guarantees to be valid. It goes upwards, since the direction flag is clear whenever Rust code runs
            // (the ABI and the rules of `asm!` keep it so). It touches neither stack nor flags. To others its accesses
            // are those of atomic bytes, as the module's documentation shows.
            return unsafe {
                asm!(
                    "rep movsb",
                    inout("rcx") len => _,
                    inout("rsi") src => _,
                    inout("rdi") dst => _,
                    options(nostack, preserves_flags)
                )
            };
        }
        while len >= 8 {
            // SAFETY: the loop's condition leaves at least 8 bytes of the `len` that the caller guarantees to be valid
            // on both sides. To others the accesses are those of atomic bytes, as the module's documentation shows.
            unsafe {
                asm!(
                    "mov {word}, qword ptr [{src}]",
                    "mov qword ptr [{dst}], {word}",
                    src = in(reg) src,
                    dst = in(reg) dst,
                    word = out(reg) _,
                    options(nostack, preserves_flags)
                );
                (src, dst, len) = (src.add(8), dst.add(8), len - 8);
            }
        }
        while len > 0 {
            // SAFETY: the loop's condition leaves at least one byte of the `len` that the caller guarantees to be valid
            // on both sides. To others the accesses are those of atomic bytes, as the module's documentation shows.
            unsafe {
                asm!(
                    "mov {byte}, byte ptr [{src}]",
                    "mov byte ptr [{dst}], {byte}",
                    src = in(reg) src,
                    dst = in(reg) dst,
                    byte = out(reg_byte) _,
                    options(nostack, preserves_flags)
                );
                (src, dst, len) = (src.add(1), dst.add(1), len - 1);
            }
        }
    }
}

/// Copies by loops in Rust. The private side is accessed plainly: Rust has no atomic access to bytes behind a shared
/// reference.
#[cfg(not(all(target_arch = "x86_64", not(any(miri, efa_bytewise)))))]
mod loops {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    /// # Safety
    /// `src` is shared and valid for reads of `len` bytes, `dst` private and valid for writes of them.
    pub(super) unsafe fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: `i` is below `len`, and the caller guarantees `len` valid bytes on both sides, that others access
            // `src` as atomic bytes only, and `dst` not at all.
            unsafe { *dst.add(i) = AtomicU8::from_ptr(src.add(i).cast_mut()).load(Relaxed) };
        }
    }

    /// # Safety
    /// `src` is private and valid for reads of `len` bytes, `dst` shared and valid for writes of them.
    pub(super) unsafe fn copy_in(src: *const u8, dst: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: `i` is below `len`, and the caller guarantees `len` valid bytes on both sides, that others access
            // `dst` as atomic bytes only, and do not write `src`.
            unsafe { AtomicU8::from_ptr(dst.add(i)).store(*src.add(i), Relaxed) };
        }
    }

    /// # Safety
    /// `src` is shared and valid for reads of `len` bytes, `dst` shared and valid for writes of them.
    pub(super) unsafe fn copy_shared(src: *const u8, dst: *mut u8, len: usize) {
        for i in 0..len {
            // SAFETY: `i` is below `len`, and the caller guarantees `len` valid bytes on both sides, and that others
            // access them as atomic bytes only.
            unsafe {
                let byte = AtomicU8::from_ptr(src.add(i).cast_mut()).load(Relaxed);
                AtomicU8::from_ptr(dst.add(i)).store(byte, Relaxed);
            }
        }
    }
}
