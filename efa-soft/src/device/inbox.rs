//! The receive buffer of a slow device.

use crate::Time;
use crate::faults::Faults;
use std::collections::VecDeque;
use std::time::Duration;

/// Packets that a device with [`Faults::rx_rate`] has not taken in yet.
#[derive(Default)]
pub(super) struct Inbox {
    /// Each with the time at which the device has taken it in.
    packets: VecDeque<(Time, Vec<u8>)>,
    bytes: usize,
    /// When the device has taken in the last of them.
    busy_until: Time,
}

/// Returns how long it takes to take in a packet.
fn duration(bytes: usize, rate: Option<u64>) -> Duration {
    Duration::from_nanos(rate.map_or(0, |rate| bytes as u64 * 1_000_000_000 / rate.max(1)))
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds a packet that arrives at `now`. Returns `false` if the buffer has no room for it.
    pub(super) fn push(&mut self, now: Time, packet: Vec<u8>, faults: &Faults) -> bool {
        if self.bytes + packet.len() > faults.rx_buffer {
            return false;
        }
        self.busy_until = self.busy_until.max(now) + duration(packet.len(), faults.rx_rate);
        self.bytes += packet.len();
        self.packets.push_back((self.busy_until, packet));
        true
    }

    /// Returns the next packet that the device has taken in by `now`.
    pub(super) fn pop(&mut self, now: Time) -> Option<Vec<u8>> {
        self.next_time().filter(|&due| due <= now)?;
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Returns when the device has taken in the next packet.
    pub(super) fn next_time(&self) -> Option<Time> {
        self.packets.front().map(|(due, _)| *due)
    }

    /// Changes the rate from `now` on, also for the packets that wait already.
    pub(super) fn reschedule(&mut self, now: Time, rate: Option<u64>) {
        self.busy_until = now;
        for (due, packet) in &mut self.packets {
            self.busy_until = self.busy_until + duration(packet.len(), rate);
            *due = self.busy_until;
        }
    }

    /// Returns `true` if so much waits that senders should slow down.
    pub(super) fn is_congested(&self, faults: &Faults) -> bool {
        self.bytes > faults.rx_buffer / 4
    }
}
