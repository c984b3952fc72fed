//! Peers: the destinations of work requests.

use crate::error::SetupError;
use crate::shared::domain::DomainShared;
use efa_io::Destination;
use efa_types::Gid;
use std::sync::Arc;

/// Where a queue pair can be reached: all that a peer needs to know, exchanged by any means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The device's address.
    pub gid: Gid,
    /// Queue pair number.
    pub qpn: u16,
    /// The queue pair's key.
    pub qkey: u32,
}

/// A destination for a domain's work requests.
///
/// Peers of one device share its address handle. Dropping the last of them while requests towards that device are under
/// way ends those as [`Status::Flushed`](efa_io::Status::Flushed).
pub struct Peer {
    pub(crate) dest: Destination,
    /// What a WQE says of it.
    pub(crate) words: [u64; 3],
    pub(crate) domain: u32,
    handle: AddressHandle,
}

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

    /// The destination as plain data, for requests that a kernel makes; the address handle lives as long as `self`.
    pub fn destination(&self) -> Destination {
        self.dest
    }

    /// The address handle's number, as receive completions report their source.
    pub fn ah(&self) -> u16 {
        self.handle.ah
    }
}
