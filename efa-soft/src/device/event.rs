//! Events: what a device tells the program without being asked.

use efa_types::AsyncEvent;

/// An event that a program may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The armed completion queue with this number has a new entry.
    Completion(u32),
    /// Something happened that no completion reports.
    Async(AsyncEvent),
}

/// Most events that wait to be fetched. Further asynchronous ones are lost, so that a program which fetches none costs
/// no more memory.
pub(crate) const MAX_EVENTS: usize = 4096;
