//! Threads that drive devices by the real clock.
//!
//! A driver's thread looks at the doorbells, so a program that rings one needs no system call. It spins while there
//! is work and for a short while after, then naps between looks: [`IdleMode`] says how.
//!
//! # Strangers on the network
//!
//! A device on UDP hears whoever can send it datagrams. What it promises of those that it was not meant to get:
//!
//! | somebody who… | without a [key](Key) | with one |
//! | --- | --- | --- |
//! | cannot see the packets of two devices | can end, stall or change nothing between them, nor write in another's name | the same |
//! | sees them pass by | can do all of that | can do none of it; can still read all, and lose or delay what he likes |
//! | has the key, or is a peer | can do to a peer what address handles, remote keys and queue keys let him | the same |
//!
//! Without a key this rests on two things. A datagram that did not come from the address in its sender's GID is refused. And since some
//! networks let senders lie about that address, every packet names a number of 64 bits that the receiver has told to that address alone
//! and that differs for every peer and every life of a device ([`DeviceConfig::incarnation_for`](crate::DeviceConfig::incarnation_for)).
//! Unreliable datagrams (UD) name none, since no handshake comes before them: where the network lets senders lie about their address,
//! anybody can send those who knows the queue pair's number and key. Anybody may also send as himself, from an address of his own. And
//! long packets travel as IP fragments: a forged fragment is kept out by no more than the packet's checksum of 32 bits, which is no secret.
//!
//! With a key ([`UdpConfig::key`], `keyfile=` in a [`SoftSpec`]) every datagram carries a number and a keyed hash of all its bytes. So
//! what arrives was sent by a holder of the key, as it is, and arrives once: a datagram that is recorded and sent again is dropped, while
//! the receiver lives and remembers the sender's life (the 4096 that it heard last). To a later life of the receiver a recorded datagram
//! of UD can be sent again; reliable messages cannot. Holders of the key are not told apart from each other: each can speak in
//! the name of every other, if he can lie about his address or sees the packets. Nothing is encrypted, and who hears nothing is kept
//! from sending nothing: floods cost time and bandwidth, as on any network. No datagram is answered by a longer one.
//!
//! Devices with different keys, or of which one has none, do not hear each other: to each the other is unreachable. What is refused is
//! counted ([`Counters::refused_pkts`]), and of each kind the first is logged, with the reason.
//!
//! # Panics
//!
//! Code that is not the device's may panic without harm to it: a [subscriber](crate::trace::Subscriber) and a [`Waker`] are called no more,
//! what a subscriber of the crate `tracing` was told is lost, and where memory that somebody [lends](efa_memory::Backing) panics, the
//! operation fails. A closure given to [`Port::with`] panics in its own thread; the device is as the calls that returned left it. A panic
//! out of the device itself, a bug, fails that device alone: it tells [`AsyncEvent::DeviceFatal`], nothing on it completes any more, and it
//! is gone for control calls. Other devices go on, those of the same [`Local`] too.
//!
//! # Fork
//!
//! A device belongs to the process that started it. In a child by `fork` it is gone: [`Port::with`] calls nothing, and dropping what was
//! inherited leaves the parent's threads, sockets and devices alone. A child can start devices of its own, in a new [`Local`] or on UDP.

mod events;
mod local;
mod seal;
mod spec;
mod udp;
mod worker;

pub use events::{EventFd, Waker};
pub use local::Local;
pub use seal::Key;
pub use spec::SoftSpec;
pub use udp::{Udp, UdpConfig};
pub use worker::IdleMode;

use crate::{Device, LinkConfig, LinkCounters};
use efa_types::{AsyncEvent, Counters};

/// The answer to a child by `fork` that asks for something of its parent's.
fn inherited() -> std::io::Error {
    std::io::Error::other("the device belongs to the process from which this one was forked: start another one here")
}

/// A device that some driver runs, as control calls reach it.
pub trait Port: Send + Sync {
    /// Calls `f` with the device, between two of the driver's steps; `false` if the device is gone.
    fn with(&self, f: &mut dyn FnMut(&mut Device)) -> bool;

    /// From here on calls `waker` with every event of completion queue `cqn`, or nobody. Once this returns, an earlier one is not called
    /// any more.
    ///
    /// # Errors
    /// This driver cannot wake anybody.
    fn wake(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()>;

    /// The next asynchronous event of the device that nobody has fetched.
    fn next_event(&self) -> Option<AsyncEvent>;

    /// What the network did to this device's packets.
    fn link_counters(&self) -> LinkCounters;

    /// From here on the network treats this device's packets as `change` makes its configuration: faults at run time.
    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig));

    /// What the device has counted.
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.with(&mut |device| counters = device.counters());
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceConfig, Gid};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_device_that_fails_says_so_and_is_gone_and_its_neighbour_goes_on() {
        let network = Local::start(LinkConfig::default(), IdleMode::Nap).unwrap();
        let [local, neighbour] = [0, 1].map(|index| network.add(DeviceConfig::new(Gid::local(index))));
        let udp: Arc<dyn Port> = Arc::new(Udp::start(&UdpConfig::default(), DeviceConfig::new).unwrap());
        for port in [&local, &udp] {
            assert!(port.with(&mut |device| device.broken = true));
            let start = Instant::now();
            while port.with(&mut |_| ()) {
                assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
                std::thread::sleep(Duration::from_millis(1));
            }
            let event = std::iter::from_fn(|| {
                std::thread::sleep(Duration::from_millis(1));
                (start.elapsed() < Duration::from_secs(30)).then(|| port.next_event())
            });
            assert_eq!(event.flatten().next(), Some(AsyncEvent::DeviceFatal));
        }
        assert!(neighbour.with(&mut |_| ()));
        drop(local);
        // Its place is another's.
        let successor = network.add(DeviceConfig::new(Gid::local(0)));
        assert!(successor.with(&mut |device| assert!(device.alloc_pd().is_ok())));
    }
}
