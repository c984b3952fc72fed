//! What the lanes of a warp do together.
//!
//! A `mask` names lanes, a bit for each. All of them have to come to the same call with the same mask, or the result is not defined (PTX ISA,
//! `vote.sync` and its like); [`ALL`] is every lane of a full warp.

use crate::arch;

/// Lanes of a warp.
pub const LANES: u32 = 32;
/// Every lane.
#[cfg(target_arch = "nvptx64")]
pub const ALL: u32 = u32::MAX;
/// Every lane: on the host a warp has one.
#[cfg(not(target_arch = "nvptx64"))]
pub const ALL: u32 = 1;

/// Number of this lane, 0 to 31.
#[inline(always)]
pub fn lane_id() -> u32 {
    arch::lane()
}

/// The lanes that are here at this moment.
#[inline(always)]
pub fn activemask() -> u32 {
    arch::active_mask()
}

/// The lanes whose `predicate` is true.
#[inline(always)]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    arch::ballot(mask, predicate)
}

/// The `value` of lane `from`.
#[inline(always)]
pub fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    arch::shuffle(mask, value, from)
}

/// Waits for the others, and sees what they stored before.
#[inline(always)]
pub fn sync(mask: u32) {
    arch::sync_warp(mask);
}
