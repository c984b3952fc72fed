//! The handshake: which life of a device speaks to which life of its peer. `wire/mod.rs` has the protocol in words.

use super::Device;
use super::peer::PeerIndex;
use crate::Time;
use crate::trace::DropReason;
use crate::wire::{Body, Envelope, Hello, Packet};
use efa_io::Status;
use efa_types::Gid;

/// Most answers that wait to be sent. A peer that gets none asks again.
const MAX_ANSWERS: usize = 64;

/// The addressee of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressee {
    /// This life of this device.
    ThisLife,
    /// This device, but it names another life of it, or none.
    AnotherLife,
    /// Another device; or the packet is from somebody who could not send it.
    SomebodyElse,
}

impl Device {
    /// Returns `true` if packets between this device and `peer` get anywhere. EFA delivers neither to the device itself
    /// nor to other subnets, and tells the sender nothing.
    pub(super) fn is_routable(&self, peer: Gid) -> bool {
        let own = self.config.attributes.gid;
        (peer != own || self.config.loopback) && peer.subnet() == own.subnet()
    }

    /// Returns whom a packet is for.
    pub(super) fn addressee(&mut self, envelope: &Envelope) -> Addressee {
        let Envelope { src, dst, src_incarnation, dst_incarnation, .. } = *envelope;
        if dst != self.config.attributes.gid || src_incarnation == 0 || !self.is_routable(src) {
            return Addressee::SomebodyElse;
        }
        let own = match self.peers.find(src) {
            Some(peer) => self.peers[peer].own_incarnation,
            // No incarnation is 0, so there is no need to compute this one.
            None if dst_incarnation == 0 => return Addressee::AnotherLife,
            None => self.config.incarnation_for(src),
        };
        if dst_incarnation == own { Addressee::ThisLife } else { Addressee::AnotherLife }
    }

    /// Returns `true` if a packet for this life of the device is from the known life of the peer, or from the first
    /// that is heard of.
    pub(super) fn hears(&mut self, now: Time, envelope: &Envelope, peer: PeerIndex) -> bool {
        let state = &mut self.peers[peer];
        if state.incarnation == 0 {
            state.incarnation = envelope.src_incarnation;
        }
        if state.incarnation != envelope.src_incarnation {
            state.doubt();
            self.peers.wake(peer);
            return false;
        }
        state.heard(now, envelope.path);
        true
    }

    pub(super) fn take_hello(&mut self, now: Time, envelope: &Envelope, hello: &Hello) {
        let addressee = self.addressee(envelope);
        if addressee != Addressee::SomebodyElse && hello.challenge != 0 {
            self.answer(envelope, Hello { challenge: 0, echo: hello.challenge });
            self.on_greeting(now, envelope);
            return;
        }
        let Some(peer) = self.peers.find(envelope.src).filter(|_| addressee == Addressee::ThisLife) else {
            self.drop_packet(DropReason::NotForUs);
            return;
        };
        if hello.echo == self.peers[peer].challenge {
            self.on_echo(now, envelope, peer);
        } else if self.peers[peer].incarnation != envelope.src_incarnation {
            self.peers[peer].doubt();
        }
        self.peers.wake(peer);
    }

    /// A peer has answered the latest challenge. So it is in the life that it says.
    fn on_echo(&mut self, now: Time, envelope: &Envelope, peer: PeerIndex) {
        let next_challenge = self.peers.next_challenge();
        let state = &mut self.peers[peer];
        let known = state.identify(envelope.src_incarnation, next_challenge);
        state.heard(now, envelope.path);
        if known != 0 && known != envelope.src_incarnation {
            self.on_restart(peer);
        }
    }

    /// A peer has begun another life: what its earlier one had received or promised is gone.
    fn on_restart(&mut self, peer: PeerIndex) {
        self.counters.impaired_remote_conn_events += 1;
        let state = &mut self.peers[peer];
        state.recv_lanes = Default::default();
        let ended = state.end_where(Status::RemoteAbort, |_| true);
        self.report_ended(peer, ended);
    }

    /// A known peer asks which life this device is in. After a long silence it has forgotten the device, and numbers
    /// its messages anew.
    fn on_greeting(&mut self, now: Time, envelope: &Envelope) {
        if let Some(peer) = self.peers.find(envelope.src) {
            let peer = &mut self.peers[peer];
            if peer.incarnation == envelope.src_incarnation && now >= peer.heard_at + self.config.peer_timeout {
                peer.recv_lanes = Default::default();
            }
        }
    }

    /// Tells the sender of a packet which life of this device it speaks to.
    ///
    /// The answer names the incarnation for the address that the packet gives as its source, and goes there. So nobody
    /// learns the incarnation for an address at which he does not receive.
    pub(super) fn answer(&mut self, envelope: &Envelope, hello: Hello) {
        if self.answers.len() < MAX_ANSWERS {
            let envelope = Envelope {
                src: envelope.dst,
                dst: envelope.src,
                src_incarnation: self.config.incarnation_for(envelope.src),
                dst_incarnation: envelope.src_incarnation,
                path: envelope.path,
            };
            self.answers.push_back(Packet { envelope, body: Body::Hello(hello) });
        }
    }
}
