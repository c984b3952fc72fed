//! CUDA's driver library: loaded once, with its answers turned into errors.

use super::error::{CudaError, GpuError};
use cudarc::driver::sys;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// The oldest CUDA release whose driver has all functions that are called here.
const NEEDED: (u32, u32) = (12, 0);

/// Calls a function of the driver library by its name, and returns a `Result<(), CudaError>`. The caller has made sure
/// that the library is loaded: whoever has a `Context` has.
macro_rules! cuda {
    ($function:ident($($arg:expr),* $(,)?)) => {
        $crate::cuda::driver::check(stringify!($function), ::cudarc::driver::sys::$function($($arg),*))
    };
}
pub(super) use cuda;

/// Loads the library and initializes it. Returns the CUDA release of the driver.
pub(super) fn load() -> Result<(u32, u32), GpuError> {
    static LOADED: OnceLock<Result<(u32, u32), GpuError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: runs the initializers of a library. They are NVIDIA's, which any program that uses CUDA runs.
            if !unsafe { sys::is_culib_present() } {
                return Err(GpuError::NoCuda);
            }
            let mut version = 0;
            // SAFETY: the library is loaded, as the check above found. `version` is valid for the call, which writes
            // it.
            unsafe {
                cuda!(cuInit(0))?;
                cuda!(cuDriverGetVersion(&mut version))?;
            }
            let found = release(version);
            if found < NEEDED { Err(GpuError::DriverTooOld { found, needed: NEEDED }) } else { Ok(found) }
        })
        .clone()
}

/// Splits CUDA's release number: 12080 is (12, 8).
fn release(version: i32) -> (u32, u32) {
    let version = u32::try_from(version).unwrap_or(0);
    (version / 1000, version % 1000 / 10)
}

/// Turns the answer of a call into a result.
pub(super) fn check(call: &'static str, answer: sys::CUresult) -> Result<(), CudaError> {
    if answer == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let call = call.strip_suffix("_v2").unwrap_or(call);
    let text = |of: unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: `answer` came from a call, so the library is loaded. `text` is valid for the call, which writes it.
        let known = unsafe { of(answer, &mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: CUDA reported success, so `text` points to one of its texts, which are constants that end with a
        // zero.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("CUresult {}", answer as u32));
    let text = text(sys::cuGetErrorString).unwrap_or_else(|| "no such answer is known".into());
    Err(CudaError { call, code: answer as u32, name, text })
}

/// Keeps a context this thread's current one, until this is dropped.
pub(super) struct Current<'c> {
    /// Not `Send`: a context is current for one thread.
    _context: PhantomData<(&'c (), *const ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: `enter` pushed a context on this thread's stack, and this value cannot leave the thread.
        log_failure("leaving a GPU's context", unsafe { cuda!(cuCtxPopCurrent_v2(&mut context)) });
    }
}

/// Makes a context this thread's current one.
///
/// # Safety
/// The caller keeps the context retained for `'c`.
pub(super) unsafe fn enter<'c>(context: sys::CUcontext) -> Result<Current<'c>, CudaError> {
    // SAFETY: the caller promises that the context is retained.
    unsafe { cuda!(cuCtxPushCurrent_v2(context)) }?;
    Ok(Current { _context: PhantomData })
}

/// Makes a stream of the current context that does not wait for the default one.
pub(super) fn create_stream() -> Result<sys::CUstream, CudaError> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: `raw` is valid for the call, which writes it. Without a current context CUDA refuses.
    unsafe { cuda!(cuStreamCreate(&mut raw, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32)) }?;
    Ok(raw)
}

/// Logs a failure during cleanup, which nobody can be given as an error. The cleanup goes on.
pub(super) fn log_failure(what: &'static str, outcome: Result<(), CudaError>) {
    if let Err(error) = outcome {
        catch_panic(|| tracing::warn!(%error, "{what}"));
    }
}

/// Calls code that may run a subscriber of `tracing`, in a place that must not unwind because the rest of the cleanup
/// would be skipped. The panic hook has reported a panic by then, and it ends here.
pub(super) fn catch_panic(f: impl FnOnce()) {
    // `f` only reads, so nothing is left half-changed.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panics::Panics;

    #[test]
    fn logging_what_could_not_be_cleaned_up_does_not_stop_the_cleaning_up() {
        let error = CudaError { call: "cuMemFree", code: 1, name: "a name".into(), text: "a text".into() };
        tracing::subscriber::with_default(Panics, || log_failure("freeing", Err(error)));
    }

    #[test]
    fn a_driver_says_its_release_as_one_number() {
        assert_eq!(release(12080), (12, 8));
        assert_eq!(release(13000), (13, 0));
        assert_eq!(release(-1), (0, 0));
        assert!(release(11080) < NEEDED);
    }
}
