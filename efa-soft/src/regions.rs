//! Memory regions: what the device may touch, for whom, and how.

use crate::contain::{contain, log};
use efa_memory::{self as memory, Backing};
use efa_types::{Access, ControlError, RegionKeys};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};

/// A registered region.
pub(crate) struct Region {
    pub(crate) pd: u32,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
    addr: u64,
    access: Access,
    memory: Arc<RevocableMemory>,
}

/// A region's memory, as packets under way inside this process refer to it: until the region is deregistered.
///
/// A backing is not the device's code. Where it panics its bytes could not be reached, and the device goes on.
pub(crate) struct RevocableMemory {
    /// There until it is dropped.
    backing: Option<Arc<dyn Backing>>,
    /// As it was when it was registered, whatever the backing says later.
    len: usize,
    revoked: AtomicBool,
}

impl Drop for RevocableMemory {
    fn drop(&mut self) {
        let backing = self.backing.take();
        if contain(|| drop(backing)).is_none() {
            log!(error, "the backing of a memory region panicked when it was dropped");
        }
    }
}

/// What `f` answers; `false` if it panics.
fn reach(f: impl FnOnce() -> bool) -> bool {
    contain(f).unwrap_or_else(|| {
        log!(error, "the backing of a memory region panicked: the operation fails");
        false
    })
}

impl RevocableMemory {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has been deregistered.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Acquire)
    }

    /// The memory, unless the region has been deregistered.
    fn open(&self) -> Option<&dyn Backing> {
        self.backing.as_deref().filter(|_| !self.is_revoked())
    }

    /// As [`Backing::read`]; `false` also once the region was deregistered.
    pub(crate) fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.open().is_some_and(|backing| reach(|| backing.read(offset, dst)))
    }

    /// As [`Backing::write`]; `false` also once the region was deregistered.
    pub(crate) fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.open().is_some_and(|backing| reach(|| backing.write(offset, src)))
    }

    /// As [`memory::copy`]; `false` also once one of the regions was deregistered.
    pub(crate) fn copy_to(&self, from: usize, target: &Self, to: usize, len: usize) -> bool {
        let (Some(src), Some(dst)) = (self.open(), target.open()) else { return false };
        reach(|| memory::copy(src, from, dst, to, len))
    }
}

/// All regions of a device. The slot's number is part of both keys, so that a key is found without a search. The rest of
/// each counts on from a random start with every use of the slot, and slots are used again oldest first, so that an old
/// key is noticed for as long as its width allows.
pub(crate) struct Regions {
    slots: Vec<Place>,
    free: VecDeque<usize>,
}

#[derive(Default)]
struct Place {
    region: Option<Region>,
    /// What keys carry beside the slot's number: 8 bits of it an lkey, 16 an rkey.
    generation: u16,
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: VecDeque::new() }
    }

    pub(crate) fn register(
        &mut self,
        pd: u32,
        backing: Arc<dyn Backing>,
        addr: u64,
        access: Access,
        max: u32,
        rng: &mut fastrand::Rng,
    ) -> Result<RegionKeys, ControlError> {
        let len = backing.len();
        if addr.checked_add(len as u64).is_none() {
            return Err(ControlError::Invalid {
                what: "region address",
                value: addr,
                expected: "an address whose region ends below 2^64",
            });
        }
        let max = max.min(1 << 16); // what an lkey can tell apart
        let index = if self.slots.len() < max as usize {
            self.slots.push(Place { region: None, generation: rng.u16(..) });
            self.slots.len() - 1
        } else {
            let asked = u64::from(max) + 1;
            self.free.pop_front().ok_or(ControlError::Limit { what: "memory regions", asked, max: max.into() })?
        };
        let place = &mut self.slots[index];
        place.generation = place.generation.wrapping_add(1);
        let lkey = (index as u32) << 8 | u32::from(place.generation as u8);
        // The rkey's half is scrambled, so that one key does not tell the other.
        let rkey = (index as u32) << 16 | u32::from(place.generation.wrapping_mul(0x9e37) ^ 0x5a5a);
        let memory = Arc::new(RevocableMemory { backing: Some(backing), len, revoked: AtomicBool::new(false) });
        place.region = Some(Region { pd, lkey, rkey, addr, access, memory });
        Ok(RegionKeys { lkey, rkey })
    }

    pub(crate) fn deregister(&mut self, lkey: u32) -> Result<u32, ControlError> {
        let index = (lkey >> 8) as usize;
        match self.slots.get_mut(index) {
            Some(place) if place.region.as_ref().is_some_and(|r| r.lkey == lkey) => {
                self.free.push_back(index);
                Ok(place.region.take().map_or(0, |region| {
                    region.memory.revoked.store(true, Release);
                    region.pd
                }))
            }
            _ => Err(ControlError::NoSuch { kind: "memory region with lkey", id: lkey }),
        }
    }

    /// The memory and offset of `len` bytes at `addr` for the region's owner; `None` if the key, domain, right or bounds do not fit.
    pub(crate) fn local(
        &self,
        pd: u32,
        lkey: u32,
        addr: u64,
        len: u64,
        need: Access,
    ) -> Option<(&Arc<RevocableMemory>, usize)> {
        let region = self.slots.get((lkey >> 8) as usize)?.region.as_ref().filter(|r| r.lkey == lkey)?;
        region.range(pd, addr, len, need)
    }

    /// The same for a peer.
    pub(crate) fn remote(
        &self,
        pd: u32,
        rkey: u32,
        addr: u64,
        len: u64,
        need: Access,
    ) -> Option<(&Arc<RevocableMemory>, usize)> {
        let region = self.slots.get((rkey >> 16) as usize)?.region.as_ref().filter(|r| r.rkey == rkey)?;
        region.range(pd, addr, len, need)
    }
}

impl Region {
    fn range(&self, pd: u32, addr: u64, len: u64, need: Access) -> Option<(&Arc<RevocableMemory>, usize)> {
        let offset = addr.checked_sub(self.addr)?;
        let fits = offset.checked_add(len)? <= self.memory.len() as u64;
        (self.pd == pd && self.access.allows(need) && fits).then_some((&self.memory, offset as usize))
    }
}
