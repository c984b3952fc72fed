//! A software NIC that runs as a GPU kernel.
//!
//! Kernels that post from a GPU have their rings, their completion queues and their payload in GPU memory, which no processor can map. On a machine
//! with a GPU and no EFA this crate is what is behind those rings: it takes WQEs, checks keys and bounds, moves the bytes, also between the
//! GPUs of one host, and writes completion entries. There are no packets: several devices, whose queue pairs reach each other, are rows of the
//! same tables. What a request is answered with is what the software device (`efa-soft`) says to it.
//!
//! The host lays the tables out with a [`Builder`](host::Builder), in memory that the GPU reaches, and launches a kernel that calls
//! [`run`] with their address. Kernels that post get the handles of the queues as from any other device.
//!
//! # How it works
//!
//! One warp serves a queue pair, or several in turn, if there are fewer warps. It polls the doorbell and takes up to 32 WQEs at a time, one for
//! each lane. A lane decodes and checks its request; short messages each lane copies by itself, long ones the warp copies together. Then one
//! fence makes the bytes visible, and the completion entries' first words, with the phase in them, follow.
//!
//! ```text
//! send ring ──▶ decode ──▶ check ──▶ take a receive ──▶ copy ──▶ fence ──▶ completion entries
//!                             │            │ none
//!                             │            └──▶ parked: tried again, as long as the NIC runs
//!                             └──▶ a status
//! ```
//!
//! SRD does not order, and neither does this: with a seed, requests are executed and completed in another order than they were posted in.
//!
//! # What it is not
//!
//! Queue pairs, regions and address handles are all there from the beginning. There are no events and no completion counters. A
//! completion queue is not checked for overflow while the NIC runs: the builder refuses one that could overflow, but unsolicited receives
//! it cannot count.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `tables.rs` | what the host lays out: plain rows |
//! | `lookup.rs` | rows by key, number and handle, and whether an access fits |
//! | `request.rs` | from a WQE to a request |
//! | `check.rs` | what a request is answered with |
//! | `receive.rs` | the receive ring: taking from it, and what fits |
//! | `copy.rs`, `transfer.rs` | bytes, by a lane and by a warp |
//! | `complete.rs` | completion entries |
//! | `nic.rs` | the warp's loop |
//! | `host/` | the builder |
//!
//! Unsafe code: `nic.rs`, `lookup.rs`, `receive.rs`, `copy.rs`, `transfer.rs`, `complete.rs` (memory by the addresses in the tables),
//! `host/memory.rs` (memory of the host in the place of a GPU's).

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
