//! Kernels: loading them from PTX.

use super::context::Context;
use super::driver::{cuda, log};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use cudarc::driver::sys::{self, CUjit_option_enum as Jit};
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Bytes for what the driver's compiler says.
const LOG: usize = 16 << 10;
/// The CUDA release whose driver first told what arguments a kernel takes.
const TELLS_ARGUMENTS: (u32, u32) = (12, 4);

/// Kernels that were loaded together. Clones are the same module; it is unloaded when the last of them, and of its
/// kernels, is gone.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

/// What a module's kernels keep alive.
pub(super) struct Loaded {
    raw: sys::CUmodule,
    pub(super) context: Arc<Context>,
}

/// A kernel, ready to be [launched](Self::launch).
#[derive(Clone)]
pub struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: Arc<str>,
    /// Bytes of each argument, where the driver tells.
    pub(super) takes: Option<Arc<[usize]>>,
    pub(super) module: Arc<Loaded>,
}

// SAFETY: CUDA's functions may be called from any thread, for any object.
unsafe impl Send for Loaded {}
// SAFETY: as for `Send`.
unsafe impl Sync for Loaded {}
// SAFETY: as for `Loaded`, which keeps the function.
unsafe impl Send for Kernel {}
// SAFETY: as for `Send`.
unsafe impl Sync for Kernel {}

/// The newest of these architectures that a GPU of architecture `gpu` runs.
fn choose(gpu: u32, kernels: &[(u32, impl AsRef<str>)]) -> Result<(u32, &str), GpuError> {
    let fits = kernels.iter().filter(|(arch, _)| *arch <= gpu).max_by_key(|(arch, _)| *arch);
    fits.map(|(arch, ptx)| (*arch, ptx.as_ref()))
        .ok_or_else(|| GpuError::NoArchitecture { gpu, have: kernels.iter().map(|(arch, _)| *arch).collect() })
}

impl Gpu {
    /// Loads kernels from PTX: of these texts, each with its architecture (90 for `sm_90`), that of the newest which
    /// the GPU runs. A build script with `efa-gpu-builder` makes such a list: `include!(env!("KERNELS_PTX"))`.
    ///
    /// CUDA may put off the loading of a kernel until it is first asked for or launched (`CUDA_MODULE_LOADING=EAGER`
    /// keeps it from that).
    ///
    /// # Errors
    /// [`GpuError::NoArchitecture`], or [`GpuError::Compile`] with what the driver's compiler says.
    pub fn load(&self, kernels: &[(u32, impl AsRef<str>)]) -> Result<Module, GpuError> {
        let (arch, ptx) = choose(self.info().arch(), kernels)?;
        let refused = |log: String, source| GpuError::Compile { arch, log, source };
        let image = CString::new(ptx).map_err(|error| {
            let (name, text) = ("CUDA_ERROR_INVALID_PTX".into(), "a PTX JIT compilation failed".into());
            refused(format!("the PTX has {error}"), CudaError { call: "cuModuleLoadDataEx", code: 218, name, text })
        })?;
        let context = &self.context;
        let _current = context.enter()?;
        let mut text = vec![0u8; LOG];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [text.as_mut_ptr().cast(), LOG as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image ends with a zero; the options are two, of which the second is the length of the first; all
        // are valid for the call.
        let loaded = unsafe {
            cuda!(cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()))
        };
        loaded.map_err(|source| refused(until_zero(&text), source))?;
        Ok(Module { inner: Arc::new(Loaded { raw, context: context.clone() }) })
    }
}

fn until_zero(text: &[u8]) -> String {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).trim_end().into()
}

impl Module {
    /// The kernel of this name.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`].
    pub fn kernel(&self, name: &str) -> Result<Kernel, GpuError> {
        let module = &self.inner;
        let _current = module.context.enter()?;
        let mut function = std::ptr::null_mut();
        // No kernel has a name with a zero in it, nor one without letters.
        let wanted = CString::new(name).unwrap_or_default();
        // SAFETY: the module lives; name and pointer are valid for the call.
        unsafe { cuda!(cuModuleGetFunction(&mut function, module.raw, wanted.as_ptr())) }
            .map_err(|source| GpuError::NoKernel { name: name.into(), source })?;
        let tells = module.context.info.driver >= TELLS_ARGUMENTS;
        if tells {
            // Now, rather than at the first launch, which would wait for kernels that run.
            // SAFETY: the module lives.
            unsafe { cuda!(cuFuncLoad(function)) }
                .map_err(|source| GpuError::NoKernel { name: name.into(), source })?;
        }
        let takes = tells.then(|| arguments(function));
        Ok(Kernel { function, name: name.into(), takes, module: module.clone() })
    }
}

/// Bytes of each argument of a kernel.
fn arguments(function: sys::CUfunction) -> Arc<[usize]> {
    let argument = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function lives; the numbers are valid for the call, which fails behind the last argument.
        let answer = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut bytes) };
        (answer == sys::CUresult::CUDA_SUCCESS).then_some(bytes)
    };
    (0..).map_while(argument).collect()
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of each argument that it takes; `None` with a driver older than CUDA 12.4, which does not tell.
    pub fn takes(&self) -> Option<&[usize]> {
        self.takes.as_deref()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let unloaded = self.context.enter().and_then(|_current| {
            // SAFETY: it lives, and none of its kernels runs: `Running` keeps the module until then.
            unsafe { cuda!(cuModuleUnload(self.raw)) }
        });
        log("unloading kernels", unloaded);
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Module(on GPU {})", self.inner.context.info.ordinal)
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_architecture_that_the_gpu_runs_is_chosen() {
        let kernels = [(80, "a"), (90, "b"), (100, "c")];
        assert_eq!(choose(90, &kernels).unwrap(), (90, "b"));
        assert_eq!(choose(103, &kernels).unwrap(), (100, "c"));
        assert_eq!(choose(89, &kernels).unwrap(), (80, "a"));
        let error = choose(75, &kernels).unwrap_err().to_string();
        assert_eq!(
            error,
            "the GPU is of architecture sm_75, the kernels were compiled for sm_80, sm_90, sm_100: compile them for sm_75 or older"
        );
        assert!(choose(90, &[(0, ""); 0]).unwrap_err().to_string().contains("compiled for nothing"));
    }

    #[test]
    fn a_log_ends_at_its_zero() {
        assert_eq!(until_zero(b"ptxas error\n\0\0"), "ptxas error");
        assert_eq!(until_zero(b"full"), "full");
    }
}
