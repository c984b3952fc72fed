//! Faults of a device itself. Those of the network are in [`LinkConfig`](crate::LinkConfig).

use std::time::Duration;

/// Faults of a device. [`Device::set_faults`](crate::Device::set_faults) sets them while it runs. The default is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Bytes a second that a slow receiver takes in. `None` is no limit.
    pub rx_rate: Option<u64>,
    /// Bytes that may wait to be taken in; packets beyond are dropped. If more than a quarter of it waits, senders are
    /// told that the receiver is congested.
    pub rx_buffer: usize,
    /// Time between two WQEs that a slow device fetches.
    pub wqe_time: Duration,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rx_rate: None, rx_buffer: 256 << 10, wqe_time: Duration::ZERO }
    }
}
