//! A shared library that is loaded at run time.

use super::version::Version;
use crate::error::Error;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, OsStr, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// A loaded library. It is never unloaded, because its functions may be in use until the process ends.
pub(super) struct File {
    library: ManuallyDrop<Library>,
    path: PathBuf,
    version: Option<Version>,
}

impl File {
    /// Loads a library by its path, or by a name that the loader searches for. `probe` is a symbol that every release
    /// of it has; its address leads to the library's file.
    ///
    /// # Safety
    /// It is safe to run the initializers of the file and of the libraries that it needs.
    pub(super) unsafe fn open(name: &OsStr, probe: &CStr) -> Result<Self, Error> {
        // SAFETY: the caller is responsible for the initializers. Finalizers never run, because the library is never
        // unloaded.
        let library =
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| Error::NoLibrary {
                library: name.to_string_lossy().into(),
                reason: std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            })?;
        let mut file = Self { library: ManuallyDrop::new(library), path: name.into(), version: None };
        // The name usually is a symbolic link. Only the file that it leads to has the release in its name.
        let found = file.symbol(probe).and_then(file_of).and_then(|path| path.canonicalize().ok());
        if let Some(path) = found {
            file.version = Version::of_file(&path);
            file.path = path;
        }
        Ok(file)
    }

    /// Returns the address of a symbol. If the library has several versions of it (`ibv_open_device@IBVERBS_1.0`,
    /// `…@@IBVERBS_1.1`), this is the default version, which the headers describe.
    pub(super) fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the type parameter, which has a pointer's size, must fit the symbol if it is used. Only the address
        // is taken here; nothing is read or called. The name ends with a zero.
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

/// Returns the loaded file that contains an address.
fn file_of(address: *mut c_void) -> Option<PathBuf> {
    // SAFETY: a `Dl_info` consists of four pointers, for which zero (null) is valid.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `dladdr` accepts any address and only compares it with those of loaded files; `info` is a local to write
    // to.
    let found = unsafe { libc::dladdr(address, &mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: `dladdr` succeeded and set `dli_fname` to a zero-terminated string, which is valid as long as the file is
    // loaded. A `File` is never unloaded.
    found.then(|| PathBuf::from(unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().as_ref()))
}
