//! A minimal kernel for an EFA queue: one thread posts RDMA writes, with `efa-io` alone.
//!
//! It builds each WQE in registers, as eight words, and writes it to the ring with four stores of 16 bytes. One fence
//! per batch orders those stores before the doorbell.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)]

use core::arch::asm;
use efa_io::{Destination, Doorbell, Lkey, LocalBuf, RdmaWrite, RemoteBuf, SendRingHandle, Wqe64};

/// The parameters of a batch of RDMA writes. Each write begins `stride` bytes after the previous one, on both sides.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Writes {
    /// The address of the first source.
    pub local: u64,
    /// The address of the first target.
    pub remote: u64,
    /// The distance from one write to the next in bytes.
    pub stride: u64,
    /// The length of each write in bytes.
    pub length: u32,
    /// The local key of the source's region.
    pub lkey: u32,
    /// The remote key of the target's region.
    pub rkey: u32,
    /// The number of writes.
    pub count: u32,
    /// The address handle of the peer.
    pub ah: u16,
    /// The peer's queue pair number.
    pub qpn: u16,
    /// The peer's queue key.
    pub qkey: u32,
}

/// The outcome if all writes were posted.
pub const POSTED: u32 = 0;
/// The outcome if there are more writes than the queue takes at once. Nothing was written.
pub const TOO_MANY: u32 = 1;
/// The outcome if a request is invalid. The WQEs before it are in the ring; the doorbell was not rung.
pub const REFUSED: u32 = 2;

/// Posts RDMA writes to an idle queue from one thread, and writes one of this crate's constants to `outcome`.
///
/// # Safety
/// `queue` is a send ring of 64-byte WQEs that nobody else posts to. The ring and its doorbell are mapped for this GPU.
/// `outcome` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn post_rdma_writes(queue: SendRingHandle, writes: Writes, outcome: *mut u32) {
    // SAFETY: the launcher guarantees that the ring is mapped and that nobody else posts to it.
    let posted = unsafe { post(&queue, &writes) };
    // SAFETY: the launcher guarantees that `outcome` is valid for writes.
    unsafe { outcome.write(posted) }
}

/// Posts the writes and returns the outcome.
///
/// # Safety
/// As for [`post_rdma_writes`].
#[inline(always)]
unsafe fn post(queue: &SendRingHandle, writes: &Writes) -> u32 {
    if writes.count > queue.max_batch || writes.count > queue.credits {
        return TOO_MANY;
    }
    let Ok(lkey) = Lkey::new(writes.lkey) else { return REFUSED };
    let (size, dest) = (queue.size(), Destination { ah: writes.ah, qpn: writes.qpn, qkey: writes.qkey });
    let mut local = LocalBuf { addr: writes.local, lkey, length: writes.length };
    let mut remote = RemoteBuf { addr: writes.remote, rkey: writes.rkey };
    let end = queue.producer.wrapping_add(writes.count);
    let mut producer = queue.producer;
    while producer != end {
        let Ok(wqe) = RdmaWrite::new(local, remote).encode(&queue.limits, dest) else { return REFUSED };
        let wqe: Wqe64 = wqe.stamp(producer as u16, Wqe64::phase_bit(size.wq_phase(producer)));
        // SAFETY: `size.slot` is always within the ring, which the caller guarantees is mapped. The slot is free: no
        // more WQEs are posted than the queue has credits, which was checked above.
        unsafe { store(queue.ring + 64 * u64::from(size.slot(producer)), &wqe) };
        local.addr = local.addr.wrapping_add(writes.stride);
        remote.addr = remote.addr.wrapping_add(writes.stride);
        producer = producer.wrapping_add(1);
    }
    // SAFETY: the caller guarantees that the queue's doorbell is mapped.
    unsafe { ring(queue.doorbell, Doorbell::new(producer)) };
    POSTED
}

/// Stores a WQE into its slot.
///
/// # Safety
/// `slot` is the address of 64 bytes of a ring. They are mapped for writing and aligned to 16 bytes.
#[inline(always)]
unsafe fn store(slot: u64, wqe: &Wqe64) {
    let [a, b, c, d, e, f, g, h] = *wqe.words();
    // SAFETY: the four instructions write exactly the 64 bytes at `slot`, which the caller guarantees are mapped and
    // aligned.
    unsafe {
        asm!(
            "st.v2.b64 [{slot}], {{{a}, {b}}};",
            "st.v2.b64 [{slot} + 16], {{{c}, {d}}};",
            "st.v2.b64 [{slot} + 32], {{{e}, {f}}};",
            "st.v2.b64 [{slot} + 48], {{{g}, {h}}};",
            slot = in(reg64) slot,
            a = in(reg64) a, b = in(reg64) b, c = in(reg64) c, d = in(reg64) d,
            e = in(reg64) e, f = in(reg64) f, g = in(reg64) g, h = in(reg64) h,
            options(nostack, preserves_flags),
        );
    }
}

/// Orders all earlier stores before the doorbell at system scope, then rings the doorbell.
///
/// # Safety
/// `doorbell` is the address of a doorbell register that is mapped for this GPU.
#[inline(always)]
unsafe fn ring(doorbell: u64, value: Doorbell) {
    // SAFETY: the only store goes to the doorbell, which the caller guarantees is mapped.
    unsafe {
        asm!(
            "fence.acq_rel.sys;",
            "st.mmio.relaxed.sys.b32 [{doorbell}], {value};",
            doorbell = in(reg64) doorbell,
            value = in(reg32) value.value(),
            options(nostack, preserves_flags),
        );
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: a trap ends the kernel with an error and accesses no memory.
    unsafe { core::arch::nvptx::trap() }
}
