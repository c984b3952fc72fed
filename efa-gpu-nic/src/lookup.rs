//! Rows by key, number and handle, and whether an access fits.

use crate::tables::{Ah, Cq, FIRST_AH, FIRST_QPN, NO_AH, Progress, QueuePair, Region, Tables};
use efa_gpu_device::mem;
use efa_io::LocalBuf;

/// Finds rows of the tables.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    tables: &'a Tables,
}

impl<'a> Lookup<'a> {
    /// The rows of `tables`.
    ///
    /// # Safety
    /// All addresses in `tables` and in the rows are what their documentation says, and stay so for as long as this is
    /// used. Counters and states are only accessed atomically, everything else does not change.
    #[inline(always)]
    pub(crate) unsafe fn new(tables: &'a Tables) -> Self {
        Self { tables }
    }

    /// Lends all memory that the NIC stores to, to the host's executor: these stores may be delayed, as on a GPU.
    ///
    /// # Safety
    /// What the tables name stays until the launch is over.
    #[cfg(not(target_arch = "nvptx64"))]
    pub(crate) unsafe fn lend(self) {
        use crate::tables::MAX_RECV_BUFS;
        use efa_gpu_device::{simt::lend, warp::LANES};
        use efa_io::{Cqe32, RxDesc};
        let Tables { progress, queue_pair_count, region_count, completion_queue_count, .. } = *self.tables;
        // SAFETY: the caller's promise; these are the sizes that the tables' documentation gives.
        unsafe {
            lend(progress, u64::from(queue_pair_count) * size_of::<Progress>() as u64);
            for qp in (0..queue_pair_count).filter_map(|index| self.queue_pair(index)) {
                lend(qp.parked, (u64::from(qp.parked_mask) + 1) * u64::from(qp.wqe_size));
                lend(qp.taken, u64::from(LANES * MAX_RECV_BUFS) * RxDesc::SIZE as u64);
            }
            for index in 0..completion_queue_count {
                let row = self.completion_queue(index);
                lend((*row).ring, (u64::from((*row).mask) + 1) * Cqe32::SIZE as u64);
            }
            for region in (0..region_count).filter_map(|index| self.region(index)) {
                lend(region.base, region.len);
            }
        }
    }

    /// Returns queue pair `index`.
    #[inline(always)]
    pub(crate) fn queue_pair(self, index: u32) -> Option<&'a QueuePair> {
        let rows = self.tables.queue_pairs as *const QueuePair;
        // SAFETY: a row of the table, which does not change, and which `new`'s caller keeps valid.
        (index < self.tables.queue_pair_count).then(|| unsafe { &*rows.add(index as usize) })
    }

    /// Returns the progress of queue pair `index`, which exists.
    #[inline(always)]
    pub(crate) fn progress(self, index: u32) -> *mut Progress {
        (self.tables.progress as *mut Progress).wrapping_add(index as usize)
    }

    /// Returns the queue pair that a message for `qpn` at `device` goes to, and its index.
    #[inline(always)]
    pub(crate) fn destination(self, device: u32, qpn: u16, qkey: u32) -> Option<(u32, &'a QueuePair)> {
        let index = u32::from(qpn).wrapping_sub(FIRST_QPN);
        let qp = self.queue_pair(index)?;
        (qp.device == device && qp.qpn == u32::from(qpn) && qp.qkey == qkey && self.is_ready(index))
            .then_some((index, qp))
    }

    /// Returns `true` if queue pair `index`, which exists, receives messages.
    #[inline(always)]
    pub(crate) fn is_ready(self, index: u32) -> bool {
        // SAFETY: a word of the row, which `new`'s caller keeps valid, and which is only accessed atomically.
        unsafe { mem::load_acquire_system_u32(&raw const (*self.progress(index)).state) == Progress::READY }
    }

    /// Puts queue pair `index`, which exists, into the error state.
    #[inline(always)]
    pub(crate) fn fail(self, index: u32) {
        // SAFETY: a word of the row, which `new`'s caller keeps valid, and which is only accessed atomically.
        unsafe {
            mem::compare_exchange_device(&raw mut (*self.progress(index)).state, Progress::READY, Progress::ERROR);
        }
    }

    /// Returns completion queue `index`, which exists.
    #[inline(always)]
    pub(crate) fn completion_queue(self, index: u32) -> *mut Cq {
        (self.tables.completion_queues as *mut Cq).wrapping_add(index as usize)
    }

    /// Returns the device that address handle `number` of a domain leads to.
    #[inline(always)]
    pub(crate) fn device_of(self, pd: u32, number: u16) -> Option<u32> {
        let index = u32::from(number).wrapping_sub(FIRST_AH);
        if index >= self.tables.address_handle_count {
            return None;
        }
        // SAFETY: a row of the table, which does not change, and which `new`'s caller keeps valid.
        let ah = unsafe { *(self.tables.address_handles as *const Ah).add(index as usize) };
        (ah.pd == pd).then_some(ah.target)
    }

    /// Returns the number of the address handle that domain `pd` has for `device`; both exist.
    #[inline(always)]
    pub(crate) fn ah_for(self, pd: u32, device: u32) -> Option<u16> {
        let place = pd * self.tables.devices + device;
        // SAFETY: a word of the table, which does not change, and which `new`'s caller keeps valid.
        let number = unsafe { *(self.tables.peers as *const u32).add(place as usize) };
        (number != NO_AH).then_some(number as u16)
    }

    /// Returns `true` if the owner of domain `pd` has the rights `need` for the buffer.
    #[inline(always)]
    pub(crate) fn allows_local(self, pd: u32, buf: LocalBuf, need: u32) -> bool {
        let lkey = buf.lkey.get();
        self.region(lkey >> 8)
            .is_some_and(|region| region.lkey == lkey && allows(region, pd, buf.addr, buf.length, need))
    }

    /// Returns `true` if a peer of domain `pd` has the rights `need` for these bytes.
    #[inline(always)]
    pub(crate) fn allows_remote(self, pd: u32, rkey: u32, addr: u64, length: u32, need: u32) -> bool {
        self.region(rkey >> 16).is_some_and(|region| region.rkey == rkey && allows(region, pd, addr, length, need))
    }

    #[inline(always)]
    fn region(self, index: u32) -> Option<&'a Region> {
        let rows = self.tables.regions as *const Region;
        // SAFETY: a row of the table, which does not change, and which `new`'s caller keeps valid.
        (index < self.tables.region_count).then(|| unsafe { &*rows.add(index as usize) })
    }
}

/// Returns `true` if these bytes are inside the region, and it grants the rights.
#[inline(always)]
fn allows(region: &Region, pd: u32, addr: u64, length: u32, need: u32) -> bool {
    let offset = addr.wrapping_sub(region.base);
    // An address below the base is a long way past the end.
    let fits = offset <= region.len && u64::from(length) <= region.len - offset;
    region.pd == pd && region.access & need == need && fits
}
