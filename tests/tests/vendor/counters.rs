//! Tests of the counter files in the folder that programs see as `/sys`, read by a process outside of the node.

use crate::interop::Pair;
use efa_tests::vendor::EfaRun;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The counters of a port, as in `efa_verbs.c`.
const PORT_NAMES: [&str; 22] = [
    "impaired_remote_conn_events",
    "rdma_read_bytes",
    "rdma_read_resp_bytes",
    "rdma_read_wr_err",
    "rdma_read_wrs",
    "rdma_write_bytes",
    "rdma_write_recv_bytes",
    "rdma_write_wr_err",
    "rdma_write_wrs",
    "recv_bytes",
    "recv_wrs",
    "retrans_bytes",
    "retrans_pkts",
    "retrans_timeout_events",
    "rx_bytes",
    "rx_drops",
    "rx_pkts",
    "send_bytes",
    "send_wrs",
    "tx_bytes",
    "tx_pkts",
    "unresponsive_remote_events",
];

/// The counters of a device, as in `efa_verbs.c`.
const DEVICE_NAMES: [&str; 12] = [
    "alloc_pd_err",
    "alloc_ucontext_err",
    "cmds_err",
    "completed_cmds",
    "create_ah_err",
    "create_cq_err",
    "create_qp_err",
    "keep_alive_rcvd",
    "mmap_err",
    "no_completion_cmds",
    "reg_mr_err",
    "submitted_cmds",
];

/// Reads all numbers in a folder, by name.
fn read(folder: &Path) -> BTreeMap<String, u64> {
    let file = |entry: fs::DirEntry| {
        let number = fs::read_to_string(entry.path()).unwrap().trim().parse().unwrap();
        (entry.file_name().into_string().unwrap(), number)
    };
    fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect()
}

/// Waits until these numbers have the expected values. They are written every 100 ms.
fn expect(folder: &Path, expected: &[(&str, u64)]) {
    let start = Instant::now();
    loop {
        let counters = read(folder);
        match expected.iter().find(|(name, value)| counters.get(*name) != Some(value)) {
            None => return,
            Some(missed) if start.elapsed() > Duration::from_secs(5) => panic!("not {missed:?}: {counters:?}"),
            Some(_) => sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn what_is_sent_written_and_read_is_counted_where_everyone_can_read_it() {
    let node = EfaRun::new(&["--devices", "2", "--verbose"]);
    let mut pair = Pair::new(&node, "soft:udp=127.0.0.1:0", "sq=64 rq=64");
    let class = pair.peer.sysfs().join("class/infiniband");
    let port = class.join("rdmap79s0/ports/1/hw_counters");
    for i in 0..10 {
        pair.send_from_peer(100, None, "", i);
    }
    for i in 0..7 {
        pair.send_to_peer(1000, None, false, i);
    }
    for i in 0..5 {
        pair.write_from_peer(20_000, None, "", i);
    }
    for i in 0..4 {
        pair.write_to_peer(30_000, None, i);
    }
    for i in 0..3 {
        // The same number of bytes each way.
        pair.read_both_ways(5000, i);
    }
    // Failed requests are counted, too.
    let remote = pair.side.memory.remote();
    for request in ["write", "read"] {
        pair.peer.ask(&format!("{request} id=1 at=0 len=8 to={} rkey={}", remote.addr, remote.rkey ^ 0xffff));
        assert_eq!(pair.peer.poll().vendor_err, 7, "bad remote address or key");
    }
    expect(
        &port,
        &[
            ("send_wrs", 10),
            ("send_bytes", 1000),
            ("recv_wrs", 7),
            ("recv_bytes", 7000),
            ("rdma_write_wrs", 6),
            ("rdma_write_bytes", 100_008),
            ("rdma_write_recv_bytes", 120_000),
            ("rdma_write_wr_err", 1),
            ("rdma_read_wrs", 4),
            ("rdma_read_bytes", 15_008),
            ("rdma_read_resp_bytes", 15_000),
            ("rdma_read_wr_err", 1),
            ("unresponsive_remote_events", 0),
        ],
    );
    let counters = read(&port);
    assert_eq!(counters.keys().collect::<Vec<_>>(), PORT_NAMES);
    // The counters of bytes include headers.
    assert!(counters["tx_bytes"] > 116_000 && counters["rx_bytes"] > 142_000, "{counters:?}");
    assert!(counters["tx_pkts"] > 18 && counters["rx_pkts"] > 14, "{counters:?}");
    let idle = read(&class.join("rdmap80s0/ports/1/hw_counters"));
    assert!(idle.values().all(|&count| count == 0), "nothing went over the other device: {idle:?}");
}

#[test]
#[ignore = "needs `cargo xtask vendor`"]
fn commands_are_counted_and_those_that_fail_by_their_kind() {
    // The quota allows all objects, so the device itself refuses one more.
    let node = EfaRun::new(&["--verbose", "--quota", "objects=100"]);
    let mut pair = Pair::new(&node, "soft:udp=127.0.0.1:0", "sq=64 rq=64");
    let folder = pair.peer.sysfs().join("class/infiniband/rdmap79s0/hw_counters");
    sleep(Duration::from_millis(300));
    let before = read(&folder);
    assert_eq!(before.keys().collect::<Vec<_>>(), DEVICE_NAMES);
    assert_eq!(before["cmds_err"], 0, "{before:?}");
    assert_eq!(before["submitted_cmds"], before["completed_cmds"]);
    // A protection domain, a completion queue, a region, a queue pair and three changes of its state, an address
    // handle.
    assert!(before["submitted_cmds"] >= 8, "{before:?}");
    pair.peer.create_memory(4096);
    // As many as the device has.
    let full = pair.peer.ask("room");
    let room = |kind: &str| {
        let mut words = full.split(' ').skip_while(|word| *word != kind);
        words.nth(1).and_then(|word| word.parse::<u64>().ok()).expect("the peer says how many")
    };
    let objects = ["pd", "cq", "qp", "counter"].map(room);
    // Each was created and destroyed, and one more was refused.
    let submitted = before["submitted_cmds"] + 1 + 2 * objects.iter().sum::<u64>() + 4;
    expect(
        &folder,
        &[
            ("submitted_cmds", submitted),
            ("completed_cmds", submitted),
            ("cmds_err", 4),
            ("alloc_pd_err", 1),
            ("create_cq_err", 1),
            ("create_qp_err", 1),
            ("reg_mr_err", 0),
        ],
    );
}
