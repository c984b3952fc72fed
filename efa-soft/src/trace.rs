//! Traces of what a device does, event by event.
//!
//! A device without subscribers builds no events. Drivers and tools subscribe with
//! [`Device::subscribe`](crate::Device::subscribe); [`ChromeTrace`] makes a file for `chrome://tracing` and Perfetto of
//! them.

use crate::Time;
use crate::contain::{contain, log};
use crate::wire::{Body, WireOp};
use efa_io::{OpCode, Status};
use efa_types::{Gid, QpState};
use serde_json::{Value, json};
use std::fmt;

/// An event in a device, with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When it happened, by the clock of the device's driver.
    pub at: Time,
    /// What happened.
    pub what: Traced,
}

/// An event in a device, without its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Traced {
    /// The device saw a new value in a send doorbell.
    Doorbell {
        /// Queue pair.
        qpn: u16,
        /// The doorbell's value.
        value: u32,
        /// WQEs since the last value.
        wqes: u32,
    },
    /// The device fetched and decoded a WQE.
    Wqe {
        /// Queue pair.
        qpn: u16,
        /// Request id.
        req_id: u64,
        /// Operation; a send if the WQE is malformed.
        op: OpCode,
        /// Bytes of the operation.
        bytes: u32,
        /// The result of the checks before anything leaves the device.
        status: Status,
    },
    /// A packet left.
    PacketOut {
        /// Destination.
        dst: Gid,
        /// Kind of packet.
        packet: TracedPacket,
        /// Number of its path.
        path: u8,
        /// Bytes on the wire.
        bytes: u32,
        /// It was sent before.
        resent: bool,
    },
    /// A packet arrived.
    PacketIn {
        /// Source.
        src: Gid,
        /// Kind of packet.
        packet: TracedPacket,
    },
    /// A packet was dropped.
    PacketDropped {
        /// Why.
        reason: DropReason,
    },
    /// A packet's payload was placed in memory.
    Placed {
        /// Receiving queue pair.
        qpn: u16,
        /// Bytes.
        bytes: u32,
    },
    /// A completion entry was written.
    Completion {
        /// Completion queue.
        cqn: u32,
        /// Queue pair.
        qpn: u16,
        /// Request id.
        req_id: u64,
        /// Status of the completion.
        status: Status,
        /// It completes a receive.
        receive: bool,
    },
    /// A queue pair changed its state.
    State {
        /// Queue pair.
        qpn: u16,
        /// Its new state.
        state: QpState,
    },
    /// The port went up or down.
    Port {
        /// It is up.
        up: bool,
    },
}

/// The kind of a traced packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedPacket {
    /// Part of a message.
    Data {
        /// Operation of the message.
        op: WireOp,
        /// The message's number between these two devices, in its lane.
        message: u32,
        /// The packet's number in the message.
        packet: u32,
    },
    /// An unreliable datagram.
    Datagram,
    /// Acknowledgements.
    Acks {
        /// Number of entries.
        entries: u32,
    },
    /// A hello: before two devices know each other, and when one of them died and came back.
    Hello,
}

/// The reason why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// Its bytes are malformed.
    Malformed,
    /// Its checksum does not match.
    Corrupt,
    /// It is for another device, another life of this one, or from a life of the peer that is over.
    NotForUs,
    /// It arrived before.
    Duplicate,
    /// It is a datagram without a receiver: there is no such queue pair, the qkey is wrong, or no receive is posted.
    Unwanted,
    /// It arrived faster than the device takes packets in ([`Faults::rx_rate`](crate::Faults::rx_rate)).
    Overrun,
    /// Its bytes were still in the sender's region when that was deregistered (inside one process only).
    SourceGone,
    /// The port is down.
    PortDown,
    /// It goes to the device itself or to another subnet, neither of which EFA delivers.
    Unroutable,
    /// It did not come from the address that it gives as its own, or was not sealed with the device's key
    /// ([`driver`](crate::driver) says more).
    Refused,
}

/// A subscriber to the events of a device. Every `FnMut(&TraceEvent)` is one.
pub trait Subscriber: Send {
    /// Handles an event. The device's driver calls this in the middle of its work, so it must be quick. A subscriber
    /// that panics is not called any more, and the device goes on.
    fn event(&mut self, event: &TraceEvent);
}

impl<F: FnMut(&TraceEvent) + Send> Subscriber for F {
    fn event(&mut self, event: &TraceEvent) {
        self(event);
    }
}

/// The subscribers of a device, and the time of its current call.
#[derive(Default)]
pub(crate) struct Tracer {
    pub(crate) now: Time,
    subscribers: Vec<Box<dyn Subscriber>>,
}

impl Tracer {
    pub(crate) fn subscribe(&mut self, subscriber: Box<dyn Subscriber>) {
        self.subscribers.push(subscriber);
    }

    /// Tells the subscribers the event that `what` builds. Without subscribers it is not built.
    #[inline]
    pub(crate) fn emit(&mut self, what: impl FnOnce() -> Traced) {
        if !self.subscribers.is_empty() {
            self.tell(what());
        }
    }

    #[cold]
    fn tell(&mut self, what: Traced) {
        let event = TraceEvent { at: self.now, what };
        let mut panicked = false;
        for i in (0..self.subscribers.len()).rev() {
            if contain(|| self.subscribers[i].event(&event)).is_none() {
                panicked = true;
                let gone = self.subscribers.remove(i);
                contain(|| drop(gone));
            }
        }
        if panicked {
            log!(error, "a subscriber of a software device panicked: it is told of nothing any more");
        }
    }
}

impl TracedPacket {
    /// Returns the kind of a packet.
    pub(crate) fn of(body: &Body<'_>) -> Self {
        match body {
            Body::Data(data, _) => Self::Data { op: data.header.op, message: data.message, packet: data.packet },
            Body::Datagram(..) => Self::Datagram,
            Body::Acks { acks, .. } => Self::Acks { entries: acks.iter().count() as u32 },
            Body::Hello(_) => Self::Hello,
        }
    }
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doorbell { qpn, value, wqes } => write!(f, "doorbell of QP {qpn} ← {value}: {}", count(*wqes, "WQE")),
            Self::Wqe { qpn, req_id, op, bytes, status } => {
                write!(f, "WQE of QP {qpn}, request {req_id}: {op}, {bytes} bytes")?;
                if status.is_ok() { Ok(()) } else { write!(f, ": refused, {status}") }
            }
            Self::PacketOut { packet, path, bytes, resent, .. } => {
                let again = if *resent { " again" } else { "" };
                write!(f, "packet out{again} on path {path}, {bytes} bytes: {packet}")
            }
            Self::PacketIn { packet, .. } => write!(f, "packet in: {packet}"),
            Self::PacketDropped { reason } => write!(f, "packet dropped: {reason}"),
            Self::Placed { qpn, bytes } => write!(f, "{bytes} bytes placed for QP {qpn}"),
            Self::Completion { cqn, qpn, req_id, status, receive } => {
                let queue = if *receive { "receive" } else { "send" };
                write!(f, "completion in CQ {cqn}: {queue} {req_id} of QP {qpn}, {status}")
            }
            Self::State { qpn, state } => write!(f, "QP {qpn} is now {state:?}"),
            Self::Port { up } => write!(f, "port {}", if *up { "up" } else { "down" }),
        }
    }
}

impl fmt::Display for TracedPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data { op, message, packet } => write!(f, "{op}, message {message}, packet {packet}"),
            Self::Datagram => f.write_str("datagram"),
            Self::Acks { entries } => f.write_str(&count(*entries, "acknowledgement")),
            Self::Hello => f.write_str("hello"),
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::Corrupt => "damaged on the way",
            Self::NotForUs => "not for this life of this device",
            Self::Duplicate => "here already",
            Self::Unwanted => "a datagram that nobody takes",
            Self::Overrun => "more than the device can take in",
            Self::SourceGone => "its sender deregistered the memory",
            Self::PortDown => "the port is down",
            Self::Unroutable => "to itself, or to another subnet",
            Self::Refused => "refused: not from the address that it gives, or not sealed with this device's key",
        })
    }
}

fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A trace of several devices, as the JSON array of events that `chrome://tracing` and <https://ui.perfetto.dev> read.
///
/// Each device is a process there, and doorbells, WQEs, packets, memory and completions are its threads. Arrays of
/// several processes of one host can be joined if their devices' drivers use the system's clock.
#[derive(Default)]
pub struct ChromeTrace {
    events: Vec<Value>,
}

/// The threads of a device in a [`ChromeTrace`].
const LANES: [&str; 7] = ["doorbells", "WQEs", "packets out", "packets in", "memory", "completions", "states"];

impl ChromeTrace {
    /// Creates a trace without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the events of a device, as process number `pid` with this name.
    pub fn add_device<'a>(&mut self, pid: u32, name: &str, events: impl IntoIterator<Item = &'a TraceEvent>) {
        let named = |what: &str, tid: usize, name: &str| {
            let args = json!({ "name": name });
            json!({ "ph": "M", "pid": pid, "tid": tid, "name": what, "args": args })
        };
        self.events.push(named("process_name", 0, name));
        self.events.extend(LANES.iter().enumerate().map(|(lane, name)| named("thread_name", lane, name)));
        self.events.extend(events.into_iter().map(|TraceEvent { at, what }| {
            let (lane, name) = match what {
                Traced::Doorbell { .. } => (0, "doorbell"),
                Traced::Wqe { .. } => (1, "WQE"),
                Traced::PacketOut { resent: false, .. } => (2, "packet"),
                Traced::PacketOut { resent: true, .. } => (2, "packet again"),
                Traced::PacketIn { .. } => (3, "packet"),
                Traced::PacketDropped { .. } => (3, "dropped"),
                Traced::Placed { .. } => (4, "placed"),
                Traced::Completion { .. } => (5, "completion"),
                Traced::State { .. } => (6, "QP state"),
                Traced::Port { .. } => (6, "port"),
            };
            let ts = at.as_nanos() as f64 / 1000.0;
            let args = json!({ "what": what.to_string() });
            json!({ "ph": "i", "s": "t", "pid": pid, "tid": lane, "ts": ts, "name": name, "args": args })
        }));
    }

    /// Returns the contents of the file.
    pub fn to_json(self) -> String {
        Value::from(self.events).to_string()
    }
}
