//! The number of rings in a completion queue.
//!
//! The oldest EFA devices (0xefa0) have several sub-queues in one completion queue, one after the other in one mapping
//! (`create_cq` in rdma-core's `providers/efa/verbs.c`). libefa reports the address of the first and the entries of
//! each (`efadv_query_cq`), but not their number. The length of the mapping shows it: entry size times entries times
//! sub-queues, rounded up to whole pages.

use std::fs;

/// Returns the size of a page in bytes. A ring must have whole pages: the length of a mapping is rounded up to them.
pub(super) fn page_bytes() -> u64 {
    // SAFETY: `sysconf` takes and returns numbers, and accesses no memory of this process.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

/// Returns the number of rings of `ring_bytes` (whole pages) in the mapping that begins at `addr`. Call it for a
/// device's first completion queue, before the device has other mappings that the kernel could join with this one.
pub(super) fn count(addr: u64, ring_bytes: u64) -> u64 {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let bytes = mapped_from(&maps, addr).unwrap_or_else(|| {
        tracing::warn!(
            "/proc/self/maps does not show the length of a completion queue: it is assumed to have one ring"
        );
        ring_bytes
    });
    (bytes / ring_bytes.max(1)).max(1)
}

/// Returns the number of bytes from `addr` to the end of its mapping.
fn mapped_from(maps: &str, addr: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (start..end).contains(&addr).then(|| end - addr)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use efa_memory::SharedMemory;

    #[test]
    fn a_mapping_is_as_many_rings_as_fit_in_it() {
        let maps = "7f0000000000-7f0000004000 r--s 00000000 00:01 7 /dev/infiniband/uverbs0\n7f0000004000-7f0000005000 -w-s 0 0 0\n";
        assert_eq!(mapped_from(maps, 0x7f00_0000_0000), Some(0x4000));
        assert_eq!(mapped_from(maps, 0x7f00_0000_4000), Some(0x1000));
        assert_eq!(mapped_from(maps, 0x7f00_0000_5000), None);
        let real = SharedMemory::zeroed(4096).unwrap();
        assert!(count(real.as_ptr() as u64, page_bytes()) >= 1);
    }
}
