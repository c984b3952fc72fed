//! Releases of rdma-core.

use std::fmt;
use std::path::Path;

/// A release of rdma-core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The release, for example 65.
    pub major: u32,
    /// The stable update of the release, for example 0.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Returns the release that a library's file name ends with. In `libibverbs.so.1.14.50.0`, the ABI is 1.14 and the
    /// release is 50.0 (`rdma_library` in rdma-core's `buildlib/rdma_functions.cmake`).
    pub(super) fn of_file(path: &Path) -> Option<Self> {
        let (_, numbers) = path.file_name()?.to_str()?.split_once(".so.")?;
        let mut numbers = numbers.split('.').skip(2).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_tells_the_release() {
        let version = |name: &str| Version::of_file(Path::new(name)).map(|version| version.to_string());
        assert_eq!(version("/usr/lib/libibverbs.so.1.18.65.0").as_deref(), Some("65.0"));
        assert_eq!(version("libefa.so.1.1.39.4").as_deref(), Some("39.4"));
        assert_eq!(version("libefa.so.1"), None);
        assert_eq!(version("libefa-rdmav34.so"), None);
    }
}
