//! PTX instructions (PTX ISA 8.4, which all architectures from sm_80 on take).

use core::arch::asm;
use core::arch::nvptx::{_block_dim_x, _block_idx_x, _grid_dim_x, _thread_idx_x};

/// Does nothing: only the host's executor needs to know which memory stays until the launch is over.
///
/// # Safety
/// As on the host: the bytes are valid for writes, and accessed atomically, until the launch is over.
#[inline(always)]
pub(crate) unsafe fn lend(_addr: u64, _bytes: u64) {}

/// Stores an entry in 16-byte stores, which write-combining memory gathers.
///
/// # Safety
/// `to` is valid for writes of the entry, and aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_entry<const W: usize>(to: *mut u64, words: &[u64; W]) {
    const { assert!(W % 8 == 0, "an entry is made of pieces of 64 bytes") };
    let mut i = 0;
    while i < W {
        // SAFETY: inside the entry, which the caller keeps valid. These are weak stores: a fence orders them before the
        // doorbell.
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

/// Functions that load one word, each with an instruction of its own.
macro_rules! loads {
    ($($(#[$doc:meta])* $name:ident($from:ty) -> $value:ty: $instruction:literal, $register:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) unsafe fn $name(from: $from) -> $value {
            let value;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!($instruction, " {value}, [{from}];"),
                    value = out($register) value,
                    from = in(reg64) from,
                    options(nostack, preserves_flags)
                );
            }
            value
        }
    )*};
}

loads! {
    /// Loads a word. An acquire: what was stored before the word is visible behind this load.
    ///
    /// # Safety
    /// `from` is a word of a ring.
    load_acquire(*mut u64) -> u64: "ld.acquire.sys.u64", reg64;
    /// Loads a word.
    ///
    /// # Safety
    /// `from` is valid for reads.
    load_relaxed(*const u64) -> u64: "ld.relaxed.sys.u64", reg64;
    /// Loads a doorbell's value. An acquire: what was stored before the value is visible behind this load.
    ///
    /// # Safety
    /// `from` is valid for reads.
    load_doorbell(*const u32) -> u32: "ld.acquire.sys.u32", reg32;
    /// Loads a word that other threads of this GPU write.
    ///
    /// # Safety
    /// `from` is valid for reads.
    load_gpu(*const u32) -> u32: "ld.relaxed.gpu.u32", reg32;
    /// Loads a word that other threads of this GPU write.
    ///
    /// # Safety
    /// `from` is valid for reads.
    load_gpu_u64(*const u64) -> u64: "ld.relaxed.gpu.u64", reg64;
    /// Loads 32 bits.
    ///
    /// # Safety
    /// `from` is valid for reads, and aligned.
    load_u32_system(*const u32) -> u32: "ld.relaxed.sys.u32", reg32;
}

/// Functions that store one word.
macro_rules! stores {
    ($($(#[$doc:meta])* $name:ident($to:ty, $value:ty): $instruction:literal, $register:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) unsafe fn $name(to: $to, value: $value) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!($instruction, " [{to}], {value};"),
                    to = in(reg64) to,
                    value = in($register) value,
                    options(nostack, preserves_flags)
                );
            }
        }
    )*};
}

stores! {
    /// Stores a doorbell's value: exactly one store of this size, that nothing merges or repeats.
    ///
    /// # Safety
    /// `to` is a doorbell.
    store_doorbell(*mut u32, u32): "st.mmio.relaxed.sys.u32", reg32;
    /// Stores a word behind everything stored before, as any observer in the system sees it.
    ///
    /// # Safety
    /// `to` is a word of a ring.
    store_release(*mut u64, u64): "st.release.sys.u64", reg64;
    /// Stores a word that other threads of this GPU read.
    ///
    /// # Safety
    /// `to` is valid for writes, and only accessed atomically.
    store_gpu(*mut u32, u32): "st.relaxed.gpu.u32", reg32;
    /// Stores 32 bits.
    ///
    /// # Safety
    /// `to` is valid for writes, and aligned.
    store_u32_system(*mut u32, u32): "st.relaxed.sys.u32", reg32;
    /// Stores a word.
    ///
    /// # Safety
    /// `to` is valid for writes, and aligned.
    store_u64_system(*mut u64, u64): "st.relaxed.sys.u64", reg64;
}

/// Functions that change one word atomically, and return its value from before.
macro_rules! updates {
    ($($(#[$doc:meta])* $name:ident($to:ty) -> $value:ty: $instruction:literal, $register:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) unsafe fn $name(to: $to, operand: $value) -> $value {
            let was;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!($instruction, " {was}, [{to}], {operand};"),
                    was = out($register) was,
                    to = in(reg64) to,
                    operand = in($register) operand,
                    options(nostack, preserves_flags)
                );
            }
            was
        }
    )*};
}

updates! {
    /// Adds to a word that other threads of this GPU add to, and returns its value from before. Acquires and releases.
    ///
    /// # Safety
    /// `to` is valid for reads and writes, and only accessed atomically.
    fetch_add_gpu(*mut u32) -> u32: "atom.add.acq_rel.gpu.u32", reg32;
    /// As [`fetch_add_gpu`], without any order with other memory.
    ///
    /// # Safety
    /// As [`fetch_add_gpu`].
    fetch_add_relaxed_gpu(*mut u32) -> u32: "atom.add.relaxed.gpu.u32", reg32;
    /// Adds to two numbers in one word, as [`fetch_add_gpu`] does to one.
    ///
    /// # Safety
    /// As [`fetch_add_gpu`]; aligned to 8 bytes.
    fetch_add_gpu_u64(*mut u64) -> u64: "atom.add.acq_rel.gpu.u64", reg64;
    /// As [`fetch_add_gpu_u64`], but only acquires.
    ///
    /// # Safety
    /// As [`fetch_add_gpu`]; aligned to 8 bytes.
    fetch_add_acquire_gpu_u64(*mut u64) -> u64: "atom.add.acquire.gpu.u64", reg64;
    /// As [`fetch_add_gpu_u64`], without any order with other memory.
    ///
    /// # Safety
    /// As [`fetch_add_gpu`]; aligned to 8 bytes.
    fetch_add_relaxed_gpu_u64(*mut u64) -> u64: "atom.add.relaxed.gpu.u64", reg64;
    /// Replaces a word and returns its value from before, without any order with other memory.
    ///
    /// # Safety
    /// As [`fetch_add_gpu`].
    exchange_relaxed_gpu(*mut u32) -> u32: "atom.exch.relaxed.gpu.b32", reg32;
}

/// Loads two words at once. An acquire: what was stored before the words is visible behind this load.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_acquire_pair(from: *mut u64) -> [u64; 2] {
    let (a, b);
    // SAFETY: the caller's promise. One access of 128 bits, which is as good as atomic (PTX ISA, "ld", `.b128`).
    unsafe {
        asm!(
            "{{ .reg .b128 %both; ld.acquire.sys.b128 %both, [{from}]; mov.b128 {{{a}, {b}}}, %both; }}",
            a = out(reg64) a,
            b = out(reg64) b,
            from = in(reg64) from,
            options(nostack, preserves_flags)
        );
    }
    in_one_access(a, b)
}

/// Makes the assembler keep the load of both words one access. Otherwise it leaves out the bits that a kernel never
/// uses, and loads the rest in pieces, at different times: ptxas 13.5 makes two loads of `ld.b128` where 64 bits of the
/// first word and 16 of the second are used.
#[inline(always)]
fn in_one_access(a: u64, b: u64) -> [u64; 2] {
    let all = (a >> 32) as u32 | b as u32 | (b >> 32) as u32;
    [a ^ u64::from(all & opaque_zero()), b]
}

/// Loads two words at once.
///
/// # Safety
/// `from` is valid for reads of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_pair(from: *mut u64) -> [u64; 2] {
    let (a, b);
    // SAFETY: the caller's promise. As in `load_acquire_pair`.
    unsafe {
        asm!(
            "{{ .reg .b128 %both; ld.relaxed.sys.b128 %both, [{from}]; mov.b128 {{{a}, {b}}}, %both; }}",
            a = out(reg64) a,
            b = out(reg64) b,
            from = in(reg64) from,
            options(nostack, preserves_flags)
        );
    }
    in_one_access(a, b)
}

/// Stores two words, in no particular order.
///
/// # Safety
/// `to` is valid for writes of two words of a ring, aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_pair(to: *mut u64, words: [u64; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "st.v2.u64 [{to}], {{{a}, {b}}};",
            to = in(reg64) to,
            a = in(reg64) words[0],
            b = in(reg64) words[1],
            options(nostack, preserves_flags)
        );
    }
}

/// Loads four words that other threads of this GPU write, each whole, in no particular order.
///
/// # Safety
/// `from` is valid for reads, and aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn load_four_gpu(from: *const u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.relaxed.gpu.v4.u32 {{{a}, {b}, {c}, {d}}}, [{from}];",
            a = out(reg32) a,
            b = out(reg32) b,
            c = out(reg32) c,
            d = out(reg32) d,
            from = in(reg64) from,
            options(nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Replaces a word if it is `current`, and returns its value from before; ordered like [`fetch_add_gpu`].
///
/// # Safety
/// As [`fetch_add_gpu`].
#[inline(always)]
pub(crate) unsafe fn compare_exchange_gpu(to: *mut u32, current: u32, new: u32) -> u32 {
    let was;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "atom.cas.acq_rel.gpu.b32 {was}, [{to}], {current}, {new};",
            was = out(reg32) was,
            to = in(reg64) to,
            current = in(reg32) current,
            new = in(reg32) new,
            options(nostack, preserves_flags)
        );
    }
    was
}

#[inline(always)]
pub(crate) fn fence_gpu() {
    // SAFETY: a fence accesses no memory.
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags)) };
}

#[inline(always)]
pub(crate) fn fence_system() {
    // SAFETY: a fence accesses no memory.
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

// Operations of several lanes. These are LLVM's intrinsics: it knows that it must neither move them to where fewer
// lanes are, nor copy them into both sides of a branch. Of inline assembly it does not know that.
unsafe extern "C" {
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot_sync(mask: i32, predicate: bool) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_sync_idx(mask: i32, value: i32, from: i32, lanes: i32) -> i32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: i32);
}

#[inline(always)]
pub(crate) fn ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: the lanes of `mask` come here together, which `warp_vote_ballot`, `Warp` and the queues ask for.
    unsafe { vote_ballot_sync(mask as i32, predicate) as u32 }
}

#[inline(always)]
pub(crate) fn sync_warp(mask: u32) {
    // SAFETY: the lanes of `mask` come here together, which `sync_warp`, `Warp` and the queues ask for.
    unsafe { bar_warp_sync(mask as i32) };
}

#[inline(always)]
pub(crate) fn active_mask() -> u32 {
    let mask;
    // SAFETY: it only reads which lanes are here.
    unsafe { asm!("activemask.b32 {mask};", mask = out(reg32) mask, options(nostack, preserves_flags)) };
    mask
}

#[inline(always)]
pub(crate) fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    // SAFETY: the lanes of `mask` come here together, which `warp_shuffle_idx`, `Warp` and the queues ask for.
    unsafe { shfl_sync_idx(mask as i32, value as i32, from as i32, 31) as u32 }
}

#[inline(always)]
pub(crate) fn sync_block() {
    // SAFETY: all threads of the block come here together, which `thread::sync_threads` asks for.
    unsafe { core::arch::nvptx::_syncthreads() };
}

/// Sleeps for about `ns` nanoseconds.
#[inline(always)]
pub(crate) fn nanosleep(ns: u32) {
    // SAFETY: it accesses no memory.
    unsafe { asm!("nanosleep.u32 {ns};", ns = in(reg32) ns, options(nomem, nostack, preserves_flags)) };
}

/// Returns the place in the grid: block, blocks, thread in the block, threads of a block.
#[inline(always)]
pub(crate) fn place() -> [u32; 4] {
    // SAFETY: these read registers.
    unsafe { [_block_idx_x() as u32, _grid_dim_x() as u32, _thread_idx_x() as u32, _block_dim_x() as u32] }
}

/// Returns zero; the assembler cannot know that it is zero, or that all lanes have the same value.
///
/// A value that all lanes have in common it would keep in uniform registers and constant memory, and fetch anew at
/// every use: a loop that posts waits for that.
#[inline(always)]
pub(crate) fn opaque_zero() -> u32 {
    let zero;
    // SAFETY: these instructions access no memory.
    unsafe {
        asm!(
            "{{ .reg .f32 %f; .reg .pred %p; cvt.rn.f32.u32 %f, {lane}; setp.gt.f32 %p, %f, 0f42C80000; selp.u32 {zero}, 1, 0, %p; }}",
            lane = in(reg32) lane(),
            zero = out(reg32) zero,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    zero
}

/// Marks a branch that is rarely taken: the compiler makes it a branch, instead of computing both sides and choosing.
#[inline(always)]
pub(crate) fn rarely() {
    // SAFETY: it is no instruction at all.
    unsafe { asm!("", options(nomem, nostack, preserves_flags)) };
}

/// Loads a byte.
///
/// # Safety
/// `from` is valid for reads, and aligned.
#[inline(always)]
pub(crate) unsafe fn load_u8_system(from: *const u8) -> u8 {
    let value: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.relaxed.sys.u8 {value}, [{from}];",
            value = out(reg16) value,
            from = in(reg64) from,
            options(nostack, preserves_flags)
        );
    }
    value as u8
}

/// Stores a byte.
///
/// # Safety
/// `to` is valid for writes, and aligned.
#[inline(always)]
pub(crate) unsafe fn store_u8_system(to: *mut u8, value: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "st.relaxed.sys.u8 [{to}], {value};",
            to = in(reg64) to,
            value = in(reg16) u16::from(value),
            options(nostack, preserves_flags)
        );
    }
}
