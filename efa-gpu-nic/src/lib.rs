//! A software NIC that runs as a GPU kernel.
//!
//! Kernels that post from a GPU have their rings, completion queues and payload in GPU memory, which no CPU can map. On
//! a machine with a GPU and no EFA this crate is the device behind those rings: it takes WQEs, checks keys and bounds,
//! moves the bytes, also between the GPUs of one host, and writes completion entries. There are no packets: several
//! devices, whose queue pairs reach each other, are rows of the same tables. A request completes with the same status
//! as on the software device (`efa-soft`).
//!
//! The host lays the tables out with a [`Builder`](host::Builder), in memory that the GPU reaches, and launches a
//! kernel that calls [`run`] with their address. Kernels that post get the handles of the queues as from any other
//! device.
//!
//! # How it works
//!
//! One warp serves a queue pair, or several in turn if there are fewer warps. It polls the doorbell and takes up to 32
//! WQEs at a time, one for each lane. A lane decodes and checks its request. Each lane copies a short message by
//! itself; the warp copies long ones together. Then one fence makes the bytes visible, and the first words of the
//! completion entries, which contain the phase, follow.
//!
//! ```text
//! send ring ──▶ decode ──▶ check ──▶ take a receive ──▶ copy ──▶ fence ──▶ completion entries
//!                             │            │ none
//!                             │            └──▶ parked: tried again, as long as the NIC runs
//!                             └──▶ a status
//! ```
//!
//! SRD does not keep requests in order, and neither does this NIC: with a seed, it executes and completes requests in
//! another order than they were posted in.
//!
//! # Limits
//!
//! Queue pairs, regions and address handles are created before the NIC starts. There are no events and no completion
//! counters. The NIC does not check a completion queue for overflow: the builder refuses one that could overflow, but
//! cannot count unsolicited receives.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `tables.rs` | the tables that the host lays out: plain rows |
//! | `lookup.rs` | rows by key, number and handle, and whether an access fits |
//! | `request.rs` | from a WQE to a request |
//! | `check.rs` | the checks of sender and receiver, and their statuses |
//! | `receive.rs` | the receive ring: taking from it, and what fits |
//! | `copy.rs`, `transfer.rs` | bytes, by a lane and by a warp |
//! | `complete.rs` | completion entries |
//! | `nic.rs` | the warp's loop |
//! | `host/` | the builder |
//!
//! Unsafe code: `nic.rs`, `lookup.rs`, `receive.rs`, `copy.rs`, `transfer.rs`, `complete.rs` (memory by the addresses
//! in the tables), `host/memory.rs` (memory of the host in the place of a GPU's).

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![deny(missing_docs)]

mod check;
mod complete;
mod copy;
#[cfg(not(target_arch = "nvptx64"))]
pub mod host;
mod lookup;
mod nic;
mod receive;
mod request;
pub mod tables;
mod transfer;

pub use nic::run;
pub use tables::Tables;
