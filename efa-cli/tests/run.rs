//! Tests of `efa run`: exit codes, limits, options and signals.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn efa() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_efa"));
    command.arg("run");
    command
}

fn run(args: &[&str]) -> Output {
    efa().args(args).output().unwrap()
}

#[test]
fn it_ends_as_its_program_ends() {
    assert_eq!(run(&["sh", "-c", "exit 3"]).status.code(), Some(3));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).status.code(), Some(128 + 9));
    let missing = run(&["no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).starts_with("efa: starting no-such-program: "));
    assert_eq!(run(&["/etc/passwd"]).status.code(), Some(126));
    assert_eq!(run(&["sh", "-c", "rm -rf $EFA_NODE; exit 4"]).status.code(), Some(4));
}

#[test]
fn a_program_finds_the_devices_and_its_own_limits() {
    let script = "ls $SYSFS_PATH/class/infiniband; cat $SYSFS_PATH/class/infiniband/rdmap80s0/device/device; ulimit -n";
    let outside = Command::new("sh").args(["-c", "ulimit -n"]).output().unwrap().stdout;
    let inside = run(&["--devices", "2", "--soft", "profile=p5", "--", "sh", "-c", script]).stdout;
    let expected = format!("rdmap79s0\nrdmap80s0\n0xefa1\n{}", String::from_utf8_lossy(&outside));
    assert_eq!(String::from_utf8_lossy(&inside), expected);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (args, complaint) in [
        (&["--soft", "loss=2", "true"][..], "expected a share from 0 to 1"),
        (&["--devices", "0", "true"], "0 is not in 1..=32"),
        (&["--devices", "2", "--soft", "udp=127.0.0.1:65535", "true"], "there is no such port"),
        (&["--quota", "cats=1", "true"], "quotas are opens, descriptors, objects, mapped and registered"),
        (&["--address", "127.0.0.2", "--soft", "udp=127.0.0.3:0", "true"], "name two addresses"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(complaint), "{args:?}: {said}");
    }
}

#[test]
fn signals_reach_the_program() {
    for signal in ["INT", "TERM", "HUP", "USR1"] {
        let script = format!("trap 'echo caught; exit 7' {signal}; echo ready; while :; do sleep 0.05; done");
        let mut child = efa().args(["sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert_eq!(lines.next().as_deref(), Some("ready"));
        let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
        assert!(kill.success());
        assert_eq!(lines.next().as_deref(), Some("caught"), "{signal}");
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
}
