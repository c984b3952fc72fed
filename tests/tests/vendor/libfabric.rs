//! Tests of libfabric's EFA provider with fi_info and fi_pingpong, on both of its fabrics.

use efa_tests::vendor::{EfaRun, free_port};
use std::time::Duration;

/// Runs fi_pingpong on two nodes and returns the sizes that the client reports.
fn pingpong(node: &EfaRun, args: &[&str]) -> Vec<String> {
    let port = free_port().to_string();
    // -c: compare the data that arrives with the data that was sent.
    let args = [&["-p", "efa", "-c"], args].concat();
    let mut server = node.start("fi_pingpong", &[&args[..], &["-B", &port]].concat());
    server.wait_until_listening(port.parse().expect("it is a port"));
    let client = node.start("fi_pingpong", &[&args[..], &["-P", &port, "127.0.0.1"]].concat());
    let most = Duration::from_secs(60);
    let report = client.finish(most);
    server.finish(most);
    // The output is a heading, then a line for each size.
    let sizes: Vec<_> =
        report.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert!(!sizes.is_empty(), "fi_pingpong reports nothing: {report}");
    sizes
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn fi_info_lists_both_fabrics_of_every_device() {
    let report = EfaRun::new(&["--devices", "2"]).run("fi_info", &["-p", "efa"], Duration::from_secs(30));
    let count = |line: &str| report.lines().filter(|it| it.trim() == line).count();
    assert_eq!(count("fabric: efa-direct"), 2, "{report}");
    // Two kinds of endpoints for each device: reliable ones and datagrams.
    assert_eq!(count("fabric: efa"), 4, "{report}");
    assert_eq!(count("type: FI_EP_DGRAM"), 2, "{report}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn pingpong_over_the_efa_fabric() {
    let sizes = pingpong(&EfaRun::new(&[]), &["-f", "efa", "-e", "rdm"]);
    assert_eq!(sizes, ["64", "256", "1k", "4k", "64k", "1m"]);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn pingpong_over_the_efa_direct_fabric() {
    // On this fabric, a message is one packet.
    for size in ["64", "4096", "8192"] {
        pingpong(&EfaRun::new(&[]), &["-f", "efa-direct", "-e", "rdm", "-S", size, "-I", "100"]);
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn pingpong_of_datagrams() {
    pingpong(&EfaRun::new(&[]), &["-f", "efa", "-e", "dgram", "-S", "4096", "-I", "100"]);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn pingpong_over_a_bad_network() {
    let node = EfaRun::new(&["--soft", "loss=0.1,jitter=1ms,seed=4"]);
    let sizes = pingpong(&node, &["-f", "efa", "-e", "rdm"]);
    assert_eq!(sizes.last().map(String::as_str), Some("1m"));
}
