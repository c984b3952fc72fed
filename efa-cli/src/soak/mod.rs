//! `efa soak`: two processes that exchange everything there is, while faults come and go, and check all of it.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `mod.rs` | the parent: starts the nodes, passes their words on, prints |
//! | `node.rs` | a node: its loop and its way to the end |
//! | `traffic.rs` | what a node asks of its device, and what must come of it |
//! | `setup.rs` | a node's device, queue pairs and memory |
//! | `content.rs` | the bytes of a message, and which messages have come |
//! | `faults.rs` | what goes wrong meanwhile |
//! | `report.rs` | what a node did |

mod content;
mod faults;
mod node;
mod report;
mod setup;
mod traffic;

use crate::process::Process;
use crate::wire::say;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
pub(crate) use node::{Options as NodeOptions, main as node_main};
use node::{Progress, Said, Told};
use report::{NodeReport, Report};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How often a line of progress appears.
const EVERY: Duration = Duration::from_secs(10);
/// A node that says nothing for so long is stuck in some call. One that waits for a completion says so itself before.
const SILENCE: Duration = Duration::from_secs(60);

/// What `efa soak` takes.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    work: Work,
    /// Print the report as JSON, and no progress.
    #[arg(long)]
    json: bool,
}

/// What the nodes are to do.
#[derive(Args, Clone, Copy)]
pub(crate) struct Work {
    /// How long, for example 90s, 2m or 1h.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Seed of requests, contents and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests a second of each node; 0 is as many as it can.
    #[arg(long, default_value_t = 20_000)]
    pace: u64,
}

impl Work {
    /// The same, as arguments.
    fn args(&self) -> [String; 6] {
        let duration = humantime::format_duration(self.duration).to_string();
        let [seed, pace] = [self.seed, self.pace].map(|number| number.to_string());
        ["--duration".into(), duration, "--seed".into(), seed, "--pace".into(), pace]
    }
}

/// Runs `efa soak`; whether all was right.
pub(crate) fn main(options: &Options) -> Result<bool> {
    let Options { work, json } = options;
    ensure!(!work.duration.is_zero(), "--duration 0s: give at least a second");
    let report = Nodes::start(work).and_then(|nodes| nodes.run(work, *json));
    let report = report.with_context(|| format!("to see this again: --seed {}", work.seed))?;
    if *json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    for (index, node) in report.nodes.iter().enumerate().filter(|(_, node)| node.rss.grew()) {
        eprintln!("efa: node {index} grew from {} to {} KiB once it was warm", node.rss.warm, node.rss.largest);
    }
    Ok(report.ok)
}

/// Both nodes. They end when this value does, since they are told nothing any more.
struct Nodes {
    told: [ChildStdin; 2],
    /// What they say, with the node's number.
    said: Receiver<(usize, Result<Said>)>,
}

/// Starts a node, and a thread that passes on what it says until it ends.
fn spawn(node: usize, work: &Work, said: Sender<(usize, Result<Said>)>) -> Result<ChildStdin> {
    let role = ["soak-node".into(), "--node".into(), node.to_string()];
    let mut process = Process::spawn(role.into_iter().chain(work.args()))?;
    let told = process.told.take().context("a node's input")?;
    std::thread::Builder::new().name(format!("node {node}")).spawn(move || {
        loop {
            let word = process.line();
            let last = word.is_err();
            if said.send((node, word)).is_err() || last {
                return;
            }
        }
    })?;
    Ok(told)
}

impl Nodes {
    fn start(work: &Work) -> Result<Self> {
        let (sender, said) = channel();
        Ok(Self { told: [spawn(0, work, sender.clone())?, spawn(1, work, sender)?], said })
    }

    fn tell(&mut self, node: usize, told: &Told) -> Result<()> {
        say(&mut self.told[node], told).with_context(|| format!("telling node {node}"))
    }

    /// Waits for the same kind of word from both, and for `each` word until then.
    fn both<T>(&mut self, mut each: impl FnMut(usize, Progress), pick: impl Fn(Said) -> Option<T>) -> Result<[T; 2]> {
        let mut picked = [None, None];
        loop {
            picked = match picked {
                [Some(a), Some(b)] => return Ok([a, b]),
                waiting => waiting,
            };
            let (node, word) = self.said.recv_timeout(SILENCE).context("the nodes say nothing any more")?;
            match word.with_context(|| format!("node {node}"))? {
                Said::Progress(progress) => each(node, progress),
                word => match pick(word) {
                    Some(word) if picked[node].is_none() => picked[node] = Some(word),
                    _ => bail!("node {node} said something out of turn"),
                },
            }
        }
    }

    /// Brings both through the run.
    fn run(mut self, work: &Work, json: bool) -> Result<Report> {
        let mut progress = Lines { latest: Default::default(), start: Instant::now(), next: EVERY, quiet: json };
        let mut each = |node, word| progress.note(node, word);
        let [a, b] = self.both(&mut each, |said| if let Said::Hello(hello) = said { Some(hello) } else { None })?;
        self.tell(0, &Told::Peer(b))?;
        self.tell(1, &Told::Peer(a))?;
        self.both(&mut each, |said| matches!(said, Said::Ready).then_some(()))?;
        (0..2).try_for_each(|node| self.tell(node, &Told::Start))?;
        let start = Instant::now();
        self.both(&mut each, |said| matches!(said, Said::Stopped).then_some(()))?;
        (0..2).try_for_each(|node| self.tell(node, &Told::Settle))?;
        let [a, b] = self.both(&mut each, |said| if let Said::Totals(totals) = said { Some(totals) } else { None })?;
        self.tell(0, &Told::Totals(b))?;
        self.tell(1, &Told::Totals(a))?;
        let nodes: [NodeReport; 2] =
            self.both(&mut each, |said| if let Said::Report(report) = said { Some(*report) } else { None })?;
        let seconds = start.elapsed().as_secs_f64();
        (0..2).try_for_each(|node| self.tell(node, &Told::Bye))?;
        let ok = nodes.iter().all(|node| !node.rss.grew());
        Ok(Report { ok, seed: work.seed, seconds, pace: work.pace, nodes })
    }
}

/// The lines of progress.
struct Lines {
    latest: [Progress; 2],
    start: Instant,
    next: Duration,
    quiet: bool,
}

impl Lines {
    fn note(&mut self, node: usize, progress: Progress) {
        self.latest[node] = progress;
        let elapsed = self.start.elapsed();
        if elapsed >= self.next {
            self.next += EVERY;
            if !self.quiet {
                self.print(elapsed);
            }
        }
    }

    fn print(&self, elapsed: Duration) {
        let sum = |of: fn(&Progress) -> u64| self.latest.iter().map(of).sum::<u64>();
        let (operations, resent) = (sum(|p| p.operations), sum(|p| p.resent));
        eprint!("{:>6} s │ {operations} operations, {resent} packets resent", elapsed.as_secs());
        for (node, Progress { rss, fault, .. }) in self.latest.iter().enumerate() {
            eprint!(" │ node {node}: {} MiB, fault: {fault}", rss >> 10);
        }
        eprintln!();
    }
}
