//! CUDA's driver library: loaded once, its answers made errors.

use super::error::{CudaError, GpuError};
use cudarc::driver::sys;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// The oldest CUDA release whose driver has all that is called here.
const NEEDED: (u32, u32) = (12, 0);

/// Calls a function of the driver library by its name, with the answer as a `Result<(), CudaError>`. Whoever uses it has made sure that there is a
/// library, which a `Context` shows.
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

/// What failed in a place where nobody can be told.
pub(super) fn log(what: &'static str, outcome: Result<(), CudaError>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_says_its_release_as_one_number() {
        assert_eq!(release(12080), (12, 8));
        assert_eq!(release(13000), (13, 0));
        assert_eq!(release(-1), (0, 0));
        assert!(release(11080) < NEEDED);
    }
}
