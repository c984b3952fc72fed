//! The report of a node, printed as text or as JSON.

use efa_direct::{Counters, LinkCounters, Status};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter, Write};

/// The report of one node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    /// The node's number: node 0 writes into node 1's memory.
    pub(crate) node: u8,
    /// The name with which the device was opened.
    pub(crate) device: String,
    pub(crate) endpoint: EndpointReport,
    pub(crate) region: RegionReport,
    /// The number of writes that have completed (node 0) or arrived (node 1).
    pub(crate) operations: u64,
    /// The length of each write in bytes.
    pub(crate) size: u64,
    /// What posted the writes, if it was not this processor (node 0).
    pub(crate) poster: Option<String>,
    /// The first WQE (node 0).
    pub(crate) wqe: Option<Entry>,
    /// The value of the doorbell after the first WQE (node 0).
    pub(crate) doorbell: Option<u32>,
    /// The first completion entry, or the one with an error.
    pub(crate) completion: Option<Entry>,
    /// The number of all completion entries.
    pub(crate) completions: u64,
    /// The first write that failed, which ended the run (node 0).
    pub(crate) failure: Option<Failure>,
    /// The numbers of words that were compared and that matched (node 1).
    pub(crate) words: Option<Words>,
    pub(crate) packets: Packets,
    /// The first and the last events of the device.
    pub(crate) timeline: Timeline,
    /// The time from the first post (node 0) or from the exchange of addresses (node 1) to the last completion.
    pub(crate) microseconds: u64,
}

/// The address of a node's queue pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EndpointReport {
    pub(crate) gid: String,
    pub(crate) qpn: u16,
    pub(crate) qkey: u32,
}

/// A node's memory region.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RegionReport {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) lkey: u32,
    pub(crate) rkey: u32,
}

/// A ring entry: its bytes in hexadecimal, and its dissection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) hex: String,
    pub(crate) fields: String,
}

impl Entry {
    /// Creates an entry from its bytes and its dissection.
    pub(crate) fn new(bytes: &[u8], fields: &impl Display) -> Self {
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self { hex, fields: fields.to_string() }
    }
}

/// A write that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) write: u64,
    pub(crate) status: u8,
    pub(crate) meaning: String,
    pub(crate) usual_cause: String,
}

impl Failure {
    /// Creates the failure of write number `write`.
    pub(crate) fn new(write: u64, status: Status) -> Self {
        Self {
            write,
            status: status.code(),
            meaning: status.meaning().into(),
            usual_cause: status.usual_cause().into(),
        }
    }
}

/// The numbers of words that match and of all words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Words {
    pub(crate) matching: u64,
    pub(crate) total: u64,
}

/// The numbers of packets.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Packets {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) retransmitted: u64,
    pub(crate) duplicates_dropped: u64,
    /// How many of this node's packets the simulated network has lost, if there is one.
    pub(crate) lost: Option<u64>,
    pub(crate) doubled: Option<u64>,
    pub(crate) overtaken: Option<u64>,
}

impl Packets {
    pub(crate) fn of(device: &Counters, link: Option<LinkCounters>) -> Self {
        Self {
            sent: device.tx_pkts,
            received: device.rx_pkts,
            retransmitted: device.retrans_pkts,
            duplicates_dropped: device.duplicate_pkts,
            lost: link.map(|link| link.lost),
            doubled: link.map(|link| link.duplicated),
            overtaken: link.map(|link| link.overtaken),
        }
    }
}

/// The first and the last events of a device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timeline {
    pub(crate) head: Vec<Moment>,
    /// The number of events in between.
    pub(crate) between: usize,
    pub(crate) tail: Vec<Moment>,
}

/// An event of a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// The time since the first event.
    pub(crate) microseconds: f64,
    pub(crate) what: String,
}

impl Display for Timeline {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "what the device did, in µs")?;
        let lines = |f: &mut Formatter<'_>, moments: &[Moment]| {
            moments.iter().try_for_each(|moment| writeln!(f, "{:10.1}  {}", moment.microseconds, moment.what))
        };
        lines(f, &self.head)?;
        if self.between > 0 {
            writeln!(f, "         …  {} events more", self.between)?;
        }
        lines(f, &self.tail)
    }
}

/// A text that is printed with the node's number in front of each line.
struct Margin<'a>(u8, &'a str);

impl Display for Margin<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.1.lines().try_for_each(|line| writeln!(f, "node {} │ {}", self.0, line.trim_end()))
    }
}

impl Display for NodeReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let EndpointReport { gid, qpn, qkey } = &self.endpoint;
        let RegionReport { addr, len, lkey, rkey } = &self.region;
        writeln!(text, "device {}", self.device)?;
        writeln!(text, "GID {gid}, QP number {qpn}, qkey {qkey:#x}")?;
        writeln!(text, "region of {len} bytes at {addr:#x}, lkey {lkey:#x}, rkey {rkey:#x}")?;
        if let Some(poster) = &self.poster {
            writeln!(text, "posted and polled by {poster}")?;
        }
        if let (Some(wqe), Some(doorbell)) = (&self.wqe, self.doorbell) {
            writeln!(
                text,
                "\nRDMA write with immediate, {} bytes: the WQE in the send ring\n{}",
                self.size, wqe.fields
            )?;
            writeln!(text, "doorbell ← {doorbell}\n")?;
        }
        if let Some(completion) = &self.completion {
            let of = match (&self.failure, self.completions) {
                (Some(_), _) => " (the entry that ended the run)".into(),
                (None, 1) => String::new(),
                (None, all) => format!(" (the first of {all} entries)"),
            };
            if self.wqe.is_none() {
                writeln!(text)?;
            }
            writeln!(text, "the completion queue{of}\n{}", completion.fields)?;
        }
        if !self.timeline.head.is_empty() {
            writeln!(text, "{}", self.timeline)?;
        }
        let p = &self.packets;
        writeln!(
            text,
            "packets: {} sent (of these {} retransmitted), {} received ({} duplicates dropped)",
            p.sent, p.retransmitted, p.received, p.duplicates_dropped
        )?;
        if let (Some(lost), Some(doubled), Some(overtaken)) = (p.lost, p.doubled, p.overtaken) {
            writeln!(text, "network: {lost} of them lost, {doubled} doubled, {overtaken} overtaken")?;
        }
        if let Some(Words { matching, total }) = self.words {
            writeln!(text, "{matching}/{total} words match")?;
        }
        if let Some(Failure { write, status, meaning, usual_cause }) = &self.failure {
            writeln!(text, "write {write} FAILED with status {status}: {meaning}. Usual cause: {usual_cause}")?;
        }
        let plural = if self.operations == 1 { "" } else { "s" };
        writeln!(text, "{} write{plural} in {} µs", self.operations, self.microseconds)?;
        Margin(self.node, &text).fmt(f)
    }
}
