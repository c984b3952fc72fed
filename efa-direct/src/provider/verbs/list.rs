//! The EFA devices of this machine, and what they lack here.

use super::query::DeviceQuery;
use crate::error::OpenError;
use crate::provider::DeviceInfo;
use efa_sys::sys::{
    EFADV_DEVICE_ATTR_CAPS_RDMA_READ as RDMA_READ, EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE as RDMA_WRITE, IBV_NODE_UNKNOWN,
    IBV_NODE_UNSPECIFIED, IBV_PORT_ACTIVE, Libraries, ibv_port_attr,
};
use efa_sys::{Context, Device, DeviceList};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Returns the EFA devices of this machine, including those that cannot be opened.
pub(crate) fn list() -> Result<Vec<DeviceInfo>, OpenError> {
    let libraries = Libraries::get()?;
    let list = DeviceList::get(libraries)?;
    let mut infos: Vec<DeviceInfo> = list.iter().filter(is_candidate).filter_map(info).collect();
    let class = env::var_os("SYSFS_PATH").map_or("/sys".into(), PathBuf::from).join("class/infiniband_verbs");
    for (name, file) in kernel_devices(&class) {
        // libibverbs leaves out devices without a device file.
        if list.iter().all(|device| device.name() != name) {
            let missing =
                format!("/dev/infiniband/{file} is missing: pass it into the container (docker run --device)");
            infos.push(DeviceInfo { name, description: "EFA".into(), missing: vec![missing], usable: false });
        }
    }
    Ok(infos)
}

/// Returns `true` for devices that may be EFAs: the kernel reports neither InfiniBand nor iWARP nor Ethernet for those.
fn is_candidate(device: &Device<'_>) -> bool {
    [IBV_NODE_UNSPECIFIED, IBV_NODE_UNKNOWN].contains(&device.node_type())
}

/// Describes a device. Returns `None` if it is no EFA device.
fn info(device: Device<'_>) -> Option<DeviceInfo> {
    let name = device.name().to_owned();
    match device.open().and_then(|context| Ok((DeviceQuery::of(&context)?, context))) {
        Ok((query, context)) => {
            Some(DeviceInfo { description: describe(&query, &context), missing: missing(&query), name, usable: true })
        }
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => None,
        Err(error) => {
            Some(DeviceInfo { name, description: "EFA".into(), missing: vec![error.to_string()], usable: false })
        }
    }
}

fn describe(query: &DeviceQuery, context: &Context) -> String {
    let can = match (query.has_capability(RDMA_READ), query.has_capability(RDMA_WRITE)) {
        (true, true) => "RDMA read and write",
        (true, false) => "RDMA read",
        (false, true) => "RDMA write",
        (false, false) => "no RDMA",
    };
    let speed = gigabits(&query.port).map_or(String::new(), |gigabits| format!("{gigabits} Gb/s, "));
    let release = context.libraries().verbs.version().map_or(String::new(), |version| format!(", rdma-core {version}"));
    format!("EFA, {}, {speed}sends up to {} bytes, {can}{release}", query.gid, query.port.max_msg_sz)
}

/// Returns what a program may miss later on this device.
fn missing(query: &DeviceQuery) -> Vec<String> {
    let mut missing = Vec::new();
    if query.port.state != IBV_PORT_ACTIVE {
        missing.push("the port is not active: nothing is sent or received".into());
    }
    if !query.has_capability(RDMA_WRITE) {
        missing.push("no RDMA write: the device has none (p4d and older), or its driver is too old".into());
    }
    missing
}

/// Returns the speed of a port in Gb/s: lanes times the speed of each (tables of the InfiniBand specification,
/// `ib_verbs.h` of the kernel).
fn gigabits(port: &ibv_port_attr) -> Option<u32> {
    let lanes = match port.active_width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return None,
    };
    let speed = match port.active_speed {
        4 | 8 => 10,
        16 => 14,
        32 => 25,
        64 => 50,
        128 => 100,
        _ => return None,
    };
    Some(lanes * speed)
}

/// Returns the EFA devices that the kernel has: their names, and the names of their device files.
fn kernel_devices(class: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let devices = entries.filter_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let is_efa = read("device/vendor")?.trim() == "0x1d0f" && read("device/device")?.starts_with("0xefa");
        is_efa.then_some((read("ibdev")?.trim().into(), entry.file_name().into_string().ok()?))
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_efa_devices_are_told_from_others() {
        let class = env::temp_dir().join(format!("efa-list-{}", std::process::id()));
        for (uverbs, vendor, device) in [("uverbs0", "0x1d0f", "0xefa2"), ("uverbs1", "0x15b3", "0x1021")] {
            fs::create_dir_all(class.join(uverbs).join("device")).unwrap();
            let write = |file: &str, text: &str| fs::write(class.join(uverbs).join(file), format!("{text}\n")).unwrap();
            write("ibdev", &format!("of-{uverbs}"));
            write("device/vendor", vendor);
            write("device/device", device);
        }
        let devices = kernel_devices(&class);
        fs::remove_dir_all(&class).unwrap();
        assert_eq!(devices, [("of-uverbs0".to_string(), "uverbs0".to_string())]);
        assert!(kernel_devices(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_port_s_speed_is_that_of_its_lanes() {
        let port = |active_width, active_speed| ibv_port_attr { active_width, active_speed, ..Default::default() };
        assert_eq!(gigabits(&port(2, 32)), Some(100));
        assert_eq!(gigabits(&port(2, 64)), Some(200));
        assert_eq!(gigabits(&port(0, 0)), None);
    }
}
