//! Finding a library, and which release it is.

use crate::error::Error;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, OsStr, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
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

/// A loaded library. It is never unloaded: functions of it may be in use as long as the process lives.
pub(super) struct File {
    library: ManuallyDrop<Library>,
    path: PathBuf,
    version: Option<Version>,
}

impl File {
    /// Loads a library, by a path or by a name that the loader searches for; `probe` is a symbol that it surely has.
    ///
    /// # Safety
    /// What loading the file runs, its initializers and those of what it needs, may run here.
    pub(super) unsafe fn open(name: &OsStr, probe: &CStr) -> Result<Self, Error> {
        // SAFETY: the caller vouches for its initializers. What unloading it would run does not run.
        let library =
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| Error::NoLibrary {
                library: name.to_string_lossy().into(),
                reason: std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            })?;
        let mut file = Self { library: ManuallyDrop::new(library), path: name.into(), version: None };
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
        // SAFETY: only the symbol's address is taken, which any type of a pointer's size may stand for; nothing is read
        // there. The name ends with a zero.
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
    // SAFETY: a `Dl_info` is four pointers, which may all be null.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `dladdr` takes any address, and looks for it among those of loaded files; `info` is this function's own.
    let found = unsafe { libc::dladdr(address, &mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: `dladdr` found a file, and set a string with a zero at its end that lives as long as that is loaded: for
    // good, it is a `File`.
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
