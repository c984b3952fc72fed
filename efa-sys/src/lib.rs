//! Safe Rust handles for libibverbs and libefa, which are loaded at run time.
//!
//! There are two layers. [`sys`] has the libraries' own types, constants and functions, all unsafe. Above it are owned
//! handles, one type for each kind of object. Their methods are the libraries' calls, and an [`Error`] says what to do
//! about a failure:
//!
//! ```text
//!   Libraries ── DeviceList ── Device ─open─▶ Context ──▶ Pd ──▶ Mr, Ah
//!                                              │ │        └──▶ Qp ──▶ query_wqs: where the rings are
//!                                              │ └──▶ CompCounter    (uses a Pd, two Cqs, counters)
//!                                              └──▶ CompChannel ──▶ Cq ──▶ query
//! ```
//!
//! A handle destroys its object when it is dropped. It keeps everything that the object uses (other objects, memory)
//! until then, so objects are always destroyed in the right order. If the kernel refuses to destroy an object, the
//! object and everything that it uses are kept for the life of the process. Objects of two open devices cannot be
//! combined. Handles can be shared between threads.
//!
//! Nothing is linked: the libraries are loaded at run time, and each of their functions is looked up by name. So a
//! program also starts on a machine without RDMA, where the first call reports what is missing. With an older library,
//! the functions that it has can be used.
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
//! The handles do not post and do not poll: `efa-direct` does that, directly in the rings. libefa's own functions for
//! it are in [`sys`].
//!
//! Unsafe code: `bindings.rs` and `sys/` (the libraries' own items), `object.rs`, `device.rs`, `pd.rs`, `cq.rs`,
//! `qp.rs`, `counter.rs` (calls into the libraries).

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
