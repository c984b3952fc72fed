//! Limits of what may be under way at once.

/// Most open messages of a lane; further ones wait at the sender.
pub(crate) const MESSAGE_WINDOW: u32 = 2048;

/// How far a message's number may lie beyond that of the oldest open message, so that many short messages may overtake
/// a long one. A receiver keeps one byte for each number of this span.
pub(crate) const NUMBER_SPAN: u32 = 1 << 16;

/// Most packets of one queue pair's open short messages in a lane, and as many of its long ones; other messages of the
/// queue pair wait.
///
/// The windows of all paths together hold as many packets, so a queue pair that is alone loses nothing.
pub(super) const QUEUE_PAIR_WINDOW: u32 = 1024;

/// So many messages of a queue pair may be open in any case, however long they are. They are few, so that those of 255
/// queue pairs leave room in [`MESSAGE_WINDOW`] for those of the last (devices of all profiles have 256).
pub(super) const QUEUE_PAIR_MESSAGES: u32 = MESSAGE_WINDOW / 256;

/// Most packets of a message that counts as short.
pub(super) const SHORT: u32 = 8;
