//! One thread posts RDMA writes: the least that a kernel does with an EFA queue, on `efa-io` alone.
//!
//! A WQE is built in registers, as eight words, and leaves in four stores of 16 bytes. One fence orders those stores before the
//! doorbell, for the whole batch.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch, stdarch_nvptx)]

use core::arch::asm;
use efa_io::{Destination, Doorbell, Lkey, LocalBuf, RdmaWrite, RemoteBuf, SendRingHandle, Wqe64};

/// What to write where, for every WQE alike; `stride` bytes further each time, on both sides.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Writes {
    /// Address of the first source.
    pub local: u64,
    /// Address of the first target.
    pub remote: u64,
    /// Bytes from one write to the next.
    pub stride: u64,
    /// Bytes of each write.
    pub length: u32,
    /// Key of the source's region.
    pub lkey: u32,
    /// Key of the target's region.
    pub rkey: u32,
    /// How many.
    pub count: u32,
    /// Address handle of the peer.
    pub ah: u16,
    /// The peer's queue pair number.
    pub qpn: u16,
    /// The peer's queue key.
    pub qkey: u32,
}

/// All were posted.
pub const POSTED: u32 = 0;
/// More than the queue takes at once; nothing was written.
pub const TOO_MANY: u32 = 1;
/// A request that does not fit the queue or the format; the WQEs before it are in the ring, the doorbell did not ring.
pub const REFUSED: u32 = 2;

/// Posts RDMA writes into an idle queue, from one thread, and leaves one of this crate's constants in `outcome`.
///
/// # Safety
/// `queue` is a send ring of 64-byte WQEs that nobody else posts to, mapped for this GPU with its doorbell; `outcome` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn post_rdma_writes(queue: SendRingHandle, writes: Writes, outcome: *mut u32) {
    // SAFETY: the caller's promise.
    let posted = unsafe { post(&queue, &writes) };
    // SAFETY: the caller's promise.
    unsafe { outcome.write(posted) }
}

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
        // SAFETY: the slot is one of the ring, and free: no more are posted than there are credits.
        unsafe { store(queue.ring + 64 * u64::from(size.slot(producer)), &wqe) };
        local.addr = local.addr.wrapping_add(writes.stride);
        remote.addr = remote.addr.wrapping_add(writes.stride);
        producer = producer.wrapping_add(1);
    }
    // SAFETY: the caller's promise.
    unsafe { ring(queue.doorbell, Doorbell::new(producer)) };
    POSTED
}

/// Puts a WQE into its slot.
///
/// # Safety
/// `slot` is 64 bytes of a ring, mapped for writing, 16-byte aligned.
#[inline(always)]
unsafe fn store(slot: u64, wqe: &Wqe64) {
    let [a, b, c, d, e, f, g, h] = *wqe.words();
    // SAFETY: the caller's promise; the words go where it says and nowhere else.
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

/// Orders all stores before it at system scope, then rings.
///
/// # Safety
/// `doorbell` is the address of a doorbell register, mapped for this GPU.
#[inline(always)]
unsafe fn ring(doorbell: u64, value: Doorbell) {
    // SAFETY: the caller's promise.
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
    // SAFETY: it ends the kernel with an error.
    unsafe { core::arch::nvptx::trap() }
}
