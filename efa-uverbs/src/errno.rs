//! What a command answers when it fails: the errors that the kernel would give.

use efa_types::ControlError;
pub(crate) use rustix::io::Errno;

/// Why a command failed: the number for the program, and a sentence for people.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) why: String,
}

/// What a command answers.
pub(crate) type Outcome<T> = Result<T, Refusal>;

/// A refusal.
pub(crate) fn refuse<T>(errno: Errno, why: impl Into<String>) -> Outcome<T> {
    Err(Refusal { errno, why: why.into() })
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, why: errno.to_string() }
    }
}

impl From<ControlError> for Refusal {
    /// As the driver translates what its device answers (`efa_com_comp_status_to_errno` in `efa_com.c`).
    fn from(error: ControlError) -> Self {
        let errno = match error {
            ControlError::InUse { .. } => Errno::BUSY,
            ControlError::Limit { .. } | ControlError::NoMemory(_) => Errno::NOMEM,
            ControlError::Unsupported(_) => Errno::OPNOTSUPP,
            _ => Errno::INVAL,
        };
        Self { errno, why: error.to_string() }
    }
}
