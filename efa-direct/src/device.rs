//! Devices: finding and opening them.

use crate::counter::{CompletionCounter, ExternalCompletionCounter};
use crate::cq::{CompletionQueue, CqConfig};
use crate::error::{OpenError, SetupError};
use crate::external::DmabufRange;
use crate::external_cq::ExternalCompletionQueue;
use crate::pd::ProtectionDomain;
#[cfg(feature = "soft")]
use crate::provider::soft;
use crate::provider::{DeviceInfo, Provider};
#[cfg(feature = "soft")]
use efa_soft::{LinkCounters, driver::DeviceHandle};
use efa_types::{AsyncEvent, Counters, DeviceAttributes};
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Returns all devices: the EFA devices of this machine, including those that cannot be used as they are, and software
/// devices. Without libibverbs the list has no EFA devices.
pub fn devices() -> Vec<DeviceInfo> {
    #[cfg_attr(not(feature = "soft"), expect(unused_mut, reason = "there are no others"))]
    let mut devices = hardware_devices().unwrap_or_default();
    #[cfg(feature = "soft")]
    devices.extend(soft::list());
    devices
}

/// Returns the EFA devices of this machine.
///
/// # Errors
/// [`OpenError`] if there can be none: the machine has no libibverbs or no RDMA, or the program was built without the
/// feature `verbs`.
pub fn hardware_devices() -> Result<Vec<DeviceInfo>, OpenError> {
    #[cfg(feature = "verbs")]
    return crate::provider::verbs::list();
    #[cfg(not(feature = "verbs"))]
    Err(OpenError::NotBuilt { what: "EFA devices", feature: "verbs" })
}

/// An open device. Clones refer to the same device. It closes when the last object made from it is gone.
#[derive(Clone)]
pub struct Device {
    pub(crate) provider: Arc<dyn Provider>,
}

impl Device {
    /// Opens a device by name. [`devices`] lists the names. Those of EFA devices are libibverbs' (`rdmap79s0`); `soft…`
    /// names are software devices:
    ///
    /// - `soft0`, `soft1`, …: devices on a network inside this process;
    /// - `soft:udp=127.0.0.1:0,loss=0.2,seed=7`: a device that talks UDP to other processes and hosts
    ///   ([`SoftSpec`](crate::SoftSpec) documents the keys).
    ///
    /// # Errors
    /// [`OpenError`]: there is no such device, or it cannot be started.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        #[cfg(feature = "soft")]
        if let Some(provider) = soft::open(name) {
            return Ok(Self { provider: provider? });
        }
        #[cfg(not(feature = "soft"))]
        if name.starts_with("soft") {
            return Err(OpenError::NotBuilt { what: "software devices", feature: "soft" });
        }
        #[cfg(feature = "verbs")]
        let found = crate::provider::verbs::open(name)?;
        #[cfg(not(feature = "verbs"))]
        let found: Result<Arc<dyn Provider>, String> =
            Err(OpenError::NotBuilt { what: "EFA devices", feature: "verbs" }.to_string());
        found.map(|provider| Self { provider }).map_err(|mut hint| {
            if cfg!(feature = "soft") {
                hint.push_str("; software devices are named soft0, soft1, … and soft:KEY=VALUE,…");
            }
            OpenError::NoSuchDevice { name: name.into(), hint }
        })
    }

    /// Wraps a software device that the caller's own driver runs, under a name of the caller's choice.
    ///
    /// # Errors
    /// [`OpenError::CannotStart`] if the driver has ended.
    #[cfg(feature = "soft")]
    pub fn from_soft_device(name: &str, handle: Arc<dyn DeviceHandle>) -> Result<Self, OpenError> {
        Ok(Self { provider: Arc::new(soft::Soft::new(name, handle)?) })
    }

    /// Wraps a device of a provider that is not part of this crate.
    pub fn from_provider(provider: Arc<dyn Provider>) -> Self {
        Self { provider }
    }

    /// Returns the name that the device was opened by.
    pub fn name(&self) -> &str {
        self.provider.name()
    }

    /// Returns what the device can do.
    pub fn attributes(&self) -> &DeviceAttributes {
        self.provider.attributes()
    }

    /// Returns what the device has counted.
    pub fn counters(&self) -> Counters {
        self.provider.counters()
    }

    /// Returns what a simulated network did to this device's packets; `None` on a real network.
    #[cfg(feature = "soft")]
    pub fn link_counters(&self) -> Option<LinkCounters> {
        self.provider.link_counters()
    }

    /// Creates a completion counter.
    ///
    /// # Errors
    /// The device refused, or has no completion counters.
    pub fn create_counter(&self) -> Result<CompletionCounter, SetupError> {
        CompletionCounter::new(self.provider.clone())
    }

    /// Creates a completion counter in memory that this process cannot access, given as a DMA-BUF. `completions` and
    /// `errors` are the offsets of its two 64-bit numbers in bytes; both numbers must be 0. `owner` is kept as long as
    /// the device writes there.
    ///
    /// # Errors
    /// The device refused, or does not support this.
    pub fn create_counter_in(
        &self,
        fd: BorrowedFd<'_>,
        completions: u64,
        errors: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<ExternalCompletionCounter, SetupError> {
        ExternalCompletionCounter::new(self.provider.clone(), fd, completions, errors, owner)
    }

    /// Returns the next asynchronous event that was not fetched yet. (The vendor's driver reports none of them; a
    /// software device does.)
    pub fn next_event(&self) -> Option<AsyncEvent> {
        self.provider.next_event()
    }

    /// Returns the software device behind this one, if there is one. Through it a program sets faults, takes the port
    /// down, and subscribes to events of the device.
    #[cfg(feature = "soft")]
    pub fn soft_device(&self) -> Option<Arc<dyn DeviceHandle>> {
        self.provider.soft_device()
    }

    /// Creates a protection domain.
    ///
    /// # Errors
    /// The device refused.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain, SetupError> {
        ProtectionDomain::new(self.provider.clone())
    }

    /// Creates a completion queue.
    ///
    /// # Errors
    /// The device refused, for example more entries than `max_cqe`.
    pub fn create_cq(&self, config: CqConfig) -> Result<CompletionQueue, SetupError> {
        CompletionQueue::new(self.provider.clone(), config)
    }

    /// Creates a completion queue in memory that this process cannot access. The memory must be zeroed, and have room
    /// for the entries, of 32 bytes each. `owner` is kept as long as the device writes there.
    ///
    /// # Errors
    /// The device refused: it does not support this, the memory is too short, or [`CqConfig::events`] is set, which
    /// such a queue does not have.
    pub fn create_cq_in(
        &self,
        config: CqConfig,
        memory: DmabufRange<'_>,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<ExternalCompletionQueue, SetupError> {
        ExternalCompletionQueue::new(self.provider.clone(), config, memory, owner)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({} {})", self.name(), self.attributes().gid)
    }
}
