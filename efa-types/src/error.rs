//! Errors of control calls.

use crate::QpState;

/// Why the device refused a control call. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// An object that does not exist, or does not exist any more.
    #[error("{kind} {id:#x} does not exist")]
    NoSuch {
        /// What kind of object.
        kind: &'static str,
        /// Its number.
        id: u32,
    },
    /// An object that others still use.
    #[error("{kind} {id:#x} is used by {users} other objects: destroy those first")]
    InUse {
        /// What kind of object.
        kind: &'static str,
        /// Its number.
        id: u32,
        /// How many objects use it.
        users: u32,
    },
    /// More than the device has.
    #[error("{what}: {asked} asked for, the device allows {max}")]
    Limit {
        /// What was asked for.
        what: &'static str,
        /// How much of it.
        asked: u64,
        /// How much there is.
        max: u64,
    },
    /// An invalid value.
    #[error("{what} is {value}, expected {expected}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// A state change that verbs does not allow.
    #[error("a queue pair cannot go from {from:?} to {to:?}")]
    Transition {
        /// The state it is in.
        from: QpState,
        /// The state asked for.
        to: QpState,
    },
    /// Something that is only possible earlier in a queue pair's life.
    #[error("{what}: the queue pair is in {state:?} already")]
    TooLate {
        /// When it is done.
        what: &'static str,
        /// The state it is in.
        state: QpState,
    },
    /// A feature that this device lacks.
    #[error("the device has no {0}")]
    Unsupported(&'static str),
    /// The operating system has no memory of this many bytes for a ring, a doorbell page or a counter page.
    #[error("no memory for a ring, a doorbell page or a counter page of {0} bytes")]
    NoMemory(usize),
}
