//! Memory regions: access rights and keys.

use std::ops::BitOr;

/// The access rights of a memory region. The device may always read it for its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Local reads only.
    pub const LOCAL_READ: Self = Self(0);
    /// The device may write the region for its owner: receives, and targets of RDMA reads.
    pub const LOCAL_WRITE: Self = Self(1);
    /// Peers may write the region.
    pub const REMOTE_WRITE: Self = Self(2);
    /// Peers may read the region.
    pub const REMOTE_READ: Self = Self(4);
    /// All rights.
    pub const ALL: Self = Self(7);

    /// Returns `true` if all of `needed` is granted.
    pub const fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }
}

impl BitOr for Access {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// The keys of a memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionKeys {
    /// The owner's work requests name this one; 24 bits.
    pub lkey: u32,
    /// Peers' work requests name this one.
    pub rkey: u32,
}
