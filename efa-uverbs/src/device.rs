//! A software device under the name that programs know it by.

use crate::errno::{Errno, Outcome, refuse};
use efa_soft::driver::{Port, Udp, Waker};
use efa_soft::{Device, DeviceConfig};
use efa_types::ControlError;
use std::io;

/// PCI vendor number of Amazon.
pub(crate) const VENDOR: u16 = 0x1d0f;

/// A software device.
pub(crate) struct SoftDevice {
    /// What programs call it: `rdmap79s0` and so on, after the place on the PCI bus that it claims.
    pub(crate) name: String,
    /// Number of its PCI bus.
    pub(crate) bus: u8,
    pub(crate) config: DeviceConfig,
    pub(crate) port: Udp,
}

impl SoftDevice {
    /// The `index`th device of a node.
    pub(crate) fn new(index: u8, port: Udp) -> io::Result<Self> {
        let mut config = None;
        port.with(&mut |device| config = Some(device.config().clone()));
        let config = config.ok_or_else(|| io::Error::other("a software device failed as it was started"))?;
        let bus = 79 + index;
        Ok(Self { name: format!("rdmap{bus}s0"), bus, config, port })
    }

    /// Calls `f` with the device.
    pub(crate) fn call<T>(&self, f: impl FnOnce(&mut Device) -> Result<T, ControlError>) -> Outcome<T> {
        let (mut f, mut answer) = (Some(f), None);
        self.port.with(&mut |device| answer = f.take().map(|f| f(device)));
        match answer {
            Some(answer) => Ok(answer?),
            None => refuse(Errno::IO, "the software device has failed: a bug of efa-soft"),
        }
    }

    /// Has events of a completion queue go to `waker`.
    pub(crate) fn wake(&self, cqn: u32, waker: Option<Waker>) -> Outcome<()> {
        self.port.wake(cqn, waker).or_else(|error| refuse(Errno::IO, error.to_string()))
    }

    /// The last eight bytes of its address, which are its GUID.
    pub(crate) fn guid(&self) -> [u8; 8] {
        std::array::from_fn(|i| self.config.attributes.gid.0[8 + i])
    }

    /// Most work requests of a send queue with 64-byte entries.
    pub(crate) fn max_sq_wr(&self) -> u32 {
        self.config.max_sq_bytes / 64
    }
}
