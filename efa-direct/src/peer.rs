//! Peers: the destinations of work requests.

use crate::error::SetupError;
use crate::shared::domain::DomainShared;
use efa_io::Destination;
use efa_types::Gid;
use std::sync::Arc;

/// The address of a queue pair: all that a peer needs to know, exchanged by any means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The device's address (GID).
    pub gid: Gid,
    /// Queue pair number.
    pub qpn: u16,
    /// The queue pair's key.
    pub qkey: u32,
}

/// A destination for a domain's work requests.
///
/// Peers on one device share an address handle. When the last of them is dropped, requests towards that device that are
/// outstanding complete as [`Status::Flushed`](efa_io::Status::Flushed).
pub struct Peer {
    pub(crate) dest: Destination,
    /// The destination's fields as they stand in a WQE.
    pub(crate) words: [u64; 3],
    pub(crate) domain: u32,
    handle: AddressHandle,
}

/// An address handle, destroyed when this is dropped.
struct AddressHandle {
    domain: Arc<DomainShared>,
    ah: u16,
}

impl Drop for AddressHandle {
    fn drop(&mut self) {
        self.domain.provider.destroy_ah(self.domain.pd, self.ah);
    }
}

impl Peer {
    pub(crate) fn new(domain: Arc<DomainShared>, endpoint: &Endpoint) -> Result<Self, SetupError> {
        let ah = domain.provider.create_ah(domain.pd, endpoint.gid)?;
        let dest = Destination { ah, qpn: endpoint.qpn, qkey: endpoint.qkey };
        Ok(Self { dest, words: dest.words(), domain: domain.tag, handle: AddressHandle { domain, ah } })
    }

    /// Returns the destination as plain data, for requests that a kernel makes. It is valid as long as `self` lives,
    /// which keeps the address handle.
    pub fn destination(&self) -> Destination {
        self.dest
    }

    /// Returns the number of the address handle, by which receive completions name their source.
    pub fn ah(&self) -> u16 {
        self.handle.ah
    }
}
