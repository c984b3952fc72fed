//! The options of a soak that both nodes need.

use clap::Args;
use std::time::Duration;

/// The work of both nodes.
#[derive(Args, Clone, Copy)]
pub(crate) struct Work {
    /// Duration, for example 90s, 2m or 1h.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// Seed of requests, contents and faults.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Requests of each node per second; 0 means as many as possible.
    #[arg(long, default_value_t = 20_000)]
    pub(super) pace: u64,
}

impl Work {
    /// Returns the options as arguments of a command line.
    pub(super) fn args(&self) -> [String; 6] {
        let duration = humantime::format_duration(self.duration).to_string();
        let [seed, pace] = [self.seed, self.pace].map(|number| number.to_string());
        ["--duration".into(), duration, "--seed".into(), seed, "--pace".into(), pace]
    }
}
