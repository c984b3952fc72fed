//! Errors of control calls.

use crate::QpState;

/// The reason why a device refused a control call. A refused call changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The object does not exist, or exists no longer.
    #[error("{kind} {id:#x} does not exist")]
    NoSuch {
        /// The kind of object.
        kind: &'static str,
        /// The object's number.
        id: u32,
    },
    /// The device failed, or its driver has ended.
    #[error("the device has failed or was shut down: open it again")]
    DeviceGone,
    /// Other objects still use the object.
    #[error("{kind} {id:#x} is used by {users} other objects: destroy those first")]
    InUse {
        /// The kind of object.
        kind: &'static str,
        /// The object's number.
        id: u32,
        /// Number of objects that use it.
        users: u32,
    },
    /// A counter is already attached to the queue pair for some of the kinds of completions.
    #[error("queue pair {qpn:#x} has a counter for {kinds} of these kinds of completions already: each kind takes one")]
    CounterAttached {
        /// The queue pair's number.
        qpn: u16,
        /// Number of kinds that have a counter.
        kinds: u32,
    },
    /// The call asks for more than the device has.
    #[error("{asked} {what} were asked for, the device allows {max}")]
    Limit {
        /// What was asked for, as a plural ("receives").
        what: &'static str,
        /// The number asked for.
        asked: u64,
        /// The number that the device allows.
        max: u64,
    },
    /// An argument has an invalid value.
    #[error("{what} is {value}, expected {expected}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// The argument's value.
        value: u64,
        /// The valid values.
        expected: &'static str,
    },
    /// The queue pair cannot change from its state to the requested one.
    #[error("a queue pair cannot go from {from:?} to {to:?}")]
    Transition {
        /// The queue pair's state.
        from: QpState,
        /// The requested state.
        to: QpState,
    },
    /// The queue pair has passed the states in which the call is allowed.
    #[error("{what}: the queue pair is in {state:?} already")]
    TooLate {
        /// A sentence that says when the call is allowed.
        what: &'static str,
        /// The queue pair's state.
        state: QpState,
    },
    /// The device lacks a feature.
    #[error("the device does not support {0}")]
    Unsupported(&'static str),
    /// The operating system has no memory for what the call creates.
    #[error("there is no memory for {what} of {bytes} bytes")]
    NoMemory {
        /// What the memory is for ("a ring").
        what: &'static str,
        /// Bytes.
        bytes: usize,
    },
}

impl ControlError {
    /// Checks that a call asks for no more of something than the device allows.
    ///
    /// # Errors
    /// [`ControlError::Limit`].
    pub fn check_limit(what: &'static str, asked: impl Into<u64>, max: impl Into<u64>) -> Result<(), Self> {
        let (asked, max) = (asked.into(), max.into());
        if asked <= max { Ok(()) } else { Err(Self::Limit { what, asked, max }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_a_sentence_with_its_numbers() {
        for (error, sentence) in [
            (ControlError::NoSuch { kind: "queue pair", id: 256 }, "queue pair 0x100 does not exist"),
            (
                ControlError::InUse { kind: "completion queue", id: 1, users: 2 },
                "completion queue 0x1 is used by 2 other objects: destroy those first",
            ),
            (
                ControlError::CounterAttached { qpn: 256, kinds: 1 },
                "queue pair 0x100 has a counter for 1 of these kinds of completions already: each kind takes one",
            ),
            (
                ControlError::Limit { what: "receives", asked: 300, max: 256 },
                "300 receives were asked for, the device allows 256",
            ),
            (
                ControlError::Invalid { what: "rnr_retry", value: 9, expected: "0 to 7" },
                "rnr_retry is 9, expected 0 to 7",
            ),
            (
                ControlError::TooLate { what: "counters are attached in Reset or Init", state: QpState::ReadyToSend },
                "counters are attached in Reset or Init: the queue pair is in ReadyToSend already",
            ),
            (ControlError::Unsupported("completion counters"), "the device does not support completion counters"),
            (
                ControlError::NoMemory { what: "a page of completion counters", bytes: 4096 },
                "there is no memory for a page of completion counters of 4096 bytes",
            ),
        ] {
            assert_eq!(error.to_string(), sentence);
        }
    }
}
