//! An EFA NIC in software.
//!
//! It does for programs what an EFA device does. It has protection domains, memory regions with their keys, address
//! handles, completion queues, and queue pairs whose rings lie in shared memory, bit for bit as on hardware. Its
//! transport delivers each message exactly once over a network that loses, doubles and reorders packets.
//!
//! A [`Device`] is a state machine without sockets, clock or threads: bytes and time in, bytes and completions out.
//! Others drive it:
//!
//! | driver | of | with |
//! | --- | --- | --- |
//! | [`Net`] | several devices of one process, over a simulated network | the time that its caller tells it |
//! | [`driver::LocalNetwork`] | a [`Net`] | a thread and the real clock |
//! | [`driver::Udp`] | one device, to other processes and hosts | a thread, a socket and the real clock |
//!
//! ```text
//!   program ── WQEs, doorbells ──▶ rings ──▶ ┌────────┐ poll_transmit ─▶ Link ─▶ peer
//!           ◀── completion entries ───────── │ Device │ ◀─ handle ─────── network
//!           ◀── bytes in its regions ─────── └────────┘ ◀─ on_timeout ─── clock
//! ```
//!
//! Networks misbehave as a [`LinkConfig`] says, from a seed, and devices as their [`Faults`] say. Both can be changed
//! while everything runs. Networks reorder by default: SRD has no order, and code that relies on one should fail here
//! rather than in production. A [`DeviceConfig`] says what a device can do; there are profiles of several EC2 instance
//! types. Whoever [subscribes](trace) learns what a device does, event by event.
//!
//! | module | contents | start reading at |
//! | --- | --- | --- |
//! | `device` | the device: from doorbells to packets, from packets to memory and completions | `device/mod.rs`: the order of calls |
//! | `srd` | the transport: messages in lanes, acknowledgements, paths | `srd/mod.rs`: a message's life |
//! | [`wire`] | the packets between devices | `wire/mod.rs`: the protocol in words |
//! | `qp`, `cq`, `counter`, `regions` | the objects, each as the device sees it | |
//! | `net`, `link`, `faults`, [`trace`] | simulated networks, faults, and what can be watched | |
//! | [`driver`] | threads that drive devices by the real clock | `driver/mod.rs`: what a device on UDP promises |
//!
//! Unsafe code: `driver/events.rs` (signals, in its tests).

#![deny(missing_docs)]

mod config;
mod contain;
mod counter;
mod cq;
mod device;
pub mod driver;
mod faults;
mod link;
mod net;
mod qp;
mod regions;
mod srd;
mod time;
pub mod trace;
pub mod wire;

pub use config::{DeviceConfig, Profile, Secret};
pub use counter::CounterPlace;
pub use cq::CqInfo;
pub use device::{Device, DeviceEvent};
pub use faults::Faults;
pub use link::{LinkConfig, LinkCounters, PathConfig};
pub use net::Net;
pub use qp::{QpInfo, WqInfo};
pub use time::Time;

/// The vocabulary of the control path, which this crate's calls take and return.
#[doc(no_inline)]
pub use efa_types::*;
