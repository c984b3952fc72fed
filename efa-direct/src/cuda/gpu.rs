//! GPUs: finding and opening them.

use super::driver::{self, cuda, log};
use super::error::{CudaError, GpuError};
use super::memory::{Copier, Copiers};
use super::ordering::{Arrivals, RdmaWritesOrdering};
use crate::error::Error;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::Arc;

/// A GPU that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// What to open it by: CUDA's number of it.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, as (9, 0).
    pub compute_capability: (u32, u32),
    /// Where it is on the PCI bus, as `0000:53:00.0`.
    pub pci_id: String,
    /// The CUDA release that the driver is of.
    pub driver: (u32, u32),
    /// Whether its memory can be exported as a DMA-BUF.
    pub dmabuf: bool,
    /// Whether it shares its page tables with the processor, as a Grace Hopper or GB200 does.
    pub coherent: bool,
    /// Which kernels see what a NIC writes into its memory in the order in which it was written.
    pub rdma_writes_ordering: RdmaWritesOrdering,
    /// Whether the CPU can have running kernels see what a NIC has written: [`Gpu::flush_rdma_writes`].
    pub rdma_flush: bool,
}

impl GpuInfo {
    /// The architecture as kernels are compiled for it: 90 for `sm_90`.
    pub fn arch(&self) -> u32 {
        self.compute_capability.0 * 10 + self.compute_capability.1
    }
}

/// An open GPU. Clones are the same one; it is let go when the last object made from it is gone.
///
/// It is CUDA's primary context, which a program shares with whatever else in it uses CUDA. Every call makes it current for itself, and puts back what
/// was current before.
#[derive(Clone)]
pub struct Gpu {
    pub(super) context: Arc<Context>,
}

/// What all objects of a GPU keep alive.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) info: GpuInfo,
    pub(super) copiers: Copiers,
    pub(super) arrivals: Arc<Arrivals>,
}

// SAFETY: CUDA's functions may be called from any thread, for any object.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

/// The GPU's context is this thread's current one, until this is dropped.
pub(super) struct Current<'c> {
    /// Of one thread.
    _context: PhantomData<(&'c Context, *const ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: `enter` has pushed one.
        log("leaving a GPU's context", unsafe { cuda!(cuCtxPopCurrent_v2(&mut context)) });
    }
}

impl Context {
    /// One that no call can be made with.
    #[cfg(test)]
    pub(super) fn without_cuda() -> Self {
        let info = GpuInfo {
            ordinal: 0,
            name: "no GPU".into(),
            compute_capability: (0, 0),
            pci_id: String::new(),
            driver: (0, 0),
            dmabuf: false,
            coherent: false,
            rdma_writes_ordering: RdmaWritesOrdering::None,
            rdma_flush: false,
        };
        let arrivals = Arrivals::new(&info.name, info.rdma_writes_ordering);
        Self { device: 0, context: std::ptr::null_mut(), info, copiers: Copiers::default(), arrivals }
    }

    /// Whether both are the GPU's one context.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.context == other.context
    }

    /// Makes the context current.
    pub(super) fn enter(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: the context is retained as long as `self`.
        unsafe { cuda!(cuCtxPushCurrent_v2(self.context)) }?;
        Ok(Current { _context: PhantomData })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let copiers = self.copiers.take();
        match self.enter() {
            Ok(current) => copiers.into_iter().for_each(|copier| copier.free(&current)),
            Err(error) => log("freeing what a GPU copied with", Err(error)),
        }
        // SAFETY: it was retained once, by `open`.
        log("releasing a GPU's context", unsafe { cuda!(cuDevicePrimaryCtxRelease_v2(self.device)) });
    }
}

impl Gpu {
    /// Opens GPU number `ordinal`, in CUDA's order.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, [`GpuError::NoGpu`] where there are fewer GPUs, or what CUDA answers.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        let (device, info) = find(ordinal)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device exists; the pointer is valid for the call.
        unsafe { cuda!(cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let arrivals = Arrivals::new(&info.name, info.rdma_writes_ordering);
        let context = Arc::new(Context { device, context, info, copiers: Copiers::default(), arrivals });
        let current = context.enter()?;
        for _ in 0..Copiers::COUNT {
            context.copiers.put(Copier::new(&current)?);
        }
        drop(current);
        Ok(Self { context })
    }

    /// The GPUs that CUDA sees.
    ///
    /// # Errors
    /// [`GpuError::NoCuda`] on a machine without NVIDIA's driver, or what CUDA answers.
    pub fn list() -> Result<Vec<GpuInfo>, Error> {
        driver::load()?;
        Ok((0..count()?).map(|ordinal| find(ordinal).map(|(_, info)| info)).collect::<Result<_, _>>()?)
    }

    /// From here on this GPU's kernels reach the other one's memory, under the addresses that it has there: over NVLink
    /// or PCIe. Whether they see what a NIC writes there in order, [the other one](Self::rdma_writes_ordering) tells.
    ///
    /// # Errors
    /// [`GpuError::NoPeer`] if the two do not reach each other, or what CUDA answers.
    pub fn reach(&self, other: &Gpu) -> Result<(), Error> {
        let (mut can, [from, to]) = (0, [self, other].map(|gpu| gpu.context.device));
        // SAFETY: both devices exist; the number is valid for the call.
        unsafe { cuda!(cuDeviceCanAccessPeer(&mut can, from, to)) }.map_err(GpuError::from)?;
        if can == 0 {
            let [from, to] = [self, other].map(|gpu| gpu.info().ordinal);
            return Err(GpuError::NoPeer { from, to }.into());
        }
        let _current = self.context.enter().map_err(GpuError::from)?;
        // SAFETY: the other context is retained. It stays reachable as long as either context lives, which hurts nobody.
        let answer = unsafe { cuda!(cuCtxEnablePeerAccess(other.context.context, 0)) };
        match answer {
            Err(error) if error.code == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as u32 => Ok(()),
            answer => Ok(answer.map_err(GpuError::from)?),
        }
    }

    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.context.info
    }
}

fn count() -> Result<usize, GpuError> {
    let mut count = 0;
    // SAFETY: the number is valid for the call.
    unsafe { cuda!(cuDeviceGetCount(&mut count)) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn find(ordinal: usize) -> Result<(sys::CUdevice, GpuInfo), GpuError> {
    let driver = driver::load()?;
    let count = count()?;
    let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or(GpuError::NoGpu { ordinal, count })?;
    let mut device = 0;
    // SAFETY: the number is valid for the call.
    unsafe { cuda!(cuDeviceGet(&mut device, number)) }?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the device exists; the number is valid for the call.
        unsafe { cuda!(cuDeviceGetAttribute(&mut value, attribute, device)) }.map(|()| value)
    };
    let is = |which| attribute(which).is_ok_and(|value| value != 0);
    let flushes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS).unwrap_or(0);
    let by_host = sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as i32;
    let (mut name, mut pci_id) = ([0; 256], [0; 64]);
    // SAFETY: the device exists; the texts are valid for the call and as long as it is told.
    unsafe {
        cuda!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
        cuda!(cuDeviceGetPCIBusId(pci_id.as_mut_ptr(), pci_id.len() as i32, device))?;
    }
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let info = GpuInfo {
        ordinal,
        name: text(&name),
        compute_capability: (major as u32, minor as u32),
        pci_id: text(&pci_id),
        driver,
        dmabuf: is(Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED),
        coherent: is(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES),
        rdma_writes_ordering: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING)
            .map_or(RdmaWritesOrdering::None, RdmaWritesOrdering::of),
        rdma_flush: flushes & by_host != 0,
    };
    Ok((device, info))
}

/// A text that ends with a zero, or with its place.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&char| char as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GpuInfo { ordinal, name, pci_id, .. } = self.info();
        write!(f, "Gpu({ordinal}: {name} at {pci_id})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_cuda_says_so_instead_of_panicking() {
        match Gpu::open(0) {
            Ok(gpu) => assert_eq!(Gpu::list().unwrap()[0], *gpu.info()),
            Err(Error::Gpu(error @ GpuError::NoCuda)) => {
                assert!(error.to_string().contains("libcuda.so.1, cannot be loaded: install"), "{error}");
                assert!(matches!(Gpu::list(), Err(Error::Gpu(GpuError::NoCuda))));
            }
            // A driver, and no GPU: CUDA's own words.
            Err(error) => assert!(matches!(error, Error::Gpu(_)), "{error}"),
        }
    }

    #[test]
    fn texts_end_at_their_zero() {
        assert_eq!(text(&[b'a' as c_char, 0, b'b' as c_char]), "a");
        assert_eq!(text(&[b'a' as c_char]), "a");
    }
}
