//! The transport: it makes every message arrive exactly once over a network that loses, doubles and reorders packets.
//!
//! The messages of one direction between two devices are in lanes ([`Lane`](crate::wire::Lane)): a [`SendLane`] at the
//! sender and a [`RecvLane`] at the receiver. Messages of a lane are independent of each other, as SRD has no order.
//! Neither end of a lane touches memory or knows what a queue pair is: a queue pair is a number here.
//! [`Device`](crate::Device) joins the lanes to its objects.
//!
//! A message's life at the sender:
//!
//! ```text
//!   push ──▶ waiting ──▶ open ──▶ ended
//!               ▲         │
//!               └─ deferred ◀─ the receiver is not ready
//! ```
//!
//! Only an open message has a number and may send packets. It ends when the receiver says so, when the peer is given
//! up, or when its queue pair fails.
//!
//! | file | contents |
//! | --- | --- |
//! | `message.rs` | a message as its sender knows it, and how it ended |
//! | `share.rs` | what one queue pair has in a lane, so that queue pairs take turns |
//! | `send_lane.rs` | the sending end: numbers, packets, acknowledgements, retransmission |
//! | `path.rs`, `rtt.rs` | a path to the peer: its window and its round-trip time |
//! | `recv_lane.rs`, `bitmap.rs` | the receiving end: what has arrived, and what to acknowledge |

mod bitmap;
mod message;
mod path;
mod recv_lane;
mod rtt;
mod send_lane;
mod share;
mod window;

pub(crate) use message::{Ended, Memory, Message, Origin};
pub(crate) use recv_lane::{RecvLane, Standing};
pub(crate) use send_lane::SendLane;
pub(crate) use window::{MESSAGE_WINDOW, NUMBER_SPAN};
