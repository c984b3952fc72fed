//! Launching kernels, and waiting for them.

use super::driver::cuda;
use super::error::GpuError;
use super::module::{Kernel, Loaded};
use super::stream::{Event, Stream};
use super::watchdog::Watchdog;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number and arrangement of a kernel's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of blocks in each of three dimensions.
    pub blocks: [u32; 3],
    /// Number of threads of a block in each of three dimensions.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory of each block.
    pub shared_bytes: u32,
}

impl Shape {
    /// Returns the shape of a row of blocks, each of a row of threads.
    pub const fn new(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    /// Sets the bytes of dynamic shared memory of each block (0 by default).
    #[must_use]
    pub const fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// The arguments of a kernel: a tuple of up to twelve values, each plain data. Sealed.
#[expect(private_bounds, reason = "sealed")]
pub trait KernelArgs: Sealed {}

/// Seals [`KernelArgs`].
pub(crate) trait Sealed {
    /// Calls `f` with the address and the size in bytes of each argument.
    fn with<T>(&mut self, f: impl FnOnce(&mut [*mut c_void], &[usize]) -> T) -> T;
}

macro_rules! args {
    ($($name:ident),*) => {
        impl<$($name: bytemuck::Pod),*> KernelArgs for ($($name,)*) {}
        impl<$($name: bytemuck::Pod),*> Sealed for ($($name,)*) {
            #[allow(non_snake_case, reason = "named like their types")]
            fn with<T_>(&mut self, f: impl FnOnce(&mut [*mut c_void], &[usize]) -> T_) -> T_ {
                let ($($name,)*) = self;
                f(&mut [$(std::ptr::from_mut($name).cast()),*], &[$(size_of::<$name>()),*])
            }
        }
    };
}

args!();
args!(A);
args!(A, B);
args!(A, B, C);
args!(A, B, C, D);
args!(A, B, C, D, E);
args!(A, B, C, D, E, F);
args!(A, B, C, D, E, F, G);
args!(A, B, C, D, E, F, G, H);
args!(A, B, C, D, E, F, G, H, I);
args!(A, B, C, D, E, F, G, H, I, J);
args!(A, B, C, D, E, F, G, H, I, J, K);
args!(A, B, C, D, E, F, G, H, I, J, K, L);

/// A kernel that was launched. Dropping it does not wait for the kernel.
#[must_use = "wait for the kernel to learn its outcome"]
pub struct Running {
    kernel: Arc<str>,
    launched: Instant,
    end: Event,
    /// Leaked if the kernel still runs when this is dropped, since its code must stay loaded.
    module: ManuallyDrop<Arc<Loaded>>,
}

impl Kernel {
    /// Launches the kernel on a stream, with a copy of these arguments. Their number and sizes are checked if the
    /// driver reports them ([`takes`](Self::takes)).
    ///
    /// # Errors
    /// [`GpuError::Arguments`], [`GpuError::ForeignStream`], or [`GpuError::Launch`] with CUDA's answer: the kernel
    /// does not run. [`GpuError::KernelFailed`]: it did run, and has ended.
    ///
    /// # Safety
    /// - The kernel takes arguments of these types, and uses them soundly.
    /// - Everything that it accesses through them (mapped queues, GPU memory, pinned memory, watchdogs, registered
    ///   regions) stays as it is until [`is_done`](Running::is_done) returns `true`: it is not unmapped, dropped, or
    ///   used by another kernel or the CPU in a way that the kernel does not expect. This also holds after
    ///   [`GpuError::KernelHangs`].
    /// - One kernel at a time drives a ring, unless the kernels are written to share it.
    pub unsafe fn launch(&self, stream: &Stream, shape: Shape, args: impl KernelArgs) -> Result<Running, GpuError> {
        let mut args = args;
        let kernel = || self.name.to_string();
        let context = &self.module.context;
        if !context.is_same(&stream.context) {
            return Err(GpuError::ForeignStream { kernel: kernel() });
        }
        let _current = context.enter()?;
        // Made first, so that the launch is the last call that can fail.
        let end = Event::create(context)?;
        let launched = Instant::now();
        args.with(|addresses, given| {
            if let Some(takes) = self.takes().filter(|takes| *takes != given) {
                return Err(GpuError::Arguments { kernel: kernel(), takes: takes.into(), given: given.into() });
            }
            let ([bx, by, bz], [tx, ty, tz]) = (shape.blocks, shape.threads);
            let (function, shared, raw) = (self.function, shape.shared_bytes, stream.raw());
            // SAFETY: the caller promises that the arguments are the kernel's; CUDA copies them before it returns.
            // `self.module` keeps the function loaded, and `stream` is borrowed.
            unsafe {
                cuda!(cuLaunchKernel(
                    function,
                    bx,
                    by,
                    bz,
                    tx,
                    ty,
                    tz,
                    shared,
                    raw,
                    addresses.as_mut_ptr(),
                    std::ptr::null_mut()
                ))
            }
            .map_err(|source| GpuError::Launch { kernel: kernel(), source })
        })?;
        let module = ManuallyDrop::new(self.module.clone());
        let running = Running { kernel: self.name.clone(), launched, end, module };
        if let Err(source) = running.end.record(stream) {
            // Without the event nobody could tell when the kernel ends. So wait for its end here. If even that fails,
            // the context is lost, and the kernel with it.
            let raw = stream.raw();
            // SAFETY: `stream` is borrowed, so it is not destroyed.
            let _ = unsafe { cuda!(cuStreamSynchronize(raw)) };
            return Err(GpuError::KernelFailed { kernel: kernel(), source });
        }
        Ok(running)
    }
}

impl Running {
    /// Returns `true` if the kernel has ended, with or without an error.
    pub fn is_done(&self) -> bool {
        !matches!(self.end.is_past(), Ok(false))
    }

    /// Waits until the kernel has ended, without a limit.
    ///
    /// # Errors
    /// [`GpuError::KernelFailed`].
    pub fn wait(&self) -> Result<(), GpuError> {
        self.end.wait().map_err(|source| self.failed(source))
    }

    /// Waits until the kernel, which has this watchdog, has ended or should have ended.
    ///
    /// # Errors
    /// [`GpuError::KernelTimedOut`] if the kernel ended because it had waited too long, [`GpuError::KernelHangs`] if it
    /// runs for longer than the watchdog's time and [grace](Watchdog::grace), counted from its launch, or
    /// [`GpuError::KernelFailed`].
    pub fn wait_watched(&self, watchdog: &Watchdog) -> Result<(), GpuError> {
        let timeout = watchdog.timeout();
        let patience = timeout.saturating_add(watchdog.grace());
        let mut polls = 0u32;
        while !self.end.is_past().map_err(|source| self.failed(source))? {
            let after = self.launched.elapsed();
            if after > patience {
                return Err(GpuError::KernelHangs { kernel: self.kernel.to_string(), after, timeout });
            }
            polls = polls.saturating_add(1);
            // A kernel may take microseconds, so poll at first; or seconds, so sleep later.
            if polls < 1000 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        match watchdog.take() {
            None => Ok(()),
            Some(waited) => Err(GpuError::KernelTimedOut { kernel: self.kernel.to_string(), timeout, waited }),
        }
    }

    fn failed(&self, source: super::error::CudaError) -> GpuError {
        GpuError::KernelFailed { kernel: self.kernel.to_string(), source }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_done() {
            // SAFETY: `self` is being dropped, so `module` is not used again.
            unsafe { ManuallyDrop::drop(&mut self.module) };
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({}, {})", self.kernel, if self.is_done() { "ended" } else { "running" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_by_address_and_size() {
        let mut args = (7u32, [1u64, 2], 3u8);
        let (values, sizes) = args.with(|addresses, sizes| {
            // SAFETY: `with` passes the addresses of the tuple's fields, which are of these types and borrowed
            // meanwhile.
            let values = unsafe { (*addresses[0].cast::<u32>(), (*addresses[1].cast::<[u64; 2]>())[1]) };
            (values, sizes.to_vec())
        });
        assert_eq!((values, sizes), ((7, 2), vec![4, 16, 1]));
        assert!(().with(|addresses, sizes| addresses.is_empty() && sizes.is_empty()));
    }
}
