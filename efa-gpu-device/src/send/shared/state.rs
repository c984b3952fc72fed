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
/// Two words: room in the batch, and in the ring.
pub(super) const ROOM: usize = 0;
/// Requests that have a slot, since the ring's creation.
pub(super) const RESERVED: usize = LINE;
/// Three words by which a combiner hands over.
pub(super) const RELIEF: usize = 2 * LINE;
/// A word for each slot.
pub(super) const MARKS: usize = 3 * LINE;

/// The word for room: in the ring in its high half, in the batch in its low half. Both are below zero for a while when
/// posters ask for more than there is.
pub(super) mod room {
    /// Room for `count` requests in both.
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

    /// Splits the word into room in the ring and room in the batch.
    #[inline(always)]
    pub(in super::super) const fn split(word: u64) -> [i32; 2] {
        let batch = word as i32;
        [(word.wrapping_sub(batch as i64 as u64) >> 32) as i32, batch]
    }
}
