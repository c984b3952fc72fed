//! Tests of `efa demo` and other subcommands as a user runs them: two processes with UDP between them.

use serde_json::Value;
use std::process::{Command, Output};

fn efa(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_efa")).args(args).output().unwrap()
}

/// Runs the demonstration, asserts that it succeeded, and returns its JSON.
fn demo(args: &[&str]) -> Value {
    let output = efa(&[&["demo", "--json"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words(run: &Value) -> (u64, u64) {
    let words = &run["nodes"][1]["words"];
    (words["matching"].as_u64().unwrap(), words["total"].as_u64().unwrap())
}

#[test]
fn two_processes_exchange_a_write_over_a_good_network_and_over_a_bad_one() {
    let demo = demo(&[]);
    assert_eq!(demo["ok"], true);
    let runs = demo["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!(words(run), (512, 512));
        let [writer, target] = [&run["nodes"][0], &run["nodes"][1]];
        assert_eq!(writer["doorbell"], 1);
        assert_eq!(writer["wqe"]["hex"].as_str().unwrap().len(), 128);
        assert!(writer["completion"]["fields"].as_str().unwrap().contains("send queue, ok"));
        assert!(target["completion"]["fields"].as_str().unwrap().contains("receive queue, ok"));
        // The WQE contains the address of the other node's memory.
        let rkey = format!("remote_mem.rkey          {:#x}", target["region"]["rkey"].as_u64().unwrap());
        assert!(writer["wqe"]["fields"].as_str().unwrap().contains(&rkey));
    }
}

#[test]
fn a_kernel_posts_instead_of_the_processor_and_the_report_says_where_it_ran() {
    let demo = demo(&["--poster", "gpu", "--count", "200", "--size", "512"]);
    for run in demo["runs"].as_array().unwrap() {
        assert_eq!(words(run), (200 * 64, 200 * 64));
        let writer = &run["nodes"][0];
        let poster = writer["poster"].as_str().unwrap();
        assert!(
            poster.starts_with("a kernel on the GPU") || poster.starts_with("a kernel in the executor"),
            "{poster}"
        );
        assert_eq!((&writer["doorbell"], &writer["completions"]), (&16.into(), &200.into()));
        assert!(writer["completion"]["fields"].as_str().unwrap().contains("send queue, ok"));
    }
}

#[test]
fn many_writes_survive_heavy_loss_and_say_how_many_packets_were_resent() {
    let demo = demo(&["--count", "300", "--size", "1024", "--loss", "0.3", "--dup", "0.2", "--seed", "9"]);
    let bad = &demo["runs"][1];
    assert_eq!(words(bad), (300 * 128, 300 * 128));
    assert!(bad["nodes"][0]["packets"]["retransmitted"].as_u64().unwrap() > 0);
    assert!(bad["nodes"][0]["packets"]["lost"].as_u64().unwrap() > 0);
}

#[test]
fn the_trace_shows_what_the_counters_say() {
    let file = std::env::temp_dir().join(format!("efa-demo-trace-{}.json", std::process::id()));
    let demo = demo(&["--loss", "0.2", "--dup", "0.1", "--seed", "5", "--trace", file.to_str().unwrap()]);
    let events: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let count = |name: &str| events.iter().filter(|event| event["name"] == name).count() as u64;
    let sum = |what: &str| -> u64 {
        let runs = demo["runs"].as_array().unwrap();
        let nodes = runs.iter().flat_map(|run| run["nodes"].as_array().unwrap());
        nodes.map(|node| node["packets"][what].as_u64().unwrap()).sum()
    };
    assert_eq!(count("process_name"), 4, "two runs of two nodes");
    assert_eq!((count("doorbell"), count("WQE"), count("completion")), (2, 2, 4));
    // A node may send an acknowledgement after it has read its counters.
    assert!(count("packet again") >= sum("retransmitted") && sum("retransmitted") > 0);
    assert!(events.iter().all(|event| event["ph"] == "M" || event["ts"].is_f64()));
    let first = &demo["runs"][0]["nodes"][0]["timeline"]["head"];
    assert!(first.as_array().unwrap().iter().any(|moment| moment["what"].as_str().unwrap().contains("doorbell of QP")));
}

#[test]
fn a_write_of_many_packets_arrives_whole() {
    let demo = demo(&["--size", "3000000", "--loss", "0.01"]);
    assert_eq!(words(&demo["runs"][0]), (375_000, 375_000));
    assert_eq!(words(&demo["runs"][1]), (375_000, 375_000));
}

#[test]
fn a_partition_of_two_seconds_heals() {
    let demo = demo(&["--partition", "2s"]);
    assert_eq!(words(&demo["runs"][1]), (512, 512));
    assert!(demo["runs"][1]["nodes"][0]["microseconds"].as_u64().unwrap() >= 2_000_000);
}

#[test]
fn the_survivor_of_a_killed_node_learns_of_it() {
    let demo = demo(&["--kill"]);
    let failure = &demo["runs"][2]["nodes"][0]["failure"];
    assert_eq!((&failure["status"], &failure["meaning"]), (&13.into(), &"remote stopped answering".into()));
}

#[test]
fn options_that_make_no_sense_are_refused_with_what_to_do() {
    for (args, complaint) in [
        (&["--size", "12"][..], "give a positive multiple of 8"),
        (&["--count", "0"], "at least one write"),
        (&["--loss", "1.5"], "a share from 0 to 1"),
        (&["--jitter", "5"], "a time such as"),
    ] {
        let output = efa(&[&["demo"], args].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(complaint), "{args:?}: {errors}");
    }
}

#[test]
fn a_peer_that_is_not_there_is_reported_not_waited_for() {
    let output = efa(&["node", "--connect", "127.0.0.1:1"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("connecting to 127.0.0.1:1"), "{errors}");
}

#[test]
fn bytes_are_dissected_and_bad_ones_refused() {
    let cqe = "120b00122d1f8ebbd0a373ff69f218049aa163487dedbed0015268214fa01ec6";
    let output = efa(&["dissect", "cqe", cqe]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("completion entry, 32 bytes: send queue, ok"));
    for (args, complaint) in [(["wqe", "00"], "64 or 128 bytes, these are 1"), (["rx", "zz"], "no hexadecimal byte")] {
        let output = efa(&[&["dissect"], &args[..]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(complaint), "{errors}");
    }
}

#[test]
fn the_listing_names_devices_that_open() {
    let output = efa(&["devices", "--json"]);
    let devices: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = devices.as_array().unwrap().iter().map(|device| device["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"soft0"));
    for name in names {
        efa_direct::Device::open(name).unwrap();
    }
}
