//! A device's counters, as the kernel shows them in sysfs.

use efa_types::Counters;
use std::fs;
use std::path::Path;

/// Returns the counters of the device with this directory in sysfs. Those that its driver does not have are 0.
pub(super) fn read(sysfs: &Path) -> Counters {
    // Older drivers show all counters at the device; newer ones show those of the port at the port.
    let dirs = [sysfs.join("ports/1/hw_counters"), sysfs.join("hw_counters")];
    let value = |name| dirs.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok());
    macro_rules! counters {
        ($($name:ident)*) => {
            Counters { $($name: value(stringify!($name)).unwrap_or(0),)* ..Counters::default() }
        };
    }
    counters! {
        tx_bytes tx_pkts rx_bytes rx_pkts rx_drops send_bytes send_wrs recv_bytes recv_wrs
        rdma_read_wrs rdma_read_bytes rdma_read_wr_err rdma_read_resp_bytes
        rdma_write_wrs rdma_write_bytes rdma_write_wr_err rdma_write_recv_bytes
        retrans_bytes retrans_pkts retrans_timeout_events unresponsive_remote_events impaired_remote_conn_events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_at_the_port_or_at_the_device_and_are_zero_elsewhere() {
        let sysfs = std::env::temp_dir().join(format!("efa-counters-{}", std::process::id()));
        for (file, text) in [("ports/1/hw_counters/tx_pkts", "17\n"), ("hw_counters/rx_drops", "3\n")] {
            fs::create_dir_all(sysfs.join(file).parent().unwrap()).unwrap();
            fs::write(sysfs.join(file), text).unwrap();
        }
        let counters = read(&sysfs);
        fs::remove_dir_all(&sysfs).unwrap();
        assert_eq!(counters, Counters { tx_pkts: 17, rx_drops: 3, ..Counters::default() });
    }
}
