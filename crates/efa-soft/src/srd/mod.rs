//! The transport: what makes messages arrive exactly once over a network that loses, doubles and reorders packets.
//!
//! Messages are independent. Each direction of a pair of devices is a [`tx::TxFlow`] at one end and an [`rx::RxFlow`] at
//! the other; neither touches memory or knows what a queue pair is. [`Device`](crate::Device) joins them to the objects.

pub(crate) mod bitmap;
pub(crate) mod rtt;
pub(crate) mod rx;
pub(crate) mod tx;

/// Most messages between two devices that are under way at once; further ones wait at the sender.
pub(crate) const MESSAGE_WINDOW: u32 = 2048;
