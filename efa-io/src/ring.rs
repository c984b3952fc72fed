//! Slots, laps, phases and doorbells: the arithmetic of a ring that is a power of two long.
//!
//! A counter only ever grows. Its low bits are the slot, the bit above them is the lap's parity, and that parity is
//! the phase which tells a fresh entry from one of the lap before. A [`Cursor`] is such a counter with its ring's size.

use core::fmt;

/// The size of a ring: a power of two of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingSize {
    /// Entries minus one: all that slots and phases take, so a kernel holds one register for them.
    mask: u32,
}

/// The error of a number of entries that is not a power of two between 1 and 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRingSize(pub u32);

impl fmt::Display for BadRingSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a ring cannot have {} entries: it takes a power of two", self.0)
    }
}

impl core::error::Error for BadRingSize {}

impl RingSize {
    /// The most entries of a send or receive ring: 2^15.
    ///
    /// A doorbell carries 16 bits of the producer counter, so a ring of 2^16 could not tell a full lap from none.
    pub const MAX_WQ_ENTRIES: u32 = 1 << 15;

    /// The size of a ring of `entries` entries.
    ///
    /// # Errors
    /// `entries` is zero or no power of two.
    pub const fn new(entries: u32) -> Result<Self, BadRingSize> {
        if entries.is_power_of_two() { Ok(Self { mask: entries - 1 }) } else { Err(BadRingSize(entries)) }
    }

    /// The smallest size with at least `entries` entries, as libefa rounds (`roundup_pow_of_two`).
    ///
    /// # Errors
    /// `entries` is zero or over 2^31.
    pub const fn at_least(entries: u32) -> Result<Self, BadRingSize> {
        match entries.checked_next_power_of_two() {
            Some(rounded) if entries != 0 => Self::new(rounded),
            _ => Err(BadRingSize(entries)),
        }
    }

    /// The size of a ring whose number of entries minus one is `mask`, as handles and tables hold it. It is not checked
    /// to be one less than a power of two; a slot is never larger than it, whatever it is.
    #[inline(always)]
    pub const fn from_mask(mask: u32) -> Self {
        Self { mask }
    }

    /// Returns the number of entries.
    #[inline(always)]
    pub const fn entries(self) -> u32 {
        self.mask.wrapping_add(1)
    }

    /// Returns `entries - 1`.
    #[inline(always)]
    pub const fn mask(self) -> u32 {
        self.mask
    }

    /// Returns log2 of the number of entries.
    #[inline(always)]
    pub const fn log2(self) -> u32 {
        self.mask.count_ones()
    }

    /// Returns the slot of a counter.
    #[inline(always)]
    pub const fn slot(self, counter: u32) -> u32 {
        counter & self.mask
    }

    /// Returns the phase of a *work queue* entry: 0 on the first lap, 1 on the second, and so on
    /// (`efa_sq_advance_post_idx`).
    #[inline(always)]
    pub const fn wq_phase(self, counter: u32) -> bool {
        counter & self.entries() != 0
    }

    /// Returns the phase of a *completion* entry: 1 on the first lap, 0 on the second, and so on
    /// (`efa_sub_cq_initialize`).
    #[inline(always)]
    pub const fn cq_phase(self, counter: u32) -> bool {
        !self.wq_phase(counter)
    }
}

/// A position in a ring: a counter that only ever grows, and the ring's size. [`WqCursor`] or [`CqCursor`].
///
/// ```
/// use efa_io::{CqCursor, RingSize, WqCursor};
///
/// let size = RingSize::new(4)?;
/// let fifth = WqCursor::new(size, 4);
/// assert_eq!((fifth.slot(), fifth.phase()), (0, true));
/// assert_eq!((fifth.ahead(5).slot(), fifth.ahead(5).phase()), (1, false));
/// assert!(CqCursor::new(size, 0).phase(), "a completion ring begins with phase 1");
/// # Ok::<(), efa_io::ring::BadRingSize>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor<const COMPLETIONS: bool> {
    counter: u32,
    size: RingSize,
}

/// A position in a work queue's ring.
pub type WqCursor = Cursor<false>;
/// A position in a completion ring.
pub type CqCursor = Cursor<true>;

impl<const COMPLETIONS: bool> Cursor<COMPLETIONS> {
    /// The position of entry number `counter`, counted from the ring's creation, modulo 2^32.
    #[inline(always)]
    pub const fn new(size: RingSize, counter: u32) -> Self {
        Self { counter, size }
    }

    /// Returns the number of the entry, counted from the ring's creation, modulo 2^32.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        self.counter
    }

    /// Returns the ring's size.
    #[inline(always)]
    pub const fn size(self) -> RingSize {
        self.size
    }

    /// Returns the slot where the entry stands.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.size.slot(self.counter)
    }

    /// Returns the phase that the entry has in this lap.
    #[inline(always)]
    pub const fn phase(self) -> bool {
        self.size.wq_phase(self.counter) != COMPLETIONS
    }

    /// Returns the position `entries` further on.
    #[inline(always)]
    pub const fn ahead(self, entries: u32) -> Self {
        Self { counter: self.counter.wrapping_add(entries), size: self.size }
    }

    /// Moves on by `entries`.
    #[inline(always)]
    pub const fn advance(&mut self, entries: u32) {
        *self = self.ahead(entries);
    }

    /// Returns the number of entries from number `counter` to here.
    #[inline(always)]
    pub const fn since(self, counter: u32) -> u32 {
        self.counter.wrapping_sub(counter)
    }

    /// Returns the number of entries from here to where a doorbell points, modulo 2^16.
    #[inline(always)]
    pub const fn until(self, doorbell: Doorbell) -> u32 {
        doorbell.entries_since(Doorbell::new(self.counter))
    }
}

/// The value of a work queue's doorbell register.
///
/// libefa stores the producer counter cut to 16 bits, efa-dp-direct stores all 32: only the low 16 bits count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Doorbell(u16);

impl Doorbell {
    /// The doorbell of a producer counter, or of a value found in the register.
    #[inline(always)]
    pub const fn new(counter: u32) -> Self {
        Self(counter as u16)
    }

    /// Returns the 32-bit value to store.
    #[inline(always)]
    pub const fn value(self) -> u32 {
        self.0 as u32
    }

    /// Returns the number of entries rung since `seen`, modulo 2^16.
    #[inline(always)]
    pub const fn entries_since(self, seen: Doorbell) -> u32 {
        self.0.wrapping_sub(seen.0) as u32
    }
}

/// The doorbell of a completion queue: it arms an event (`efa_io_regs_defs.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CqDoorbell(u32);

impl CqDoorbell {
    /// Consumer index in 15:0, the command's sequence number modulo 4 in 30:29, arm in 31 (`efa_update_cq_doorbell`).
    pub const fn arm(consumer: u32, sequence: u32) -> Self {
        Self(consumer & 0xffff | (sequence & 3) << 29 | 1 << 31)
    }

    /// Reports how far the reader is, as libefa does after every poll, without asking for an event.
    pub const fn consumed(consumer: u32, sequence: u32) -> Self {
        Self(Self::arm(consumer, sequence).0 & !(1 << 31))
    }

    /// A value found in the register.
    pub const fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// Returns the 32-bit value to store.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// Returns `true` if it asks for an event.
    pub const fn is_armed(self) -> bool {
        self.0 >> 31 != 0
    }

    /// Returns the consumer counter's low 16 bits.
    pub const fn consumer(self) -> u16 {
        self.0 as u16
    }

    /// Returns the sequence number of the arming, modulo 4. It moves on with every event.
    pub const fn sequence(self) -> u32 {
        self.0 >> 29 & 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_are_ring_sizes() {
        for bad in [0, 3, 6, 1000, u32::MAX] {
            assert_eq!(RingSize::new(bad), Err(BadRingSize(bad)));
        }
        assert_eq!(RingSize::at_least(1000).map(RingSize::entries), Ok(1024));
        assert_eq!(RingSize::at_least(1 << 31).map(RingSize::entries), Ok(1 << 31));
        assert!(RingSize::at_least((1 << 31) + 1).is_err() && RingSize::at_least(0).is_err());
    }

    #[test]
    fn the_phase_flips_every_lap_and_starts_at_zero_for_wqes_and_one_for_cqes() {
        let ring = RingSize::new(4).unwrap();
        let laps: std::vec::Vec<_> = (0..16).map(|c| (ring.slot(c), ring.wq_phase(c), ring.cq_phase(c))).collect();
        for (c, (slot, wq, cq)) in laps.into_iter().enumerate() {
            assert_eq!((slot, wq, cq), (c as u32 % 4, c / 4 % 2 == 1, c / 4 % 2 == 0));
        }
    }

    #[test]
    fn phases_go_on_across_the_wrap_of_the_counter_itself() {
        let ring = RingSize::new(8).unwrap();
        assert_ne!(ring.wq_phase(u32::MAX), ring.wq_phase(u32::MAX.wrapping_add(1)));
        assert_eq!(ring.slot(u32::MAX.wrapping_add(1)), 0);
    }

    #[test]
    fn cursors_go_round_as_their_counters_do_and_count_to_a_doorbell() {
        for log2 in 0..5 {
            let ring = RingSize::new(1 << log2).unwrap();
            assert_eq!((ring.log2(), ring.mask()), (log2, (1 << log2) - 1));
            assert_eq!(RingSize::from_mask(ring.mask()), ring);
            let (mut wq, mut cq) = (WqCursor::new(ring, u32::MAX - 40), CqCursor::new(ring, u32::MAX - 40));
            for passed in 0..80 {
                let counter = (u32::MAX - 40).wrapping_add(passed);
                assert_eq!((wq.counter(), wq.slot(), cq.slot()), (counter, ring.slot(counter), ring.slot(counter)));
                assert_eq!((wq.phase(), cq.phase()), (ring.wq_phase(counter), ring.cq_phase(counter)));
                assert_eq!((wq.since(u32::MAX - 40), wq.ahead(3).since(counter)), (passed, 3));
                assert_eq!(wq.until(Doorbell::new(counter.wrapping_add(7))), 7);
                wq.advance(1);
                cq.advance(1);
            }
        }
    }

    #[test]
    fn doorbells_count_modulo_two_to_the_sixteen() {
        let seen = Doorbell::new(0xffff_fffe);
        assert_eq!(Doorbell::new(3).entries_since(seen), 5);
        assert_eq!(Doorbell::new(0x1_0003).entries_since(seen), 5);
        assert_eq!(Doorbell::new(0x1_0003).value(), 3);
        assert_eq!(seen.entries_since(seen), 0);
    }

    #[test]
    fn arming_carries_consumer_and_sequence() {
        let db = CqDoorbell::arm(0x1_2345, 6);
        assert_eq!((db.consumer(), db.sequence(), db.is_armed()), (0x2345, 2, true));
        assert_eq!(db.value(), 0x2345 | 2 << 29 | 1 << 31);
        assert!(!CqDoorbell::from_value(0x7fff_ffff).is_armed());
    }
}
