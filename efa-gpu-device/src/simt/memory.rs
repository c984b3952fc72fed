//! Delayed stores, and the memory that they go to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

/// A store: the low `size` bytes of `value`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub(super) addr: usize,
    pub(super) size: usize,
    pub(super) value: u64,
    /// The time until which it lingers, if no fence brings it on.
    pub(super) until: u64,
    /// Block of the lane that stored.
    pub(super) block: usize,
    /// Its number among the stores that have reached the GPU.
    pub(super) arrived: u64,
}

impl Store {
    pub(super) fn new(addr: usize, size: usize, value: u64) -> Self {
        Self { addr, size, value, until: 0, block: 0, arrived: 0 }
    }

    fn overlaps(&self, addr: usize, size: usize) -> bool {
        self.addr < addr + size && addr < self.addr + self.size
    }
}

/// A function that sees all stores to an address.
pub(super) struct Watch<'env> {
    pub(super) addr: usize,
    pub(super) seen: Box<dyn FnMut(u32) + 'env>,
}

/// Memory that stays until the run is over: where each piece begins, and where it ends.
#[derive(Default)]
pub(super) struct Lent(BTreeMap<usize, usize>);

impl Lent {
    /// Adds `size` bytes.
    pub(super) fn add(&mut self, addr: usize, size: usize) {
        if size == 0 || self.covers(addr, size) {
            return;
        }
        let (mut start, mut end) = (addr, addr.saturating_add(size));
        // It merges with the pieces that it touches.
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back().filter(|piece| *piece.1 >= start) {
            self.0.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.0.insert(start, end);
    }

    /// Returns `true` if all these bytes are lent.
    pub(super) fn covers(&self, addr: usize, size: usize) -> bool {
        self.0.range(..=addr).next_back().is_some_and(|(_, &end)| addr.saturating_add(size) <= end)
    }
}

/// The delayed stores of a lane, a block or a GPU, in the order in which they came.
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

    /// Takes a random one that is not behind another to the same address; none if it lingers.
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
        self.take_where(|store| store.overlaps(addr, size))
    }

    /// Takes those that a block stored, and those that came before the count was more than `known`; and those that have
    /// to go before them.
    pub(super) fn take_known(&mut self, block: usize, known: u64) -> Vec<Store> {
        self.take_where(|store| store.block == block || store.arrived <= known)
    }

    /// Takes those that are `wanted`, and those that have to go before them.
    fn take_where(&mut self, wanted: impl Fn(&Store) -> bool) -> Vec<Store> {
        if !self.stores.iter().any(&wanted) {
            return Vec::new();
        }
        let (mut taken, mut left): (Vec<Store>, Vec<Store>) = Default::default();
        for store in self.stores.drain(..).rev() {
            let goes = wanted(&store) || taken.iter().any(|t| t.overlaps(store.addr, store.size));
            if goes { taken.push(store) } else { left.push(store) }
        }
        left.reverse();
        taken.reverse();
        self.stores = left;
        taken
    }

    /// Returns what the stores that are here make of `value`, which stands at these bytes.
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
/// The bytes are valid for writes, aligned to their size, and accessed atomically, at this moment.
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
        Buffer { stores: stores.iter().map(|&(addr, size, value)| Store::new(addr, size, value)).collect() }
    }

    #[test]
    fn pieces_that_touch_are_one() {
        let lent = |pieces: &[(usize, usize)]| {
            let mut lent = Lent::default();
            pieces.iter().for_each(|&(addr, size)| lent.add(addr, size));
            lent
        };
        let pieces = [(16, 8), (32, 8), (24, 8), (4, 4), (60, 4), (0, 1), (16, 4), (58, 3), (7, 0)];
        assert!(lent(&pieces).0.into_iter().eq([(0, 1), (4, 8), (16, 40), (58, 64)]));
        let lent = lent(&[(10, 2), (14, 2), (18, 2), (usize::MAX - 3, 9), (0, 20)]);
        assert!(lent.covers(0, 20) && !lent.covers(0, 21) && !lent.covers(20, 1));
        assert!(lent.covers(usize::MAX - 3, 3) && !lent.covers(usize::MAX - 4, 4));
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

    #[test]
    fn what_is_known_leaves_with_all_that_is_before_it() {
        let mut buffer = buffer(&[(0, 4, 0), (8, 4, 1), (0, 8, 2), (8, 8, 3), (16, 4, 4)]);
        for (store, (block, arrived)) in buffer.stores.iter_mut().zip([(1, 1), (2, 2), (3, 3), (1, 4), (2, 5)]) {
            (store.block, store.arrived) = (block, arrived);
        }
        let taken: Vec<u64> = buffer.take_known(3, 0).iter().map(|s| s.value).collect();
        assert_eq!(taken, [0, 2]);
        let taken: Vec<u64> = buffer.take_known(9, 4).iter().map(|s| s.value).collect();
        assert_eq!((taken, buffer.len()), (vec![1, 3], 1));
    }
}
