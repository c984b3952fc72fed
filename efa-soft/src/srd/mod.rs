//! The transport: what makes messages arrive exactly once over a network that loses, doubles and reorders packets.
//!
//! Messages are independent. Each direction of a pair of devices is a [`tx::TxFlow`] at one end and an [`rx::RxFlow`] at
//! the other; neither touches memory or knows what a queue pair is. A sender spreads its packets over several paths and keeps
//! book of each ([`path`]): a path that loses or delays holds up only what it carries. [`Device`](crate::Device) joins them to the objects.

pub(crate) mod bitmap;
mod path;
mod rtt;
pub(crate) mod rx;
pub(crate) mod tx;

/// Most messages between two devices that are under way at once; further ones wait at the sender.
pub(crate) const MESSAGE_WINDOW: u32 = 2048;
/// Most packets of one queue pair's short messages towards one peer that are under way at once, and of its long ones; the rest wait for their turn.
/// As many as the windows of all paths hold together: a queue pair that is alone loses nothing.
pub(crate) const QUEUE_PAIR_WINDOW: u32 = 1024;
/// So many messages of a queue pair may always be under way, however long they are. Few enough that those of 255 others leave room in
/// [`MESSAGE_WINDOW`].
pub(crate) const QUEUE_PAIR_MESSAGES: u32 = MESSAGE_WINDOW / 256;
/// Most packets of a message that counts as short.
pub(crate) const SHORT: u32 = 8;
/// How far a message's number may lie beyond that of the oldest one under way, so that many may overtake a long one.
pub(crate) const NUMBER_SPAN: u32 = 1 << 16;
