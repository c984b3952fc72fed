//! The crate's error: what failed, and what to do about it.

use crate::sys::Version;
use std::fmt;
use std::io;

/// The reason why a library cannot be used, or why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library cannot be loaded.
    #[error("{library} cannot be loaded ({reason}): {}", packages(library))]
    NoLibrary {
        /// The library's file name.
        library: String,
        /// The loader's message.
        reason: String,
    },
    /// A library is too old for a call.
    #[error(
        "{library} of {} has no {symbol}, which came with rdma-core {needed}: install rdma-core {needed} or newer",
        found.map_or("an unknown release".to_string(), |found| format!("rdma-core {found}"))
    )]
    TooOld {
        /// The path of the library's file.
        library: String,
        /// The missing function.
        symbol: &'static str,
        /// The release of rdma-core that the library belongs to, if its file name shows it.
        found: Option<Version>,
        /// The release of rdma-core that first had the function.
        needed: u32,
    },
    /// A call failed.
    #[error("{call}: {errno}{}", hint(call, *errno))]
    Call {
        /// The function.
        call: &'static str,
        /// The error number that it returned.
        errno: Errno,
    },
    /// An argument is invalid. The library was not called.
    #[error("{call}: {what} is {value}, expected {expected}")]
    Argument {
        /// The function.
        call: &'static str,
        /// The argument.
        what: &'static str,
        /// The argument's value.
        value: u64,
        /// The valid values.
        expected: &'static str,
    },
    /// The arguments belong to two open devices. The library was not called.
    #[error(
        "{call}: the {what} is of {device}, the {other} of {other_device}{}: make both of one open device",
        if device == other_device { " (open twice)" } else { "" }
    )]
    TwoDevices {
        /// The function.
        call: &'static str,
        /// One of the objects.
        what: &'static str,
        /// The name of this object's device.
        device: String,
        /// Another of the objects.
        other: &'static str,
        /// The name of the other object's device.
        other_device: String,
    },
}

/// An error number of the operating system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Returns the calling thread's current error number (`errno`).
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
    /// Returns the operating system's error number if a call was made and failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { errno, .. } => Some(errno.0),
            _ => None,
        }
    }

    /// Returns the error of a call that reports its failure in `errno`.
    pub(crate) fn last(call: &'static str) -> Self {
        Self::Call { call, errno: Errno::last() }
    }

    /// Interprets the result of a call: 0 is success, -1 is a failure reported in `errno`, and any other value is an
    /// error number.
    pub(crate) fn check(call: &'static str, answer: i32) -> Result<(), Self> {
        match answer {
            0 => Ok(()),
            -1 => Err(Self::last(call)),
            errno => Err(Self::Call { call, errno: Errno(errno) }),
        }
    }

    /// Returns the error of a call that returned a negative error number.
    pub(crate) fn negative(call: &'static str, answer: i32) -> Self {
        Self::Call { call, errno: Errno(answer.saturating_neg()) }
    }
}

/// Returns the packages that bring a library.
fn packages(library: &str) -> &'static str {
    if library.contains("libefa") {
        "install rdma-core's EFA provider (Debian, Ubuntu: ibverbs-providers; Fedora, Amazon Linux: libibverbs; or AWS's EFA installer)"
    } else {
        "install rdma-core's libibverbs (Debian, Ubuntu: libibverbs1; Fedora, Amazon Linux: libibverbs; or AWS's EFA installer)"
    }
}

/// Returns the usual cause of a failure, as the end of an error message.
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
