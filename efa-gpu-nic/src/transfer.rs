//! Moves the bytes of a warp's requests: each lane short pieces by itself, all lanes together long ones.

use crate::complete::has;
use crate::copy::copy;
use crate::receive::{Descs, Receive};
use efa_gpu_device::warp::{self, ALL, LANES, Warp};
use efa_io::{FlatRequest, OpCode};

/// Longest piece in bytes that a lane copies by itself.
const ALONE: u32 = 256;

/// The bytes that a lane has to move: from up to two sources, one after the other, to one place or to the buffers of a
/// receive, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    left: u32,
    from: u64,
    from_left: u32,
    next_from: u64,
    next_left: u32,
    to: u64,
    to_left: u32,
    /// The targets after `to`.
    descs: Descs,
}

impl Transfer {
    /// Nothing to move.
    pub(crate) const NONE: Self =
        Self { left: 0, from: 0, from_left: 0, next_from: 0, next_left: 0, to: 0, to_left: 0, descs: Descs::NONE };

    /// The bytes of a request that was checked, to a remote place or to a receive, whose buffers were checked as well.
    #[inline(always)]
    pub(crate) fn new(request: &FlatRequest, receive: Option<Receive>) -> Self {
        let FlatRequest { first, second, remote, op, .. } = *request;
        let left = first.length + second.length;
        let none = Self::NONE;
        match (op, receive) {
            (OpCode::RdmaRead, _) => {
                Self { left, from: remote.addr, from_left: left, to: first.addr, to_left: left, ..none }
            }
            (OpCode::Send, Some(Receive { descs, .. })) => Self {
                left,
                from: first.addr,
                from_left: first.length,
                next_from: second.addr,
                next_left: second.length,
                descs,
                ..none
            },
            (OpCode::RdmaWrite, _) => {
                Self { left, from: first.addr, from_left: left, to: remote.addr, to_left: left, ..none }
            }
            (OpCode::Send, None) => none,
        }
    }

    /// Returns the length of the next piece, which lies in one source and one target.
    #[inline(always)]
    fn next(&mut self) -> u32 {
        if self.left == 0 {
            return 0;
        }
        if self.from_left == 0 {
            (self.from, self.from_left, self.next_left) = (self.next_from, self.next_left, 0);
        }
        while self.to_left == 0
            && let Some(buf) = self.descs.next()
        {
            (self.to, self.to_left) = (buf.addr, buf.length);
        }
        self.left.min(self.from_left).min(self.to_left)
    }

    #[inline(always)]
    fn advance(&mut self, bytes: u32) {
        self.left -= bytes;
        self.from_left -= bytes;
        self.to_left -= bytes;
        self.from += u64::from(bytes);
        self.to += u64::from(bytes);
    }

    /// Moves the bytes of all lanes of the warp.
    ///
    /// # Safety
    /// The memory that the lanes' requests name was checked, and is reachable.
    #[inline(always)]
    pub(crate) unsafe fn run(mut self, _: Warp) {
        loop {
            let bytes = self.next();
            // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to.
            let [any, mut long] =
                unsafe { [warp::warp_vote_ballot(ALL, bytes != 0), warp::warp_vote_ballot(ALL, bytes > ALONE)] };
            if any == 0 {
                return;
            }
            // First each lane its own, then all lanes one long piece after the other.
            let alone = if has(long) { 0 } else { bytes };
            let (mut from, mut to, mut len, mut part, mut parts) = (self.from, self.to, alone, 0, 1);
            loop {
                // SAFETY: the caller's promise.
                unsafe { copy(from, to, len, part, parts) };
                if long == 0 {
                    break;
                }
                let lane = long.trailing_zeros();
                long &= long - 1;
                // SAFETY: all lanes of a whole warp come here together, which `run`'s caller sees to.
                unsafe {
                    (from, to) = (shuffle_64(self.from, lane), shuffle_64(self.to, lane));
                    len = warp::warp_shuffle_idx(ALL, bytes, lane);
                }
                (part, parts) = (warp::lane_id(), LANES);
            }
            self.advance(bytes);
        }
    }
}

/// Returns the value of lane `from`.
///
/// # Safety
/// All lanes come here together.
#[inline(always)]
unsafe fn shuffle_64(value: u64, from: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = warp::warp_shuffle_idx(ALL, value as u32, from);
        let high = warp::warp_shuffle_idx(ALL, (value >> 32) as u32, from);
        u64::from(low) | u64::from(high) << 32
    }
}
