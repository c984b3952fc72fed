//! One of the two processes: traffic, faults, and a word to the parent now and then.
//!
//! | what a node says | what it is told | meaning |
//! | --- | --- | --- |
//! | `Hello` | `Peer` | where the nodes are |
//! | `Ready` | `Start` | each knows the other, without which a device refuses its RDMA |
//! | `Progress` | | once a second |
//! | `Stopped` | `Drain` | its time is over and nothing of its own is under way; nor of the other's |
//! | `Totals` | `Totals` | what was sent in all |
//! | `Report` | `Bye` | all of it has arrived; at the other node too |

use super::faults::Schedule;
use super::report::{NodeReport, Packets, Rss};
use super::setup::{Hello, Objects};
use super::traffic::{PATIENCE, Totals, Traffic};
use super::work::Work;
use crate::wire::{read_line, write_line};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::io::{BufReader, stdin, stdout};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// Longest that a node sleeps when there is nothing to do.
const NAP: Duration = Duration::from_millis(1);
/// Most requests posted between two looks at the completion queues.
const BURST: usize = 64;

/// What `efa soak-node` takes.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    node: usize,
    #[command(flatten)]
    work: Work,
}

/// What a node says.
#[derive(Serialize, Deserialize)]
pub(super) enum FromNode {
    Hello(Hello),
    Ready,
    Progress(Progress),
    Stopped,
    Totals(Totals),
    Report(Box<NodeReport>),
}

/// What a node is told.
#[derive(Serialize, Deserialize)]
pub(super) enum ToNode {
    Peer(Hello),
    Start,
    Drain,
    Totals(Totals),
    Bye,
}

/// How far a node is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) operations: u64,
    pub(super) resent: u64,
    pub(super) rss: u64,
    pub(super) fault: String,
}

/// Where a node is on its way to the end.
#[derive(Debug, PartialEq)]
enum Phase {
    Running,
    /// No new traffic; slots are released and read back.
    Stopping,
    Stopped,
    /// Neither node begins anything any more.
    Draining,
    /// The other node's totals are awaited.
    Drained,
    Comparing(Totals),
    /// This node has all, but the other may miss an acknowledgement.
    Done,
}

/// Runs `efa soak-node`.
pub(crate) fn main(options: &Options) -> Result<()> {
    let Options { node, work } = options;
    ensure!(*node < 2, "there are nodes 0 and 1");
    Runner::new(*node, work).and_then(Runner::run).with_context(|| format!("node {node}, seed {}", work.seed))
}

/// What the parent says, as it says it. This process ends when the parent does.
fn listen() -> Result<Receiver<ToNode>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        let mut parent = BufReader::new(stdin());
        loop {
            match read_line(&mut parent) {
                Ok(Some(message)) => {
                    let last = matches!(message, ToNode::Bye);
                    if sender.send(message).is_err() || last {
                        return;
                    }
                }
                Ok(None) => std::process::exit(1), // it is gone, and nobody would read why
                Err(error) => {
                    eprintln!("efa: what the parent says: {error:#}");
                    std::process::exit(1);
                }
            }
        }
    })?;
    Ok(receiver)
}

struct Runner<'a> {
    work: &'a Work,
    parent: Receiver<ToNode>,
    traffic: Traffic,
    faults: Schedule,
    phase: Phase,
    rng: fastrand::Rng,
    start: Instant,
    /// When something last completed, or the phase changed.
    active: Instant,
    next_second: Duration,
    /// Requests that may be posted now.
    budget: f64,
    budget_at: Duration,
    events: u64,
    rss: Rss,
}

impl<'a> Runner<'a> {
    fn new(node: usize, work: &'a Work) -> Result<Self> {
        let parent = listen()?;
        let objects = Objects::new(node, work.seed)?;
        let faults = Schedule::new(&objects.device, work.seed, node)?;
        write_line(&mut stdout(), &FromNode::Hello(objects.hello()))?;
        let ToNode::Peer(hello) = parent.recv()? else { bail!("the first word is where the other node is") };
        let traffic = Traffic::new(objects, &hello, node, work.seed)?;
        write_line(&mut stdout(), &FromNode::Ready)?;
        let ToNode::Start = parent.recv()? else { bail!("the second word is to start") };
        Ok(Self {
            work,
            parent,
            traffic,
            faults,
            phase: Phase::Running,
            rng: fastrand::Rng::with_seed(work.seed.wrapping_add(node as u64)),
            start: Instant::now(),
            active: Instant::now(),
            next_second: Duration::from_secs(1),
            budget: 0.0,
            budget_at: Duration::ZERO,
            events: 0,
            rss: Rss::default(),
        })
    }

    fn run(mut self) -> Result<()> {
        loop {
            let elapsed = self.start.elapsed();
            self.faults.tick(elapsed);
            let posted = self.post(elapsed)?;
            self.traffic.ring();
            let polled = self.traffic.poll()?;
            if polled {
                self.active = Instant::now();
            }
            if elapsed >= self.next_second {
                self.next_second += Duration::from_secs(1);
                self.every_second(elapsed)?;
            }
            self.read_parent()?;
            self.advance(elapsed)?;
            if self.phase == Phase::Done && self.parent.try_recv().is_ok() {
                return Ok(());
            }
            if !polled && posted == 0 {
                self.idle()?;
            }
        }
    }

    /// Posts as much as the pace allows; how much that was.
    fn post(&mut self, elapsed: Duration) -> Result<usize> {
        match self.phase {
            Phase::Running => {}
            Phase::Stopping | Phase::Stopped => return Ok(self.traffic.post_last()?.into()),
            _ => return Ok(0),
        }
        let pace = self.work.pace as f64;
        let earned = (elapsed - self.budget_at).as_secs_f64() * pace;
        self.budget_at = elapsed;
        // What was missed for longer than a moment is not made up for.
        self.budget = (self.budget + earned).min((pace / 50.0).max(1.0));
        let allowed = if self.work.pace == 0 { BURST } else { (self.budget as usize).min(BURST) };
        let mut posted = 0;
        for _ in 0..2 * BURST {
            if posted == allowed {
                break;
            }
            posted += usize::from(self.traffic.post_any()?);
        }
        self.budget -= posted as f64;
        Ok(posted)
    }

    /// Sleeps a little, in one of the ways there are.
    fn idle(&mut self) -> Result<()> {
        if self.rng.bool() {
            let which = self.rng.usize(..2);
            self.events += u64::from(self.traffic.objects.cqs[which].wait_event(NAP)?);
        } else if self.work.pace == 0 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP / 2);
        }
        Ok(())
    }

    fn every_second(&mut self, elapsed: Duration) -> Result<()> {
        let warm_up = (self.work.duration / 10).max(Duration::from_secs(5)).min(self.work.duration);
        self.rss.sample(elapsed >= warm_up)?;
        self.traffic.check()?;
        ensure!(
            self.active.elapsed() < PATIENCE,
            "nothing has completed for {PATIENCE:?} ({:?}, fault: {}): {}",
            self.phase,
            self.faults.now(),
            self.traffic.outstanding()
        );
        let progress = Progress {
            operations: self.traffic.done.total(),
            resent: self.traffic.objects.device.counters().retrans_pkts,
            rss: self.rss.last,
            fault: self.faults.now().into(),
        };
        write_line(&mut stdout(), &FromNode::Progress(progress))
    }

    fn read_parent(&mut self) -> Result<()> {
        if self.phase == Phase::Done {
            return Ok(()); // the last word ends the run
        }
        let message = match self.parent.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => bail!("the parent says nothing any more"),
        };
        match (&self.phase, message) {
            (Phase::Stopped, ToNode::Drain) => self.enter(Phase::Draining),
            (Phase::Drained, ToNode::Totals(theirs)) => self.enter(Phase::Comparing(theirs)),
            (phase, _) => bail!("a word of the parent that does not fit: {phase:?}"),
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.active = Instant::now();
    }

    /// Goes on to the next phase once this one is over.
    fn advance(&mut self, elapsed: Duration) -> Result<()> {
        match &self.phase {
            Phase::Running if elapsed >= self.work.duration => {
                self.faults.end();
                self.enter(Phase::Stopping);
            }
            Phase::Stopping if self.traffic.is_quiet() => {
                self.enter(Phase::Stopped);
                write_line(&mut stdout(), &FromNode::Stopped)?;
            }
            Phase::Draining if self.traffic.is_quiet() => {
                self.enter(Phase::Drained);
                write_line(&mut stdout(), &FromNode::Totals(self.traffic.sent()))?;
            }
            Phase::Comparing(theirs) => {
                let theirs = *theirs;
                if self.traffic.has_all(&theirs)? {
                    self.rss.sample(true)?;
                    self.traffic.check()?;
                    self.enter(Phase::Done);
                    write_line(&mut stdout(), &FromNode::Report(Box::new(self.report())))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn report(&self) -> NodeReport {
        let device = &self.traffic.objects.device;
        NodeReport {
            operations: self.traffic.done,
            arrivals: self.traffic.arrivals,
            packets: Packets::of(&device.counters(), device.link_counters()),
            faults: self.faults.applied(),
            events: self.events,
            rss: self.rss,
        }
    }
}
