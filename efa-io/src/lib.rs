//! The formats that an EFA NIC reads and writes, and the arithmetic of its rings.
//!
//! # What a WQE is, in one page
//!
//! A program asks the NIC for work by writing a *work queue entry* (WQE) into a ring that the NIC can read, and then
//! storing the ring's new producer counter into a register, the *doorbell*. The NIC answers by writing a *completion
//! queue entry* (CQE) into another ring, which the program polls. No system call is involved, so the program may also
//! be a GPU kernel.
//!
//! ```text
//!  send ring (device memory, write-only)          completion ring (host or GPU memory)
//!  slot = counter & (entries-1)                   slot = counter & (entries-1)
//!  ┌────────┬────────┬────────┬────────┐          ┌────────┬────────┬────────┬────────┐
//!  │ WQE 4  │ WQE 5  │ WQE 2  │ WQE 3  │          │ CQE 0  │ CQE 1  │  old   │  old   │
//!  │phase 1 │phase 1 │phase 0 │phase 0 │          │phase 1 │phase 1 │phase 0 │phase 0 │
//!  └────────┴────────┴────────┴────────┘          └────────┴────────┴────────┴────────┘
//!                ▲ producer = 6                                     ▲ consumer = 2: not mine yet
//!                └─ doorbell ← 6 (low 16 bits count)
//! ```
//!
//! Nobody clears an entry. A reader knows a fresh entry from a stale one by its *phase* bit, which flips
//! on every lap: see [`RingSize`].
//!
//! # Where things are
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`op`] | the operations, and their encoder: [`Send`], [`SendInline`], [`RdmaWrite`], [`RdmaWriteInline`], [`RdmaRead`] |
//! | `layout` | the table of operations: where each has its parts in a WQE, and what it asks of its queue |
//! | `meta`, `buf` | the pieces of a WQE: metadata ([`Destination`], [`Hints`]) and buffers ([`LocalBuf`], [`RemoteBuf`]) |
//! | [`wqe`] | the send WQE in its two sizes, [`Wqe64`] and [`Wqe128`] |
//! | `decode`, `flat` | its checked decoders: to an [`Op`], and to a [`FlatRequest`] for whoever has the WQE in registers |
//! | [`rx`] | the receive descriptor, [`RxDesc`] |
//! | [`cqe`] | the completion entry in its two sizes, [`Cqe16`] and [`Cqe32`], and its meaning, [`Completion`] |
//! | [`status`] | the status of a completion, and what usually causes it |
//! | [`ring`] | slots, laps, phases, doorbells: [`RingSize`], [`WqCursor`], [`CqCursor`] |
//! | [`handle`] | plain data by which a host hands a ring over, to a GPU kernel for example |
//!
//! `Display` of a WQE, a receive descriptor or a completion entry dissects it, field by field (`dissect`).
//!
//! # Rules of this crate
//!
//! No `std`, no allocation, no `unsafe`. An entry is an array of 64-bit words, and everything that builds one is a
//! `const fn` over those words, so that it stays in registers until it is stored. Input from outside goes through a
//! checked decoder, which returns a value, or a [`DecodeError`] that names the field, and never panics.
//!
//! The source of every layout here is `efa_io_defs.h` of rdma-core 65 (`providers/efa`); behaviour that
//! is not in a header is cited where it is used.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!(
    "EFA's formats are little-endian, and so is every machine that has one: big-endian targets are not supported"
);

#[cfg(test)]
extern crate std;

mod bits;
mod buf;
pub mod cqe;
mod decode;
mod dissect;
mod error;
mod flat;
pub mod handle;
mod layout;
mod limits;
mod meta;
pub mod op;
mod opcode;
pub mod ring;
pub mod rx;
pub mod status;
pub mod wqe;

pub use cqe::{Completion, Cqe, Cqe16, Cqe32, Event};
pub use decode::{Op, SendRequest};
pub use error::{DecodeError, EncodeError};
pub use flat::FlatRequest;
pub use handle::{CompletionRingHandle, CounterHandle, RecvRingHandle, SendRingHandle};
pub use op::{
    Destination, Hints, Limits, Lkey, LocalBuf, OpCode, Operation, RdmaRead, RdmaWrite, RdmaWriteInline, RemoteBuf,
    Send, SendInline,
};
pub use ring::{CqCursor, Doorbell, RingSize, WqCursor};
pub use rx::RxDesc;
pub use status::Status;
pub use wqe::{SendWqe, Wqe, Wqe64, Wqe128};
