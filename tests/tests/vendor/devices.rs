//! Tests of software devices with the programs of ibverbs-utils.

use efa_tests::vendor::EfaRun;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Returns the values of this field in `ibv_devinfo`'s report.
fn fields<'a>(report: &'a str, name: &str) -> Vec<&'a str> {
    let field = |line: &'a str| line.trim().strip_prefix(name)?.strip_prefix(':');
    report.lines().filter_map(field).map(str::trim).collect()
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn ibv_devices_lists_as_many_devices_as_were_asked_for() {
    for devices in ["1", "4"] {
        let list = EfaRun::new(&["--devices", devices]).run("ibv_devices", &[], SOON);
        let names: Vec<_> = list.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names.len().to_string(), devices, "{list}");
        assert!(names.iter().all(|name| name.starts_with("rdmap")), "{list}");
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn ibv_devinfo_reports_what_it_reports_of_a_p5en() {
    let report = EfaRun::new(&[]).run("ibv_devinfo", &["-v"], SOON);
    for (name, value) in [
        ("transport", "unspecified (4)"),
        ("vendor_id", "0x1d0f"),
        ("vendor_part_id", "61346"), // 0xefa2
        ("hw_ver", "0xEFA2"),
        ("phys_port_cnt", "1"),
        ("state", "PORT_ACTIVE (4)"),
        ("max_mtu", "4096 (5)"),
        ("active_mtu", "4096 (5)"),
        ("port_lid", "0"),
        ("link_layer", "Unspecified"),
        ("gid_tbl_len", "1"),
        ("atomic_cap", "ATOMIC_NONE (0)"),
        ("max_srq", "0"),
    ] {
        assert_eq!(fields(&report, name), [value], "{name} in {report}");
    }
    let gid = fields(&report, "GID[  0]");
    assert!(gid.len() == 1 && gid[0].starts_with("fe80:"), "{report}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn every_device_has_an_address_of_its_own() {
    let reports = [(); 2].map(|()| EfaRun::new(&["--devices", "2"]).run("ibv_devinfo", &["-v"], SOON));
    let mut gids: Vec<_> = reports.iter().flat_map(|report| fields(report, "GID[  0]")).collect();
    gids.sort();
    gids.dedup();
    // Nodes that run after each other may have the same ports.
    assert!(gids.len() >= 2 && fields(&reports[0], "GID[  0]").len() == 2, "{reports:?}");
}
