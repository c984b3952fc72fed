//! The status of a completion, with its meaning and its usual cause.

use core::fmt;

/// Completion status (`enum efa_io_comp_status`; libefa reports the number as `vendor_err`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// 0: the work request succeeded.
    Ok,
    /// 1: flushed.
    Flushed,
    /// 2: internal error of the queue pair.
    QpInternal,
    /// 3: unsupported operation.
    UnsupportedOp,
    /// 4: bad address handle.
    InvalidAh,
    /// 5: bad local key, or an address outside its region.
    InvalidLkey,
    /// 6: message too long for the device.
    BadLength,
    /// 7: bad remote key, or a remote address outside its region.
    RemoteBadAddress,
    /// 8: reset by the remote side.
    RemoteAbort,
    /// 9: bad destination queue pair.
    RemoteBadDestQpn,
    /// 10: no receive descriptor at the destination.
    RemoteRnr,
    /// 11: the destination's receive buffers are too short.
    RemoteBadLength,
    /// 12: the responder answered with an invalid status.
    RemoteBadStatus,
    /// 13: the remote side stopped answering.
    UnresponsiveRemote,
    /// 14: the remote side has no address handle for us.
    RemoteUnknownPeer,
    /// 15: the remote side never answered.
    UnreachableRemote,
    /// 18: the two sides' features do not match.
    RemoteFeatureMismatch,
    /// A number that rdma-core 65 does not name.
    Other(u8),
}

/// Every status that has a name.
const NAMED: [Status; 17] = [
    Status::Ok,
    Status::Flushed,
    Status::QpInternal,
    Status::UnsupportedOp,
    Status::InvalidAh,
    Status::InvalidLkey,
    Status::BadLength,
    Status::RemoteBadAddress,
    Status::RemoteAbort,
    Status::RemoteBadDestQpn,
    Status::RemoteRnr,
    Status::RemoteBadLength,
    Status::RemoteBadStatus,
    Status::UnresponsiveRemote,
    Status::RemoteUnknownPeer,
    Status::UnreachableRemote,
    Status::RemoteFeatureMismatch,
];

impl Status {
    /// Returns every status that has a name, in the order of their numbers.
    pub const fn named() -> &'static [Self] {
        &NAMED
    }

    /// Returns the status with this number; every number is a status.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0..=15 => NAMED[code as usize],
            18 => Self::RemoteFeatureMismatch,
            other => Self::Other(other),
        }
    }

    /// Returns the status's number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Flushed => 1,
            Self::QpInternal => 2,
            Self::UnsupportedOp => 3,
            Self::InvalidAh => 4,
            Self::InvalidLkey => 5,
            Self::BadLength => 6,
            Self::RemoteBadAddress => 7,
            Self::RemoteAbort => 8,
            Self::RemoteBadDestQpn => 9,
            Self::RemoteRnr => 10,
            Self::RemoteBadLength => 11,
            Self::RemoteBadStatus => 12,
            Self::UnresponsiveRemote => 13,
            Self::RemoteUnknownPeer => 14,
            Self::UnreachableRemote => 15,
            Self::RemoteFeatureMismatch => 18,
            Self::Other(code) => code,
        }
    }

    /// Returns `true` if the work request succeeded.
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }

    /// Returns the status's meaning in words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Flushed => "flushed",
            Self::QpInternal => "internal error of the queue pair",
            Self::UnsupportedOp => "unsupported operation",
            Self::InvalidAh => "bad address handle",
            Self::InvalidLkey => "bad local key",
            Self::BadLength => "message too long",
            Self::RemoteBadAddress => "bad remote address or key",
            Self::RemoteAbort => "reset by the remote side",
            Self::RemoteBadDestQpn => "bad destination queue pair",
            Self::RemoteRnr => "receiver not ready",
            Self::RemoteBadLength => "receive buffer too short",
            Self::RemoteBadStatus => "bad response status",
            Self::UnresponsiveRemote => "remote stopped answering",
            Self::RemoteUnknownPeer => "unknown to the remote side",
            Self::UnreachableRemote => "remote never answered",
            Self::RemoteFeatureMismatch => "feature mismatch",
            Self::Other(_) => "a status this crate does not know",
        }
    }

    /// Returns what usually causes the status, and what to look at first.
    pub const fn usual_cause(self) -> &'static str {
        match self {
            Self::Ok => "nothing is wrong",
            Self::Flushed => "the queue pair went to the error state or was destroyed while this was outstanding",
            Self::QpInternal => {
                "the device found the send ring inconsistent: a wrong phase bit, a malformed WQE, more WQEs rung than the ring holds"
            }
            Self::UnsupportedOp => "an operation that the device or this queue pair was not created for",
            Self::InvalidAh => "the address handle was destroyed, or is one of another protection domain",
            Self::InvalidLkey => {
                "the region was deregistered, is of another protection domain, lacks the right, or ends before the buffer does"
            }
            Self::BadLength => "a send over the MTU, or RDMA over max_rdma_size",
            Self::RemoteBadAddress => {
                "the rkey is wrong, its region lacks the remote right, or the access passes the region's end"
            }
            Self::RemoteAbort => "the remote process restarted, or dropped its side of the connection",
            Self::RemoteBadDestQpn => "the queue pair number or qkey is wrong, or that queue pair is gone or in error",
            Self::RemoteRnr => "the receiver posted no receive descriptor within the retries allowed",
            Self::RemoteBadLength => "the posted receive buffers together are shorter than the message",
            Self::RemoteBadStatus => "the two sides do not speak the same version",
            Self::UnresponsiveRemote => "the remote process died, or its network went away",
            Self::RemoteUnknownPeer => {
                "RDMA needs an address handle on both sides: the target created none for this device"
            }
            Self::UnreachableRemote => {
                "wrong GID, or a security group without the self-referencing egress rule, or another subnet; watch tx_pkts here and rx_pkts there"
            }
            Self::RemoteFeatureMismatch => "one side uses a feature that the other side's device lacks",
            Self::Other(_) => "a newer device: look the number up in the vendor's efa_io_defs.h",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.meaning(), self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_status_and_every_status_keeps_its_number() {
        for code in 0..=255 {
            assert_eq!(Status::from_code(code).code(), code);
        }
        for status in Status::named() {
            assert_eq!(Status::from_code(status.code()), *status);
        }
    }
}
