//! The handle through which control calls reach a device that some driver runs.

use super::Waker;
use crate::{Device, LinkConfig, LinkCounters};
use efa_types::{AsyncEvent, Counters};

/// A handle to a device that a driver runs. Dropping the last one stops the device.
///
/// A device runs in the driver's thread, so a control call has to come between two of the driver's steps. A handle
/// waits for that.
pub trait DeviceHandle: Send + Sync {
    /// Calls `f` with the device, between two of the driver's steps. Returns `false` without a call if the device is
    /// gone.
    fn with(&self, f: &mut dyn FnMut(&mut Device)) -> bool;

    /// Sets what is called with every event of completion queue `cqn`; `None` removes it. Once this returns, the waker
    /// before is not called any more.
    ///
    /// # Errors
    /// This driver cannot wake anybody.
    fn set_waker(&self, cqn: u32, waker: Option<Waker>) -> std::io::Result<()>;

    /// Returns the next asynchronous event of the device that nobody has fetched.
    fn next_event(&self) -> Option<AsyncEvent>;

    /// Returns what the network did to this device's packets.
    fn link_counters(&self) -> LinkCounters;

    /// Changes how the network treats this device's packets from here on: faults at run time.
    fn change_link(&self, change: &mut dyn FnMut(&mut LinkConfig));

    /// Returns what the device has counted.
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.with(&mut |device| counters = device.counters());
        counters
    }
}

/// The error of a call in a child by `fork` on a device of its parent.
pub(super) fn inherited() -> std::io::Error {
    std::io::Error::other("the device belongs to the process from which this one was forked: start another one here")
}
