//! The packets between two software devices.
//!
//! AWS does not publish the packets of SRD. This format is the project's own, and it is spoken between software devices
//! only.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the protocol in words |
//! | `header.rs` | the 64 bytes at the start of every packet: addresses, incarnations, checksum |
//! | `message.rs` | the header of a message, and of each packet of it |
//! | `ack.rs` | the entries of an acknowledgement packet |
//! | `hello.rs` | the challenge and the echo |
//! | `payload.rs` | the bytes of a message, before they are copied into a packet |
//! | `packet.rs` | all of that together: [`Packet`], its `parse` and its `emit` |
//!
//! Each format is a struct with one field per field of the packet, in the order of the bytes and without gaps. All
//! numbers are little-endian.
//!
//! # Addresses and incarnations
//!
//! Every packet carries the GIDs of its sender and its receiver, an incarnation of each, and a checksum. The receiver
//! drops and counts a packet that went astray, that outlived its device, or that was damaged.
//!
//! An *incarnation* is the number of one life of a device. A device has another one for each peer, and nobody else can
//! guess it ([`DeviceConfig::incarnation_for`](crate::DeviceConfig::incarnation_for)). A packet that names the
//! incarnation of its receiver therefore comes from whoever receives at the address that the packet gives as its
//! source, or from somebody who can see the packets between the two.
//!
//! # Messages
//!
//! Reliability is kept for each *message*, not for a stream of packets, so that no message waits for another. A data
//! packet names its message and its place in the message. An acknowledgement says which packets of a message have
//! arrived, or how the message ended. `base` is the oldest message that its sender still waits for; the receiver
//! forgets everything below it. A sender has at most 2048 messages under way, and numbers none of them 65536 or more
//! beyond the oldest.
//!
//! A message that finds no receive descriptor ends with "not ready", and its sender offers it again under a new number.
//! However long a receiver is not ready for one message, no other message waits.
//!
//! Requests and the answers to RDMA reads are numbered apart ([`Lane`]). An RDMA read ends only when its answer
//! arrives. If answers had to wait behind requests, two devices could wait for each other for ever.
//!
//! Datagrams (UD) have no number and no acknowledgement, and are never sent again. A datagram looks like the data of a
//! message of one packet; its message, base and packet are zero.
//!
//! # Hello
//!
//! Two devices say hello before anything else, so that each knows which life of the other it speaks to: a packet that
//! reaches a device that died and came back must not do there what it did before. A hello with a challenge asks for a
//! hello that echoes it. Only an answer that echoes the last challenge convinces a device that a peer has begun another
//! life. A packet that is late, recorded or invented does not. No answer is longer than the packet that it answers.

mod ack;
mod header;
mod hello;
mod message;
mod packet;
mod payload;

pub use ack::{ACK_WORDS, Ack, AckIter, Acks, MAX_ACKS};
pub use header::{Envelope, WireError};
pub use hello::Hello;
pub use message::{Data, Lane, MIN_STRIDE, MessageHeader, WireOp};
pub use packet::{Body, DATA_HEADER, Packet};
pub use payload::Payload;

pub(crate) use header::MAGIC;
pub(crate) use payload::Span;
