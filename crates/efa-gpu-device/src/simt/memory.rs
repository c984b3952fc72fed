//! Stores on their way, and the memory at the end of it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

/// A store: the low `size` bytes of `value`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub(super) addr: usize,
    pub(super) size: usize,
    pub(super) value: u64,
    /// It lingers until then, if nobody makes it go on.
    pub(super) until: u64,
}

impl Store {
    fn overlaps(&self, addr: usize, size: usize) -> bool {
        self.addr < addr + size && addr < self.addr + self.size
    }
}

/// Somebody who wants to see the stores to an address.
pub(super) struct Watch<'env> {
    pub(super) addr: usize,
    pub(super) seen: Box<dyn FnMut(u32) + 'env>,
}

/// Stores that have come as far as here, in the order in which they came.
#[derive(Default)]
pub(super) struct Buffer {
    stores: Vec<Store>,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.stores.len()
    }

    pub(super) fn push(&mut self, store: Store) {
        self.stores.push(store);
    }

    /// Takes any one that is not behind another to the same address; none if that one lingers.
    pub(super) fn take_any(&mut self, rng: &mut fastrand::Rng, now: u64) -> Option<Store> {
        let mut at = rng.usize(..self.stores.len().max(1));
        let mut chosen = *self.stores.get(at)?;
        while let Some(earlier) = self.stores[..at].iter().position(|s| s.overlaps(chosen.addr, chosen.size)) {
            (at, chosen) = (earlier, self.stores[earlier]);
        }
        (chosen.until <= now).then(|| self.stores.remove(at))
    }

    /// Takes all.
    pub(super) fn take_all(&mut self) -> Vec<Store> {
        std::mem::take(&mut self.stores)
    }

    /// Takes those to these bytes, and those that have to go before them.
    pub(super) fn take_overlapping(&mut self, addr: usize, size: usize) -> Vec<Store> {
        if !self.stores.iter().any(|s| s.overlaps(addr, size)) {
            return Vec::new();
        }
        let mut taken: Vec<Store> = Vec::new();
        for at in (0..self.stores.len()).rev() {
            let store = self.stores[at];
            if store.overlaps(addr, size) || taken.iter().any(|t| t.overlaps(store.addr, store.size)) {
                taken.push(self.stores.remove(at));
            }
        }
        taken.reverse();
        taken
    }

    /// What `value`, which stands at these bytes, becomes by the stores that are here.
    pub(super) fn over(&self, addr: usize, size: usize, value: u64) -> u64 {
        let mut bytes = value.to_le_bytes();
        for store in self.stores.iter().filter(|s| s.overlaps(addr, size)) {
            let new = store.value.to_le_bytes();
            for (i, byte) in bytes.iter_mut().enumerate().take(size) {
                if let Some(at) = (addr + i).checked_sub(store.addr).filter(|&at| at < store.size) {
                    *byte = new[at];
                }
            }
        }
        u64::from_le_bytes(bytes)
    }
}

/// Loads `size` bytes from memory.
///
/// # Safety
/// The bytes are valid for reads, aligned to their size, and accessed atomically.
pub(super) unsafe fn load(addr: usize, size: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => AtomicU8::from_ptr(addr as *mut u8).load(Acquire).into(),
            4 => AtomicU32::from_ptr(addr as *mut u32).load(Acquire).into(),
            _ => AtomicU64::from_ptr(addr as *mut u64).load(Acquire),
        }
    }
}

/// Stores to memory.
///
/// # Safety
/// The bytes are valid for writes, aligned to their size, and accessed atomically.
pub(super) unsafe fn store(Store { addr, size, value, .. }: Store) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => AtomicU8::from_ptr(addr as *mut u8).store(value as u8, Release),
            4 => AtomicU32::from_ptr(addr as *mut u32).store(value as u32, Release),
            _ => AtomicU64::from_ptr(addr as *mut u64).store(value, Release),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(stores: &[(usize, usize, u64)]) -> Buffer {
        Buffer { stores: stores.iter().map(|&(addr, size, value)| Store { addr, size, value, until: 0 }).collect() }
    }

    #[test]
    fn a_load_sees_the_stores_on_their_way_byte_by_byte() {
        let buffer = buffer(&[(8, 4, 0x1111_1111), (9, 1, 0x22), (16, 8, 3), (12, 4, 0x4444_4444)]);
        assert_eq!(buffer.over(8, 8, 0), 0x4444_4444_1111_2211);
        assert_eq!(buffer.over(11, 1, 0), 0x11);
        assert_eq!(buffer.over(0, 8, 9), 9);
    }

    #[test]
    fn stores_to_the_same_bytes_leave_in_order_and_others_in_any() {
        let (mut rng, mut first) = (fastrand::Rng::with_seed(1), [0; 4]);
        for _ in 0..100 {
            let mut buffer = buffer(&[(0, 4, 0), (0, 8, 1), (4, 4, 2), (8, 8, 3)]);
            let order: Vec<u64> = std::iter::from_fn(|| buffer.take_any(&mut rng, 0)).map(|s| s.value).collect();
            let at = |value| order.iter().position(|&v| v == value).unwrap();
            assert!(at(0) < at(1) && at(1) < at(2), "{order:?}");
            first[order[0] as usize] += 1;
        }
        assert!(first[0] > 0 && first[3] > 0 && first[1] + first[2] == 0);
    }

    #[test]
    fn what_an_atomic_needs_leaves_with_all_that_is_before_it() {
        let mut buffer = buffer(&[(0, 4, 0), (16, 8, 1), (0, 8, 2), (4, 4, 3)]);
        let taken: Vec<u64> = buffer.take_overlapping(4, 4).iter().map(|s| s.value).collect();
        assert_eq!((taken, buffer.len()), (vec![0, 2, 3], 1));
    }
}
