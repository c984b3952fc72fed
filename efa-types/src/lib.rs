//! The vocabulary of EFA's control path.
//!
//! A control path creates and destroys objects: protection domains, memory regions, completion queues, queue pairs,
//! address handles, completion counters. This crate has the words for it that every provider of EFA devices shares,
//! hardware or software: plain data, one type for each idea. What goes through rings, that is WQEs, receive descriptors
//! and completion entries, is in the crate `efa-io`.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `gid` | [`Gid`], the address of a device |
//! | `region` | [`Access`] rights of a memory region, and its [`RegionKeys`] |
//! | `queue` | what queues are created with ([`QpAttributes`], [`CqAttributes`]), [`Transport`], [`QpState`] |
//! | `device` | [`DeviceAttributes`], what a device can do |
//! | `counter` | completion counters: [`CounterOps`], [`CounterValue`] |
//! | `statistics` | what a device has counted: [`Counters`], [`CommandCounters`] |
//! | `event` | [`AsyncEvent`], what no completion reports |
//! | `error` | [`ControlError`], why a device refused a control call |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod counter;
mod device;
mod error;
mod event;
mod gid;
mod queue;
mod region;
mod statistics;

pub use counter::{COUNTER_MAX, CounterOps, CounterValue};
pub use device::DeviceAttributes;
pub use error::ControlError;
pub use event::AsyncEvent;
pub use gid::Gid;
pub use queue::{CqAttributes, CqeSize, QpAttributes, QpState, Transport, UD_PREFIX};
pub use region::{Access, RegionKeys};
pub use statistics::{CommandCounters, Counters};
