//! Tests of `efa-direct` and the demo again, with `efa_direct` on libefa's objects instead of a software device's.

use efa_tests::vendor::{EfaRun, Process, Vendor, efa, free_port, test_executable};
use std::process::Command;
use std::time::Duration;

/// Tests to leave out: they change the network, or stop simulated time.
const SIMULATED: &[&str] = &[
    "a_completion_queue_whose_events_cannot_be_had_leaves_nothing_behind",
    "a_damaged_packet_is_never_delivered",
    "a_partition_that_heals_in_time_costs_retransmissions_and_nothing_else",
    "a_peer_that_stops_answering_is_told_from_one_that_never_did",
    "a_region_may_go_while_requests_are_under_way_and_they_fail",
    "a_small_message_overtakes_a_stalled_large_one",
    "packets_that_are_silently_dropped_show_in_the_counters_of_one_side_only",
    "what_was_under_way_to_a_peer_that_restarts_is_aborted_and_what_follows_works",
];
/// Tests to leave out: they are about devices that lack a feature.
const CONFIGURED: &[&str] =
    &["an_operation_that_the_device_lacks_is_refused_when_posted", "wide_wqes_need_a_device_that_has_them"];
/// Tests to leave out: they need completion queues of 32 entries, and libefa's have at least 128, a page.
const SMALL: &[&str] = &[
    "rings_that_a_completion_queue_cannot_hold_are_not_created",
    "the_share_of_a_queue_pair_that_is_gone_is_free_once_its_completions_were_polled",
];

/// The environment variable with names of devices, which the tests of `efa-direct` read (`tests/common/mod.rs` there).
const DEVICES: &str = "EFA_TEST_DEVICES";

/// Runs one of the test executables of `efa-direct` on a node with four devices.
fn ours(executable: &str, skipped: &[&str]) {
    let devices = (79..83).map(|bus| format!("rdmap{bus}s0")).collect::<Vec<_>>().join(",");
    let program = Vendor::get().loaded(&test_executable("efa-direct", executable));
    let mut command = EfaRun::new(&["--devices", "4"]).command(&program);
    command.args(["--test-threads", "1"]).env(DEVICES, devices);
    command.args(skipped.iter().flat_map(|name| ["--skip", name]));
    let said = Process::start(&mut command, executable).finish(Duration::from_secs(120));
    println!("{said}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn what_the_host_api_promises_it_keeps_on_libefa() {
    ours("host_api", &[SIMULATED, CONFIGURED, SMALL].concat());
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn waiting_and_threads_are_the_same_on_libefa() {
    ours("real_time", &[]);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn completion_queues_counters_and_regions_are_in_memory_of_others_on_libefa() {
    ours("external_memory", &[]);
}

/// Runs node 1 of `efa demo` on the first device and node 0, which writes, on the second. Each is a program; if its
/// device is libefa's, it runs under its own `efa run`.
fn demo(devices: [&str; 2]) {
    let port = free_port();
    let there = format!("127.0.0.1:{port}");
    let start = |device: &str, role: &str| {
        let mut command = match device.starts_with("soft") {
            true => Command::new(efa()),
            false => EfaRun::new(&[]).command(&Vendor::get().loaded(efa())),
        };
        command.args(["node", "--device", device, role, &there, "--count", "20"]);
        Process::start(&mut command, format!("efa node on {device}"))
    };
    let mut written = start(devices[0], "--listen");
    written.wait_until_listening(port);
    let writing = start(devices[1], "--connect");
    let said = [writing, written].map(|node| node.finish(Duration::from_secs(60)));
    assert!(said[0].contains("RDMA write with immediate") && said[1].contains("10240/10240 words match"), "{said:?}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn the_demo_is_the_same_on_libefa() {
    demo(["rdmap79s0", "rdmap79s0"]);
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn the_demo_goes_between_libefa_and_the_software_device() {
    demo(["rdmap79s0", "soft:udp=127.0.0.1:0"]);
    demo(["soft:udp=127.0.0.1:0", "rdmap79s0"]);
}
