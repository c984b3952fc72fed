//! The vocabulary of EFA's control path.
//!
//! A control path creates and destroys objects: protection domains, memory regions, completion queues, queue pairs,
//! address handles, completion counters. This crate has the types that all providers of EFA devices share for this, in
//! hardware or software. They are plain data, with one type for each idea. The formats in rings, that is WQEs, receive
//! descriptors and completion entries, are in the crate `efa-io`.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `gid` | [`Gid`], the address of a device |
//! | `region` | [`Access`] rights of a memory region, and its [`RegionKeys`] |
//! | `queue` | the attributes of new queues ([`QpAttributes`], [`CqAttributes`]), [`Transport`], [`QpState`] |
//! | `device` | [`DeviceAttributes`], the features and limits of a device |
//! | `counter` | completion counters: [`CounterOps`], [`CounterValue`] |
//! | `statistics` | what a device counts: [`Counters`], [`CommandCounters`] |
//! | `event` | [`AsyncEvent`], an event that no completion reports |
//! | `error` | [`ControlError`], the reason why a device refused a control call |

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
