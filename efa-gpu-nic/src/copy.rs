//! Copies bytes, by one lane or by several that share the work.

use efa_gpu_device::mem;

/// What one access copies.
trait Unit: Copy {
    /// # Safety
    /// `from` is valid for reads of a unit, and aligned to its size.
    unsafe fn load(from: *const Self) -> Self;
    /// # Safety
    /// `to` is valid for writes of a unit, and aligned to its size.
    unsafe fn store(to: *mut Self, value: Self);
}

macro_rules! unit {
    ($($word:ty, $load:ident, $store:ident;)*) => {$(
        impl Unit for $word {
            #[inline(always)]
            unsafe fn load(from: *const Self) -> Self {
                // SAFETY: the caller's promise.
                unsafe { mem::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut Self, value: Self) {
                // SAFETY: the caller's promise.
                unsafe { mem::$store(to, value) };
            }
        }
    )*};
}

unit! {
    u8, load_relaxed_system_u8, store_relaxed_system_u8;
    u32, load_relaxed_system_u32, store_relaxed_system_u32;
    u64, load_relaxed_system, store_relaxed_system;
}

/// 16 bytes, in one access.
impl Unit for [u64; 2] {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { mem::load_pair_system(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut Self, value: Self) {
        // SAFETY: the caller's promise.
        unsafe { mem::store_pair(to.cast(), value) };
    }
}

/// Copies units `part`, `part + parts`, … of `count`.
///
/// # Safety
/// Both sides are valid for all of them, and aligned to their size.
#[inline(always)]
unsafe fn units<U: Unit>(from: u64, to: u64, count: u32, part: u32, parts: u32) {
    let (from, to) = (from as *const U, to as *mut U);
    let mut i = part;
    // Four at a time, so that their latencies overlap.
    while count.saturating_sub(i) > 3 * parts {
        let [a, b, c, d] = [i, i + parts, i + 2 * parts, i + 3 * parts].map(|at| at as usize);
        // SAFETY: the last of the four is below `count`, and so inside both sides, which the caller keeps valid.
        unsafe {
            let [w, x, y, z] = [U::load(from.add(a)), U::load(from.add(b)), U::load(from.add(c)), U::load(from.add(d))];
            U::store(to.add(a), w);
            U::store(to.add(b), x);
            U::store(to.add(c), y);
            U::store(to.add(d), z);
        }
        i += 4 * parts;
    }
    while i < count {
        // SAFETY: `i` is below `count`, and so inside both sides, which the caller keeps valid.
        unsafe { U::store(to.add(i as usize), U::load(from.add(i as usize))) };
        i += parts;
    }
}

/// Copies in units where both sides are aligned to them, and byte by byte before and after.
///
/// # Safety
/// As [`copy`]; `from` and `to` differ by a multiple of the unit's size.
#[inline(always)]
unsafe fn aligned<U: Unit>(from: u64, to: u64, len: u32, part: u32, parts: u32) {
    let size = size_of::<U>() as u32;
    let head = (to as u32).wrapping_neg() & (size - 1);
    let head = if head < len { head } else { len };
    let body = (len - head) & !(size - 1);
    let tail = len - head - body;
    // SAFETY: the three parts are the whole, one after the other. The middle is aligned on both sides: `to` by `head`,
    // `from` since both differ by a multiple of the unit's size.
    unsafe {
        units::<u8>(from, to, head, part, parts);
        units::<U>(from + u64::from(head), to + u64::from(head), body / size, part, parts);
        let before = u64::from(len - tail);
        units::<u8>(from + before, to + before, tail, part, parts);
    }
}

/// Copies share `part` of `parts` of `len` bytes; all shares together are all bytes. The order is unspecified, so the
/// two sides must not overlap.
///
/// # Safety
/// Both sides are valid for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn copy(from: u64, to: u64, len: u32, part: u32, parts: u32) {
    let apart = (from ^ to) & 15;
    // SAFETY: the caller keeps both sides valid, and `apart` is a multiple of the unit's size.
    unsafe {
        if apart == 0 {
            aligned::<[u64; 2]>(from, to, len, part, parts);
        } else if apart & 7 == 0 {
            aligned::<u64>(from, to, len, part, parts);
        } else if apart & 3 == 0 {
            aligned::<u32>(from, to, len, part, parts);
        } else {
            units::<u8>(from, to, len, part, parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Memory([u8; 640]);

    #[test]
    fn every_byte_arrives_and_none_beside_them_for_every_pair_of_alignments() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut source = Memory([0; 640]);
        rng.fill(&mut source.0);
        for from in 0..17 {
            for to in 0..17 {
                for len in (0..70).chain([127, 128, 129, 500, 600]) {
                    for parts in [1, 3, 32] {
                        let mut target = Memory([0xee; 640]);
                        for part in 0..parts {
                            let [from, to] =
                                [source.0.as_ptr() as u64 + from as u64, target.0.as_mut_ptr() as u64 + to as u64];
                            // SAFETY: both are inside.
                            unsafe { copy(from, to, len, part, parts) };
                        }
                        let (to, len) = (to as usize, len as usize);
                        assert!(target.0[to..][..len] == source.0[from as usize..][..len], "{from} {to} {len} {parts}");
                        assert!(target.0[..to].iter().chain(&target.0[to + len..]).all(|byte| *byte == 0xee));
                    }
                }
            }
        }
    }
}
