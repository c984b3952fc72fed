//! Registered regions of memory that this process cannot access.

use crate::error::{RangeError, SetupError};
use crate::external::{DmabufRange, ExternalMemory};
use crate::provider::Registration;
use crate::region::{LocalSlice, RemoteRegion, resolve_range};
use crate::shared::domain::DomainShared;
use efa_io::Lkey;
use efa_types::{Access, ControlError, RegionKeys};
use std::ops::RangeBounds;
use std::sync::Arc;

/// Bytes of a page, as EFA devices see memory.
const PAGE: u64 = 4096;

/// A registered region of memory that this process cannot access.
///
/// Dropping it deregisters the memory: the device accesses it no more, and requests that still name it fail with a
/// status.
pub struct ExternalRegion {
    addr: u64,
    len: u64,
    registration: Registration,
    lkey: Lkey,
    domain: Arc<DomainShared>,
}

impl ExternalRegion {
    pub(crate) fn register(
        domain: Arc<DomainShared>,
        memory: ExternalMemory<'_>,
        access: Access,
    ) -> Result<Self, SetupError> {
        let (addr, len) = (memory.addr(), memory.len());
        if addr.checked_add(len).is_none() {
            let expected = "an address whose region ends below 2^64";
            return Err(ControlError::Invalid { what: "region address", value: addr, expected }.into());
        }
        if let Ok(DmabufRange { offset, .. }) = memory.as_dmabuf()
            && (addr ^ offset) % PAGE != 0
        {
            return Err(SetupError::DmabufMisaligned { addr, offset });
        }
        let registration = domain.provider.register_external(domain.pd, memory, access)?;
        match Lkey::new(registration.keys.lkey) {
            Ok(lkey) => Ok(Self { addr, len, registration, lkey, domain }),
            Err(_) => {
                domain.provider.deregister(&registration);
                Err(SetupError::InvalidKey { lkey: registration.keys.lkey })
            }
        }
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns `true` if the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the first byte, by which work requests name it.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Returns the region's keys.
    pub fn keys(&self) -> RegionKeys {
        self.registration.keys
    }

    /// Returns what peers need to know to access the region.
    pub fn remote(&self) -> RemoteRegion {
        RemoteRegion { addr: self.addr, rkey: self.keys().rkey, len: self.len }
    }

    /// Returns a piece of the region, for a work request of the CPU, or of a kernel ([`LocalSlice::buf`]).
    ///
    /// # Errors
    /// [`RangeError`]: the range passes the end, or has 4 GiB or more.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<LocalSlice<'_>, RangeError> {
        let (start, end) = resolve_range(range, self.len)?;
        LocalSlice::new(self.addr + start, end - start, self.lkey, self.domain.tag)
    }
}

impl Drop for ExternalRegion {
    fn drop(&mut self) {
        self.domain.provider.deregister(&self.registration);
    }
}

impl std::fmt::Debug for ExternalRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalRegion({} bytes at {:#x}, {:x?})", self.len, self.addr, self.keys())
    }
}
