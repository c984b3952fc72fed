//! A network and its time.

use efa_soft::{Net, Time};
use std::time::Duration;

/// The shortest time that a step takes, so that time advances even if there always is something to do.
const TICK: Duration = Duration::from_nanos(100);

/// A network and its time.
pub(super) struct Clockwork {
    pub(super) net: Net,
    pub(super) now: Time,
}

impl Clockwork {
    /// Does what is due now, then advances time to the next event, by at most `most`. Returns `false` if nothing was
    /// done and there is no next event.
    pub(super) fn step(&mut self, most: Duration) -> bool {
        let worked = self.net.step(self.now);
        let next = self.net.next_time();
        let latest = self.now + most;
        self.now = next.unwrap_or(latest).clamp(self.now + TICK.min(most), latest);
        worked || next.is_some()
    }

    /// Steps until nothing is left to do, for at most `limit`. Returns `false` if time ran out.
    pub(super) fn settle(&mut self, limit: Duration) -> bool {
        let end = self.now + limit;
        loop {
            let worked = self.net.step(self.now);
            match self.net.next_time() {
                None if !worked => return true,
                _ if self.now >= end => return false,
                None => {}
                Some(next) => self.now = next.max(self.now + TICK).min(end),
            }
        }
    }
}
