//! The contents of messages, which the receiver can compute and compare, and the set of messages that have arrived.

use crate::node::split_mix;
use anyhow::{Result, ensure};
use std::collections::VecDeque;

/// A series of numbers. Each node numbers the items of each series from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// Sends and RDMA writes with immediate, which the other node learns of.
    Message,
    /// RDMA writes without immediate.
    SilentWrite,
    /// Unreliable datagrams.
    Datagram,
}

/// The content of a message, computed from seed, sender, number and length: the number itself, if there is room for it,
/// and then random bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    number: u64,
    key: u64,
    len: usize,
}

impl Content {
    pub(super) fn new(seed: u64, from: usize, series: Series, number: u64, len: usize) -> Self {
        let words = [from as u64, series as u64, number, len as u64];
        // The key depends on the length, so that a message that was cut off does not match.
        let key = words.into_iter().fold(split_mix(seed), |key, word| split_mix(key ^ word).wrapping_add(key));
        Self { number, key, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns a number from 0 to `most` that depends on the content.
    pub(super) fn choose(&self, most: usize) -> usize {
        (self.key % (most as u64 + 1)) as usize
    }

    fn word(&self, index: usize) -> [u8; 8] {
        let is_number = index == 0 && self.len >= 8;
        let word = if is_number { self.number } else { split_mix(self.key.wrapping_add(index as u64)) };
        word.to_le_bytes()
    }

    /// Writes the content to the beginning of `into`, and returns that part.
    pub(super) fn fill<'a>(&self, into: &'a mut [u8]) -> &'a [u8] {
        let bytes = &mut into[..self.len];
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
        }
        bytes
    }

    /// Compares every byte with the content.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() == self.len, "{} bytes of number {} where {} belong", bytes.len(), self.number, self.len);
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let word = self.word(index);
            ensure!(
                *chunk == word[..chunk.len()],
                "number {}, {} bytes: from byte {} on it is {chunk:02x?} where {:02x?} belongs",
                self.number,
                self.len,
                index * 8,
                &word[..chunk.len()]
            );
        }
        Ok(())
    }
}

/// The set of numbers that have arrived: all below `low`, and those whose bit is set.
#[derive(Default)]
pub(super) struct Seen {
    low: u64,
    /// A bit for each number, beginning at `low` rounded down to a multiple of 64.
    words: VecDeque<u64>,
}

impl Seen {
    /// The maximum distance of the newest number from the oldest missing one.
    pub(super) const SPAN: u64 = 1 << 23;

    /// Adds a number. Returns `Some(true)` if it is new, and `None` if it is too far ahead to have been sent.
    pub(super) fn insert(&mut self, number: u64) -> Option<bool> {
        if number >= self.low + Self::SPAN {
            return None;
        }
        let first = self.low / 64;
        let Some(place) = (number / 64).checked_sub(first) else { return Some(false) };
        if self.words.len() <= place as usize {
            self.words.resize(place as usize + 1, 0);
        }
        let (word, bit) = (&mut self.words[place as usize], 1 << (number % 64));
        if number < self.low || *word & bit != 0 {
            return Some(false);
        }
        *word |= bit;
        self.advance();
        Some(true)
    }

    /// Treats all numbers that are `span` or more behind `newest` as arrived.
    pub(super) fn give_up(&mut self, newest: u64, span: u64) {
        let low = newest.saturating_sub(span);
        if low <= self.low {
            return;
        }
        let gone = (low / 64 - self.low / 64).min(self.words.len() as u64);
        self.words.drain(..gone as usize);
        self.low = low;
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(&word) = self.words.front() {
            let ones = (word >> (self.low % 64)).trailing_ones();
            self.low += u64::from(ones);
            if ones == 0 || !self.low.is_multiple_of(64) {
                return;
            }
            self.words.pop_front();
        }
    }

    /// Returns the full number of which only the low `bits` are known: the one nearest to the oldest missing number.
    pub(super) fn complete(&self, short: u32, bits: u32) -> u64 {
        // The range is from half of 2^bits behind to half of it ahead.
        let turn = 1 << bits;
        let from = self.low.saturating_sub(turn / 2);
        from + (u64::from(short).wrapping_sub(from) & (turn - 1))
    }

    /// Returns the lowest missing number.
    pub(super) fn low(&self) -> u64 {
        self.low
    }

    /// Returns `true` if the first `count` numbers have arrived, and no others.
    pub(super) fn is_exactly(&self, count: u64) -> bool {
        let mut words = self.words.iter();
        let first = words.next().map_or(0, |word| word >> (self.low % 64));
        self.low == count && first == 0 && words.all(|&word| word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_matches_itself_and_nothing_else() {
        let mut bytes = [0; 100];
        for len in [0, 1, 7, 8, 9, 100] {
            let content = Content::new(7, 0, Series::Message, 5, len);
            content.check(content.fill(&mut bytes)).unwrap();
            if len == 0 {
                continue;
            }
            for other in [
                Content::new(8, 0, Series::Message, 5, len),
                Content::new(7, 1, Series::Message, 5, len),
                Content::new(7, 0, Series::Datagram, 5, len),
                Content::new(7, 0, Series::Message, 6, len),
            ] {
                // The first eight bytes are the number.
                assert_eq!(other.check(&bytes[..len]).is_err(), len != 8 || other.number != 5, "{other:?}");
            }
            assert!(content.check(&bytes[..len - 1]).is_err());
            bytes[len - 1] ^= 1;
            assert!(content.check(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn each_number_is_new_once_in_any_order() {
        let mut seen = Seen::default();
        let mut rng = fastrand::Rng::with_seed(3);
        for block in 0..50 {
            let mut numbers: Vec<u64> = (block * 100..(block + 1) * 100).collect();
            rng.shuffle(&mut numbers);
            for &number in &numbers {
                assert_eq!(seen.complete((number & 0xffff) as u32, 16), number);
                assert_eq!(seen.insert(number), Some(true));
                assert_eq!(seen.insert(number), Some(false));
            }
            assert!(seen.is_exactly((block + 1) * 100) && !seen.is_exactly(block * 100));
        }
        assert!(seen.words.len() < 3);
        assert_eq!(seen.insert(seen.low() + Seen::SPAN), None);
        assert_eq!(seen.insert(5002), Some(true));
        assert!(!seen.is_exactly(5000));
    }

    #[test]
    fn what_is_given_up_is_not_new_any_more() {
        let mut seen = Seen::default();
        for number in (0..10_000).step_by(2) {
            assert_eq!(seen.insert(number), Some(true));
            seen.give_up(number, 128);
            assert!(seen.words.len() < 5);
        }
        assert_eq!((seen.insert(9_001), seen.insert(9_991)), (Some(false), Some(true)));
        assert_eq!(seen.complete((9_900u64 & 0xff) as u32, 8), 9_900);
    }
}
