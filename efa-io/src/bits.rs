//! Bit fields: every layout of this crate is a list of them.

/// A run of bits inside an array of little-endian 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// The vendor's name of the field, which errors and the dissector print.
    pub(crate) name: &'static str,
    word: usize,
    low: u32,
    width: u32,
}

impl Field {
    /// The field in bits `high:low` of word `word`.
    pub(crate) const fn new(name: &'static str, word: usize, high: u32, low: u32) -> Self {
        assert!(high < 64 && low <= high);
        Self { name, word, low, width: high - low + 1 }
    }

    /// Returns the largest value that fits.
    pub(crate) const fn max(self) -> u64 {
        u64::MAX >> (64 - self.width)
    }

    /// Returns the field's value in `words`.
    #[inline(always)]
    pub(crate) const fn get(self, words: &[u64]) -> u64 {
        (words[self.word] >> self.low) & self.max()
    }

    /// Returns `true` if the field is not zero.
    #[inline(always)]
    pub(crate) const fn is_set(self, words: &[u64]) -> bool {
        self.get(words) != 0
    }

    /// Returns `value` moved to the field's place, to be or-ed into its word. Bits that do not fit are cut off.
    #[inline(always)]
    pub(crate) const fn put(self, value: u64) -> u64 {
        (value & self.max()) << self.low
    }

    /// Returns the number of the field's lowest bit in its word.
    pub(crate) const fn shift(self) -> u32 {
        self.low
    }

    /// Returns a word in which only the field's bits are set.
    #[inline(always)]
    pub(crate) const fn mask(self) -> u64 {
        self.max() << self.low
    }

    /// Returns `word` with this field replaced by `value`.
    #[inline(always)]
    pub(crate) const fn replace(self, word: u64, value: u64) -> u64 {
        (word & !self.mask()) | self.put(value)
    }

    /// Returns the offset of the field's first byte in the entry.
    pub(crate) const fn byte(self) -> usize {
        self.word * 8 + self.low as usize / 8
    }

    /// Returns the bit numbers `(high, low)`, counted from the field's first byte.
    pub(crate) const fn bits_in_byte(self) -> (u32, u32) {
        (self.low % 8 + self.width - 1, self.low % 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_reads_back_what_it_put_and_touches_nothing_else() {
        let f = Field::new("f", 1, 19, 12);
        let words = [u64::MAX, f.replace(u64::MAX, 0x5a)];
        assert_eq!(f.get(&words), 0x5a);
        assert_eq!(words[1] | f.mask(), u64::MAX);
        assert_eq!(f.put(0x1ff), 0xff << 12);
        assert_eq!((f.byte(), f.bits_in_byte()), (9, (11, 4)));
    }

    #[test]
    fn a_field_may_be_a_whole_word() {
        let f = Field::new("f", 0, 63, 0);
        assert_eq!(f.get(&[u64::MAX]), u64::MAX);
        assert_eq!(f.replace(7, 9), 9);
    }
}
