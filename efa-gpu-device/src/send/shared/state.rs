//! The state of a shared send queue: words in GPU memory that all its posters have in common.
//!
//! ```text
//! state   room │ reserved │ relief │ a mark for each slot
//!          └──── each on a line of its own, 128 bytes
//! ```
//!
//! Room is two numbers in one word, so that one addition asks for both: requests that the ring and its completion queue
//! still take, and requests that may be stored before the next doorbell, so that a batch is never exceeded.

/// Words from one of the state's counters to the next: a line of 128 bytes.
const LINE: usize = 32;
pub(super) const ROOM: usize = 0;
pub(super) const RESERVED: usize = LINE;
pub(super) const RELIEF: usize = 2 * LINE;
pub(super) const MARKS: usize = 3 * LINE;

/// The word that says how much room there is: in the ring in its high half, in the batch in its low one. Both may be below zero for a while.
pub(super) mod room {
    /// So many requests in both.
    #[inline(always)]
    pub(in super::super) const fn both(count: u32) -> u64 {
        in_ring(count).wrapping_add(in_batch(count))
    }

    #[inline(always)]
    pub(in super::super) const fn in_ring(count: u32) -> u64 {
        (count as u64) << 32
    }

    #[inline(always)]
    pub(in super::super) const fn in_batch(count: u32) -> u64 {
        count as u64
    }

    /// Room in the ring, and in the batch.
    #[inline(always)]
    pub(in super::super) const fn split(word: u64) -> [i32; 2] {
        let batch = word as i32;
        [(word.wrapping_sub(batch as i64 as u64) >> 32) as i32, batch]
    }
}
