//! The packets of a message that have arrived.

/// A set of packet numbers below a fixed count, which keeps the lowest number that is missing at hand.
#[derive(Debug)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    count: u32,
    /// How many are missing.
    missing: u32,
    /// The lowest that is missing.
    next: u32,
}

impl Bitmap {
    /// Creates the set of which none of `count` packets has arrived.
    pub(super) fn new(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(64) as usize], count, missing: count, next: 0 }
    }

    /// Returns `true` if packet `i` is in the set.
    pub(super) fn contains(&self, i: u32) -> bool {
        self.words.get(i as usize / 64).is_some_and(|w| w >> (i % 64) & 1 != 0)
    }

    /// Puts packet `i` in the set. Returns `true` if it was not there.
    pub(super) fn insert(&mut self, i: u32) -> bool {
        if i >= self.count || self.contains(i) {
            return false;
        }
        self.words[i as usize / 64] |= 1 << (i % 64);
        self.missing -= 1;
        while self.next < self.count && self.contains(self.next) {
            self.next += 1;
        }
        true
    }

    /// Returns how many packets are missing.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// Returns the lowest packet that is missing.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Returns `N` words of the set, one bit for each packet from [`next`](Self::next) on.
    pub(super) fn window<const N: usize>(&self) -> [u64; N] {
        let (word, shift) = (self.next as usize / 64, self.next % 64);
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        std::array::from_fn(|i| {
            let low = at(word + i) >> shift;
            if shift == 0 { low } else { low | at(word + i + 1) << (64 - shift) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_starts_at_the_lowest_missing_packet() {
        let mut map = Bitmap::new(300);
        for i in (0..70).chain([71, 134, 135, 299]) {
            assert!(map.insert(i));
            assert!(!map.insert(i));
        }
        assert_eq!((map.next(), map.missing()), (70, 300 - 74));
        let window: [u64; 4] = map.window();
        let seen: Vec<u32> =
            (0..256).filter(|&b| window[b as usize / 64] >> (b % 64) & 1 != 0).map(|b| 70 + b).collect();
        assert_eq!(seen, [71, 134, 135, 299]);
        assert!(!map.insert(300));
    }
}
