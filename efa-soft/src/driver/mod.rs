//! Threads that drive devices by the real clock.
//!
//! | item | what it is |
//! | --- | --- |
//! | [`LocalNetwork`] | devices of one process, and the network between them |
//! | [`Udp`] | one device whose packets go to other processes and hosts |
//! | [`DeviceHandle`] | how control calls reach a device of either |
//! | [`SoftSpec`] | a device on UDP, described in a line of text |
//! | [`EventFd`], [`Waker`] | waiting for completions without polling |
//!
//! A driver's thread looks at the doorbells, so a program that rings one needs no system call. The thread spins while
//! there is work and for a short while after, then naps between looks. [`IdleMode`] says how.
//!
//! # Strangers on the network
//!
//! A device on UDP receives from everybody who can send it datagrams. It promises this about those who should not:
//!
//! | somebody who… | without a [key](Key) | with a key |
//! | --- | --- | --- |
//! | cannot see the packets of two devices | can end, stall or change nothing between them, nor write in another's name | the same |
//! | sees the packets pass by | can do all of that | can do none of it; can still read all, and lose or delay packets |
//! | has the key, or is a peer | can do to a peer what address handles, remote keys and queue keys allow | the same |
//!
//! Without a key this rests on two things. First, a datagram is refused if it did not come from the address in its
//! sender's GID. Second, since some networks let senders lie about that address, every packet names a number of 64 bits
//! that the receiver has told to that address alone. It differs for every peer and every life of a device
//! ([`DeviceConfig::incarnation_for`](crate::DeviceConfig::incarnation_for)).
//!
//! There are three exceptions. Unreliable datagrams (UD) name no such number, since no handshake comes before them:
//! where the network lets senders lie about their address, anybody who knows a queue pair's number and queue key can
//! send it datagrams. Anybody may send in his own name, from an address of his own. And long packets travel as IP
//! fragments: the only protection from a forged fragment is the packet's checksum of 32 bits, which is no secret.
//!
//! With a key ([`UdpConfig::key`], `keyfile=` in a [`SoftSpec`]) every datagram carries a number and a keyed hash of
//! all its bytes. So whatever arrives was sent by a holder of the key, arrives unchanged, and arrives once: a datagram
//! that is recorded and sent again is dropped while the receiver lives and remembers the sender's life (it remembers
//! the 4096 that it heard last). A recorded datagram of UD can be sent again to a later life of the receiver; reliable
//! messages cannot. Holders of the key are not told apart: each can speak in the name of every other, if he can lie
//! about his address or sees the packets. Nothing is encrypted. And nobody is kept from sending: floods cost time and
//! bandwidth, as on any network. No datagram is answered by a longer one.
//!
//! Devices with different keys do not hear each other, nor do a device with a key and one without: to each the other is
//! unreachable. What is refused is counted ([`Counters::refused_pkts`](crate::Counters::refused_pkts)), and the first
//! of each kind is logged with the reason.
//!
//! # Panics
//!
//! Code that is not the device's may panic without harm to the device:
//!
//! - A [subscriber](crate::trace::Subscriber) or a [`Waker`] is not called any more.
//! - What a subscriber of the crate `tracing` was told is lost.
//! - If memory that somebody [lends](efa_memory::Backing) panics, the operation fails.
//! - A closure given to [`DeviceHandle::with`] panics in its own thread. The device is as the calls that returned left
//!   it.
//!
//! A panic out of the device itself is a bug, and fails that device alone. The device reports
//! [`AsyncEvent::DeviceFatal`](crate::AsyncEvent::DeviceFatal), nothing on it completes any more, and it is gone for
//! control calls. Other devices go on, also those of the same [`LocalNetwork`].
//!
//! # Fork
//!
//! A device belongs to the process that started it. In a child by `fork` it is gone: [`DeviceHandle::with`] calls
//! nothing, and dropping what was inherited leaves the parent's threads, sockets and devices alone. A child can start
//! devices of its own, in a new [`LocalNetwork`] or on UDP.

mod events;
mod handle;
mod local;
mod seal;
mod spec;
mod udp;
mod worker;

pub use events::{EventFd, Waker};
pub use handle::DeviceHandle;
pub use local::LocalNetwork;
pub use seal::Key;
pub use spec::SoftSpec;
pub use udp::{Udp, UdpConfig};
pub use worker::IdleMode;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceConfig, LinkConfig};
    use efa_types::{AsyncEvent, Gid};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_device_that_fails_says_so_and_is_gone_and_its_neighbour_goes_on() {
        let network = LocalNetwork::start(LinkConfig::default(), IdleMode::Nap).unwrap();
        let [local, neighbour] = [0, 1].map(|index| network.add(DeviceConfig::new(Gid::local(index))));
        let udp: Arc<dyn DeviceHandle> = Arc::new(Udp::start(&UdpConfig::default(), DeviceConfig::new).unwrap());
        for handle in [&local, &udp] {
            assert!(handle.with(&mut |device| device.broken = true));
            let start = Instant::now();
            while handle.with(&mut |_| ()) {
                assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
                std::thread::sleep(Duration::from_millis(1));
            }
            let event = std::iter::from_fn(|| {
                std::thread::sleep(Duration::from_millis(1));
                (start.elapsed() < Duration::from_secs(30)).then(|| handle.next_event())
            });
            assert_eq!(event.flatten().next(), Some(AsyncEvent::DeviceFatal));
        }
        assert!(neighbour.with(&mut |_| ()));
        drop(local);
        // Another device takes its place.
        let successor = network.add(DeviceConfig::new(Gid::local(0)));
        assert!(successor.with(&mut |device| assert!(device.alloc_pd().is_ok())));
    }
}
