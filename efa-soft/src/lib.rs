//! An EFA NIC in software.
//!
//! Everything that an EFA device does to the programs above it, without the device: protection domains, memory regions with
//! their keys, address handles, completion queues, SRD queue pairs whose rings lie in shared memory bit for bit as on
//! hardware, and a transport that delivers each message exactly once over a network that loses, doubles and reorders.
//!
//! [`Device`] is a pure state machine in the manner of a sans-IO protocol: bytes and time in, bytes and completions out.
//! Around it are thin drivers:
//!
//! | what | drives | with |
//! | --- | --- | --- |
//! | [`Net`] | several devices of one process, over a simulated network | whatever time its caller says it is |
//! | [`driver::Local`] | a [`Net`] | a thread and the real clock |
//! | [`driver::Udp`] | one device, to other processes and hosts | a thread, a socket and the real clock |
//!
//! Networks misbehave as a [`LinkConfig`] says, from a seed, and devices as their [`Faults`] do; both can be changed while everything
//! runs. Reordering is on by default: SRD does not order, and code that relies on order should fail here rather than in
//! production. What a device can do is a [`DeviceConfig`], with profiles of several EC2 instance types; what it does, event by
//! event, is told to whoever [subscribes](trace).
//!
//! ```text
//!   program ── WQEs, doorbells ──▶ rings ──▶ ┌────────┐ poll_transmit ─▶ Link ─▶ peer
//!           ◀── completion entries ───────── │ Device │ ◀─ handle ─────── network
//!           ◀── bytes in its regions ─────── └────────┘ ◀─ on_timeout ─── clock
//! ```
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

/// The vocabulary of the control path, which this crate's calls take and answer with.
#[doc(no_inline)]
pub use efa_types::*;
