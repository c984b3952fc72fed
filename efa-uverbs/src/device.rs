//! A software device with the name that programs know.

use crate::errno::{Errno, Outcome, refuse};
use efa_soft::driver::{DeviceHandle, Udp, Waker};
use efa_soft::{Device, DeviceConfig};
use efa_types::ControlError;
use std::io;

/// The PCI vendor id of Amazon.
pub(crate) const VENDOR: u16 = 0x1d0f;

/// A software device of a node.
pub(crate) struct SoftDevice {
    /// The name that programs see, for example `rdmap79s0`. It contains the number of the PCI bus.
    pub(crate) name: String,
    /// The number of the PCI bus that the device claims to be on.
    pub(crate) bus: u8,
    pub(crate) config: DeviceConfig,
    pub(crate) handle: Udp,
}

impl SoftDevice {
    /// Creates the device with this index on a node.
    pub(crate) fn new(index: u8, handle: Udp) -> io::Result<Self> {
        let mut config = None;
        handle.with(&mut |device| config = Some(device.config().clone()));
        let config = config.ok_or_else(|| io::Error::other("a software device failed as it was started"))?;
        let bus = 79 + index;
        Ok(Self { name: format!("rdmap{bus}s0"), bus, config, handle })
    }

    /// Calls `f` with the device and returns its result.
    pub(crate) fn call<T>(&self, f: impl FnOnce(&mut Device) -> Result<T, ControlError>) -> Outcome<T> {
        let (mut f, mut answer) = (Some(f), None);
        self.handle.with(&mut |device| answer = f.take().map(|f| f(device)));
        match answer {
            Some(answer) => Ok(answer?),
            None => refuse(Errno::IO, "the software device has failed: a bug of efa-soft"),
        }
    }

    /// Sets the function that is called for each event of a completion queue.
    pub(crate) fn wake(&self, cqn: u32, waker: Option<Waker>) -> Outcome<()> {
        self.handle.set_waker(cqn, waker).or_else(|error| refuse(Errno::IO, error.to_string()))
    }

    /// Returns the device's GUID: the last eight bytes of its GID.
    pub(crate) fn guid(&self) -> [u8; 8] {
        std::array::from_fn(|i| self.config.attributes.gid.0[8 + i])
    }

    /// Returns the maximum number of work requests in a send queue with 64-byte WQEs.
    pub(crate) fn max_sq_wr(&self) -> u32 {
        self.config.max_sq_bytes / 64
    }
}
