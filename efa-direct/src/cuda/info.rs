//! The GPUs that CUDA sees, and their properties.

use super::driver::{self, cuda};
use super::error::GpuError;
use super::ordering::RdmaWritesOrdering;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use std::ffi::{CStr, c_char};

/// A GPU that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// CUDA's number of the GPU, to open it by.
    pub ordinal: usize,
    /// The GPU's name.
    pub name: String,
    /// The compute capability, such as (9, 0).
    pub compute_capability: (u32, u32),
    /// The address on the PCI bus, such as `0000:53:00.0`.
    pub pci_id: String,
    /// The CUDA release of the driver, such as (12, 8).
    pub driver: (u32, u32),
    /// `true` if its memory can be exported as a DMA-BUF.
    pub dmabuf: bool,
    /// `true` if it shares page tables with the processor, as a Grace Hopper or GB200 does.
    pub coherent: bool,
    /// The kernels that see what a NIC writes into its memory in the order in which it was written.
    pub rdma_writes_ordering: RdmaWritesOrdering,
    /// `true` if the CPU can make running kernels see what a NIC has written:
    /// [`Gpu::flush_rdma_writes`](super::Gpu::flush_rdma_writes).
    pub rdma_flush: bool,
}

impl GpuInfo {
    /// Returns the architecture that kernels are compiled for: 90 for `sm_90`.
    pub fn arch(&self) -> u32 {
        self.compute_capability.0 * 10 + self.compute_capability.1
    }
}

/// Returns the number of GPUs. The driver must be loaded.
pub(super) fn count() -> Result<usize, GpuError> {
    let mut count = 0;
    // SAFETY: the driver is loaded, and the number is valid for the call, which writes it.
    unsafe { cuda!(cuDeviceGetCount(&mut count)) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Returns a GPU by its number.
pub(super) fn find(ordinal: usize) -> Result<(sys::CUdevice, GpuInfo), GpuError> {
    let driver = driver::load()?;
    let count = count()?;
    let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or(GpuError::NoGpu { ordinal, count })?;
    let mut device = 0;
    // SAFETY: the driver is loaded, and the number is valid for the call, which writes it.
    unsafe { cuda!(cuDeviceGet(&mut device, number)) }?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: `cuDeviceGet` returned `device`. `value` is valid for the call, which writes it.
        unsafe { cuda!(cuDeviceGetAttribute(&mut value, attribute, device)) }.map(|()| value)
    };
    let is = |which| attribute(which).is_ok_and(|value| value != 0);
    let flushes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS).unwrap_or(0);
    let by_host = sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as i32;
    let (mut name, mut pci_id) = ([0; 256], [0; 64]);
    // SAFETY: `cuDeviceGet` returned `device`. Each call gets a buffer and its length, and writes no more.
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

/// Converts a text that ends with a zero, or fills its buffer.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&char| char as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_at_their_zero() {
        assert_eq!(text(&[b'a' as c_char, 0, b'b' as c_char]), "a");
        assert_eq!(text(&[b'a' as c_char]), "a");
    }
}
