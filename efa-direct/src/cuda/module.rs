//! Modules of kernels, loaded from PTX.

use super::context::Context;
use super::driver::{cuda, log_failure};
use super::error::{CudaError, GpuError};
use super::gpu::Gpu;
use cudarc::driver::sys::{self, CUjit_option_enum as Jit};
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Bytes for the messages of the driver's compiler.
const LOG: usize = 16 << 10;
/// The first CUDA release whose driver reports a kernel's arguments.
const TELLS_ARGUMENTS: (u32, u32) = (12, 4);

/// Kernels that were loaded together. Clones refer to the same module. It is unloaded when the last clone and the last
/// of its kernels are gone.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

/// A loaded module, which its kernels keep alive.
pub(super) struct Loaded {
    raw: sys::CUmodule,
    pub(super) context: Arc<Context>,
}

/// A kernel, ready to be [launched](Self::launch).
#[derive(Clone)]
pub struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: Arc<str>,
    /// Bytes of each argument, if the driver reports them.
    pub(super) takes: Option<Arc<[usize]>>,
    pub(super) module: Arc<Loaded>,
}

// SAFETY: the field that is not `Send` is a handle of CUDA's driver. Its functions may be called from any thread with
// any handle.
unsafe impl Send for Loaded {}
// SAFETY: as for `Send`.
unsafe impl Sync for Loaded {}
// SAFETY: as for `Loaded`: `function` is such a handle, and `module` keeps it valid.
unsafe impl Send for Kernel {}
// SAFETY: as for `Send`.
unsafe impl Sync for Kernel {}

/// Returns the newest of these architectures that a GPU of architecture `gpu` runs, with its kernels.
fn choose(gpu: u32, kernels: &[(u32, impl AsRef<str>)]) -> Result<(u32, &str), GpuError> {
    let fits = kernels.iter().filter(|(arch, _)| *arch <= gpu).max_by_key(|(arch, _)| *arch);
    fits.map(|(arch, ptx)| (*arch, ptx.as_ref()))
        .ok_or_else(|| GpuError::NoArchitecture { gpu, have: kernels.iter().map(|(arch, _)| *arch).collect() })
}

impl Gpu {
    /// Loads kernels from PTX. Of these texts, each with its architecture (90 for `sm_90`), it takes the newest that
    /// the GPU runs. A build script with `efa-gpu-builder` makes such a list: `include!(env!("KERNELS_PTX"))`.
    ///
    /// CUDA may delay loading a kernel until it is first asked for or launched (`CUDA_MODULE_LOADING=EAGER` prevents
    /// that).
    ///
    /// # Errors
    /// [`GpuError::NoArchitecture`], or [`GpuError::Compile`] with the messages of the driver's compiler.
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
        // SAFETY: `image` is a C string. `options` and `values` have two elements, and the second option is the length
        // of the buffer in the first. All are valid for the call.
        let loaded = unsafe {
            cuda!(cuModuleLoadDataEx(&mut raw, image.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()))
        };
        loaded.map_err(|source| refused(until_zero(&text), source))?;
        Ok(Module { inner: Arc::new(Loaded { raw, context: context.clone() }) })
    }
}

/// Returns the text before the first zero, without spaces and line ends at its end.
fn until_zero(text: &[u8]) -> String {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).trim_end().into()
}

impl Module {
    /// Returns the kernel with this name.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`].
    pub fn kernel(&self, name: &str) -> Result<Kernel, GpuError> {
        let module = &self.inner;
        let _current = module.context.enter()?;
        let mut function = std::ptr::null_mut();
        // A name with a zero in it becomes the empty name. No kernel has either.
        let wanted = CString::new(name).unwrap_or_default();
        // SAFETY: `self` keeps the module loaded. `wanted` is a C string, and `function` is valid for the call, which
        // writes it.
        unsafe { cuda!(cuModuleGetFunction(&mut function, module.raw, wanted.as_ptr())) }
            .map_err(|source| GpuError::NoKernel { name: name.into(), source })?;
        let tells = module.context.info.driver >= TELLS_ARGUMENTS;
        if tells {
            // Loaded now: at the first launch, loading would wait for kernels that run.
            // SAFETY: `cuModuleGetFunction` returned `function`, and `self` keeps its module loaded.
            unsafe { cuda!(cuFuncLoad(function)) }
                .map_err(|source| GpuError::NoKernel { name: name.into(), source })?;
        }
        let takes = tells.then(|| arguments(function));
        Ok(Kernel { function, name: name.into(), takes, module: module.clone() })
    }
}

/// Returns the size in bytes of each argument of a kernel.
fn arguments(function: sys::CUfunction) -> Arc<[usize]> {
    let argument = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the caller keeps the function's module loaded. Both numbers are valid for the call, which writes
        // them, and which fails for an index behind the last argument.
        let answer = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut bytes) };
        (answer == sys::CUresult::CUDA_SUCCESS).then_some(bytes)
    };
    (0..).map_while(argument).collect()
}

impl Kernel {
    /// Returns the kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the size in bytes of each argument that it takes; `None` with a driver older than CUDA 12.4, which does
    /// not report them.
    pub fn takes(&self) -> Option<&[usize]> {
        self.takes.as_deref()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let unloaded = self.context.enter().and_then(|_current| {
            // SAFETY: `load` loaded the module, and this is its last handle. None of its kernels runs: a `Running`
            // holds the module until its kernel has ended.
            unsafe { cuda!(cuModuleUnload(self.raw)) }
        });
        log_failure("unloading kernels", unloaded);
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
        assert!(choose(90, &[(0, ""); 0]).unwrap_err().to_string().contains("compiled for none"));
    }

    #[test]
    fn a_log_ends_at_its_zero() {
        assert_eq!(until_zero(b"ptxas error\n\0\0"), "ptxas error");
        assert_eq!(until_zero(b"full"), "full");
    }
}
