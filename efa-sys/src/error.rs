//! What can go wrong, with what to do about it.

use crate::sys::Version;
use std::fmt;
use std::io;

/// Why a library could not be used, or what a call answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library is not there.
    #[error("{library} cannot be loaded ({reason}): {}", packages(library))]
    NoLibrary {
        /// Its file name.
        library: String,
        /// The loader's words.
        reason: String,
    },
    /// A library is older than what is asked of it.
    #[error(
        "{library} of {} has no {symbol}, which came with rdma-core {needed}: install rdma-core {needed} or newer",
        found.map_or("an unknown release".to_string(), |found| format!("rdma-core {found}"))
    )]
    TooOld {
        /// The library's file, as it was found.
        library: String,
        /// The function that it lacks.
        symbol: &'static str,
        /// The release that it is of, if its file name tells.
        found: Option<Version>,
        /// The release of rdma-core that first had the function.
        needed: u32,
    },
    /// A call failed.
    #[error("{call}: {errno}{}", hint(call, *errno))]
    Call {
        /// The function.
        call: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// A call that makes no sense, not passed on.
    #[error("{call}: {what} is {value}, expected {expected}")]
    Argument {
        /// The function.
        call: &'static str,
        /// The argument.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// A call that brings objects of two open devices together, not passed on.
    #[error(
        "{call}: the {what} is of {device}, the {other} of {other_device}{}: make both of one open device",
        if device == other_device { " (open twice)" } else { "" }
    )]
    TwoDevices {
        /// The function.
        call: &'static str,
        /// One of its objects.
        what: &'static str,
        /// The device that it is of.
        device: String,
        /// Another of its objects.
        other: &'static str,
        /// The device that this one is of.
        other_device: String,
    },
}

/// An error number of the operating system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What the last call of this thread left.
    pub fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl Error {
    /// The error number, if a call was made and failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { errno, .. } => Some(errno.0),
            _ => None,
        }
    }

    /// A call that left its answer in `errno`.
    pub(crate) fn last(call: &'static str) -> Self {
        Self::Call { call, errno: Errno::last() }
    }

    /// A call that answers 0, or an error number, or -1 with `errno` set.
    pub(crate) fn check(call: &'static str, answer: i32) -> Result<(), Self> {
        match answer {
            0 => Ok(()),
            -1 => Err(Self::last(call)),
            errno => Err(Self::Call { call, errno: Errno(errno) }),
        }
    }

    /// A call that answered a negative error number.
    pub(crate) fn negative(call: &'static str, answer: i32) -> Self {
        Self::Call { call, errno: Errno(answer.saturating_neg()) }
    }
}

fn packages(library: &str) -> &'static str {
    if library.contains("libefa") {
        "install rdma-core's EFA provider (Debian, Ubuntu: ibverbs-providers; Fedora, Amazon Linux: libibverbs; or AWS's EFA installer)"
    } else {
        "install rdma-core's libibverbs (Debian, Ubuntu: libibverbs1; Fedora, Amazon Linux: libibverbs; or AWS's EFA installer)"
    }
}

/// The usual cause of a failure, to be appended.
fn hint(call: &str, errno: Errno) -> &'static str {
    let of_memory = call.starts_with("ibv_reg");
    match (call, errno.0) {
        ("ibv_get_device_list", libc::ENOSYS) => ": the kernel has no RDMA: load the module ib_uverbs",
        ("ibv_open_device", libc::EACCES | libc::EPERM) => {
            ": no permission on the device file: /dev/infiniband/uverbs* must be writable (a container must be given it, too)"
        }
        ("ibv_open_device", libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            ": the device file is missing: load the modules efa and ib_uverbs; a container must be given /dev/infiniband"
        }
        (_, libc::EFAULT) if of_memory => {
            ": the kernel cannot pin this memory; GPU memory is registered as a DMA-BUF, or needs a peer-memory module"
        }
        (_, libc::ENOMEM | libc::EAGAIN) => ": out of memory, or locked memory is limited (ulimit -l)",
        (_, libc::EPERM) if of_memory => ": locked memory is limited (ulimit -l)",
        (_, libc::EOPNOTSUPP) => {
            ": the device, its driver or the library lacks this; or the libefa loaded here is not the one that opened the device"
        }
        (_, libc::EINVAL) => ": over a limit of the device, or a combination that it does not know",
        (_, libc::EBUSY) => ": something still uses it",
        (_, libc::EIO | libc::ENODEV) => ": the device is gone or was reset",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_call_and_its_usual_cause() {
        let error = Error::Call { call: "ibv_open_device", errno: Errno(libc::EACCES) };
        assert_eq!(
            error.to_string(),
            "ibv_open_device: Permission denied (os error 13): no permission on the device file: /dev/infiniband/uverbs* must be \
             writable (a container must be given it, too)"
        );
        let error = Error::check("ibv_modify_qp", libc::EINVAL).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert_eq!(Error::negative("efadv_get_max_sq_depth", -libc::EINVAL).errno(), Some(libc::EINVAL));
    }
}
