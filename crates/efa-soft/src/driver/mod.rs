//! Threads that drive devices by the real clock.
//!
//! A driver's thread looks at the doorbells, so a program that rings one needs no system call. It spins while there
//! is work and for a short while after, then naps between looks: [`IdleMode`] says how.

mod events;
mod local;
mod spec;
mod udp;
mod worker;

pub use events::{EventFd, Waker};
pub use local::Local;
pub use spec::SoftSpec;
pub use udp::{Udp, UdpConfig};
pub use worker::IdleMode;

use crate::{AsyncEvent, Counters, Device, LinkConfig, LinkCounters};

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
