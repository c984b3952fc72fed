//! The round-trip time of a path, and how long to wait for an answer (RFC 6298).

use std::time::Duration;

/// A smoothed round-trip time, and its variation.
#[derive(Clone, Debug)]
pub(super) struct Rtt {
    /// `None` before the first sample.
    smoothed: Option<Duration>,
    variation: Duration,
    /// Timeouts since the last sample. Each doubles the time to wait.
    backoff: u32,
    initial: Duration,
    min: Duration,
    max: Duration,
}

impl Rtt {
    pub(super) fn new(initial: Duration, min: Duration, max: Duration) -> Self {
        Self { smoothed: None, variation: Duration::ZERO, backoff: 0, initial, min, max }
    }

    /// Adds a sample: a packet that was sent once was acknowledged after this time.
    pub(super) fn sample(&mut self, sample: Duration) {
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            // Gains of 1/8 and 1/4: RFC 6298, section 2.3.
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
        self.backoff = 0;
    }

    /// Doubles the time to wait: a timeout passed without an answer.
    pub(super) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Returns how long to wait for an acknowledgement.
    pub(super) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => self.initial,
            Some(smoothed) => (smoothed + self.variation * 4).max(self.min),
        };
        base.saturating_mul(1 << self.backoff).min(self.max)
    }

    /// Returns by how much a packet may be overtaken before it counts as lost.
    pub(super) fn reordering_window(&self) -> Duration {
        self.smoothed.map_or(self.initial, |smoothed| (smoothed + self.variation * 2).max(self.min / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_round_trip_backs_off_and_recovers() {
        let ms = Duration::from_millis;
        let mut rtt = Rtt::new(ms(20), ms(1), ms(100));
        assert_eq!(rtt.timeout(), ms(20));
        for _ in 0..100 {
            rtt.sample(ms(4));
        }
        assert!(rtt.timeout() >= ms(4) && rtt.timeout() < ms(6));
        for _ in 0..10 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(), ms(100));
        rtt.sample(ms(4));
        assert!(rtt.timeout() < ms(6));
    }
}
