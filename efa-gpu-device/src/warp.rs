//! What the lanes of a warp do together, under the names that `cuda_std` has for it.
//!
//! A `mask` names lanes, a bit for each; [`ALL`] is every lane of a full warp. All lanes of a mask have to come to the same call, with the same mask
//! (PTX ISA, `vote.sync` and its like): what happens otherwise is not defined on a GPU, hence `unsafe`. The [executor](crate::simt) on the host
//! reports it.

use crate::arch;

/// Lanes of a warp.
pub const LANES: u32 = 32;
/// Every lane.
pub const ALL: u32 = u32::MAX;

/// A whole warp, come together: the promise that all its lanes make the same calls with this value, one after the other.
///
/// It costs nothing, and each such call need not be `unsafe` by itself.
#[derive(Clone, Copy, Debug)]
pub struct Warp(());

impl Warp {
    /// The promise.
    ///
    /// # Safety
    /// The warp has 32 lanes, and wherever one of them calls something with this value, or what it was given for this value, all others make the
    /// same call at the same point of the program.
    #[inline(always)]
    pub unsafe fn whole() -> Self {
        Self(())
    }
}

/// Number of this lane, 0 to 31.
#[inline(always)]
pub fn lane_id() -> u32 {
    arch::lane()
}

/// The lanes that are here at this moment. Others may be about to come.
#[inline(always)]
pub fn activemask() -> u32 {
    arch::active_mask()
}

/// The lanes whose `predicate` is true.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    arch::ballot(mask, predicate)
}

/// The `value` of lane `from`, which is in `mask`.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn warp_shuffle_idx(mask: u32, value: u32, from: u32) -> u32 {
    arch::shuffle(mask, value, from)
}

/// Waits for the others, and sees what they stored before.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    arch::sync_warp(mask);
}
