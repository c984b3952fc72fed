//! One of the ways to a peer: how long it takes, how much fits, whether it works.

use super::rtt::Rtt;
use crate::Time;
use crate::config::DeviceConfig;
use std::collections::VecDeque;
use std::time::Duration;

/// Congestion windows of all paths together, in packets: where they start, and their bounds.
const INITIAL_WINDOW: f32 = 32.0;
const MIN_WINDOW: f32 = 8.0;
const MAX_WINDOW: f32 = 1024.0;
/// Timeouts in a row after which a path is only tried now and then.
const STRIKES: u32 = 2;

/// A packet on its way: message, packet, when it left.
pub(crate) type Flying = (u32, u32, Time);

/// A path's state at the sender. It does not reorder packets much, so one that was overtaken by far counts as lost.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) rtt: Rtt,
    /// Packets by the time they were sent, oldest first; entries of packets that moved on are skipped.
    pub(crate) in_flight: VecDeque<Flying>,
    outstanding: u32,
    window: f32,
    min_window: f32,
    max_window: f32,
    /// No further reaction to loss before this time: one per round trip.
    recovered_at: Time,
    pub(crate) newest_acked: Time,
    /// Timeouts since it was last heard.
    strikes: u32,
    /// Not to be used before this time while others work.
    rest_until: Time,
}

impl Path {
    pub(crate) fn new(config: &DeviceConfig) -> Self {
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

    /// Whether it carried something lately.
    pub(crate) fn works(&self) -> bool {
        self.strikes < STRIKES
    }

    /// Whether one more packet fits. `others_work`: so one that does not may rest.
    pub(crate) fn has_room(&self, now: Time, others_work: bool) -> bool {
        let rests = others_work && !self.works() && (self.outstanding > 0 || now < self.rest_until);
        self.outstanding < self.window as u32 && !rests
    }

    pub(crate) fn launch(&mut self, flying: Flying) {
        self.outstanding += 1;
        self.in_flight.push_back(flying);
    }

    /// A packet is not under way any more, for whatever reason.
    pub(crate) fn land(&mut self) {
        self.outstanding -= 1;
    }

    /// A packet that left at `sent` was acknowledged.
    pub(crate) fn acknowledged(&mut self, now: Time, sent: Time, resent: bool) {
        if !resent {
            self.rtt.sample(now.since(sent));
        }
        // Of a packet that was resent it may be the first copy, by another path: a dead one is then tried a little too early.
        self.strikes = 0;
        let growth = if self.recovered_at == Time::ZERO { 1.0 } else { 1.0 / self.window };
        self.window = (self.window + growth).min(self.max_window);
    }

    /// The receiver says that it gets more than it can take.
    pub(crate) fn congested(&mut self, now: Time) {
        if now >= self.recovered_at {
            self.shrink(now, 0.7);
        }
    }

    /// Packets were lost; `timed_out`: because nothing was heard at all. Whether this was a timeout, and not one of those that come
    /// together.
    pub(crate) fn lost(&mut self, now: Time, timed_out: bool) -> bool {
        // Whatever else the window has shrunk for: a dead path must not pass for one that is congested.
        if timed_out && now >= self.rest_until {
            self.strikes += 1;
            self.rtt.back_off();
            self.rest_until = now + self.rtt.timeout();
            self.shrink(now, 0.5);
            return true;
        }
        if now >= self.recovered_at {
            self.shrink(now, 0.7);
        }
        false
    }

    fn shrink(&mut self, now: Time, factor: f32) {
        self.window = (self.window * factor).max(self.min_window);
        self.recovered_at = now + self.rtt.timeout();
    }

    /// How long to wait for an acknowledgement; no longer than `patience`, which is what a path that works would do.
    pub(crate) fn timeout(&self, patience: Option<Duration>) -> Duration {
        patience.map_or(self.rtt.timeout(), |patience| self.rtt.timeout().min(patience))
    }

    /// Nothing is under way any more.
    pub(crate) fn clear(&mut self) {
        self.in_flight.clear();
    }

    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding
    }
}
