//! On a GPU: PTX instructions (PTX ISA 8.3, which all architectures from sm_80 on take).

use core::arch::asm;
use core::arch::nvptx::{_block_dim_x, _block_idx_x, _grid_dim_x, _thread_idx_x};

/// Stores an entry in 16-byte stores, which write-combining memory gathers.
///
/// # Safety
/// `to` is valid for writes of the entry, and aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_entry<const W: usize>(to: *mut u64, words: &[u64; W]) {
    const { assert!(W % 8 == 0, "an entry is made of pieces of 64 bytes") };
    let mut i = 0;
    while i < W {
        // SAFETY: inside the entry. These are weak stores: a fence orders them before the doorbell.
        unsafe {
            asm!(
                "st.v2.u64 [{to}], {{{a}, {b}}};",
                "st.v2.u64 [{to}+16], {{{c}, {d}}};",
                "st.v2.u64 [{to}+32], {{{e}, {f}}};",
                "st.v2.u64 [{to}+48], {{{g}, {h}}};",
                to = in(reg64) to.add(i),
                a = in(reg64) words[i],
                b = in(reg64) words[i + 1],
                c = in(reg64) words[i + 2],
                d = in(reg64) words[i + 3],
                e = in(reg64) words[i + 4],
                f = in(reg64) words[i + 5],
                g = in(reg64) words[i + 6],
                h = in(reg64) words[i + 7],
                options(nostack, preserves_flags)
            );
        }
        i += 8;
    }
}

/// Stores a doorbell's value: exactly one store of this size, that nothing merges or repeats.
///
/// # Safety
/// `to` is a doorbell.
#[inline(always)]
pub(crate) unsafe fn store_doorbell(to: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.mmio.relaxed.sys.u32 [{to}], {value};", to = in(reg64) to, value = in(reg32) value, options(nostack, preserves_flags));
    }
}

/// Loads a word, and everything that was stored before it was.
///
/// # Safety
/// `from` is a word of a ring.
#[inline(always)]
pub(crate) unsafe fn load_acquire(from: *mut u64) -> u64 {
    let value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.acquire.sys.u64 {value}, [{from}];", value = out(reg64) value, from = in(reg64) from, options(nostack, preserves_flags));
    }
    value
}

/// Loads two words, in no particular order.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_pair(from: *mut u64) -> [u64; 2] {
    let (a, b);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.relaxed.sys.v2.u64 {{{a}, {b}}}, [{from}];",
            a = out(reg64) a,
            b = out(reg64) b,
            from = in(reg64) from,
            options(nostack, preserves_flags)
        );
    }
    [a, b]
}

#[inline(always)]
pub(crate) fn fence_system() {
    // SAFETY: a fence.
    unsafe { asm!("fence.acq_rel.sys;", options(nostack, preserves_flags)) };
}

#[inline(always)]
pub(crate) fn globaltimer() -> u64 {
    let now;
    // SAFETY: reads a register.
    unsafe { asm!("mov.u64 {now}, %globaltimer;", now = out(reg64) now, options(nostack, preserves_flags)) };
    now
}

#[inline(always)]
pub(crate) fn lane() -> u32 {
    let lane;
    // SAFETY: reads a register.
    unsafe { asm!("mov.u32 {lane}, %laneid;", lane = out(reg32) lane, options(pure, nomem, nostack, preserves_flags)) };
    lane
}

#[inline(always)]
pub(crate) fn ballot(mask: u32, predicate: bool) -> u32 {
    let votes;
    // SAFETY: the lanes of `mask` come here together, which `warp::ballot` asks for.
    unsafe {
        asm!(
            "{{ .reg .pred %vote; setp.ne.u32 %vote, {predicate}, 0; vote.sync.ballot.b32 {votes}, %vote, {mask}; }}",
            predicate = in(reg32) u32::from(predicate),
            mask = in(reg32) mask,
            votes = out(reg32) votes,
            options(nostack, preserves_flags)
        );
    }
    votes
}

#[inline(always)]
pub(crate) fn sync_warp(mask: u32) {
    // SAFETY: the lanes of `mask` come here together, which `warp::sync` asks for.
    unsafe { asm!("bar.warp.sync {mask};", mask = in(reg32) mask, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub(crate) fn active_mask() -> u32 {
    let mask;
    // SAFETY: reads which lanes are here.
    unsafe { asm!("activemask.b32 {mask};", mask = out(reg32) mask, options(nostack, preserves_flags)) };
    mask
}

#[inline(always)]
pub(crate) fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    let theirs;
    // SAFETY: the lanes of `mask` come here together, which `warp::shuffle` asks for.
    unsafe {
        asm!(
            "shfl.sync.idx.b32 {theirs}, {value}, {from}, 31, {mask};",
            theirs = out(reg32) theirs,
            value = in(reg32) value,
            from = in(reg32) from,
            mask = in(reg32) mask,
            options(nostack, preserves_flags)
        );
    }
    theirs
}

/// Place in the grid: block, blocks, thread in the block, threads of a block.
#[inline(always)]
pub(crate) fn place() -> [u32; 4] {
    // SAFETY: these read registers.
    unsafe { [_block_idx_x() as u32, _grid_dim_x() as u32, _thread_idx_x() as u32, _block_dim_x() as u32] }
}

/// Marks what happens seldom: the compiler makes a branch of it, instead of computing both and choosing.
#[inline(always)]
pub(crate) fn rarely() {
    // SAFETY: no instruction at all.
    unsafe { asm!("", options(nomem, nostack, preserves_flags)) };
}
