//! Finding a library, and which release it is.

use crate::error::Error;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, OsStr, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

/// A release of rdma-core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The release: 65.
    pub major: u32,
    /// Its stable update: 0.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// The release that a library's file is of: `libibverbs.so.1.14.50.0` is its ABI, 1.14, and the release, 50.0
    /// (`rdma_library` in rdma-core's `buildlib/rdma_functions.cmake`).
    fn of_file(path: &Path) -> Option<Self> {
        let (_, numbers) = path.file_name()?.to_str()?.split_once(".so.")?;
        let mut numbers = numbers.split('.').skip(2).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

/// A loaded library.
pub(super) struct File {
    library: Library,
    path: PathBuf,
    version: Option<Version>,
}

impl File {
    /// Loads a library, by a path or by a name that the loader searches for; `probe` is a symbol that it surely has.
    pub(super) fn open(name: &OsStr, probe: &CStr) -> Result<Self, Error> {
        // SAFETY: rdma-core's libraries do nothing on loading but register providers, and are not unloaded: who holds a
        // function of theirs holds this file through a `&'static` table.
        let library =
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| Error::NoLibrary {
                library: name.to_string_lossy().into(),
                reason: std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            })?;
        let mut file = Self { library, path: name.into(), version: None };
        // The name is a link, the file behind it names the release.
        let found = file.symbol(probe).and_then(file_of).and_then(|path| path.canonicalize().ok());
        if let Some(path) = found {
            file.version = Version::of_file(&path);
            file.path = path;
        }
        Ok(file)
    }

    /// Where a symbol is. Of several versions of it (`ibv_open_device@IBVERBS_1.0`, `…@@IBVERBS_1.1`) that is the default one, which the
    /// headers describe.
    pub(super) fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the address is not used here.
        let symbol = unsafe { self.library.get::<*mut c_void>(name.to_bytes_with_nul()) }.ok()?;
        Some(symbol.into_raw()).filter(|address| !address.is_null())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn version(&self) -> Option<Version> {
        self.version
    }

    pub(super) fn lacks(&self, symbol: &'static str, needed: u32) -> Error {
        Error::TooOld { library: self.path.display().to_string(), symbol, found: self.version, needed }
    }
}

/// The file that holds an address.
fn file_of(address: *mut c_void) -> Option<PathBuf> {
    // SAFETY: an all-zero `Dl_info` is one, and `dladdr` takes any address.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for the call.
    let found = unsafe { libc::dladdr(address, &mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: `dladdr` set a string that lives as long as the library does.
    found.then(|| PathBuf::from(unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().as_ref()))
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
