//! A path to the peer: how long it takes, how much fits, and whether it works.

use super::rtt::Rtt;
use crate::Time;
use crate::config::DeviceConfig;
use std::collections::VecDeque;
use std::time::Duration;

/// Congestion windows of all paths together, in packets: where they start, and their bounds.
const INITIAL_WINDOW: f32 = 32.0;
const MIN_WINDOW: f32 = 8.0;
const MAX_WINDOW: f32 = 1024.0;
/// The part of a window that a loss leaves. CUBIC has the same factor (RFC 9438, section 4.6).
const AFTER_LOSS: f32 = 0.7;
/// The part of a window that a timeout leaves: all of it may have been lost.
const AFTER_TIMEOUT: f32 = 0.5;
/// Timeouts in a row after which a path is only tried from time to time.
const MAX_STRIKES: u32 = 2;

/// A packet that left over a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    pub(super) message: u32,
    pub(super) packet: u32,
    pub(super) at: Time,
}

/// A path as the sending end of a lane sees it.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) rtt: Rtt,
    /// Packets in the order of their departure. Entries of packets that left again since, or were acknowledged, are
    /// skipped.
    pub(super) in_flight: VecDeque<Departure>,
    /// Number of packets in flight.
    outstanding: u32,
    /// Congestion window: how many packets may be in flight.
    window: f32,
    min_window: f32,
    max_window: f32,
    /// Losses before this time do not shrink the window again: all of one round trip have one cause.
    recovered_at: Time,
    /// When the latest acknowledged packet left.
    pub(super) newest_acked: Time,
    /// Timeouts since a packet of this path was acknowledged.
    strikes: u32,
    /// The path is not used before this time, while others work.
    rest_until: Time,
}

impl Path {
    pub(super) fn new(config: &DeviceConfig) -> Self {
        let share = |window: f32| (window / f32::from(config.paths)).max(1.0);
        Self {
            rtt: Rtt::new(config.initial_rto, config.min_rto, config.max_rto),
            in_flight: VecDeque::new(),
            outstanding: 0,
            window: share(INITIAL_WINDOW),
            min_window: share(MIN_WINDOW),
            max_window: share(MAX_WINDOW),
            recovered_at: Time::ZERO,
            newest_acked: Time::ZERO,
            strikes: 0,
            rest_until: Time::ZERO,
        }
    }

    /// Returns `true` unless the path has timed out several times in a row.
    pub(super) fn works(&self) -> bool {
        self.strikes < MAX_STRIKES
    }

    /// Returns `true` if one more packet fits. If `others_work`, a path that does not work rests, and carries one
    /// packet at a time.
    pub(super) fn has_room(&self, now: Time, others_work: bool) -> bool {
        let rests = others_work && !self.works() && (self.outstanding > 0 || now < self.rest_until);
        self.outstanding < self.window as u32 && !rests
    }

    pub(super) fn launch(&mut self, departure: Departure) {
        self.outstanding += 1;
        self.in_flight.push_back(departure);
    }

    /// Notes that a packet is not in flight any more, for whatever reason.
    pub(super) fn land(&mut self) {
        self.outstanding -= 1;
    }

    /// Notes that a packet that left at `sent` was acknowledged.
    pub(super) fn acknowledged(&mut self, now: Time, sent: Time, resent: bool) {
        // Nobody knows which transmission of a resent packet was acknowledged (Karn's algorithm; RFC 6298, section 3).
        if !resent {
            self.rtt.sample(now.since(sent));
        }
        // It may have been the first copy, over another path. Then a dead path is tried again a little too early.
        self.strikes = 0;
        // Until the first loss the window doubles each round trip; from then on it grows by one packet (RFC 5681,
        // section 3.1).
        let growth = if self.recovered_at == Time::ZERO { 1.0 } else { 1.0 / self.window };
        self.window = (self.window + growth).min(self.max_window);
    }

    /// Shrinks the window: the receiver says that more arrives than it can take in.
    pub(super) fn congested(&mut self, now: Time) {
        if now >= self.recovered_at {
            self.shrink(now, AFTER_LOSS);
        }
    }

    /// Notes that packets were lost; `timed_out` if nothing was heard of them at all. Returns `true` if this was a
    /// timeout, and not one of several that come together.
    pub(super) fn lost(&mut self, now: Time, timed_out: bool) -> bool {
        // Even if the window has just shrunk: a dead path must not pass for a congested one.
        if timed_out && now >= self.rest_until {
            self.strikes += 1;
            self.rtt.back_off();
            self.rest_until = now + self.rtt.timeout();
            self.shrink(now, AFTER_TIMEOUT);
            return true;
        }
        if now >= self.recovered_at {
            self.shrink(now, AFTER_LOSS);
        }
        false
    }

    fn shrink(&mut self, now: Time, factor: f32) {
        self.window = (self.window * factor).max(self.min_window);
        self.recovered_at = now + self.rtt.timeout();
    }

    /// Returns how long to wait for an acknowledgement: no longer than `patience`, the time that a path that works
    /// would wait. So a path that has backed off does not delay packets that another could carry.
    pub(super) fn timeout(&self, patience: Option<Duration>) -> Duration {
        patience.map_or(self.rtt.timeout(), |patience| self.rtt.timeout().min(patience))
    }

    /// Forgets all departures.
    pub(super) fn clear(&mut self) {
        self.in_flight.clear();
    }

    #[cfg(test)]
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }
}
