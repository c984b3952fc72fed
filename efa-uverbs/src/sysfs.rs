//! The tree of files in which programs look for devices: the parts of `/sys` that describe an EFA.
//!
//! ```text
//! class/infiniband_verbs/abi_version
//! class/infiniband_verbs/uverbs0/        ibdev, dev, abi_version, device -> …
//! class/infiniband/rdmap79s0/            node_type, node_guid, …, hw_counters/, ports/1/, device -> …
//! devices/pci0000:4f/0000:4f:00.0/       vendor, device, modalias, driver -> …
//! bus/pci/drivers/efa/
//! ```

use crate::device::{SoftDevice, VENDOR};
use crate::talk::{BASE_MINOR, DEVICE_PREFIX, MAJOR};
use efa_soft::driver::DeviceHandle;
use efa_types::{CommandCounters, Counters};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

/// The ABI version of the verbs interface (`IB_USER_VERBS_ABI_VERSION`).
const VERBS_ABI: u32 = 6;
/// The ABI version of the EFA driver (`EFA_UVERBS_ABI_VERSION`).
const EFA_ABI: u32 = 1;

/// Writes a file with one line.
fn file(folder: &Path, name: &str, content: impl std::fmt::Display) -> io::Result<()> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, format!("{content}\n"))
}

/// Formats a GUID or a GID as the kernel does: in groups of four digits.
fn groups(bytes: &[u8]) -> String {
    let groups: Vec<_> = bytes.chunks_exact(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
    groups.join(":")
}

/// Creates the files that all devices share.
pub(crate) fn create(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join("bus/pci/drivers/efa"))?;
    fs::create_dir_all(root.join("class/infiniband"))?;
    file(root, "class/infiniband_verbs/abi_version", VERBS_ABI)
}

/// Creates the files of the device with this number, and returns the files of its counters.
pub(crate) fn add(root: &Path, number: u32, device: &SoftDevice) -> io::Result<CounterFiles> {
    let (name, part) = (&device.name, device.config.vendor_part_id);
    let place = format!("0000:{:02x}:00.0", device.bus);
    let pci = format!("devices/pci0000:{:02x}/{place}", device.bus);

    let folder = root.join(&pci);
    file(&folder, "vendor", format_args!("{VENDOR:#06x}"))?;
    file(&folder, "device", format_args!("{part:#06x}"))?;
    file(&folder, "subsystem_vendor", format_args!("{VENDOR:#06x}"))?;
    file(&folder, "subsystem_device", format_args!("{part:#06x}"))?;
    file(&folder, "class", "0x020000")?;
    file(&folder, "numa_node", -1)?;
    let alias = format!("pci:v0000{VENDOR:04X}d0000{part:04X}sv0000{VENDOR:04X}sd0000{part:04X}bc02sc00i00");
    file(&folder, "modalias", alias)?;
    symlink("../../../bus/pci/drivers/efa", folder.join("driver"))?;

    let folder = root.join(format!("class/infiniband_verbs/{DEVICE_PREFIX}{number}"));
    file(&folder, "ibdev", name)?;
    file(&folder, "dev", format_args!("{MAJOR}:{}", BASE_MINOR + number))?;
    file(&folder, "abi_version", EFA_ABI)?;
    symlink(format!("../../../{pci}"), folder.join("device"))?;

    let folder = root.join(format!("class/infiniband/{name}"));
    file(&folder, "node_type", "7: unspecified")?;
    file(&folder, "node_guid", groups(&device.guid()))?;
    file(&folder, "sys_image_guid", groups(&device.guid()))?;
    file(&folder, "fw_ver", "0.0.0.0")?;
    file(&folder, "node_desc", "software EFA")?;
    symlink(format!("../../../{pci}"), folder.join("device"))?;
    let port = folder.join("ports/1");
    file(&port, "state", "4: ACTIVE")?;
    file(&port, "phys_state", "5: LinkUp")?;
    file(&port, "link_layer", "Unspecified")?;
    file(&port, "lid", "0x0")?;
    file(&port, "rate", format_args!("{} Gb/sec", device.config.link_gbps))?;
    file(&port, "gids/0", groups(&device.config.attributes.gid.0))?;
    file(&port, "pkeys/0", "0xffff")?;
    let counters = CounterFiles { device: folder.join("hw_counters"), port: port.join("hw_counters"), written: None };
    fs::create_dir_all(&counters.device)?;
    fs::create_dir_all(&counters.port)?;
    Ok(counters)
}

/// The files of a device's counters: the folders `hw_counters` of the device and of its port.
pub(crate) struct CounterFiles {
    device: PathBuf,
    port: PathBuf,
    /// The values in the files, if they were written.
    written: Option<(Counters, CommandCounters)>,
}

impl CounterFiles {
    /// Writes the device's counters to the files if one has changed.
    pub(crate) fn update(&mut self, device: &SoftDevice) -> io::Result<()> {
        let mut now = (device.handle.counters(), CommandCounters::default());
        device.handle.with(&mut |device| now.1 = device.command_counters());
        if self.written.replace(now) == Some(now) {
            return Ok(());
        }
        let port = port_counters(&now.0);
        let all = port.iter().map(|counter| (&self.port, counter));
        let device = device_counters(&now.1);
        for (folder, (name, value)) in all.chain(device.iter().map(|counter| (&self.device, counter))) {
            // With one write and without truncating, so that a reader finds the old number or the new one. A number
            // never gets shorter.
            let file = fs::File::options().write(true).create(true).truncate(false).open(folder.join(name))?;
            file.write_all_at(format!("{value}\n").as_bytes(), 0)?;
        }
        Ok(())
    }
}

macro_rules! named {
    ($counters:expr, $($name:ident)*) => { [$((stringify!($name), $counters.$name)),*] };
}

/// Returns a port's counters with the driver's names (`EFA_DEFINE_PORT_STATS` in `efa_verbs.c`).
fn port_counters(counters: &Counters) -> [(&'static str, u64); 22] {
    named!(counters,
        tx_bytes tx_pkts rx_bytes rx_pkts rx_drops send_bytes send_wrs recv_bytes recv_wrs rdma_read_wrs rdma_read_bytes
        rdma_read_wr_err rdma_read_resp_bytes rdma_write_wrs rdma_write_bytes rdma_write_wr_err rdma_write_recv_bytes
        retrans_bytes retrans_pkts retrans_timeout_events unresponsive_remote_events impaired_remote_conn_events
    )
}

/// Returns a device's counters with the driver's names (`EFA_DEFINE_DEVICE_STATS`). Those that a software device does
/// not count are zero.
fn device_counters(counters: &CommandCounters) -> Vec<(&'static str, u64)> {
    let own = named!(counters,
        submitted_cmds completed_cmds cmds_err alloc_pd_err create_qp_err create_cq_err reg_mr_err create_ah_err
    );
    let none = ["no_completion_cmds", "keep_alive_rcvd", "alloc_ucontext_err", "mmap_err"];
    own.into_iter().chain(none.map(|name| (name, 0))).collect()
}
