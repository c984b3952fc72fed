//! `efa demo`: two nodes as processes on this machine, first over a network that only reorders packets, then over one
//! that also loses and doubles them.

use crate::node::{Listening, Poster, Work};
use crate::process::Process;
use crate::report::{NodeReport, Words};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The MTU of the second run in bytes. It is small, so that one write of 4 KiB already needs many packets.
const SMALL_MTU: u32 = 256;

/// Options of `efa demo`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    work: Work,
    /// Share of packets lost in the second run, 0 to 1.
    #[arg(long, default_value_t = 0.2)]
    loss: f64,
    /// Share of packets doubled in the second run, 0 to 1.
    #[arg(long, default_value_t = 0.1)]
    dup: f64,
    /// Longest random delay of a packet in the second run, with unit. Each packet has another delay, so packets
    /// overtake each other.
    #[arg(long, default_value = "1ms")]
    jitter: String,
    /// Time at the beginning of the second run in which no packet gets through, with unit.
    #[arg(long)]
    partition: Option<String>,
    /// Kill node 1 in the middle of a third run, and show how node 0 notices it.
    #[arg(long)]
    kill: bool,
    /// The processor that posts node 0's writes and polls their completions.
    #[arg(long, value_enum, default_value_t)]
    poster: Poster,
    /// Print the runs as JSON.
    #[arg(long)]
    json: bool,
    /// Write all events of all devices to this file, for `chrome://tracing` or ui.perfetto.dev.
    #[arg(long)]
    trace: Option<PathBuf>,
}

/// The result of one run.
#[derive(Serialize)]
struct Run {
    network: String,
    /// The reports of node 0 and, unless it was killed, of node 1.
    nodes: Vec<NodeReport>,
}

/// The results of all runs, as `--json` prints them.
#[derive(Serialize)]
struct Demo {
    ok: bool,
    runs: Vec<Run>,
}

/// Runs the demonstration. Returns `true` if every word of both runs matched and, with `--kill`, node 0 noticed that
/// node 1 was killed.
pub(crate) fn main(options: &Options) -> Result<bool> {
    let Options { work, loss, dup, jitter, partition, poster, .. } = options;
    work.total()?; // an error appears here once; each node would report it again
    let good = format!("soft:udp=127.0.0.1:0,seed={}", work.seed);
    let mut bad = format!("{good},loss={loss},dup={dup},jitter={jitter},mtu={SMALL_MTU}");
    let mut faults = format!("{}% loss, {}% doubled, up to {jitter} late", loss * 100.0, dup * 100.0);
    if let Some(partition) = partition {
        bad += &format!(",outage={partition}");
        faults += &format!(", nothing gets through for {partition}");
    }
    let networks =
        [("packets may overtake each other".to_string(), good.clone()), (format!("{faults}, MTU {SMALL_MTU}"), bad)];
    let mut demo = Demo { ok: true, runs: Vec::new() };
    let mut traces = Traces::new(options.trace.as_deref());
    for (network, device) in networks {
        let run = Run { network, nodes: run(&device, work, *poster, &mut traces)? };
        let matches = run.words().is_some_and(|words| words.matching == words.total && words.total > 0);
        demo.add(run, matches, options.json);
    }
    if options.kill {
        let device = format!("{good},delay=100ms"); // writes are still outstanding when node 1 is killed
        let work = Work { count: 2000, size: 64, ..*work };
        let nodes = vec![run_and_kill(&device, &work, *poster, &mut traces)?];
        let run = Run { network: "100ms one way; node 1 is killed".into(), nodes };
        let noticed = run.nodes[0].failure.is_some();
        demo.add(run, noticed, options.json);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&demo)?);
    }
    traces.join()?;
    Ok(demo.ok)
}

/// The traces of all nodes, if `--trace` is given. Each node writes its own file; all of them are merged in the end.
struct Traces {
    target: Option<PathBuf>,
    parts: Vec<PathBuf>,
}

impl Traces {
    fn new(target: Option<&Path>) -> Self {
        Self { target: target.map(Path::to_path_buf), parts: Vec::new() }
    }

    /// Returns the options with which one more node writes its trace.
    fn options(&mut self) -> Vec<OsString> {
        let Some(target) = &self.target else { return Vec::new() };
        let part = target.with_extension(format!("part{}", self.parts.len()));
        self.parts.push(part.clone());
        vec!["--trace".into(), part.into()]
    }

    /// Merges the nodes' traces into one file. A node that was killed has written none.
    fn join(self) -> Result<()> {
        let Some(target) = self.target else { return Ok(()) };
        let mut events: Vec<serde_json::Value> = Vec::new();
        for part in self.parts.iter().filter(|part| part.exists()) {
            let text = std::fs::read(part).with_context(|| format!("reading {}", part.display()))?;
            let of_node: Vec<serde_json::Value> = serde_json::from_slice(&text)?;
            events.extend(of_node);
            std::fs::remove_file(part).with_context(|| format!("removing {}", part.display()))?;
        }
        let text = serde_json::to_vec(&events)?;
        std::fs::write(&target, text).with_context(|| format!("writing the trace to {}", target.display()))
    }
}

impl Demo {
    fn add(&mut self, run: Run, ok: bool, quiet: bool) {
        self.ok &= ok;
        if !quiet {
            run.print();
        }
        self.runs.push(run);
    }
}

impl Run {
    fn words(&self) -> Option<Words> {
        self.nodes.get(1)?.words
    }

    fn print(&self) {
        println!("━━ two nodes, UDP on loopback: {} ━━\n", self.network);
        for node in &self.nodes {
            println!("{node}");
        }
        let resent: u64 = self.nodes.iter().map(|node| node.packets.retransmitted).sum();
        if let Some(Words { matching, total }) = self.words() {
            println!("{matching}/{total} words match, {resent} packets were resent\n");
        }
    }
}

/// Starts both nodes. Returns node 0 first.
fn spawn_both(device: &str, work: &Work, poster: Poster, traces: &mut Traces) -> Result<[Process; 2]> {
    let mut target = spawn(device, work, &["--listen", "127.0.0.1:0"], traces)?;
    let Listening { listening } = target.line().context("starting node 1")?;
    let to = listening.to_string();
    let poster = if poster == Poster::Gpu { "gpu" } else { "cpu" };
    let writer = spawn(device, work, &["--connect", &to, "--poster", poster], traces)?;
    Ok([writer, target])
}

/// Runs both nodes to their end and returns their reports.
fn run(device: &str, work: &Work, poster: Poster, traces: &mut Traces) -> Result<Vec<NodeReport>> {
    let [mut writer, mut target] = spawn_both(device, work, poster, traces)?;
    let first = report(&mut writer).context("node 0")?;
    let second = report(&mut target).context("node 1")?;
    Ok(vec![first, second])
}

/// Runs both nodes, and kills node 1 after the first writes have arrived. Returns node 0's report.
fn run_and_kill(device: &str, work: &Work, poster: Poster, traces: &mut Traces) -> Result<NodeReport> {
    let [mut writer, mut target] = spawn_both(device, work, poster, traces)?;
    std::thread::sleep(Duration::from_secs(1));
    target.kill()?;
    writer.line().context("node 0")
}

/// Starts a node as a process.
fn spawn(device: &str, work: &Work, role: &[&str], traces: &mut Traces) -> Result<Process> {
    let Work { size, count, seed, timeout } = work;
    let numbers = [("--size", size), ("--count", count), ("--seed", seed), ("--timeout", timeout)];
    let fixed = ["node", "--json", "--device", device].into_iter().chain(role.iter().copied()).map(String::from);
    let work = numbers.into_iter().flat_map(|(name, value)| [name.to_string(), value.to_string()]);
    Process::spawn(fixed.chain(work).map(OsString::from).chain(traces.options()))
}

/// Waits until a node has ended and returns its report.
fn report(node: &mut Process) -> Result<NodeReport> {
    let report = node.line()?;
    io::copy(&mut node.output, &mut io::sink())?;
    node.wait()?;
    Ok(report)
}
