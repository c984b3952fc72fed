//! CUDA's driver library: loaded once, its answers made errors.

use super::error::{CudaError, GpuError};
use cudarc::driver::sys;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// The oldest CUDA release whose driver has all that is called here.
const NEEDED: (u32, u32) = (12, 0);

/// Calls a function of the driver library by its name, with the answer as a `Result<(), CudaError>`. Whoever uses it
/// has made sure that there is a library, which a `Context` shows.
macro_rules! cuda {
    ($function:ident($($arg:expr),* $(,)?)) => {
        $crate::cuda::driver::check(stringify!($function), ::cudarc::driver::sys::$function($($arg),*))
    };
}
pub(super) use cuda;

/// Loads the library and starts it; gives the CUDA release of the driver.
pub(super) fn load() -> Result<(u32, u32), GpuError> {
    static LOADED: OnceLock<Result<(u32, u32), GpuError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: loads a library whose initializers are NVIDIA's.
            if !unsafe { sys::is_culib_present() } {
                return Err(GpuError::NoCuda);
            }
            let mut version = 0;
            // SAFETY: the library is there; the number is valid for the call.
            unsafe {
                cuda!(cuInit(0))?;
                cuda!(cuDriverGetVersion(&mut version))?;
            }
            let found = release(version);
            if found < NEEDED { Err(GpuError::DriverTooOld { found, needed: NEEDED }) } else { Ok(found) }
        })
        .clone()
}

/// 12080 is 12.8.
fn release(version: i32) -> (u32, u32) {
    let version = u32::try_from(version).unwrap_or(0);
    (version / 1000, version % 1000 / 10)
}

/// What a call answered.
pub(super) fn check(call: &'static str, answer: sys::CUresult) -> Result<(), CudaError> {
    if answer == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let call = call.strip_suffix("_v2").unwrap_or(call);
    let text = |of: unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: there was a call, so the library is there; the pointer is valid for this one.
        let known = unsafe { of(answer, &mut text) } == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: CUDA's texts are constants that end with a zero.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("CUresult {}", answer as u32));
    let text = text(sys::cuGetErrorString).unwrap_or_else(|| "no such answer is known".into());
    Err(CudaError { call, code: answer as u32, name, text })
}

/// A context is this thread's current one, until this is dropped.
pub(super) struct Current<'c> {
    /// Of one thread.
    _context: PhantomData<(&'c (), *const ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: `enter` has pushed a context on this thread, which this value cannot leave.
        log("leaving a GPU's context", unsafe { cuda!(cuCtxPopCurrent_v2(&mut context)) });
    }
}

/// Makes a context this thread's current one.
///
/// # Safety
/// The context is retained as long as `'c`.
pub(super) unsafe fn enter<'c>(context: sys::CUcontext) -> Result<Current<'c>, CudaError> {
    // SAFETY: the caller's promise.
    unsafe { cuda!(cuCtxPushCurrent_v2(context)) }?;
    Ok(Current { _context: PhantomData })
}

/// Makes a stream of the current context that does not wait for the default one.
pub(super) fn create_stream() -> Result<sys::CUstream, CudaError> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: a context is current, or CUDA says that none is; the pointer is valid for the call.
    unsafe { cuda!(cuStreamCreate(&mut raw, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32)) }?;
    Ok(raw)
}

/// What failed in a place where nobody can be told: something is being cleaned up, and goes on being.
pub(super) fn log(what: &'static str, outcome: Result<(), CudaError>) {
    if let Err(error) = outcome {
        contained(|| tracing::warn!(%error, "{what}"));
    }
}

/// Calls what may run a subscriber of `tracing` in a place that must not unwind: what is left to do there would not be
/// done. A panic has been told by then (by the panic hook), and ends here.
pub(super) fn contained(f: impl FnOnce()) {
    // Nothing of ours is seen broken afterwards: `f` only reads.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics;

    impl tracing::Subscriber for Panics {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            panic!("nothing may be logged in this test")
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn logging_what_could_not_be_cleaned_up_does_not_stop_the_cleaning_up() {
        let error = CudaError { call: "cuMemFree", code: 1, name: "a name".into(), text: "a text".into() };
        tracing::subscriber::with_default(Panics, || log("freeing", Err(error)));
    }

    #[test]
    fn a_driver_says_its_release_as_one_number() {
        assert_eq!(release(12080), (12, 8));
        assert_eq!(release(13000), (13, 0));
        assert_eq!(release(-1), (0, 0));
        assert!(release(11080) < NEEDED);
    }
}
