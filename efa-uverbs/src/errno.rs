//! The failures of commands, with the error numbers that the kernel would return.

use efa_types::ControlError;
pub(crate) use rustix::io::Errno;

/// A failure of a command: an error number for the program, and a sentence for the log.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) why: String,
}

/// The result of a command or of a part of one.
pub(crate) type Outcome<T> = Result<T, Refusal>;

/// Returns a refusal.
pub(crate) fn refuse<T>(errno: Errno, why: impl Into<String>) -> Outcome<T> {
    Err(Refusal { errno, why: why.into() })
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, why: errno.to_string() }
    }
}

impl From<ControlError> for Refusal {
    /// Translates a device's error as the driver does (`efa_com_comp_status_to_errno` in `efa_com.c`).
    fn from(error: ControlError) -> Self {
        let errno = match error {
            ControlError::InUse { .. } | ControlError::CounterAttached { .. } => Errno::BUSY,
            ControlError::Limit { .. } | ControlError::NoMemory { .. } => Errno::NOMEM,
            ControlError::Unsupported(_) => Errno::OPNOTSUPP,
            _ => Errno::INVAL,
        };
        Self { errno, why: error.to_string() }
    }
}
