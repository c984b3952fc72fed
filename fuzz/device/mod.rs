//! What must hold of a software device whatever a network delivers, whatever a program writes into its rings, and whichever
//! control calls are made in whichever order.
//!
//! An input is a [`script`]. A device with some objects executes it, in a [`world`] that watches it: nothing panics, no byte
//! changes that nobody has the right to write, packets are as long as they say, and a device that nobody answers comes to rest.
//!
//! | body | what is arbitrary |
//! | --- | --- |
//! | [`packets`] | what arrives, while messages of the device's own are under way |
//! | [`rings`] | what stands in rings and doorbells |
//! | [`control`] | control calls, with a few posts and packets between them |

#![allow(dead_code, unused_imports, reason = "a fuzz target runs one of the bodies")]

mod control;
mod forge;
mod packets;
mod requests;
mod rings;
mod script;
mod world;

pub(crate) use control::control;
pub(crate) use packets::packets;
pub(crate) use rings::rings;
