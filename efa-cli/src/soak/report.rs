//! The report of a node: its operations, packets, faults and memory.

use anyhow::{Context, Result};
use efa_direct::{Counters, LinkCounters};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// The number of KiB by which a node may always grow.
const GROWTH: u64 = 16 << 10;

/// The report of one node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct NodeReport {
    pub(super) operations: Operations,
    pub(super) arrivals: Arrivals,
    pub(super) packets: Packets,
    /// The number of faults.
    pub(super) faults: u64,
    /// The number of waits that a completion event has ended.
    pub(super) events: u64,
    pub(super) rss: Rss,
}

/// The numbers of completed requests.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Operations {
    pub(super) sends: u64,
    pub(super) inline_sends: u64,
    pub(super) writes: u64,
    pub(super) inline_writes: u64,
    pub(super) writes_with_immediate: u64,
    pub(super) reads: u64,
    pub(super) datagrams: u64,
    /// The number of payload bytes of all requests.
    pub(super) bytes: u64,
}

impl Operations {
    pub(super) fn total(&self) -> u64 {
        let Self { sends, inline_sends, writes, inline_writes, writes_with_immediate, reads, datagrams, .. } = self;
        sends + inline_sends + writes + inline_writes + writes_with_immediate + reads + datagrams
    }
}

/// The numbers of messages and datagrams that have arrived and were checked.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Arrivals {
    pub(super) messages: u64,
    /// The number of payload bytes of the messages.
    pub(super) bytes: u64,
    pub(super) datagrams: u64,
    /// The number of datagrams that arrived once more.
    pub(super) datagrams_again: u64,
    /// The number of datagrams that the other node sent and that never arrived.
    pub(super) datagrams_lost: u64,
}

/// The numbers of packets.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Packets {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) resent: u64,
    pub(super) duplicates_dropped: u64,
    pub(super) corrupt_dropped: u64,
    /// How often this node had no receive posted for a message.
    pub(super) not_ready: u64,
    /// How many of this node's packets the simulated network has lost.
    pub(super) lost: u64,
}

impl Packets {
    pub(super) fn of(device: &Counters, link: Option<LinkCounters>) -> Self {
        Self {
            sent: device.tx_pkts,
            received: device.rx_pkts,
            resent: device.retrans_pkts,
            duplicates_dropped: device.duplicate_pkts,
            corrupt_dropped: device.corrupt_pkts,
            not_ready: device.rnr_sent,
            lost: link.unwrap_or_default().lost,
        }
    }
}

/// The resident set size in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rss {
    /// The first sample after the node was warm.
    pub(super) warm: u64,
    /// The largest sample after that.
    pub(super) largest: u64,
    pub(super) last: u64,
}

impl Rss {
    /// Takes a sample. `warm` says whether the node is warm.
    pub(super) fn sample(&mut self, warm: bool) -> Result<()> {
        let status = std::fs::read_to_string("/proc/self/status").context("reading the resident set's size")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        self.note(size.context("no VmRSS in /proc/self/status")?, warm);
        Ok(())
    }

    fn note(&mut self, size: u64, warm: bool) {
        self.last = size;
        if warm && self.warm == 0 {
            self.warm = size;
        }
        if self.warm != 0 {
            self.largest = self.largest.max(size);
        }
    }

    /// Returns `true` if memory has grown more than a fifth and [`GROWTH`], so that there may be a leak.
    pub(super) fn grew(&self) -> bool {
        self.largest > self.warm + GROWTH.max(self.warm / 5)
    }
}

/// The result of a run, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) seed: u64,
    pub(super) seconds: f64,
    pub(super) pace: u64,
    pub(super) nodes: [NodeReport; 2],
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.nodes;
        let mut row =
            |name: &str, cell: &dyn Fn(&NodeReport) -> u64| writeln!(f, "{name:<34} {:>14} {:>14}", cell(a), cell(b));
        row("operations", &|n| n.operations.total())?;
        row("  sends", &|n| n.operations.sends)?;
        row("  inline sends", &|n| n.operations.inline_sends)?;
        row("  writes", &|n| n.operations.writes)?;
        row("  inline writes", &|n| n.operations.inline_writes)?;
        row("  writes with immediate", &|n| n.operations.writes_with_immediate)?;
        row("  reads", &|n| n.operations.reads)?;
        row("  datagrams", &|n| n.operations.datagrams)?;
        row("bytes", &|n| n.operations.bytes)?;
        row("messages arrived", &|n| n.arrivals.messages)?;
        row("  bytes", &|n| n.arrivals.bytes)?;
        row("datagrams arrived", &|n| n.arrivals.datagrams)?;
        row("  once more", &|n| n.arrivals.datagrams_again)?;
        row("  never", &|n| n.arrivals.datagrams_lost)?;
        row("packets sent", &|n| n.packets.sent)?;
        row("  resent", &|n| n.packets.resent)?;
        row("  lost by the network", &|n| n.packets.lost)?;
        row("packets received", &|n| n.packets.received)?;
        row("  duplicates dropped", &|n| n.packets.duplicates_dropped)?;
        row("  damaged, dropped", &|n| n.packets.corrupt_dropped)?;
        row("receiver was not ready", &|n| n.packets.not_ready)?;
        row("completion events", &|n| n.events)?;
        row("faults", &|n| n.faults)?;
        row("resident KiB, warm", &|n| n.rss.warm)?;
        row("  largest after that", &|n| n.rss.largest)?;
        row("  last", &|n| n.rss.last)?;
        let total = a.operations.total() + b.operations.total();
        let rate = total as f64 / self.seconds;
        let verdict = if self.ok { "nothing lost, nothing altered" } else { "FAILED" };
        writeln!(f, "\n{total} operations in {:.0} s, {rate:.0} a second, seed {}: {verdict}", self.seconds, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_counts_from_the_first_warm_sample() {
        let mut rss = Rss::default();
        for (size, warm) in [(90_000, false), (50_000, true), (66_000, true), (60_000, true)] {
            rss.note(size, warm);
        }
        assert_eq!(rss, Rss { warm: 50_000, largest: 66_000, last: 60_000 });
        assert!(!rss.grew());
        rss.note(66_400, true);
        assert!(rss.grew());
        rss.sample(true).unwrap();
        assert!(rss.last > 0);
    }
}
