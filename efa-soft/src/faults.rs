//! What can be wrong with a device itself, apart from the network's faults ([`LinkConfig`](crate::LinkConfig)).

use std::time::Duration;

/// Faults of a device, settable while it runs with [`Device::set_faults`](crate::Device::set_faults). The default is a device without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Bytes a second that the device takes in: a slow receiver. `None`: as they come.
    pub rx_rate: Option<u64>,
    /// Bytes that may wait to be taken in; packets beyond are dropped. Once a quarter of it waits, senders are told of the
    /// congestion.
    pub rx_buffer: usize,
    /// Time between two WQEs that the device fetches: a slow device.
    pub wqe_time: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rx_rate: None, rx_buffer: 256 << 10, wqe_time: Duration::ZERO }
    }
}
