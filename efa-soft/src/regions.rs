//! Memory regions: the memory that the device may access, for whom, and how.
//!
//! Every access of the device goes through [`Regions::local`] or [`Regions::remote`], which check key, protection
//! domain, right and bounds.

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

/// The memory of a region, which is out of reach from the moment at which the region is deregistered.
///
/// Packets under way inside this process refer to it, and may live longer than the region. The [`Backing`] is not the
/// device's code. If it panics, the access fails and the device goes on.
pub(crate) struct RevocableMemory {
    /// `None` only in `drop`.
    backing: Option<Arc<dyn Backing>>,
    /// Its length at registration, whatever the backing says later.
    len: usize,
    /// The region was deregistered. It is released behind all earlier accesses, and acquired before each later one.
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

/// Calls `f`, which accesses a backing. Returns `false` if it panics.
fn access(f: impl FnOnce() -> bool) -> bool {
    contain(f).unwrap_or_else(|| {
        log!(error, "the backing of a memory region panicked: the operation fails");
        false
    })
}

impl RevocableMemory {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` if the region was deregistered.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Acquire)
    }

    /// Returns the memory, unless the region was deregistered.
    fn get(&self) -> Option<&dyn Backing> {
        self.backing.as_deref().filter(|_| !self.is_revoked())
    }

    /// Copies bytes out of the memory. Returns `false` if it was revoked or taken back.
    pub(crate) fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        self.get().is_some_and(|backing| access(|| backing.read(offset, dst)))
    }

    /// Copies bytes into the memory. Returns `false` if it was revoked or taken back.
    pub(crate) fn write(&self, offset: usize, src: &[u8]) -> bool {
        self.get().is_some_and(|backing| access(|| backing.write(offset, src)))
    }

    /// Copies bytes to another region's memory. Returns `false` if one of the two was revoked or taken back.
    pub(crate) fn copy_to(&self, from: usize, target: &Self, to: usize, len: usize) -> bool {
        let (Some(src), Some(dst)) = (self.get(), target.get()) else { return false };
        access(|| memory::copy(src, from, dst, to, len))
    }
}

/// The regions of a device.
///
/// The number of a region's slot is part of both its keys, so that a key is found without a search. The rest of each
/// key counts up from a random start with every use of the slot, and the slot that was free for longest is used next.
/// So an old key stays invalid for as long as its width allows.
pub(crate) struct Regions {
    slots: Vec<Place>,
    free: VecDeque<usize>,
}

#[derive(Default)]
struct Place {
    region: Option<Region>,
    /// What keys have beside the slot's number: 8 bits of it in an lkey, 16 in an rkey.
    generation: u16,
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: VecDeque::new() }
    }

    /// Registers memory.
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
        let max = max.min(1 << 16); // an lkey has 24 bits, of which 8 are the generation
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
        // Scrambled, so that who knows one key does not know the other.
        let rkey = (index as u32) << 16 | u32::from(place.generation.wrapping_mul(0x9e37) ^ 0x5a5a);
        let memory = Arc::new(RevocableMemory { backing: Some(backing), len, revoked: AtomicBool::new(false) });
        place.region = Some(Region { pd, lkey, rkey, addr, access, memory });
        Ok(RegionKeys { lkey, rkey })
    }

    /// Removes a region, and returns its protection domain. From here on nothing reaches its memory.
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

    /// Returns the memory of `len` bytes at `addr`, and their offset there, for the region's owner. Returns `None` if
    /// the key, domain, right or bounds do not fit.
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

    /// Returns the memory of `len` bytes at `addr`, and their offset there, for a peer. Returns `None` if the key,
    /// domain, right or bounds do not fit.
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
