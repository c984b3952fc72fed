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

/// How many threads of a kernel run, and in what order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in each of three dimensions.
    pub blocks: [u32; 3],
    /// Threads of a block in each of three dimensions.
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory of each block.
    pub shared_bytes: u32,
}

impl Shape {
    /// So many blocks of so many threads each, in a row.
    pub const fn new(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    /// The same with so many bytes of dynamic shared memory for each block.
    #[must_use]
    pub const fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// Arguments of a kernel: a tuple of up to twelve values, each plain data. Sealed.
#[expect(private_bounds, reason = "sealed")]
pub trait KernelArgs: Sealed {}

/// What seals [`KernelArgs`].
pub(crate) trait Sealed {
    /// Calls `f` with the address and the bytes of each argument.
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
#[must_use = "wait for the kernel: only then is known how it went"]
pub struct Running {
    kernel: Arc<str>,
    launched: Instant,
    end: Event,
    /// Kept for good if the kernel is not over when this is dropped.
    module: ManuallyDrop<Arc<Loaded>>,
}

impl Kernel {
    /// Launches the kernel on a stream, with a copy of these arguments. Number and sizes of arguments are checked where
    /// the driver tells them ([`takes`](Self::takes)).
    ///
    /// # Errors
    /// [`GpuError::Arguments`], [`GpuError::ForeignStream`], or [`GpuError::Launch`] with CUDA's answer: the kernel
    /// does not run. [`GpuError::KernelFailed`]: it ran, and is over.
    ///
    /// # Safety
    /// - The kernel takes arguments of these types, and does what it may do with them.
    /// - Everything that it reaches through them (mapped queues, GPU memory, pinned memory, watchdogs, registered
    ///   regions) stays as it is until [`is_done`](Running::is_done): none of it is unmapped, dropped or used by
    ///   another kernel or the CPU in a way that the kernel does not expect. That holds after
    ///   [`GpuError::KernelHangs`], too.
    /// - One kernel at a time drives a ring, unless the kernels share it knowingly.
    pub unsafe fn launch(&self, stream: &Stream, shape: Shape, args: impl KernelArgs) -> Result<Running, GpuError> {
        let mut args = args;
        let kernel = || self.name.to_string();
        let context = &self.module.context;
        if !context.is_same(&stream.context) {
            return Err(GpuError::ForeignStream { kernel: kernel() });
        }
        let _current = context.enter()?;
        // Made before the launch, so that the launch is the last thing that can fail.
        let end = Event::create(context)?;
        let launched = Instant::now();
        args.with(|addresses, given| {
            if let Some(takes) = self.takes().filter(|takes| *takes != given) {
                return Err(GpuError::Arguments { kernel: kernel(), takes: takes.into(), given: given.into() });
            }
            let ([bx, by, bz], [tx, ty, tz]) = (shape.blocks, shape.threads);
            let (function, shared, raw) = (self.function, shape.shared_bytes, stream.raw());
            // SAFETY: the caller vouches for the arguments, which CUDA copies; function and stream live.
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
            // Nobody will be able to tell when it is over; so it is over before anybody hears of this, or the context
            // has died with it.
            let raw = stream.raw();
            // SAFETY: the stream lives.
            let _ = unsafe { cuda!(cuStreamSynchronize(raw)) };
            return Err(GpuError::KernelFailed { kernel: kernel(), source });
        }
        Ok(running)
    }
}

impl Running {
    /// Whether the kernel is over, well or not.
    pub fn is_done(&self) -> bool {
        !matches!(self.end.is_past(), Ok(false))
    }

    /// Waits until the kernel is over, for as long as it takes.
    ///
    /// # Errors
    /// [`GpuError::KernelFailed`].
    pub fn wait(&self) -> Result<(), GpuError> {
        self.end.wait().map_err(|source| self.failed(source))
    }

    /// Waits until the kernel, which was given this watchdog, is over, or should be.
    ///
    /// # Errors
    /// [`GpuError::KernelTimedOut`] if the kernel ended because it had waited in vain, [`GpuError::KernelHangs`] if it
    /// runs on for longer than the watchdog's time and [grace](Watchdog::grace), counted from its launch, or
    /// [`GpuError::KernelFailed`].
    pub fn wait_watched(&self, watchdog: &Watchdog) -> Result<(), GpuError> {
        let timeout = watchdog.timeout();
        let patience = timeout.saturating_add(watchdog.grace());
        let mut looks = 0u32;
        while !self.end.is_past().map_err(|source| self.failed(source))? {
            let after = self.launched.elapsed();
            if after > patience {
                return Err(GpuError::KernelHangs { kernel: self.kernel.to_string(), after, timeout });
            }
            looks = looks.saturating_add(1);
            // A kernel may take microseconds, or seconds.
            if looks < 1000 {
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
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.module) };
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({}, {})", self.kernel, if self.is_done() { "over" } else { "under way" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_by_address_and_size() {
        let mut args = (7u32, [1u64, 2], 3u8);
        let (values, sizes) = args.with(|addresses, sizes| {
            // SAFETY: the addresses are those of the tuple's fields.
            let values = unsafe { (*addresses[0].cast::<u32>(), (*addresses[1].cast::<[u64; 2]>())[1]) };
            (values, sizes.to_vec())
        });
        assert_eq!((values, sizes), ((7, 2), vec![4, 16, 1]));
        assert!(().with(|addresses, sizes| addresses.is_empty() && sizes.is_empty()));
    }
}
