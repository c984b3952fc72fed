//! `efa soak`: two processes that exchange all kinds of traffic while faults come and go, and check every byte.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the parent: starts the nodes, passes their messages on, and prints |
//! | `work.rs` | options that the parent passes on to the nodes |
//! | `node.rs` | the loop of a node, and its phases |
//! | `traffic.rs` | the requests of a node, and the checks of their results |
//! | `setup.rs` | a node's device, queue pairs and memory |
//! | `content.rs` | the bytes of a message, and the set of messages that have arrived |
//! | `faults.rs` | the faults and their schedule |
//! | `report.rs` | the report of a node |

mod content;
mod faults;
mod node;
mod report;
mod setup;
mod traffic;
mod work;

use crate::process::Process;
use crate::wire::write_line;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use node::{FromNode, Progress, ToNode};
pub(crate) use node::{Options as NodeOptions, main as node_main};
use report::{NodeReport, Report};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use work::Work;

/// The interval between lines of progress.
const EVERY: Duration = Duration::from_secs(10);
/// The time after which a silent node is considered stuck in a call. A node that waits for a completion reports an
/// error earlier.
const SILENCE: Duration = Duration::from_secs(60);

/// Options of `efa soak`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    work: Work,
    /// Print the report as JSON, and no progress.
    #[arg(long)]
    json: bool,
}

/// Runs `efa soak`. Returns `true` if memory stayed flat. Every other failure is an error.
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

/// Both nodes. Dropping it closes their inputs, which ends them.
struct Nodes {
    inputs: [ChildStdin; 2],
    /// The nodes' messages, each with the node's number.
    messages: Receiver<(usize, Result<FromNode>)>,
}

/// Starts a node, and a thread that forwards its messages until it ends. Returns the node's input.
fn spawn(node: usize, work: &Work, messages: Sender<(usize, Result<FromNode>)>) -> Result<ChildStdin> {
    let role = ["soak-node".into(), "--node".into(), node.to_string()];
    let mut process = Process::spawn(role.into_iter().chain(work.args()))?;
    let input = process.input.take().context("a node's input")?;
    std::thread::Builder::new().name(format!("node {node}")).spawn(move || {
        loop {
            let message = process.line();
            let last = message.is_err();
            if messages.send((node, message)).is_err() || last {
                return;
            }
        }
    })?;
    Ok(input)
}

impl Nodes {
    fn start(work: &Work) -> Result<Self> {
        let (sender, messages) = channel();
        Ok(Self { inputs: [spawn(0, work, sender.clone())?, spawn(1, work, sender)?], messages })
    }

    fn send(&mut self, node: usize, message: &ToNode) -> Result<()> {
        write_line(&mut self.inputs[node], message).with_context(|| format!("telling node {node}"))
    }

    /// Waits for one message from each node that `pick` accepts. Calls `each` with every report of progress meanwhile.
    fn both<T>(
        &mut self,
        mut each: impl FnMut(usize, Progress),
        pick: impl Fn(FromNode) -> Option<T>,
    ) -> Result<[T; 2]> {
        let mut picked = [None, None];
        loop {
            picked = match picked {
                [Some(a), Some(b)] => return Ok([a, b]),
                waiting => waiting,
            };
            let (node, message) = self.messages.recv_timeout(SILENCE).context("the nodes say nothing any more")?;
            match message.with_context(|| format!("node {node}"))? {
                FromNode::Progress(progress) => each(node, progress),
                message => match pick(message) {
                    Some(content) if picked[node].is_none() => picked[node] = Some(content),
                    _ => bail!("node {node} said something out of turn"),
                },
            }
        }
    }

    /// Leads both nodes through all phases of the run.
    fn run(mut self, work: &Work, json: bool) -> Result<Report> {
        let mut progress = Lines { latest: Default::default(), start: Instant::now(), next: EVERY, quiet: json };
        let mut each = |node, latest| progress.note(node, latest);
        let [a, b] =
            self.both(&mut each, |message| if let FromNode::Hello(hello) = message { Some(hello) } else { None })?;
        self.send(0, &ToNode::Peer(b))?;
        self.send(1, &ToNode::Peer(a))?;
        self.both(&mut each, |message| matches!(message, FromNode::Ready).then_some(()))?;
        (0..2).try_for_each(|node| self.send(node, &ToNode::Start))?;
        let start = Instant::now();
        self.both(&mut each, |message| matches!(message, FromNode::Stopped).then_some(()))?;
        (0..2).try_for_each(|node| self.send(node, &ToNode::Drain))?;
        let [a, b] =
            self.both(&mut each, |message| if let FromNode::Totals(totals) = message { Some(totals) } else { None })?;
        self.send(0, &ToNode::Totals(b))?;
        self.send(1, &ToNode::Totals(a))?;
        let nodes: [NodeReport; 2] =
            self.both(&mut each, |message| if let FromNode::Report(report) = message { Some(*report) } else { None })?;
        let seconds = start.elapsed().as_secs_f64();
        (0..2).try_for_each(|node| self.send(node, &ToNode::Bye))?;
        let ok = nodes.iter().all(|node| !node.rss.grew());
        Ok(Report { ok, seed: work.seed, seconds, pace: work.pace, nodes })
    }
}

/// The printer of progress.
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
