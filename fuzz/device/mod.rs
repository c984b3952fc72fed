//! The properties of a software device that must hold for all packets, for all contents of rings, and for all control
//! calls in any order.
//!
//! An input is a [`script`]. A device with some objects executes it in a [`harness`], which checks that nothing panics,
//! that no byte changes which nobody has the right to write, that packets have the length that they say, and that a
//! device without answers becomes idle.
//!
//! | body | what is arbitrary |
//! | --- | --- |
//! | [`packets`] | arriving packets, while the device has outstanding messages of its own |
//! | [`rings`] | the contents of rings and doorbells |
//! | [`control`] | control calls, with a few posts and packets between them |

#![allow(dead_code, unused_imports, reason = "a fuzz target runs one of the bodies")]

mod control;
mod forge;
mod harness;
mod packets;
mod requests;
mod rings;
mod script;

pub(crate) use control::control;
pub(crate) use packets::packets;
pub(crate) use rings::rings;
