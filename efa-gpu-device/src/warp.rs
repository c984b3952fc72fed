//! Operations of a warp's lanes together, under the names of `cuda_std`.
//!
//! A `mask` names lanes, a bit for each; [`ALL`] is every lane of a full warp. All lanes of a mask have to come to the
//! same call, with the same mask (PTX ISA, `vote.sync` and similar instructions). Otherwise the behaviour is undefined
//! on a GPU, hence `unsafe`; the [executor](crate::simt) on the host reports it.

use crate::arch;

/// Lanes of a warp.
pub const LANES: u32 = 32;
/// Every lane.
pub const ALL: u32 = u32::MAX;

/// A warp whose lanes stay together: the promise that all its lanes make the same calls with this value, one after the
/// other.
///
/// It costs nothing, and methods that take it need not be `unsafe` themselves.
#[derive(Clone, Copy, Debug)]
pub struct Warp(());

impl Warp {
    /// Makes the promise.
    ///
    /// # Safety
    /// The warp has 32 lanes. Wherever one of them makes a call with this value, or with something that it got for this
    /// value, all others make the same call at the same point of the program.
    #[inline(always)]
    pub unsafe fn whole() -> Self {
        Self(())
    }
}

/// Returns the number of this lane, 0 to 31.
#[inline(always)]
pub fn lane_id() -> u32 {
    arch::lane()
}

/// Returns the lanes that are here at this moment. Others may be about to come.
#[inline(always)]
pub fn activemask() -> u32 {
    arch::active_mask()
}

/// Returns the lanes whose `predicate` is true.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    arch::ballot(mask, predicate)
}

/// Returns the `value` of lane `from`, which is in `mask`.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn warp_shuffle_idx(mask: u32, value: u32, from: u32) -> u32 {
    arch::shuffle(mask, value, from)
}

/// Waits for the other lanes of `mask`, and sees what they stored before.
///
/// # Safety
/// The lanes of `mask`, this one among them, come here together.
#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    arch::sync_warp(mask);
}
