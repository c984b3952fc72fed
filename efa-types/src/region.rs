//! Memory regions: access rights and keys.

use std::ops::BitOr;

/// The access rights of a memory region. Its owner's requests may always read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Local reads only.
    pub const LOCAL_READ: Self = Self(0);
    /// The owner's requests may write the region: it can be a receive buffer, and the target of an RDMA read.
    pub const LOCAL_WRITE: Self = Self(1);
    /// Peers may write the region.
    pub const REMOTE_WRITE: Self = Self(2);
    /// Peers may read the region.
    pub const REMOTE_READ: Self = Self(4);
    /// All rights.
    pub const ALL: Self = Self(7);

    /// Returns `true` if these rights include all of `needed`.
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
    /// The local key, which the owner's work requests name; 24 bits.
    pub lkey: u32,
    /// The remote key, which peers' work requests name.
    pub rkey: u32,
}
