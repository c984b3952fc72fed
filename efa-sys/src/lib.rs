//! libibverbs and libefa in Rust.
//!
//! Two layers. [`sys`] is the libraries as they are: types, constants, functions, all unsafe. Above it are owned handles, one for each kind of
//! object, whose methods are the calls and whose results are [`Error`]s that say what to do:
//!
//! ```text
//!   Libraries ── DeviceList ── Device ─open─▶ Context ──▶ Pd ──▶ Mr, Ah
//!                                              │ │        └──▶ Qp ──▶ query_wqs: where the rings are
//!                                              │ └──▶ CompCounter    (uses a Pd, two Cqs, counters)
//!                                              └──▶ CompChannel ──▶ Cq ──▶ query
//! ```
//!
//! A handle destroys its object when it is dropped, and keeps whatever the object was made of, so the order is always
//! right. What the kernel refuses to destroy is kept for good, with all that it was made of, memory among it. Objects
//! go together only if they are of one open device. Handles may be shared between threads.
//!
//! Nothing is linked: the libraries are looked for at run time, function by function. A program that was built here starts on a machine
//! without RDMA, and is told there what is missing; with an older library it has all that the older library has.
//!
//! ```
//! use efa_sys::{DeviceList, sys::Libraries};
//!
//! match Libraries::get() {
//!     Ok(libraries) => match DeviceList::get(libraries) {
//!         Ok(list) => list.iter().for_each(|device| println!("{}", device.name())),
//!         Err(error) => println!("no devices: {error}"),
//!     },
//!     Err(error) => println!("no libraries: {error}"),
//! }
//! ```
//!
//! Posting and polling are not here: rings are driven directly, which is what `efa-direct` does. The vendor's own are in [`sys`].
//!
//! Unsafe code: `bindings.rs` and `sys/` (the libraries as they are), `object.rs`, `device.rs`, `pd.rs`, `cq.rs`, `qp.rs`, `counter.rs` (calls into them).

#![deny(missing_docs)]

mod counter;
mod cq;
mod device;
mod error;
mod object;
mod pd;
mod qp;
pub mod sys;

pub use counter::{CompCounter, CounterValue};
pub use cq::{CompChannel, Cq, CqAttr, ExternalRing};
pub use device::{AsyncElement, AsyncEvent, Context, Device, DeviceList};
pub use error::{Errno, Error};
pub use pd::{Ah, Mr, Pd};
pub use qp::{Qp, QpAttr, QpType};
